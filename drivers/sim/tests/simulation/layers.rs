//! Streams with a layer, such as TLS, between the virtual socket and their messages.

use super::*;
use cubenet_sim::{ConnectOptions, Ends, Error, Layer, ListenOptions, MakeLayer, RawStream};
use cubenet_tests::layer::{Flipped, end, record};
use cubenet_tests::tls::Tls;
use std::net::SocketAddr;

const HELLO: Flipped = Flipped::new(b"hello");

/// What a connection with a layer saw, as words.
#[derive(Clone, Default)]
struct Words {
    words: Arc<Mutex<Vec<String>>>,
    echoes: bool,
}

impl Words {
    fn add(&self, word: impl Into<String>) {
        self.words.lock().unwrap().push(word.into());
    }

    fn all(&self) -> Vec<String> {
        self.words.lock().unwrap().clone()
    }
}

fn protocol(link: &dyn Link) -> &'static str {
    let identity = link.identity().expect("the handshake is complete");
    identity.protocol().expect("the layer has one")
}

impl Handler for Words {
    fn connected(&mut self, link: &mut dyn Link) {
        self.add(format!("connected, {}", protocol(link)));
    }

    fn connect_failed(&mut self, error: ConnectError) {
        self.add(Report::new(&error).to_string());
    }

    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        self.add(String::from_utf8_lossy(&message));
        if self.echoes {
            let _ = link.send(&message);
        }
    }

    fn closed(&mut self, link: &mut dyn Link, reason: CloseReason) {
        self.add(format!("closed, {}, {reason:?}", protocol(link)));
    }
}

/// A server whose handlers add to these words, and a client's network.
fn layered(
    simulation: &Simulation,
    limits: &Limits,
    layer: impl MakeLayer + 'static,
) -> (Network, Network, Words) {
    let builder = simulation.network(SERVER).limits(limits.clone());
    let server = builder.start().unwrap();
    let words = Words {
        echoes: true,
        ..Words::default()
    };
    let handler = words.clone();
    let accepted = move |connection: &Connection| {
        let identity = connection.identity().expect("the handshake is complete");
        handler.add(format!("accepted, {}", identity.protocol().unwrap()));
        Some(handler.clone())
    };
    let options = ListenOptions::new().layer(layer);
    let listening = server.listen_with(options, Transport::Tcp, "10.0.0.1:7000", accepted);
    listening.unwrap();
    let builder = simulation.network(CLIENT).limits(limits.clone());
    (server, builder.start().unwrap(), words)
}

fn connect(network: &Network, layer: impl MakeLayer + 'static) -> (Connection, Words) {
    connect_to(network, (SERVER, 7_000).into(), layer)
}

fn connect_to(
    network: &Network,
    address: SocketAddr,
    layer: impl MakeLayer + 'static,
) -> (Connection, Words) {
    let words = Words::default();
    let handler = words.clone();
    let options = ConnectOptions::new().layer(layer);
    let connection = network.connect_with(&options, Transport::Tcp, address, |_| handler);
    (connection.unwrap(), words)
}

fn raw(simulation: &Simulation) -> RawStream {
    simulation.raw_connect(CLIENT, "10.0.0.1:7000").unwrap()
}

/// Nothing of a network is left, and its counts say so.
fn nothing_is_left(simulation: &Simulation, network: &Network) {
    simulation.audit().unwrap();
    let metrics = network.metrics();
    assert_eq!((metrics.open, metrics.handshaking), (0, 0));
    assert_eq!((metrics.queued_bytes, metrics.held_bytes), (0, 0));
}

#[test]
fn what_the_handshake_has_shown_is_known_from_the_first_callback_to_the_last() {
    let simulation = Simulation::new(1);
    let (server, network, there) = layered(&simulation, &Limits::new(), HELLO);
    let (connection, here) = connect(&network, HELLO);
    connection.send(b"early").unwrap();
    assert_eq!(connection.queued(), 2 + 5);
    assert_eq!(connection.identity(), None);
    simulation.run_for(Duration::from_secs(1));
    connection.close();
    simulation.run_for(Duration::from_secs(1));
    let told = ["connected, flipped", "early", "closed, flipped, Local"];
    assert_eq!(here.all(), told);
    let told = ["accepted, flipped", "early", "closed, flipped, Peer"];
    assert_eq!(there.all(), told);
    nothing_is_left(&simulation, &server);
    nothing_is_left(&simulation, &network);
}

#[test]
fn a_handshake_that_fails_says_why_and_the_application_is_not_asked() {
    let simulation = Simulation::new(1);
    let (server, network, there) = layered(&simulation, &Limits::new(), HELLO);
    let (_, here) = connect(&network, Flipped::new(b"howdy"));
    simulation.run_for(Duration::from_secs(1));
    let [told] = &here.all()[..] else {
        panic!("{:?}", here.all())
    };
    assert!(told.ends_with("the peer greets with \"hello\""), "{told}");
    assert!(there.all().is_empty());
    assert_eq!(server.metrics().closed(CloseReason::Handshake), 1);
    assert_eq!(network.metrics().connect_failed, 1);
    assert_eq!(server.metrics().connect_failed, 0);
    nothing_is_left(&simulation, &server);
    nothing_is_left(&simulation, &network);
}

#[test]
fn a_handshake_has_its_time_on_both_sides() {
    let limits = Limits::new().with_handshake_timeout(Duration::from_secs(3));
    let simulation = Simulation::new(1);
    let (server, network, there) = layered(&simulation, &limits, HELLO);
    let silent = raw(&simulation);
    let mute = simulation.raw_listen("10.0.0.1:7001").unwrap();
    let (_, here) = connect_to(&network, mute.local_addr(), HELLO);
    simulation.run_for(Duration::from_millis(2_900));
    assert_eq!(server.metrics().handshaking, 1);
    assert_eq!(silent.end(), None);
    simulation.run_for(Duration::from_millis(200));
    assert!(there.all().is_empty());
    let timeout = CloseReason::Timeout(Timeout::Handshake);
    assert_eq!(server.metrics().closed(timeout), 1);
    assert!(silent.end().is_some());
    assert!(here.all()[0].contains("handshake"), "{:?}", here.all());
    nothing_is_left(&simulation, &server);
    nothing_is_left(&simulation, &network);
}

#[test]
fn the_deadline_of_a_layer_counts_too() {
    let simulation = Simulation::new(1);
    let layer = HELLO.with_patience(Duration::from_millis(500));
    let (server, _, _) = layered(&simulation, &Limits::new(), layer);
    let silent = raw(&simulation);
    simulation.run_for(Duration::from_millis(490));
    assert_eq!(silent.end(), None);
    simulation.run_for(Duration::from_millis(30));
    assert!(silent.end().is_some());
    silent.close();
    simulation.run_for(Duration::from_millis(30));
    assert_eq!(server.metrics().closed(CloseReason::Handshake), 1);
}

#[test]
fn handshakes_are_bounded_on_both_sides() {
    let limits = Limits::new().with_max_handshakes(2);
    let simulation = Simulation::new(1);
    let (server, network, _) = layered(&simulation, &limits, HELLO);
    let waiting = [raw(&simulation), raw(&simulation), raw(&simulation)];
    simulation.run_for(Duration::from_millis(100));
    let metrics = server.metrics();
    assert_eq!((metrics.handshaking, metrics.refused), (2, 1));
    assert_eq!(metrics.refused_by_handshakes, 1);
    assert_eq!(waiting.iter().filter(|raw| raw.end().is_some()).count(), 1);
    for _ in 0..2 {
        connect(&network, HELLO);
    }
    let options = ConnectOptions::new().layer(HELLO);
    let third = network.connect_with(&options, Transport::Tcp, "10.0.0.1:7000", |_| Echo);
    assert_eq!(third.unwrap_err(), Error::TooManyHandshakes { limit: 2 });
    simulation.audit().unwrap();
}

#[test]
fn datagrams_have_no_layers() {
    let simulation = Simulation::new(1);
    let (server, network, _) = layered(&simulation, &Limits::new(), HELLO);
    let error = Error::NoLayers {
        transport: Transport::Udp,
    };
    let options = ListenOptions::new().layer(HELLO);
    let listening = server.listen_with(options, Transport::Udp, "10.0.0.1:7000", |_| Some(Echo));
    assert_eq!(listening.unwrap_err(), error);
    let options = ConnectOptions::new().layer(HELLO);
    let connecting = network.connect_with(&options, Transport::Udp, "10.0.0.1:7000", |_| Echo);
    assert_eq!(connecting.unwrap_err(), error);
}

#[test]
fn a_fin_without_the_end_of_the_layer_truncates() {
    for (last, reason) in [(end(), "Peer"), (Vec::new(), "Truncated")] {
        let simulation = Simulation::new(1);
        let (_server, _, there) = layered(&simulation, &Limits::new(), HELLO);
        let peer = raw(&simulation);
        peer.write(&[&b"hello"[..], &record(b"\0\x02ok"), &last].concat());
        peer.shutdown();
        simulation.run_for(Duration::from_secs(1));
        let closed = format!("closed, flipped, {reason}");
        assert_eq!(there.all(), ["accepted, flipped", "ok", &closed]);
    }
}

#[test]
fn an_end_or_an_error_right_behind_the_handshake_is_noticed() {
    for (behind, reason) in [(end(), "Peer"), (vec![0xff, 0xff], "Layer")] {
        let simulation = Simulation::new(1);
        let (_server, _, there) = layered(&simulation, &Limits::new(), HELLO);
        let peer = raw(&simulation);
        peer.write(&[&b"hello"[..], &behind].concat());
        simulation.run_for(Duration::from_secs(1));
        peer.close();
        simulation.run_for(Duration::from_secs(1));
        let closed = format!("closed, flipped, {reason}");
        assert_eq!(there.all(), ["accepted, flipped", &closed]);
    }
}

#[test]
fn a_layer_that_gives_up_does_so_at_once_though_something_waits() {
    let simulation = Simulation::new(1);
    let (_server, network, _) = layered(&simulation, &Limits::new(), HELLO);
    let mute = simulation.raw_listen("10.0.0.1:7001").unwrap();
    let impatient = HELLO.with_patience(Duration::from_millis(100));
    let (connection, here) = connect_to(&network, mute.local_addr(), impatient);
    connection.send(b"never").unwrap();
    simulation.run_for(Duration::from_millis(90));
    let peer = mute.accepted().pop().unwrap();
    simulation.run_for(Duration::from_millis(60));
    assert_eq!(peer.end(), Some(RawEnd::Orderly));
    peer.close();
    simulation.run_for(Duration::from_millis(50));
    let told = here.all();
    assert!(told[0].ends_with("the peer does not greet"), "{told:?}");
    nothing_is_left(&simulation, &network);
}

#[test]
fn a_layer_that_panics_ends_only_its_connection() {
    let simulation = Simulation::new(1);
    let (server, network, _) = layered(&simulation, &Limits::new(), HELLO);
    let (_, here) = connect(&network, HELLO);
    raw(&simulation).write(b"panic");
    let peer = raw(&simulation);
    peer.write(b"hellopanic");
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(server.metrics().panics, 2);
    assert_eq!(server.metrics().closed(CloseReason::Panicked), 2);
    assert_eq!(here.all(), ["connected, flipped"]);
    simulation.audit().unwrap();
}

#[test]
fn a_layer_that_panics_as_it_is_made_ends_only_its_connection() {
    let simulation = Simulation::new(1);
    let never = |_: Ends| -> Box<dyn Layer> { panic!("on purpose") };
    let (server, network, _) = layered(&simulation, &Limits::new(), never);
    let (_, here) = connect(&network, HELLO);
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(server.metrics().accept_failed, 1);
    assert_eq!(here.all().len(), 1, "{:?}", here.all());
    nothing_is_left(&simulation, &server);
    nothing_is_left(&simulation, &network);
    let connecting = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        connect(&network, never);
    }));
    assert!(connecting.is_err(), "its own thread is told");
    simulation.run_for(Duration::from_secs(1));
    nothing_is_left(&simulation, &network);
}

#[test]
fn a_handshake_ends_with_its_network_or_its_host() {
    for crash in [false, true] {
        let simulation = Simulation::new(1);
        let (server, network, there) = layered(&simulation, &Limits::new(), HELLO);
        let peer = raw(&simulation);
        peer.write(b"hel");
        let mute = simulation.raw_listen("10.0.0.1:7001").unwrap();
        let (_, here) = connect_to(&network, mute.local_addr(), HELLO);
        simulation.run_for(Duration::from_millis(100));
        assert!(server.metrics().handshaking >= 1);
        if crash {
            simulation.crash(SERVER);
            simulation.crash(CLIENT);
        } else {
            server.stop(Duration::from_secs(1));
            network.stop(Duration::from_secs(1));
        }
        simulation.run_for(Duration::from_secs(2));
        assert!(server.is_stopped() && network.is_stopped());
        assert!(there.all().is_empty(), "the application was not asked");
        assert_eq!(here.all().len(), usize::from(!crash), "{:?}", here.all());
        nothing_is_left(&simulation, &server);
        nothing_is_left(&simulation, &network);
    }
}

/// Connections with TLS under all faults, some of them resumed.
fn secured_run(seed: u64, interleave: f64) -> (u64, u64) {
    let (conditions, faults) = storm();
    let builder = Simulation::builder().seed(seed).interleave(interleave);
    let builder = builder.conditions(conditions).faults(faults);
    let simulation = builder.build().unwrap();
    let tls = Tls::seeded(seed);
    let limits = Limits::new();
    let (server, network, there) = layered(&simulation, &limits, tls.server);
    for wave in 0..3 {
        for nth in 0..10 {
            let (connection, _) = connect(&network, tls.client.clone());
            for size in [1, 100, 3_000] {
                connection.send(vec![nth; size]).unwrap();
            }
            simulation.run_for(Duration::from_millis(50));
        }
        simulation.run_for(Duration::from_secs(5 + wave));
    }
    simulation.audit().unwrap();
    assert!(there.all().contains(&"accepted, TLS 1.3".to_owned()));
    assert!(server.metrics().messages_in > 20);
    (simulation.trace_hash(), simulation.events())
}

#[test]
fn one_seed_is_one_run_with_tls_too() {
    for interleave in [0.0, 0.2] {
        let first = secured_run(42, interleave);
        assert!(first.1 > 400, "{first:?}");
        assert_eq!(first, secured_run(42, interleave));
        assert_ne!(first.0, secured_run(43, interleave).0);
    }
}

#[test]
fn a_stream_with_tls_loses_nothing_to_what_goes_wrong_on_its_way() {
    let (conditions, faults) = storm();
    let conditions = conditions
        .with_reset(0.0)
        .with_half_open(0.0)
        .with_refuse(0.0);
    for seed in 0..20 {
        let builder = Simulation::builder().seed(seed);
        let builder = builder
            .conditions(conditions.clone())
            .faults(faults.clone())
            .interleave([0.0, 0.2][seed as usize % 2]);
        let simulation = builder.build().unwrap();
        let tls = Tls::seeded(seed);
        let limits = Limits::new().with_drain_timeout(Duration::from_secs(100));
        let (server, network, there) = layered(&simulation, &limits, tls.server);
        let (connection, here) = connect(&network, tls.client);
        let message = |number: usize| format!("{number}{}", "x".repeat(number * 37 % 5_000));
        let mut sent = 0;
        while sent < 200 {
            match connection.send(message(sent)) {
                Ok(()) => sent += 1,
                Err(SendError::Full) => simulation.run_for(Duration::from_millis(100)),
                Err(other) => panic!("seed {seed}: {other}: {:?}", here.all()),
            }
        }
        let enough = || here.all().len() < 201;
        let longest = Duration::from_secs(600);
        assert!(simulation.run_while(longest, enough), "seed {seed}");
        connection.close();
        simulation.run_until_idle();
        let mut told = vec!["connected, TLS 1.3".to_owned()];
        told.extend((0..200).map(message));
        told.push("closed, TLS 1.3, Local".to_owned());
        assert!(here.all() == told, "seed {seed}");
        told[0] = "accepted, TLS 1.3".to_owned();
        told[201] = "closed, TLS 1.3, Peer".to_owned();
        assert!(there.all() == told, "seed {seed}");
        nothing_is_left(&simulation, &server);
    }
}
