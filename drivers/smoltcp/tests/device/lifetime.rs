//! How connections, connects, ports and the network itself come to an end.

use crate::world::{MOMENT, World, limits, start, with_each_family};
use cubenet_smoltcp::{ConnectionId, Instant, Transport};
use std::time::Duration;

/// A host that does not exist.
const MISSING: u8 = 99;
/// A host that answers when it is asked where it is.
const LIVING: u8 = 50;

fn close(world: &mut World, ids: &[ConnectionId]) {
    for id in ids {
        let now = world.now;
        world.network.with(*id, now, |link| link.close()).unwrap();
    }
}

#[test]
fn a_network_stops_after_a_datagram_connection_has_expired() {
    with_each_family(|family| {
        let limits = limits().with_datagram_idle_timeout(Duration::from_secs(1));
        let mut world = start(family, limits).unwrap();
        world.connect(Transport::Udp).unwrap();
        world.pass(Duration::from_secs(2));
        assert_eq!(world.log.count("closed Timeout(Idle)"), 1);
        world.network.stop(Duration::from_secs(5), world.now);
        world.pass(MOMENT);
        assert!(world.network.is_stopped());
    });
}

#[test]
fn a_device_that_stops_does_not_sleep_before_it_has_stopped() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        let id = world.connect(Transport::Udp).unwrap();
        world.pass(MOMENT);
        // The device takes nothing, so that the close datagram cannot leave.
        world.wire().room = Some(0);
        world.send(id, b"hello").unwrap().unwrap();
        world.network.stop(Duration::from_secs(2), world.now);
        world.pass(MOMENT);
        while !world.network.is_stopped() {
            let at = world.network.poll_at(world.now);
            assert_ne!(at, Instant::NEVER, "it sleeps for ever");
            world.now = at.max(world.now.after(Duration::from_millis(1)));
            world.network.poll(world.now);
        }
    });
}

#[test]
fn close_datagrams_to_missing_hosts_do_not_silence_a_port() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        world.wire().living.insert(LIVING);
        // Nothing is sent back from here but close datagrams.
        world.listen_at(Transport::Udp, 17);
        for round in 0..20 {
            world.receive_datagram(MISSING, 100 + round, 17, b"hello");
            world.receive_datagram(LIVING, 200 + round, 17, b"hello");
            world.pass(MOMENT);
            let accepted = world.log.accepted();
            let [.., missing, living] = accepted[..] else {
                panic!("{accepted:?}")
            };
            close(&mut world, &[missing]);
            world.pass(Duration::from_secs(4));
            assert_eq!(world.send(living, b"still here"), Some(Ok(())));
            world.pass(MOMENT);
            close(&mut world, &[living]);
            world.pass(MOMENT);
        }
        // A message and a close datagram each.
        assert_eq!(world.wire().datagrams(LIVING), 40);
    });
}

#[test]
fn a_connect_that_failed_frees_its_stream_at_once() {
    with_each_family(|family| {
        let limits = limits()
            .with_connect_timeout(Duration::from_secs(1))
            .with_drain_timeout(Duration::from_mins(1));
        let mut world = start(family, limits).unwrap();
        world.wire().living.insert(LIVING);
        for round in 1..=3 {
            for _ in 0..4 {
                for host in [MISSING, LIVING] {
                    let there = (family.host(host), 9);
                    world.connect_to(Transport::Tcp, there).unwrap();
                }
            }
            world.pass(Duration::from_secs(2));
            assert_eq!(world.log.count("failed"), 8 * round);
        }
    });
}

#[test]
fn a_steady_exchange_over_a_slow_device_is_not_taken_for_stuck() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        world.wire().living.insert(LIVING);
        let there = (family.host(LIVING), 9);
        let id = world.connect_to(Transport::Udp, there).unwrap();
        world.send(id, &[7; 64]).unwrap().unwrap();
        world.pass(MOMENT);
        world.wire().room = Some(0);
        // Four datagrams fill the ring of 256 bytes.
        for _ in 0..3 {
            world.send(id, &[7; 64]).unwrap().unwrap();
        }
        for _ in 0..40 {
            world.send(id, &[7; 64]).unwrap().unwrap();
            world.wire().room = Some(1);
            world.network.poll(world.now);
            world.now = world.now.after(MOMENT);
            assert_eq!(world.wire().room, Some(0), "one leaves");
        }
        assert_eq!(world.network.counts().stalled, 0);
        assert_eq!(world.wire().datagrams(LIVING), 41);
    });
}

#[test]
fn connections_end_as_soon_as_their_address_is_gone() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        world.wire().living.insert(LIVING);
        for transport in [Transport::Tcp, Transport::Udp] {
            world.listen(transport);
            let id = world.connect(transport).unwrap();
            world.send(id, b"hello").unwrap().unwrap();
            world.pass(MOMENT);
        }
        assert_eq!(world.network.open(), 4);
        let interface = &mut world.network.stack().interface;
        interface.update_ip_addrs(|addresses| {
            addresses.remove(0);
        });
        world.network.poll(world.now);
        assert_eq!(world.log.count("closed Io"), 4);
        assert_eq!(world.network.open(), 0);
        // At the other address it goes on, once it may be asked where it is.
        world.pass(Duration::from_secs(1));
        let own = family.own()[1];
        for transport in [Transport::Tcp, Transport::Udp] {
            let id = world.connect_to(transport, (own, 7)).unwrap();
            world.send(id, b"again").unwrap().unwrap();
        }
        world.pass(MOMENT);
        assert_eq!(world.log.count("received 5"), 8);
    });
}

#[test]
fn answers_leave_from_an_address_that_the_device_has() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        world.wire().living.insert(LIVING);
        world.listen(Transport::Udp);
        world.receive_datagram(LIVING, 9, 7, b"hello");
        world.pass(MOMENT);
        assert_eq!(world.wire().datagrams(LIVING), 1);
        let id = world.log.accepted()[0];
        world.wire().room = Some(0);
        world.send(id, b"waits").unwrap().unwrap();
        world.network.poll(world.now);
        let interface = &mut world.network.stack().interface;
        interface.update_ip_addrs(|addresses| {
            addresses.remove(0);
        });
        world.wire().room = None;
        world.pass(MOMENT);
        // Another host may have that address now: nothing is sent in its name.
        assert_eq!(world.wire().datagrams(LIVING), 1);
        assert_eq!(world.send(id, b"gone"), None);
    });
}

#[test]
fn a_close_is_local_though_the_peer_closes_before_the_next_poll() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        world.wire().living.insert(LIVING);
        world.listen(Transport::Udp);
        for port in [1, 2] {
            world.receive_datagram(LIVING, port, 7, b"hello");
            world.pass(MOMENT);
            let id = *world.log.accepted().last().unwrap();
            close(&mut world, &[id]);
            world.receive_datagram(LIVING, port, 7, b"");
            world.network.poll(world.now);
        }
        assert_eq!(world.log.all("closed"), ["closed Local", "closed Local"]);
    });
}

#[test]
fn nothing_is_told_of_a_connection_that_was_closed_but_its_end() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        world.wire().living.insert(LIVING);
        world.listen(Transport::Udp);
        world.receive_datagram(LIVING, 1, 7, b"hello");
        world.pass(MOMENT);
        let id = world.log.accepted()[0];
        close(&mut world, &[id]);
        world.receive_datagram(LIVING, 1, 7, &[0; 101]);
        world.network.poll(world.now);
        assert_eq!(world.log.count("error"), 0);
        assert_eq!(world.log.count("closed Local"), 1);
        assert_eq!(world.network.counts().dropped, 1);
    });
}

#[test]
fn a_client_is_not_refused_after_a_connect_has_taken_the_last_stream() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        world.wire().living.insert(LIVING);
        world.listen(Transport::Tcp);
        // So that the device knows where it is.
        let id = world
            .connect_to(Transport::Udp, (family.host(LIVING), 9))
            .unwrap();
        world.send(id, b"hello").unwrap().unwrap();
        world.pass(MOMENT);
        for _ in 0..8 {
            let there = (family.host(LIVING), 9);
            world.connect_to(Transport::Tcp, there).unwrap();
        }
        // It speaks before the network is polled again.
        world.receive_syn(LIVING, 1);
        world.pass(MOMENT);
        let resets = world.wire().segments(LIVING, 6);
        let resets = resets.filter(|segment| segment[13] & 0x04 != 0).count();
        assert_eq!(resets, 0, "no answer is better than a refusal");
    });
}

#[test]
fn a_clock_that_was_set_back_stands_still() {
    with_each_family(|family| {
        let limits = limits().with_datagram_idle_timeout(Duration::from_mins(1));
        let mut world = start(family, limits).unwrap();
        world.now = Instant::from_micros(3_600_000_000);
        world.connect(Transport::Udp).unwrap();
        world.pass(MOMENT);
        let set_back = Instant::from_micros(1_000_000);
        world.network.poll(set_back);
        let at = world.network.poll_at(set_back);
        assert!(at > world.now, "{at:?}");
        // It has caught up.
        world.pass(Duration::from_secs(61));
        assert_eq!(world.log.count("closed Timeout(Idle)"), 1);
    });
}

#[test]
fn a_listener_of_another_network_is_not_closed() {
    with_each_family(|family| {
        let mut one = start(family, limits()).unwrap();
        let mut other = start(family, limits()).unwrap();
        for transport in [Transport::Tcp, Transport::Udp] {
            let theirs = other.listen(transport);
            one.listen(transport);
            one.network.close_listener(theirs);
            let id = one.connect(transport).unwrap();
            one.send(id, b"hello").unwrap().unwrap();
        }
        one.pass(MOMENT);
        assert_eq!(one.log.count("received 5"), 4);
    });
}

#[test]
fn a_connect_fails_when_its_local_address_is_removed() {
    with_each_family(|family| {
        for transport in [Transport::Tcp, Transport::Udp] {
            let mut world = start(family, limits()).unwrap();
            let there = (family.host(LIVING), 9);
            world.connect_to(transport, there).unwrap();
            let interface = &mut world.network.stack().interface;
            interface.update_ip_addrs(|addresses| {
                addresses.clear();
            });
            assert_eq!(world.network.poll_at(world.now), world.now);
            world.network.poll(world.now);
            assert_eq!(world.log.count("failed"), 1, "{transport}");
            assert_eq!(world.network.open(), 0);
        }
    });
}

#[test]
fn a_connect_with_a_clock_that_was_set_back_has_its_whole_timeout() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        world.now = Instant::from_micros(3_600_000_000);
        world.pass(MOMENT);
        let now = std::mem::replace(&mut world.now, Instant::from_micros(1_000_000));
        let there = (family.host(MISSING), 9);
        world.connect_to(Transport::Tcp, there).unwrap();
        world.now = now;
        world.pass(Duration::from_secs(9));
        assert_eq!(world.log.count("failed"), 0);
        world.pass(Duration::from_secs(2));
        assert_eq!(world.log.count("failed"), 1);
    });
}
