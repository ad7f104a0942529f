//! Hosts behave as Linux does where a program can tell: buffers, ports, addresses, routers.

use super::*;
use cubenet_sim::{Error, RawStream, Refusal};
use std::net::SocketAddr;

const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 3));
const ROUTER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1));

/// A client that is connected to a peer of plain bytes, whose buffers hold `bytes` each.
fn connected_to_raw(simulation: &Simulation, bytes: usize) -> (Client, Connection, RawStream) {
    let _peer = simulation.network(SERVER).stream_buffer(bytes).start();
    let raw = simulation.raw_listen("10.0.0.1:1").unwrap();
    let builder = simulation.network(CLIENT).stream_buffer(bytes);
    let network = builder.start().unwrap();
    let client = Client::default();
    let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:1");
    simulation.run_for(Duration::from_secs(1));
    (client, connection, raw.accepted().pop().unwrap())
}

#[test]
fn each_buffer_holds_twice_what_was_asked_for_and_the_rest_is_queued() {
    let simulation = Simulation::new(1);
    let (client, connection, peer) = connected_to_raw(&simulation, 8 << 10);
    peer.stop_reading();
    let mut sent: usize = 0;
    for _ in 0..40 {
        connection.send([7; 998]).unwrap();
        sent += 1_000;
        simulation.run_for(Duration::from_millis(1));
        // The peer's system takes 16 KiB, though it is not read; this one's holds 16 KiB more.
        assert_eq!(connection.queued(), sent.saturating_sub(32 << 10));
    }
    assert_eq!(client.0.lock().unwrap().writable, 0);
    peer.read_on();
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(peer.received().len(), 40_000);
    assert_eq!(connection.queued(), 0);
}

#[test]
fn what_has_arrived_before_a_reset_is_delivered_unless_the_system_loses_it() {
    for (rate, expected) in [(0.0, 3), (1.0, 0)] {
        let simulation = Simulation::new(2);
        let faults = Faults::new().with_reset_loses_unread(rate);
        simulation.set_faults(faults).unwrap();
        let (client, _connection, peer) = connected_to_raw(&simulation, 8 << 10);
        simulation.freeze(CLIENT, Duration::from_secs(1));
        for _ in 0..3 {
            peer.write(b"\x00\x02hi");
        }
        simulation.run_for(Duration::from_millis(500));
        peer.reset();
        simulation.run_for(Duration::from_secs(2));
        assert_eq!(client.messages().len(), expected);
        assert_eq!(client.closed(), [CloseReason::Reset]);
    }
}

#[test]
fn a_datagram_costs_more_of_its_buffer_than_its_length() {
    for (len, expected) in [(10, 240), (500, 156), (1_400, 86), (4_000, 23)] {
        let simulation = Simulation::new(3);
        let server = simulation.network(SERVER).datagram_buffer(100_000);
        let server = server.start().unwrap();
        server
            .listen(Transport::Udp, "10.0.0.1:7000", |_| Some(Echo))
            .unwrap();
        let raw = simulation.raw_datagrams("10.0.0.2:1").unwrap();
        simulation.freeze(SERVER, Duration::from_secs(1));
        for _ in 0..300 {
            raw.send_to((SERVER, 7_000).into(), &vec![1; len]);
        }
        simulation.run_for(Duration::from_secs(2));
        // As many as Linux 6.18 held of each length.
        assert_eq!(server.metrics().messages_in, expected, "of {len} bytes");
        assert_eq!(simulation.traffic().overflowed, 300 - expected);
    }
}

#[test]
fn a_path_that_was_set_before_its_host_had_the_address_keeps_its_conditions() {
    let simulation = Simulation::new(4);
    let conditions = Conditions::new().with_latency(Duration::from_secs(2));
    simulation.set_path(CLIENT, OTHER, conditions).unwrap();
    let _server = simulation.network(SERVER).address(OTHER).start().unwrap();
    let raw = simulation.raw_listen("10.0.0.1:1").unwrap();
    let network = simulation.network(CLIENT).start().unwrap();
    let client = Client::default();
    let _connection = client.connect(&network, Transport::Tcp, "10.0.0.1:1");
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(raw.accepted().len(), 0);
    simulation.run_for(Duration::from_secs(4));
    assert_eq!(raw.accepted().len(), 1);
}

#[test]
fn a_host_with_two_addresses_answers_from_the_one_that_was_connected_to() {
    for transport in [Transport::Tcp, Transport::Udp] {
        let simulation = Simulation::new(4);
        let server = simulation.network(SERVER).address(OTHER).start().unwrap();
        let locals = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&locals);
        let all = server.listen(transport, "0.0.0.0:7000", move |connection| {
            seen.lock().unwrap().push(connection.local_addr().ip());
            Some(Echo)
        });
        all.unwrap();
        // A port may be had once for each address, too.
        let one = server.listen(transport, "10.0.0.1:7001", |_| None::<Echo>);
        let other = server.listen(transport, "10.0.0.3:7001", |_| Some(Echo));
        let third = server.listen(transport, "10.0.0.3:7001", |_| Some(Echo));
        let _both = (one.unwrap(), other.unwrap());
        assert!(matches!(
            third,
            Err(Error::Listen {
                refusal: Refusal::InUse,
                ..
            })
        ));
        let elsewhere = server.listen(transport, "10.0.0.9:1", |_| Some(Echo));
        let refused = matches!(
            elsewhere,
            Err(Error::Listen {
                refusal: Refusal::NotOurs,
                ..
            })
        );
        assert!(refused, "{elsewhere:?}");

        let network = simulation.network(CLIENT).start().unwrap();
        let client = Client::default();
        for to in ["10.0.0.1:7000", "10.0.0.3:7000", "10.0.0.3:7001"] {
            let connection = client.connect(&network, transport, to);
            connection.send(to).unwrap();
            simulation.run_for(Duration::from_secs(1));
        }
        assert_eq!(client.messages().len(), 3, "{transport}");
        assert_eq!(*locals.lock().unwrap(), [SERVER, OTHER]);
        let taken = simulation.network(OTHER).start().map(drop);
        assert_eq!(taken.unwrap_err(), Error::HostInUse { host: SERVER });
    }
}

#[test]
fn ephemeral_ports_run_out_and_wait_a_minute_after_a_close() {
    let simulation = Simulation::new(5);
    let server = simulation.network(SERVER).start().unwrap();
    for port in [7_000, 7_001] {
        server
            .listen(Transport::Tcp, (SERVER, port), |_| Some(Echo))
            .unwrap();
    }
    let network = simulation.network(CLIENT).ephemeral_ports(50_000..=50_001);
    let network = network.start().unwrap();
    let connect = |port| network.connect(Transport::Tcp, (SERVER, port), |_| Echo);
    let is_out_of_ports = |outcome: Result<Connection, Error>| match outcome {
        Err(Error::Connect { refusal, .. }) => refusal == Refusal::NoPort,
        _ => false,
    };
    let connections = [connect(7_000).unwrap(), connect(7_000).unwrap()];
    assert!(is_out_of_ports(connect(7_000)));
    assert!(connect(7_001).is_ok(), "another peer is another matter");
    simulation.run_for(Duration::from_secs(1));
    connections[0].abort();
    simulation.run_for(Duration::from_secs(1));
    let again = connect(7_000).expect("nothing waits after a reset");
    simulation.run_for(Duration::from_secs(1));
    again.close();
    connections[1].close();
    simulation.run_for(Duration::from_secs(50));
    assert_eq!(server.metrics().closed(CloseReason::Peer), 2);
    assert!(is_out_of_ports(connect(7_000)), "both wait");
    simulation.run_for(Duration::from_secs(15));
    assert!(connect(7_000).is_ok());
}

#[test]
fn a_long_datagram_is_lost_as_often_as_any_of_its_fragments() {
    let simulation = Simulation::new(6);
    let conditions = Conditions::new().with_loss(0.1);
    simulation.set_conditions(conditions).unwrap();
    let (from, to) = ("10.0.0.2:1", "10.0.0.1:1");
    let sender = simulation.raw_datagrams(from).unwrap();
    let receiver = simulation.raw_datagrams(to).unwrap();
    for (len, fragments) in [(1_472, 1_u32), (1_473, 2), (7_392, 5), (20_000, 14)] {
        let before = simulation.traffic().fragments;
        let count = 5_000_u32;
        for _ in 0..count {
            sender.send_to(to.parse().unwrap(), &vec![1; len]);
            simulation.run_for(Duration::from_millis(1));
        }
        let arrived = receiver.received().len() as f64 / f64::from(count);
        let expected = 0.9_f64.powf(fragments.into());
        assert!(
            (arrived - expected).abs() < 0.03,
            "{len}: {arrived}, not {expected}"
        );
        let sent = simulation.traffic().fragments - before;
        let fragmented = if fragments == 1 { 0 } else { fragments * count };
        assert_eq!(sent, u64::from(fragmented), "{len}");
    }
}

#[test]
fn damage_is_shown_by_a_checksum_unless_it_is_not_to_be() {
    for (undetected, expected) in [(0.0, 0), (1.0, 500)] {
        let simulation = Simulation::new(7);
        let conditions = Conditions::new()
            .with_corrupt(1.0)
            .with_undetected(undetected);
        simulation.set_conditions(conditions).unwrap();
        let sender = simulation.raw_datagrams("10.0.0.2:1").unwrap();
        let receiver = simulation.raw_datagrams("10.0.0.1:1").unwrap();
        for _ in 0..500 {
            sender.send_to(receiver.local_addr(), b"hello, world");
        }
        simulation.run_for(Duration::from_secs(1));
        let received = receiver.received();
        assert_eq!(received.len(), expected);
        assert!(received.iter().all(|(_, bytes)| bytes != b"hello, world"));
        assert_eq!(simulation.traffic().corrupted, 500);
    }
    // A stream sends again what was damaged.
    let simulation = Simulation::new(8);
    let conditions = Conditions::new().with_corrupt(0.2).with_undetected(1.0);
    let (_server, network) = server_and_client(&simulation);
    simulation.set_conditions(conditions).unwrap();
    let client = Client::default();
    let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
    for number in 0..50_u8 {
        connection.send([number; 2_000]).unwrap();
    }
    simulation.run_for(Duration::from_secs(60));
    let expected: Vec<_> = (0..50_u8).map(|number| vec![number; 2_000]).collect();
    assert_eq!(client.messages().len(), 50);
    assert!(client.messages() == expected, "each as it was sent");
}

/// Two clients behind one router.
fn behind_a_router(simulation: &Simulation) -> [Network; 2] {
    simulation.nat(ROUTER, &[CLIENT, OTHER], Duration::from_secs(30));
    [CLIENT, OTHER].map(|host| simulation.network(host).start().unwrap())
}

#[test]
fn those_behind_a_router_are_seen_at_its_address_each_at_a_port_of_its_own() {
    for transport in [Transport::Tcp, Transport::Udp] {
        let simulation = Simulation::new(9);
        let server = simulation.network(SERVER).start().unwrap();
        let peers = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&peers);
        let listening = server.listen(transport, "10.0.0.1:7000", move |connection| {
            seen.lock().unwrap().push(connection.peer_addr());
            Some(Echo)
        });
        listening.unwrap();
        let networks = behind_a_router(&simulation);
        let client = Client::default();
        for network in &networks {
            let connection = client.connect(network, transport, "10.0.0.1:7000");
            connection.send("hello").unwrap();
        }
        simulation.run_for(Duration::from_secs(1));
        assert_eq!(client.messages().len(), 2, "{transport}");
        let peers = peers.lock().unwrap();
        assert!(peers.iter().all(|peer| peer.ip() == ROUTER), "{peers:?}");
        assert_ne!(peers[0].port(), peers[1].port());
    }
}

#[test]
fn a_router_lets_in_only_peers_that_were_sent_to_and_forgets_idle_ones() {
    let simulation = Simulation::new(10);
    let [_one, _other] = behind_a_router(&simulation);
    let inside = simulation.raw_datagrams("10.0.0.2:5").unwrap();
    let outside = simulation.raw_datagrams("10.0.0.1:1").unwrap();
    let other = simulation.raw_datagrams("10.0.0.1:2").unwrap();
    inside.send_to(outside.local_addr(), b"hello");
    simulation.run_for(Duration::from_secs(1));
    let (seen, _) = outside.received().pop().unwrap();
    other.send_to(seen, b"from a other");
    outside.send_to(seen, b"an answer");
    simulation.run_for(Duration::from_secs(31));
    assert_eq!(
        inside.received(),
        [(outside.local_addr(), b"an answer".to_vec())]
    );
    outside.send_to(seen, b"too late");
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(inside.received(), []);
    inside.send_to(outside.local_addr(), b"hello again");
    simulation.run_for(Duration::from_secs(1));
    let (now, _) = outside.received().pop().unwrap();
    assert_ne!(now, seen, "it is given another port");
}

#[test]
fn a_router_that_forgets_makes_a_new_datagram_peer_and_resets_a_stream() {
    for transport in [Transport::Tcp, Transport::Udp] {
        let simulation = Simulation::new(11);
        let (server, _) = server_and_client(&simulation);
        simulation.crash(CLIENT);
        let [network, _] = behind_a_router(&simulation);
        let client = Client::default();
        let connection = client.connect(&network, transport, "10.0.0.1:7000");
        connection.send("one").unwrap();
        simulation.run_for(Duration::from_secs(1));
        let new = IpAddr::from([203, 0, 113, 2]);
        simulation.rebind(ROUTER, new).unwrap();
        let gone = simulation.rebind(ROUTER, new).unwrap_err();
        assert_eq!(gone, Error::NoRouter { address: ROUTER });
        connection.send("two").unwrap();
        simulation.run_for(Duration::from_secs(1));
        let accepted = server.metrics().accepted;
        if transport == Transport::Tcp {
            assert_eq!(client.closed(), [CloseReason::Reset]);
            assert_eq!(accepted, 1);
        } else {
            assert_eq!(client.messages(), [b"one", b"two"]);
            assert_eq!(accepted, 2);
        }
    }
}

#[test]
fn an_end_behind_what_a_reset_threw_away_is_no_orderly_end() {
    let simulation = Simulation::new(12);
    let faults = Faults::new().with_reset_loses_unread(1.0);
    simulation.set_faults(faults).unwrap();
    let (client, connection, peer) = connected_to_raw(&simulation, 8 << 10);
    simulation.freeze(CLIENT, Duration::from_secs(1));
    peer.write(b"\x00\x02hi");
    peer.close();
    // What is sent to a socket that is closed is answered with a reset.
    connection.send("hello").unwrap();
    simulation.run_for(Duration::from_secs(2));
    assert_eq!(client.messages().len(), 0);
    assert_eq!(client.closed(), [CloseReason::Reset]);
}

/// Sends as fast as it may.
struct Pours;

impl Handler for Pours {
    fn connected(&mut self, link: &mut dyn Link) {
        self.writable(link);
    }

    fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {}

    fn writable(&mut self, link: &mut dyn Link) {
        while link.send(&[7; 1_000]).is_ok() {}
    }
}

/// Megabits a second of a stream on a path that was another for a second, measured after five
/// seconds for twenty.
fn pace(before: &Conditions, conditions: Conditions) -> f64 {
    let simulation = Simulation::builder().seed(13);
    let simulation = simulation.conditions(before.clone()).build().unwrap();
    let server = simulation.network(SERVER).start().unwrap();
    let silent = |_: &Connection| Some(Client::default());
    server
        .listen(Transport::Tcp, (SERVER, 7_000), silent)
        .unwrap();
    let network = simulation.network(CLIENT).start().unwrap();
    network
        .connect(Transport::Tcp, (SERVER, 7_000), |_| Pours)
        .unwrap();
    simulation.run_for(Duration::from_secs(1));
    simulation.set_conditions(conditions).unwrap();
    simulation.run_for(Duration::from_secs(5));
    let before = server.metrics().bytes_in;
    simulation.run_for(Duration::from_secs(20));
    (server.metrics().bytes_in - before) as f64 * 8.0 / 20.0 / 1e6
}

#[test]
fn a_stream_fills_a_narrow_path_and_slows_down_for_loss_as_it_does() {
    let path = Conditions::new()
        .with_latency(Duration::from_millis(10))
        .with_queue(64 << 10);
    let narrow = path.clone().with_bandwidth(Some(8_000_000));
    let wide = path.clone().with_bandwidth(Some(100_000_000));
    for before in [&narrow, &wide] {
        let rate = pace(before, narrow.clone());
        assert!((7.2..8.0).contains(&rate), "{rate}");
    }
    for loss in [0.001_f64, 0.01] {
        // Mathis and others, "The Macroscopic Behavior of the TCP Congestion Avoidance Algorithm".
        let expected = 1_448.0 * 8.0 / 0.02 * (1.5 / loss).sqrt() / 1e6;
        let losing = path.clone().with_loss(loss);
        let rate = pace(&losing, losing.clone());
        let ratio = rate / expected;
        assert!(
            (0.6..1.5).contains(&ratio),
            "{loss}: {rate}, not {expected}"
        );
    }
}

#[test]
fn a_writer_whose_reader_is_full_and_dies_is_told() {
    for comes_back in [false, true] {
        let simulation = Simulation::new(14);
        let writer = simulation.raw_connect(CLIENT, (SERVER, 1)).unwrap();
        let raw = simulation.raw_listen("10.0.0.1:1").unwrap();
        simulation.run_for(Duration::from_secs(5));
        let reader = raw.accepted().pop().unwrap();
        reader.stop_reading();
        writer.write(&vec![1; 200_000]);
        simulation.run_for(Duration::from_secs(5));
        simulation.crash(SERVER);
        if comes_back {
            let _again = simulation.network(SERVER).start().unwrap();
        }
        simulation.run_for(Duration::from_secs(60 * 60));
        assert_eq!(writer.end(), Some(RawEnd::Failed(CloseReason::Reset)));
    }
}

#[test]
fn a_client_whose_server_crashes_as_it_answers_is_told_when_it_sends() {
    let simulation = Simulation::new(15);
    let conditions = Conditions::new().with_latency(Duration::from_millis(100));
    simulation.set_conditions(conditions).unwrap();
    let (_server, network) = server_and_client(&simulation);
    let client = Client::default();
    let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
    simulation.run_for(Duration::from_millis(150));
    simulation.crash(SERVER);
    let _again = simulation.network(SERVER).start().unwrap();
    simulation.run_for(Duration::from_millis(100));
    connection.send("hello").unwrap();
    simulation.run_for(Duration::from_secs(5));
    assert_eq!(client.closed(), [CloseReason::Reset]);
}

#[test]
fn a_router_never_runs_out_of_ports_for_those_that_speak() {
    let simulation = Simulation::new(16);
    simulation.nat(ROUTER, &[CLIENT], Duration::from_secs(1));
    let outside = simulation.raw_datagrams("10.0.0.1:1").unwrap();
    // Each from a port of its own, of which the router remembers them all.
    for round in 0..3_u16 {
        for port in 1..=30_000 {
            let at = SocketAddr::from((CLIENT, port + 30_000 * (round % 2)));
            let inside = simulation.raw_datagrams(at).unwrap();
            inside.send_to(outside.local_addr(), b"hello");
            inside.close();
        }
        simulation.run_for(Duration::from_secs(2));
        assert_eq!(outside.received().len(), 30_000, "round {round}");
    }
}

#[test]
fn hosts_behind_one_router_reach_each_other_and_are_not_reached_from_outside() {
    let simulation = Simulation::new(17);
    let [_one, _other] = behind_a_router(&simulation);
    let inside = simulation.raw_datagrams("10.0.0.2:5").unwrap();
    let neighbour = simulation.raw_datagrams("10.0.0.3:5").unwrap();
    let outside = simulation.raw_datagrams("10.0.0.1:5").unwrap();
    inside.send_to(neighbour.local_addr(), b"hello");
    outside.send_to(neighbour.local_addr(), b"an address inside");
    simulation.run_for(Duration::from_secs(1));
    let received = neighbour.received();
    assert_eq!(received, [(inside.local_addr(), b"hello".to_vec())]);
    neighbour.send_to(inside.local_addr(), b"and back");
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(inside.received().len(), 1);
}
