//! What is the smoltcp driver's own: memory, ports, clocks, and when it wants to be polled. One
//! network, which talks to itself over smoltcp's loopback, in virtual time.

mod lifetime;
mod neighbours;
mod storm;
mod unknown_peers;
mod wire;
mod world;

use crate::world::{MOMENT, RING, limits, start, start_among, with_each_family};
use cubenet_smoltcp::smoltcp::config::IFACE_NEIGHBOR_CACHE_COUNT;
use cubenet_smoltcp::{Error, FullPolicy, Instant, Link, SendError, Transport};
use std::time::Duration;

#[test]
fn messages_of_every_length_go_round_the_rings() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        world.listen(Transport::Tcp);
        let id = world.connect(Transport::Tcp).unwrap();
        for len in (0..RING - 2).chain([RING - 2]) {
            world.pass(MOMENT);
            assert_eq!(world.send(id, &vec![7; len]), Some(Ok(())));
        }
        world.pass(MOMENT);
        assert_eq!(world.log.count("received"), 2 * (RING - 1));
        assert_eq!(world.log.count("received 254"), 2);
        let refused = world.send(id, &[7; RING - 1]);
        let (len, limit) = (RING - 1, RING - 2);
        assert_eq!(refused, Some(Err(SendError::TooLong { len, limit })));
    });
}

#[test]
fn a_stream_in_time_wait_lets_the_device_sleep() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        world.listen(Transport::Tcp);
        let id = world.connect(Transport::Tcp).unwrap();
        world.pass(MOMENT);
        world
            .network
            .with(id, world.now, |link| link.close())
            .unwrap();
        world.pass(MOMENT);
        assert_eq!(world.log.count("closed"), 2);
        let before = world.polls;
        world.pass(Duration::from_mins(1));
        assert!(world.polls - before < 40, "{} polls", world.polls - before);
        assert_eq!(world.network.poll_at(world.now), Instant::NEVER);
    });
}

#[test]
fn datagrams_that_keep_leaving_are_not_given_up() {
    with_each_family(|family| {
        let limits = limits().with_write_stall_timeout(Duration::from_secs(1));
        let mut world = start(family, limits).unwrap();
        world.listen(Transport::Udp);
        let id = world.connect(Transport::Udp).unwrap();
        for _ in 0..300 {
            assert_eq!(world.send(id, &[7; 50]), Some(Ok(())));
            world.pass(Duration::from_millis(10));
        }
        assert_eq!(world.network.counts().stalled, 0);
        assert_eq!(world.log.count("received"), 600);
    });
}

#[test]
fn datagrams_sent_before_every_poll_are_not_given_up() {
    with_each_family(|family| {
        let limits = limits().with_write_stall_timeout(Duration::from_secs(1));
        let mut world = start(family, limits).unwrap();
        let id = world.connect(Transport::Udp).unwrap();
        for _ in 0..1_000 {
            assert_eq!(world.send(id, &[7; 50]), Some(Ok(())));
            world.network.poll(world.now);
            world.now = world.now.after(Duration::from_millis(5));
        }
        assert_eq!(world.network.counts().stalled, 0);
    });
}

#[test]
fn a_port_that_was_freed_lets_the_device_sleep() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        let id = world.connect(Transport::Udp).unwrap();
        let ask = |link: &mut dyn Link| {
            link.send(b"x").unwrap();
            link.abort();
        };
        world.network.with(id, world.now, ask).unwrap();
        world.pass(Duration::from_mins(2));
        assert_eq!(world.network.poll_at(world.now), Instant::NEVER);
    });
}

#[test]
fn open_connections_let_the_device_sleep() {
    with_each_family(|family| {
        let hour = Duration::from_hours(1);
        let limits = limits()
            .with_stream_idle_timeout(hour)
            .with_datagram_idle_timeout(hour)
            .with_first_message_timeout(hour);
        let mut world = start(family, limits).unwrap();
        for transport in [Transport::Tcp, Transport::Udp] {
            world.listen(transport);
            let id = world.connect(transport).unwrap();
            world.send(id, b"hello").unwrap().unwrap();
            world.pass(MOMENT);
        }
        world.pass(Duration::from_secs(10));
        assert_eq!(world.log.count("received"), 4);
        let before = world.polls;
        world.pass(Duration::from_mins(10));
        assert!(world.polls - before < 10, "{} polls", world.polls - before);
        assert_eq!(world.network.open(), 4);
    });
}

#[test]
fn a_port_with_little_memory_evicts_the_peer_that_is_idle_longest() {
    with_each_family(|family| {
        let limits =
            limits().with_full_policy(FullPolicy::EvictIdleFor(Duration::from_millis(100)));
        let mut world = start(family, limits).unwrap();
        world.listen(Transport::Udp);
        // There is room for two peers; the first client goes without a word.
        for _ in 0..3 {
            let id = world.connect(Transport::Udp).unwrap();
            world.send(id, b"hello").unwrap().unwrap();
            world.pass(MOMENT);
            world
                .network
                .with(id, world.now, |link| link.abort())
                .unwrap();
            world.pass(MOMENT);
        }
        assert_eq!(world.log.count("closed Overflow"), 1);
        assert_eq!(world.log.count("received 5"), 6);
    });
}

#[test]
fn a_port_is_free_again_once_its_connection_has_ended() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        world.listen(Transport::Udp);
        for _ in 0..10 {
            let first = world.connect(Transport::Udp).unwrap();
            let second = world.connect(Transport::Udp).unwrap();
            let none = world.connect(Transport::Udp).unwrap_err();
            assert!(none.to_string().contains("add_port"), "{none}");
            for id in [first, second] {
                world
                    .network
                    .with(id, world.now, |link| link.close())
                    .unwrap();
            }
            world.pass(Duration::from_millis(1));
            assert!(world.network.with(first, world.now, |_| ()).is_none());
        }
    });
}

#[test]
fn after_full_there_is_a_writable() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        world.listen(Transport::Tcp);
        let id = world.connect(Transport::Tcp).unwrap();
        // Before the answer, too.
        while world.send(id, &[7; 20]) == Some(Ok(())) {}
        world.pass(MOMENT);
        assert_eq!(world.log.count("writable"), 1);
        while world.send(id, &[7; 100]) == Some(Ok(())) {}
        world.pass(MOMENT);
        assert_eq!(world.log.count("writable"), 2);
    });
}

#[test]
fn it_stops_soon() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        for transport in [Transport::Tcp, Transport::Udp] {
            world.listen(transport);
            let id = world.connect(transport).unwrap();
            world.send(id, b"hello").unwrap().unwrap();
            world.pass(MOMENT);
        }
        world.network.stop(Duration::from_secs(5), world.now);
        world.pass(MOMENT);
        assert!(world.network.is_stopped());
        assert_eq!(world.log.count("closed"), 4);
        assert!(matches!(world.connect(Transport::Tcp), Err(Error::Stopped)));
    });
}

#[test]
fn memory_that_does_not_fit_is_refused_with_a_reason() {
    with_each_family(|family| {
        let long = limits().with_max_message(RING - 1);
        let error = start(family, long).err().unwrap().to_string();
        assert!(
            error.contains("max_message") && error.contains("receive ring"),
            "{error}"
        );
        let long = limits().with_max_datagram(RING + 1);
        let error = start(family, long).err().unwrap().to_string();
        assert!(
            error.contains("max_datagram") && error.contains("scratch"),
            "{error}"
        );
        let many = IFACE_NEIGHBOR_CACHE_COUNT + 1;
        let error = start_among(family, limits(), many).err().unwrap();
        let error = error.to_string();
        assert!(
            error.contains("SMOLTCP_IFACE_NEIGHBOR_CACHE_COUNT"),
            "{error}"
        );
    });
}
