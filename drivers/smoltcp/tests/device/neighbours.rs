//! Hosts that are missing, too many, or out of reach, and a device that takes a frame at a time:
//! none of them may stop the others.

use crate::world::{MOMENT, World, limits, start, with_each_family};
use cubenet_smoltcp::{ConnectionId, Transport};
use std::time::Duration;

/// A host that answers when it is asked where it is.
const LIVING: u8 = 50;

const SYN: u8 = 0x02;

/// How many segments that begin a stream a host has received.
fn syns(world: &mut World, host: u8) -> usize {
    let segments = world.wire().segments(host, 6);
    segments.filter(|segment| segment[13] == SYN).count()
}

#[test]
fn a_connect_to_a_missing_host_does_not_keep_others_from_being_found() {
    with_each_family(|family| {
        let limits = limits().with_connect_timeout(Duration::from_mins(10));
        let mut world = start(family, limits).unwrap();
        world
            .connect_to(Transport::Tcp, (family.host(99), 9))
            .unwrap();
        world.pass(Duration::from_secs(5));
        for host in 100..120 {
            world.wire().living.insert(host);
            let id = world
                .connect_to(Transport::Tcp, (family.host(host), 9))
                .unwrap();
            world.pass(Duration::from_millis(1_300));
            assert!(syns(&mut world, host) > 0, "{host}");
            let now = world.now;
            world.network.with(id, now, |link| link.abort()).unwrap();
            world.pass(MOMENT);
        }
    });
}

#[test]
fn forged_syns_do_not_keep_hosts_from_being_found() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        world.listen(Transport::Tcp);
        for host in 100..120 {
            // Each from an address of its own, which smoltcp looks for first.
            world.receive_syn(200 + host % 20, 9);
            world.pass(MOMENT);
            world.wire().living.insert(host);
            let there = (family.host(host), 9);
            let id = world.connect_to(Transport::Udp, there).unwrap();
            assert_eq!(world.send(id, b"hello"), Some(Ok(())));
            world.pass(Duration::from_millis(1_300));
            assert_eq!(world.wire().datagrams(host), 1, "{host}");
            let now = world.now;
            world.network.with(id, now, |link| link.abort()).unwrap();
            world.pass(MOMENT);
        }
    });
}

#[test]
fn a_host_that_was_missing_is_found_soon_after_it_has_come() {
    with_each_family(|family| {
        let limits = limits()
            .with_connect_timeout(Duration::from_mins(10))
            .with_datagram_idle_timeout(Duration::from_mins(10));
        let mut world = start(family, limits).unwrap();
        let there = (family.host(LIVING), 9);
        world.connect_to(Transport::Tcp, there).unwrap();
        let id = world.connect_to(Transport::Udp, there).unwrap();
        for _ in 0..10 {
            assert_eq!(world.send(id, b"are you there?"), Some(Ok(())));
            world.pass(Duration::from_secs(1));
        }
        world.wire().living.insert(LIVING);
        for _ in 0..10 {
            assert_eq!(world.send(id, b"are you there?"), Some(Ok(())));
            world.pass(Duration::from_secs(1));
        }
        assert!(world.wire().datagrams(LIVING) >= 8);
        assert!(syns(&mut world, LIVING) >= 1);
    });
}

#[test]
fn a_quiet_device_sends_no_arp_request() {
    with_each_family(|family| {
        let limits = limits().with_datagram_idle_timeout(Duration::from_mins(10));
        let mut world = start(family, limits).unwrap();
        let there = (family.host(LIVING), 9);
        let id = world.connect_to(Transport::Udp, there).unwrap();
        assert_eq!(world.send(id, b"are you there?"), Some(Ok(())));
        world.pass(Duration::from_secs(5));
        let asked = world.wire().asked.len();
        assert!((1..=6).contains(&asked), "{asked}");
        let polls = world.polls;
        world.pass(Duration::from_mins(9));
        assert_eq!(world.wire().asked.len(), asked);
        assert!(world.polls - polls < 10, "{} polls", world.polls - polls);
    });
}

#[test]
fn as_many_hosts_as_the_cache_has_places_are_all_answered() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        // At these ports the test answers, not the handler.
        for port in 17..20 {
            world.listen_at(Transport::Udp, port);
        }
        // Eight hosts, as many as the network is configured for, at 50 datagrams a second together.
        for host in 10..18 {
            world.wire().living.insert(host);
        }
        for round in 0..1_500_usize {
            let host = 10 + (round % 8) as u8;
            world.receive_datagram(host, 9, 17 + u16::from(host % 3), b"question");
            world.pass(MOMENT / 30);
            let id = *world.log.accepted().last().unwrap();
            assert_eq!(world.send(id, b"answer"), Some(Ok(())), "round {round}");
            // Each is looked for once; smoltcp looks for one host a second.
            world.pass(if round < 8 { 10 * MOMENT } else { MOMENT / 30 });
            // So that there is room for the next.
            let now = world.now;
            world.network.with(id, now, |link| link.abort());
            world.polls = 0;
        }
        let answered = (10..18).map(|host| world.wire().datagrams(host));
        assert_eq!(answered.sum::<usize>(), 1_500);
    });
}

#[test]
fn a_datagram_from_where_no_way_leads_does_not_stop_the_others() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        world.wire().living.insert(LIVING);
        world.listen(Transport::Udp);
        for round in 0..10 {
            let far = family.far();
            world
                .wire()
                .receive_from(far, LIVING, 17, &[0, 9, 0, 7, 0, 9, 0, 0, b'x']);
            world.receive_datagram(LIVING, 100 + round, 7, b"hello");
            world.pass(MOMENT);
            assert_eq!(world.wire().datagrams(LIVING), 1 + usize::from(round));
            // So that there is room for the next.
            let id = *world.log.accepted().last().unwrap();
            let now = world.now;
            world.network.with(id, now, |link| link.abort()).unwrap();
            world.pass(MOMENT);
        }
        assert_eq!(world.network.counts().accepted, 10);
        let refused = world.connect_to(Transport::Udp, (family.far(), 9));
        assert!(refused.unwrap_err().to_string().contains("no route"));
    });
}

/// Sends to both, the first before the second, as often as it may.
fn fill(world: &mut World, ids: [ConnectionId; 2], sent: &mut [usize; 2]) {
    for (id, sent) in ids.into_iter().zip(sent) {
        while world.send(id, &[7; 60]) == Some(Ok(())) {
            *sent += 1;
        }
    }
}

#[test]
fn a_device_that_takes_a_frame_at_a_time_serves_all_connections() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        let ids = [10, 11].map(|host| {
            world.wire().living.insert(host);
            let there = (family.host(host), 9);
            let id = world.connect_to(Transport::Udp, there).unwrap();
            world.send(id, b"hello").unwrap().unwrap();
            // smoltcp asks for one host a second.
            world.pass(Duration::from_secs(1));
            id
        });
        let mut sent = [0; 2];
        for _ in 0..400 {
            fill(&mut world, ids, &mut sent);
            world.wire().room = Some(1);
            world.network.poll(world.now);
            world.now = world.now.after(Duration::from_millis(1));
        }
        let [one, other] = [10, 11].map(|host| world.wire().datagrams(host));
        assert!(one.abs_diff(other) < 40, "{one} and {other}");
        assert!(one + other > 390, "the device is never idle");
    });
}

#[test]
fn streams_over_a_device_that_takes_a_frame_at_a_time_get_equal_shares() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        world.listen(Transport::Tcp);
        let messages: [&[u8]; 3] = [&[0; 100], &[0; 101], &[0; 102]];
        let ids = messages.map(|_| world.connect(Transport::Tcp).unwrap());
        world.pass(MOMENT);
        for _ in 0..3_000 {
            for (id, message) in ids.into_iter().zip(messages) {
                let _ = world.send(id, message);
            }
            world.wire().room = Some(1);
            world.network.poll(world.now);
            world.now = world.now.after(Duration::from_millis(1));
        }
        // Each message is received twice: there, and back.
        let received = [100, 101, 102].map(|len| world.log.count(&format!("received {len}")));
        let [least, most] = [received.iter().min(), received.iter().max()];
        assert!(*least.unwrap() > 200, "{received:?}");
        assert!(10 * most.unwrap() < 12 * least.unwrap(), "{received:?}");
    });
}

#[test]
fn answers_over_a_device_that_takes_a_frame_at_a_time_go_to_all() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        world.listen_at(Transport::Udp, 7);
        world.listen_at(Transport::Udp, 8);
        for host in [10, 11] {
            world.wire().living.insert(host);
            world.receive_datagram(host, 9, u16::from(host) - 3, b"hello");
            world.pass(Duration::from_secs(1));
        }
        for _ in 0..400 {
            // Both have a question for each frame that the device takes.
            world.receive_datagram(10, 9, 7, b"question");
            world.receive_datagram(11, 9, 8, b"question");
            world.wire().room = Some(1);
            world.network.poll(world.now);
            world.wire().incoming.truncate(2);
            world.now = world.now.after(Duration::from_millis(1));
        }
        let [one, other] = [10, 11].map(|host| world.wire().datagrams(host));
        assert!(one.abs_diff(other) < 60, "{one} and {other}");
    });
}

#[test]
fn one_syn_a_second_that_cannot_be_answered_leaves_a_listener_to_others() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        world.wire().living.insert(LIVING);
        world.listen(Transport::Tcp);
        // So that the device knows where it is.
        world.receive_syn(LIVING, 9);
        world.pass(MOMENT);
        for round in 0..60 {
            world.receive_syn(99, 1_000 + round);
            world.pass(Duration::from_millis(900));
            world.receive_syn(LIVING, 2_000 + round);
            world.pass(Duration::from_millis(100));
            let answers = world.wire().segments(LIVING, 6);
            let answered = |segment: &&[u8]| {
                segment[13] & 0x12 == 0x12 && segment[2..4] == (2_000 + round).to_be_bytes()
            };
            assert!(answers.filter(answered).count() > 0, "round {round}");
        }
    });
}

#[test]
fn one_address_has_no_more_streams_than_it_may() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        world.network.set_streams_per_address(3);
        world.listen(Transport::Tcp);
        // The client and the listener are both this device.
        for _ in 0..4 {
            let id = world.connect(Transport::Tcp).unwrap();
            world.send(id, b"hello").unwrap().unwrap();
            world.pass(MOMENT);
        }
        assert_eq!(world.network.counts().accepted, 3);
        assert_eq!(world.network.counts().refused, 1);
        assert_eq!(world.log.count("closed Reset"), 1);
    });
}

#[test]
fn a_peer_that_says_nothing_does_not_keep_a_stream() {
    with_each_family(|family| {
        let limits = limits().with_first_message_timeout(Duration::from_secs(5));
        let mut world = start(family, limits).unwrap();
        world.listen(Transport::Tcp);
        world.connect(Transport::Tcp).unwrap();
        world.pass(Duration::from_secs(7));
        assert_eq!(
            world.log.all("closed"),
            ["closed Timeout(FirstMessage)", "closed Peer"]
        );
        assert_eq!(world.network.open(), 0);
    });
}

#[test]
fn a_device_that_loses_its_addresses_while_it_looks_for_a_host_sleeps() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        let there = (family.host(99), 9);
        let id = world.connect_to(Transport::Udp, there).unwrap();
        world.send(id, b"hello").unwrap().unwrap();
        world.pass(Duration::from_millis(100));
        let interface = &mut world.network.stack().interface;
        interface.update_ip_addrs(|addresses| while addresses.pop().is_some() {});
        world.polls = 0;
        world.pass(Duration::from_secs(55));
        assert!(world.polls < 100, "{} polls in a while", world.polls);
        assert_eq!(world.log.count("closed Io"), 1);
    });
}
