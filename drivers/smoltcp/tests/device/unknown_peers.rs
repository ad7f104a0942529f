//! Unknown peers: some answer no ARP, some send too much, or there are too many.

use crate::world::{MOMENT, limits, start, with_each_family};
use cubenet_smoltcp::Transport;
use std::time::Duration;

/// The host that is asked in vain where it is.
const SILENT: u8 = 99;

#[test]
fn a_peer_that_is_not_to_be_found_holds_the_others_up_for_a_moment_only() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        world.listen(Transport::Udp);
        let id = world.connect(Transport::Udp).unwrap();
        assert_eq!(world.send(id, b"hello"), Some(Ok(())));
        world.pass(MOMENT);
        assert_eq!(world.log.count("received 5"), 2);
        world.receive_datagram(SILENT, 99, 7, b"who am I?");
        world.pass(MOMENT);
        // It is asked where it is; nothing passes its answer.
        let _ = world.send(id, b"hello");
        world.pass(MOMENT);
        assert_eq!(world.log.count("received 5"), 3);
        // smoltcp asks once a second.
        world.pass(Duration::from_secs(1));
        assert_eq!(world.log.count("received 5"), 4);
        assert_eq!(world.network.counts().stalled, 0);
        // From here on it is known to be missing.
        world.receive_datagram(SILENT, 99, 7, b"who am I?");
        let _ = world.send(id, b"hello");
        world.pass(MOMENT);
        assert_eq!(world.log.count("received 5"), 6);
    });
}

#[test]
fn streams_in_handshakes_with_missing_hosts_are_used_again() {
    with_each_family(|family| {
        for connect_timeout in [Duration::from_secs(2), Duration::MAX] {
            let limits = limits()
                .with_connect_timeout(connect_timeout)
                .with_drain_timeout(Duration::from_secs(1));
            let mut world = start(family, limits).unwrap();
            world.listen(Transport::Tcp);
            for from in 1..=8 {
                world.receive_syn(SILENT, from);
            }
            world.pass(MOMENT);
            // None is left that waits, but they make way for others after three seconds, though
            // they may take any time to be answered.
            world.pass(Duration::from_secs(4));
            let id = world.connect(Transport::Tcp).unwrap();
            world.send(id, b"hello").unwrap().unwrap();
            world.pass(Duration::from_secs(2));
            assert_eq!(world.log.count("received 5"), 2);
        }
    });
}

#[test]
fn a_flood_leaves_time_for_everything_else() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        world.listen(Transport::Udp);
        for _ in 0..1_000 {
            world.receive_datagram(SILENT, 99, 7, b"flood");
        }
        let mut before = 0;
        while before < 1_000 {
            world.network.poll(world.now);
            let counts = world.network.counts();
            let seen = counts.received + counts.dropped;
            let now = seen - before;
            assert!(0 < now && now <= 32, "{now} frames in one poll");
            // What is left in the device is to be seen at once.
            if seen < 1_000 {
                assert_eq!(world.network.poll_at(world.now), world.now);
            }
            before = seen;
        }
    });
}

#[test]
fn what_arrived_in_time_counts_even_if_the_poll_was_late() {
    with_each_family(|family| {
        let limits = limits()
            .with_datagram_idle_timeout(Duration::from_secs(1))
            .with_stream_idle_timeout(Duration::from_secs(1));
        let mut world = start(family, limits).unwrap();
        world.listen(Transport::Udp);
        world.receive_datagram(SILENT, 99, 7, b"first");
        world.pass(MOMENT);
        world.receive_datagram(SILENT, 99, 7, b"second");
        // The application does something else.
        world.now = world.now.after(Duration::from_secs(5));
        world.network.poll(world.now);
        assert_eq!(world.log.count("closed"), 0);
        assert_eq!(world.log.count("received 6"), 1);
        assert_eq!(world.network.counts().accepted, 1);
    });
}

#[test]
fn what_waits_behind_many_frames_arrived_in_time_too() {
    with_each_family(|family| {
        let limits = limits().with_datagram_idle_timeout(Duration::from_secs(1));
        let mut world = start(family, limits).unwrap();
        world.listen(Transport::Udp);
        world.receive_datagram(SILENT, 99, 7, b"first");
        world.pass(MOMENT);
        // The application does something else, and more frames wait than a poll takes.
        world.now = world.now.after(Duration::from_secs(5));
        for _ in 0..200 {
            world.receive_datagram(SILENT, 99, 8, b"elsewhere");
        }
        world.receive_datagram(SILENT, 99, 7, b"second");
        for _ in 0..8 {
            world.network.poll(world.now);
        }
        assert_eq!(world.log.count("closed"), 0);
        assert_eq!(world.log.count("received 6"), 1);
        // A flood without end does not put clocks off for ever.
        world.now = world.now.after(Duration::from_secs(5));
        for _ in 0..20 {
            for _ in 0..32 {
                world.receive_datagram(SILENT, 99, 8, b"elsewhere");
            }
            world.network.poll(world.now);
        }
        assert_eq!(world.log.count("closed Timeout(Idle)"), 1);
    });
}

#[test]
fn a_listener_whose_pool_runs_dry_gets_what_another_can_spare() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        world.listen_at(Transport::Tcp, 7);
        world.listen_at(Transport::Tcp, 8);
        // Each connect takes two of eight streams, and all come to one of two listeners.
        for _ in 0..3 {
            let id = world.connect(Transport::Tcp).unwrap();
            world.send(id, b"hello").unwrap().unwrap();
            world.pass(MOMENT);
        }
        assert_eq!(world.log.count("received 5"), 6);
        assert_eq!(world.network.open(), 6);
    });
}

#[test]
fn a_peer_that_waits_for_room_gets_writable_even_if_another_takes_it_all() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        world.listen(Transport::Udp);
        for _ in 0..2 {
            let id = world.connect(Transport::Udp).unwrap();
            world.send(id, b"hello").unwrap().unwrap();
        }
        world.pass(MOMENT);
        // Peers that were accepted have the ids of the listener's port.
        let accepted = world.log.accepted();
        assert_eq!(accepted.len(), 2);
        for id in &accepted {
            while world.send(*id, b"on and on") == Some(Ok(())) {}
        }
        for _ in 0..20 {
            world.network.poll(world.now);
        }
        let notified: Vec<_> = world.log.all("writable");
        let distinct: std::collections::HashSet<_> = notified.iter().collect();
        assert_eq!(distinct.len(), 2, "{notified:?}");
    });
}

#[test]
fn a_stop_waits_for_datagrams_until_they_cannot_leave() {
    with_each_family(|family| {
        let mut world = start(family, limits()).unwrap();
        let id = world
            .connect_to(Transport::Udp, (family.host(SILENT), 99))
            .unwrap();
        world.send(id, b"hello").unwrap().unwrap();
        world.network.stop(Duration::from_secs(10), world.now);
        world.pass(MOMENT);
        assert!(!world.network.is_stopped());
        world.pass(Duration::from_secs(4));
        assert!(world.network.is_stopped());
    });
}
