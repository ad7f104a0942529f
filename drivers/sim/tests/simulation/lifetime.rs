//! Lifetimes: listeners, hosts, handlers, and what the application gave them.

use super::*;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Uses its connection as it is dropped.
struct Farewell(Connection);

impl Drop for Farewell {
    fn drop(&mut self) {
        let _ = self.0.send(b"farewell");
        self.0.close();
    }
}

impl Handler for Farewell {
    fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {}
}

#[test]
fn values_of_the_application_may_use_connections_as_they_are_dropped() {
    let simulation = Arc::new(Simulation::new(15));
    let (server, network) = server_and_client(&simulation);
    let client = Client::default();
    let used = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
    simulation.run_for(Duration::from_secs(1));
    for transport in [Transport::Tcp, Transport::Udp] {
        let held = Farewell(used.clone());
        let listening = server.listen(transport, "10.0.0.1:8000", move |_| {
            let _ = &held;
            None::<Echo>
        });
        listening.unwrap().close();
        let held = Farewell(used.clone());
        let listening = server.listen(transport, "10.0.0.1:8000", move |_| {
            let _ = &held;
            None::<Echo>
        });
        drop(listening);
        let held = Farewell(used.clone());
        simulation.set_descriptors(CLIENT, 0);
        let refused = network.connect(transport, "10.0.0.1:8000", move |_| held);
        assert!(refused.is_err());
        simulation.set_descriptors(CLIENT, usize::MAX);
        simulation.run_for(Duration::from_secs(1));
        if transport == Transport::Tcp {
            let of_callback = Arc::clone(&simulation);
            let crashes = server.listen(transport, "10.0.0.1:9000", move |connection| {
                let _ = &of_callback;
                Some(Farewell(connection.clone()))
            });
            crashes.unwrap();
            Client::default().connect(&network, transport, "10.0.0.1:9000");
        }
    }
    simulation.run_for(Duration::from_secs(1));
    server.stop(Duration::from_secs(1));
    simulation.run_for(Duration::from_secs(10));
    assert!(server.is_stopped());
    assert!(used.is_closed());
}

#[test]
fn a_connect_whose_handler_cannot_be_made_leaves_nothing() {
    for transport in [Transport::Tcp, Transport::Udp] {
        let simulation = Simulation::new(17);
        let (_server, network) = server_and_client(&simulation);
        let connecting = || {
            network.connect(transport, "10.0.0.1:7000", |connection| -> Echo {
                connection.send(b"hello").unwrap();
                panic!("on purpose");
            })
        };
        assert!(catch_unwind(AssertUnwindSafe(connecting)).is_err());
        simulation.run_for(Duration::from_secs(30));
        let metrics = network.metrics();
        assert_eq!((metrics.open, metrics.queued_bytes), (0, 0), "{transport}");
        simulation.audit().unwrap();
    }
}

#[test]
fn a_host_that_crashes_inside_a_callback_leaves_nothing_counted() {
    for transport in [Transport::Tcp, Transport::Udp] {
        let simulation = Arc::new(Simulation::new(16));
        let server = simulation.network(SERVER).start().unwrap();
        let of_callback = Arc::downgrade(&simulation);
        let crashes = move |_: &Connection| {
            of_callback.upgrade().unwrap().crash(SERVER);
            None::<Echo>
        };
        server.listen(transport, "10.0.0.1:7000", crashes).unwrap();
        let network = simulation.network(CLIENT).start().unwrap();
        let connection = network.connect(transport, "10.0.0.1:7000", |_| Echo);
        connection.unwrap().send(b"hello").unwrap();
        simulation.run_for(Duration::from_secs(30));
        assert!(server.is_stopped());
        simulation.audit().unwrap();
    }
}

#[test]
fn a_peer_accepted_as_the_listener_closes_is_closed_and_counted_once() {
    for stops in [false, true] {
        let simulation = Simulation::new(17);
        let limits = Limits::new()
            .with_max_peers(1)
            .with_full_policy(cubenet_sim::FullPolicy::EvictIdleFor(Duration::ZERO));
        let server = simulation.network(SERVER).limits(limits).start().unwrap();
        let listener = Arc::new(Mutex::new(None::<cubenet_sim::Listener>));
        let (of_callback, network) = (Arc::clone(&listener), server.clone());
        let first = std::sync::atomic::AtomicBool::new(true);
        let accepted = move |connection: &Connection| {
            connection.send(b"welcome").unwrap();
            if !first.swap(false, std::sync::atomic::Ordering::Relaxed) {
                match of_callback.lock().unwrap().take() {
                    Some(listener) if !stops => listener.close(),
                    _ => network.stop(Duration::from_secs(100)),
                }
            }
            Some(Echo)
        };
        let listening = server.listen(Transport::Udp, "10.0.0.1:7000", accepted);
        *listener.lock().unwrap() = Some(listening.unwrap());
        for nth in 1..=2 {
            let raw = simulation.raw_datagrams(([10, 0, 1, nth], 9)).unwrap();
            raw.send_to("10.0.0.1:7000".parse().unwrap(), b"hello");
            simulation.run_for(Duration::from_millis(10));
            assert!(!raw.received().is_empty(), "it was welcomed");
        }
        simulation.audit().unwrap();
        assert_eq!(server.metrics().open, 0);
        server.stop(Duration::ZERO);
        assert!(server.is_stopped());
    }
}

#[test]
fn a_simulation_cannot_be_run_from_inside_a_callback() {
    let simulation = Arc::new(Simulation::new(19));
    let server = simulation.network(SERVER).start().unwrap();
    let of_callback = Arc::downgrade(&simulation);
    let runs = move |_: &Connection| {
        of_callback.upgrade().unwrap().step();
        Some(Echo)
    };
    server
        .listen(Transport::Tcp, "10.0.0.1:7000", runs)
        .unwrap();
    let network = simulation.network(CLIENT).start().unwrap();
    Client::default().connect(&network, Transport::Tcp, "10.0.0.1:7000");
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(server.metrics().panics, 1);
    simulation.audit().unwrap();
}

#[test]
fn stopping_delivers_and_closes_and_frees_the_host() {
    let simulation = Simulation::new(10);
    let (server, network) = server_and_client(&simulation);
    let client = Client::default();
    let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
    simulation.run_for(Duration::from_secs(1));
    connection.send([7; 60_000]).unwrap();
    simulation.run_for(Duration::from_micros(150));
    server.stop(Duration::from_secs(5));
    simulation.run_for(Duration::from_secs(6));
    assert!(server.is_stopped());
    assert_eq!(client.closed(), [CloseReason::Peer]);
    assert!(
        server
            .listen(Transport::Tcp, "10.0.0.1:1", |_| Some(Echo))
            .is_err()
    );
    simulation.network(SERVER).start().unwrap();
}

#[test]
fn a_stop_does_not_wait_for_a_peer_that_has_acknowledged_everything() {
    let simulation = Simulation::new(23);
    let (server, _) = server_and_client(&simulation);
    let peer = simulation.raw_connect(CLIENT, "10.0.0.1:7000").unwrap();
    peer.write(b"\0\x05hello");
    simulation.run_for(Duration::from_secs(1));
    server.stop(Duration::from_secs(20));
    simulation.run_for(Duration::from_millis(100));
    assert!(server.is_stopped());
    assert_eq!(peer.received(), b"\0\x05hello");
    assert_eq!(peer.end(), Some(RawEnd::Orderly));
}

#[test]
fn the_core_keeps_little_of_a_connection_and_an_idle_one_holds_nothing() {
    use cubenet_core::{Decoder, Growing, RecvHalf, SendHalf};
    let halves = size_of::<RecvHalf<Decoder<Growing>>>() + size_of::<SendHalf>();
    assert!(halves <= 96, "{halves} bytes");
    let simulation = Simulation::new(20);
    let (_server, network) = server_and_client(&simulation);
    let client = Client::default();
    let connections: Vec<_> = (0..2_000)
        .map(|_| client.connect(&network, Transport::Tcp, "10.0.0.1:7000"))
        .collect();
    for connection in &connections {
        connection.send([1; 3_000]).unwrap();
    }
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(client.messages().len(), 2_000);
    let census = simulation.census();
    assert_eq!(census.connections, 4_000);
    assert_eq!((census.queued_bytes, census.partial_bytes), (0, 0));
}

/// Panics when it is closed, and uses its connection as it is dropped.
struct PanicsClosed(Connection);

impl Handler for PanicsClosed {
    fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {}

    fn closed(&mut self, _link: &mut dyn Link, _reason: CloseReason) {
        panic!("on purpose");
    }
}

impl Drop for PanicsClosed {
    fn drop(&mut self) {
        assert!(self.0.is_closed());
    }
}

#[test]
fn a_handler_that_panics_when_it_is_closed_may_use_its_connection_as_it_is_dropped() {
    for transport in [Transport::Tcp, Transport::Udp] {
        let simulation = Simulation::new(18);
        let server = simulation.network(SERVER).start().unwrap();
        let accepted = |connection: &Connection| Some(PanicsClosed(connection.clone()));
        server.listen(transport, "10.0.0.1:7000", accepted).unwrap();
        let network = simulation.network(CLIENT).start().unwrap();
        let connection = Client::default().connect(&network, transport, "10.0.0.1:7000");
        connection.send(b"hello").unwrap();
        simulation.run_for(Duration::from_secs(1));
        connection.close();
        simulation.run_for(Duration::from_secs(1));
        assert_eq!((server.metrics().panics, server.metrics().open), (1, 0));
    }
}

/// Uses its network as it is dropped.
struct UsesNetwork(Network);

impl Drop for UsesNetwork {
    fn drop(&mut self) {
        self.0.metrics();
    }
}

#[test]
fn the_closure_of_a_listener_that_closes_inside_it_may_use_the_network_as_it_is_dropped() {
    for transport in [Transport::Tcp, Transport::Udp] {
        let simulation = Simulation::new(19);
        let server = simulation.network(SERVER).start().unwrap();
        let listener = Arc::<Mutex<Option<cubenet_sim::Listener>>>::default();
        let (inside, held) = (Arc::clone(&listener), UsesNetwork(server.clone()));
        let accepted = move |_: &Connection| {
            let _ = &held;
            inside.lock().unwrap().take().unwrap().close();
            Some(Echo)
        };
        let listening = server.listen(transport, "10.0.0.1:7000", accepted);
        *listener.lock().unwrap() = Some(listening.unwrap());
        let network = simulation.network(CLIENT).start().unwrap();
        let connection = Client::default().connect(&network, transport, "10.0.0.1:7000");
        connection.send(b"hello").unwrap();
        simulation.run_for(Duration::from_secs(1));
        assert!(listener.lock().unwrap().is_none());
    }
}

#[test]
fn a_connect_over_datagrams_is_not_served_until_its_handler_is_made() {
    let simulation = Simulation::new(20);
    let network = simulation.network(CLIENT).start().unwrap();
    let peer = simulation.raw_datagrams("10.0.0.1:7000").unwrap();
    let client = Client::default();
    let handler = client.clone();
    let connection = network.connect(Transport::Udp, "10.0.0.1:7000", |connection| {
        connection.send(b"hello").unwrap();
        simulation.run_for(Duration::from_secs(1));
        let (from, _) = peer.received().pop().unwrap();
        peer.send_to(from, b"early");
        // Longer than the idle timeout.
        simulation.run_for(Duration::from_secs(1_000));
        assert_eq!(network.metrics().messages_in, 0);
        handler
    });
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(client.messages(), [b"early"]);
    assert!(!connection.unwrap().is_closed());
}

/// Connects when it is closed.
struct Reconnects(Network, Arc<Mutex<Vec<bool>>>);

impl Handler for Reconnects {
    fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {}

    fn closed(&mut self, _link: &mut dyn Link, _reason: CloseReason) {
        let connected = self.0.connect(Transport::Udp, "10.0.0.9:9", |_| Echo);
        self.1.lock().unwrap().push(connected.is_ok());
    }
}

#[test]
fn an_evicted_peer_leaves_its_room_to_the_new_one_alone() {
    let simulation = Simulation::new(21);
    let policy = cubenet_sim::FullPolicy::EvictIdleFor(Duration::from_secs(1));
    let limits = Limits::new()
        .with_max_connections(1)
        .with_max_peers(1)
        .with_full_policy(policy);
    let server = simulation.network(SERVER).limits(limits).start().unwrap();
    let reconnected = Arc::<Mutex<Vec<bool>>>::default();
    let (network, log) = (server.clone(), Arc::clone(&reconnected));
    let accepted = move |_: &Connection| Some(Reconnects(network.clone(), Arc::clone(&log)));
    server
        .listen(Transport::Udp, "10.0.0.1:7000", accepted)
        .unwrap();
    for host in [2, 3] {
        let peer = simulation.raw_datagrams(([10, 0, 0, host], 7000)).unwrap();
        peer.send_to(([10, 0, 0, 1], 7000).into(), b"hello");
        simulation.run_for(Duration::from_secs(3));
        simulation.audit().unwrap();
    }
    let metrics = server.metrics();
    let counts = (metrics.accepted, metrics.closed_total(), metrics.open);
    assert_eq!(counts, (2, 1, 1));
    assert_eq!(*reconnected.lock().unwrap(), [false]);
}

#[test]
fn what_is_sent_to_a_peer_that_is_refused_does_not_leave() {
    let simulation = Simulation::new(22);
    let server = simulation.network(SERVER).start().unwrap();
    let accepted = |connection: &Connection| {
        connection.send(b"not sent").unwrap();
        None::<Echo>
    };
    server
        .listen(Transport::Udp, "10.0.0.1:7000", accepted)
        .unwrap();
    let peer = simulation.raw_datagrams("10.0.0.2:7000").unwrap();
    peer.send_to(([10, 0, 0, 1], 7000).into(), b"hello");
    simulation.run_for(Duration::from_secs(1));
    assert!(peer.received().is_empty());
    assert_eq!(server.metrics().queued_bytes, 0);
    simulation.audit().unwrap();
}
