//! What a user of the simulator relies on.

use cubenet_sim::{
    CloseReason, Conditions, Connection, Faults, Handler, Instant, Limits, Link, Message, Network,
    RawEnd, SendError, Simulation, Timeout, Transport,
};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

struct Echo;

impl Handler for Echo {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        let _ = link.send(&message);
    }
}

/// What a client saw.
#[derive(Default)]
struct Seen {
    messages: Vec<Vec<u8>>,
    writable: usize,
    closed: Vec<CloseReason>,
}

#[derive(Clone, Default)]
struct Client(Arc<Mutex<Seen>>);

impl Handler for Client {
    fn received(&mut self, _link: &mut dyn Link, message: Message<'_>) {
        self.0.lock().unwrap().messages.push(message.to_vec());
    }

    fn writable(&mut self, _link: &mut dyn Link) {
        self.0.lock().unwrap().writable += 1;
    }

    fn closed(&mut self, _link: &mut dyn Link, reason: CloseReason) {
        self.0.lock().unwrap().closed.push(reason);
    }
}

impl Client {
    fn connect(&self, network: &Network, transport: Transport, to: &str) -> Connection {
        let handler = self.clone();
        network
            .connect(transport, to, move |outcome| {
                outcome.expect("it is answered");
                Some(handler)
            })
            .unwrap()
    }

    fn messages(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().messages.clone()
    }

    fn closed(&self) -> Vec<CloseReason> {
        self.0.lock().unwrap().closed.clone()
    }
}

fn server_and_client(simulation: &Simulation) -> (Network, Network) {
    let server = simulation.network(SERVER).start().unwrap();
    for transport in [Transport::Tcp, Transport::Udp] {
        server
            .listen(transport, "0.0.0.0:7000", |_| Some(Echo))
            .unwrap();
    }
    let client = simulation.network(CLIENT).start().unwrap();
    (server, client)
}

#[test]
fn messages_come_back_over_both_transports() {
    for transport in [Transport::Tcp, Transport::Udp] {
        let simulation = Simulation::new(1);
        let (server, network) = server_and_client(&simulation);
        let client = Client::default();
        let connection = client.connect(&network, transport, "10.0.0.1:7000");
        for number in 0..100_u8 {
            connection.send([number; 60]).unwrap();
        }
        simulation.run_for(Duration::from_secs(1));
        let expected: Vec<_> = (0..100_u8).map(|number| vec![number; 60]).collect();
        assert_eq!(client.messages(), expected);
        connection.close();
        simulation.run_for(Duration::from_secs(10));
        assert_eq!(client.closed(), [CloseReason::Local]);
        assert_eq!(server.metrics().closed(CloseReason::Peer), 1);
        simulation.audit().unwrap();
    }
}

/// All faults at once.
fn storm() -> (Conditions, Faults) {
    let conditions = Conditions {
        latency: Duration::from_millis(20),
        jitter: Duration::from_millis(15),
        loss: 0.05,
        duplicate: 0.02,
        reorder: 0.02,
        corrupt: 0.02,
        spoof: 0.02,
        bandwidth: Some(20_000_000),
        queue: 64 * 1024,
        refuse: 0.05,
        reset: 0.000_5,
        half_open: 0.000_5,
    };
    let faults = Faults {
        short_read: 0.3,
        partial_write: 0.2,
        full_buffer: 0.1,
        stall: 0.02,
        stall_for: Duration::from_millis(500),
        accept_failure: 0.1,
    };
    (conditions, faults)
}

fn stormy_run(seed: u64) -> (u64, u64) {
    let (conditions, faults) = storm();
    let simulation = Simulation::builder()
        .seed(seed)
        .conditions(conditions)
        .faults(faults)
        .build()
        .unwrap();
    let (_server, network) = server_and_client(&simulation);
    for nth in 0..40 {
        let transport = [Transport::Tcp, Transport::Udp][nth % 2];
        let connected = |outcome: Result<&Connection, _>| outcome.is_ok().then_some(Echo);
        let connection = network
            .connect(transport, "10.0.0.1:7000", connected)
            .unwrap();
        for size in [1, 100, 3_000] {
            connection.send(vec![nth as u8; size]).unwrap();
        }
    }
    simulation.run_for(Duration::from_secs(20));
    simulation.audit().unwrap();
    (simulation.trace_hash(), simulation.events())
}

#[test]
fn one_seed_is_one_run_and_another_is_another() {
    let first = stormy_run(42);
    assert!(first.1 > 10_000, "{first:?}");
    assert_eq!(first, stormy_run(42));
    assert_ne!(first.0, stormy_run(43).0);
}

#[test]
fn a_stream_loses_nothing_to_what_goes_wrong_on_its_way() {
    let (conditions, faults) = storm();
    let conditions = Conditions {
        reset: 0.0,
        half_open: 0.0,
        refuse: 0.0,
        ..conditions
    };
    for seed in 0..20 {
        let builder = Simulation::builder().seed(seed);
        let builder = builder
            .conditions(conditions.clone())
            .faults(faults.clone());
        let simulation = builder.build().unwrap();
        let (_server, network) = server_and_client(&simulation);
        let client = Client::default();
        let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
        let message = |number: usize| vec![number as u8; number * 37 % 5_000];
        let mut sent = 0;
        while sent < 200 {
            match connection.send(message(sent)) {
                Ok(()) => sent += 1,
                Err(SendError::Full) => simulation.run_for(Duration::from_millis(100)),
                Err(other) => panic!("{other}"),
            }
        }
        let enough = || client.messages().len() < 200;
        assert!(
            simulation.run_while(Duration::from_secs(600), enough),
            "seed {seed}"
        );
        assert!((0..200).map(message).eq(client.messages()), "seed {seed}");
    }
}

#[test]
fn what_was_sent_before_a_close_is_delivered_and_nothing_is_left() {
    for seed in 0..20 {
        let (conditions, faults) = storm();
        let conditions = Conditions {
            reset: 0.0,
            half_open: 0.0,
            refuse: 0.0,
            spoof: 0.0,
            ..conditions
        };
        let builder = Simulation::builder().seed(seed);
        let simulation = builder
            .conditions(conditions)
            .faults(faults)
            .build()
            .unwrap();
        let server = simulation.network(SERVER).start().unwrap();
        let heard = Client::default();
        let handler = heard.clone();
        let listening = server.listen(Transport::Tcp, "10.0.0.1:7000", move |_| {
            Some(handler.clone())
        });
        let limits = Limits {
            drain_timeout: Duration::from_secs(100),
            ..Limits::default()
        };
        let network = simulation.network(CLIENT).limits(limits).start().unwrap();
        let client = Client::default();
        let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
        // Answered, however often the call was lost.
        simulation.run_for(Duration::from_secs(60));
        for number in 0..50_u8 {
            connection.send(vec![number; 1_000]).unwrap();
        }
        connection.close();
        assert!(connection.is_closed());
        assert_eq!(connection.send(b"late"), Err(SendError::Closed));
        listening.unwrap().close();
        simulation.run_until_idle();
        let expected: Vec<_> = (0..50_u8).map(|number| vec![number; 1_000]).collect();
        assert_eq!(client.closed(), [CloseReason::Local], "seed {seed}");
        assert_eq!(heard.messages(), expected, "seed {seed}");
        assert_eq!(heard.closed(), [CloseReason::Peer], "seed {seed}");
        let census = simulation.census();
        let left = (
            census.sockets,
            census.connections,
            census.pending,
            census.timers,
        );
        assert_eq!(left, (0, 0, 0, 0), "seed {seed}: {census:?}");
    }
}

#[test]
fn nobody_there_somebody_else_there_and_a_port_where_nobody_listens() {
    let simulation = Simulation::new(3);
    let (_server, network) = server_and_client(&simulation);
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    for address in ["10.0.0.1:1", "10.9.9.9:7000"] {
        let outcomes = Arc::clone(&outcomes);
        let connected = move |outcome: Result<&Connection, cubenet_sim::ConnectError>| {
            outcomes.lock().unwrap().push(outcome.unwrap_err().reason);
            None::<Echo>
        };
        network.connect(Transport::Tcp, address, connected).unwrap();
    }
    simulation.run_for(Duration::from_secs(11));
    let timeout = CloseReason::Timeout(Timeout::Connect);
    assert_eq!(*outcomes.lock().unwrap(), [CloseReason::Refused, timeout]);
}

#[test]
fn a_partition_holds_everything_up_and_healing_lets_it_go_on() {
    let simulation = Simulation::new(4);
    let (_server, network) = server_and_client(&simulation);
    let client = Client::default();
    let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
    simulation.run_for(Duration::from_secs(1));
    simulation.partition(SERVER, CLIENT);
    connection.send(b"held up").unwrap();
    simulation.run_for(Duration::from_secs(10));
    assert!(client.messages().is_empty());
    simulation.heal(SERVER, CLIENT);
    simulation.run_for(Duration::from_secs(20));
    assert_eq!(client.messages(), [b"held up"]);
}

#[test]
fn a_peer_that_vanishes_is_noticed_by_its_silence_and_one_that_came_back_by_a_reset() {
    let limits = Limits {
        stream_idle_timeout: Duration::from_secs(30),
        ..Limits::default()
    };
    for comes_back in [false, true] {
        let simulation = Simulation::new(5);
        let (_server, _network) = server_and_client(&simulation);
        let third: IpAddr = "10.0.0.3".parse().unwrap();
        let network = simulation
            .network(third)
            .limits(limits.clone())
            .start()
            .unwrap();
        let client = Client::default();
        let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
        simulation.run_for(Duration::from_secs(1));
        simulation.crash(SERVER);
        if comes_back {
            let _again = simulation.network(SERVER).start().unwrap();
            simulation.run_for(Duration::from_secs(1));
            assert!(client.closed().is_empty(), "nobody told it yet");
            connection.send(b"are you there").unwrap();
            simulation.run_for(Duration::from_secs(1));
            assert_eq!(client.closed(), [CloseReason::Reset]);
        } else {
            simulation.run_for(Duration::from_secs(28));
            assert!(client.closed().is_empty());
            simulation.run_for(Duration::from_secs(2));
            assert_eq!(client.closed(), [CloseReason::Timeout(Timeout::Idle)]);
        }
    }
}

#[test]
fn a_reader_that_stops_holds_its_peer_up_until_that_gives_up() {
    let simulation = Simulation::new(6);
    let (_server, network) = server_and_client(&simulation);
    let raw = simulation.raw_listen("10.0.0.9:1").unwrap();
    let client = Client::default();
    let connection = client.connect(&network, Transport::Tcp, "10.0.0.9:1");
    simulation.run_for(Duration::from_secs(1));
    let peer = raw.accepted().pop().unwrap();
    peer.stop_reading();
    let mut sent = 0;
    while connection.send([0; 10_000]).is_ok() {
        sent += 1;
        simulation.run_for(Duration::from_millis(10));
    }
    assert_eq!(connection.send([0; 10_000]), Err(SendError::Full));
    assert!(
        (100..130).contains(&sent),
        "1 MiB and the sockets' buffers: {sent}"
    );
    peer.read_on();
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(peer.received().len(), sent * 10_002);
    assert_eq!(client.0.lock().unwrap().writable, 1);
    peer.stop_reading();
    while connection.send([0; 10_000]).is_ok() {}
    simulation.run_for(Duration::from_secs(29));
    assert!(client.closed().is_empty());
    simulation.run_for(Duration::from_secs(2));
    assert_eq!(client.closed(), [CloseReason::Timeout(Timeout::WriteStall)]);
    peer.read_on();
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(peer.end(), Some(RawEnd::Failed(CloseReason::Reset)));
}

#[test]
fn without_descriptors_callers_wait_until_there_is_one() {
    let simulation = Simulation::new(7);
    let server = simulation.network(SERVER).descriptors(3).start().unwrap();
    server
        .listen(Transport::Tcp, "10.0.0.1:7000", |_| Some(Echo))
        .unwrap();
    let network = simulation.network(CLIENT).start().unwrap();
    let clients: Vec<_> = (0..4).map(|_| Client::default()).collect();
    let connections: Vec<_> = clients
        .iter()
        .map(|client| client.connect(&network, Transport::Tcp, "10.0.0.1:7000"))
        .collect();
    for connection in &connections {
        connection.send(b"hello").unwrap();
    }
    let answered = || {
        clients
            .iter()
            .filter(|client| !client.messages().is_empty())
            .count()
    };
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(answered(), 2);
    assert!(server.metrics().accept_failed > 10);
    simulation.set_descriptors(SERVER, 5);
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(answered(), 4);
}

#[test]
fn a_frozen_host_goes_on_where_it_stood() {
    let simulation = Simulation::new(8);
    let (_server, network) = server_and_client(&simulation);
    let client = Client::default();
    let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
    simulation.run_for(Duration::from_secs(1));
    simulation.freeze(SERVER, Duration::from_secs(3));
    connection.send(b"wait").unwrap();
    simulation.run_for(Duration::from_millis(2_900));
    assert!(client.messages().is_empty());
    simulation.run_for(Duration::from_millis(200));
    assert_eq!(client.messages(), [b"wait"]);
}

#[test]
fn what_is_scheduled_happens_at_its_time() {
    let simulation = Simulation::new(9);
    let times = Arc::new(Mutex::new(Vec::new()));
    for second in [3, 1, 2] {
        let times = Arc::clone(&times);
        let moment = Instant::from_micros(second * 1_000_000);
        simulation.at(moment, move |simulation| {
            times.lock().unwrap().push(simulation.now());
        });
    }
    simulation.run_until_idle();
    let seconds = [1, 2, 3].map(|second| Instant::from_micros(second * 1_000_000));
    assert_eq!(*times.lock().unwrap(), seconds);
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
fn bad_input_is_refused_with_a_reason() {
    let simulation = Simulation::new(11);
    let (server, network) = server_and_client(&simulation);
    let taken = server.listen(Transport::Tcp, "10.0.0.1:7000", |_| Some(Echo));
    assert!(taken.unwrap_err().to_string().contains("in use"));
    let foreign = server.listen(Transport::Tcp, "10.0.0.2:7000", |_| Some(Echo));
    assert!(foreign.unwrap_err().to_string().contains("not this host's"));
    let name = network.connect(Transport::Tcp, "localhost:1", |_| None::<Echo>);
    assert!(name.unwrap_err().to_string().contains("numbers"));
    assert!(simulation.network(SERVER).start().is_err());
    let conditions = Conditions {
        loss: 2.0,
        ..Conditions::default()
    };
    let refused = simulation.set_conditions(conditions).unwrap_err();
    assert!(refused.to_string().contains("`loss`"), "{refused}");
}

/// A call whose first answer is lost, and the one connection that it leads to.
#[test]
fn a_call_that_is_made_again_is_answered_by_the_same_connection() {
    let conditions = Conditions {
        latency: Duration::from_millis(100),
        ..Conditions::default()
    };
    let simulation = Simulation::builder()
        .conditions(conditions)
        .build()
        .unwrap();
    let server = simulation.network(SERVER).start().unwrap();
    let greets = |connection: &Connection| {
        connection.send(connection.id().to_string()).unwrap();
        Some(Echo)
    };
    server
        .listen(Transport::Tcp, "10.0.0.1:7000", greets)
        .unwrap();
    let network = simulation.network(CLIENT).start().unwrap();
    let client = Client::default();
    let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
    simulation.run_for(Duration::from_millis(50));
    simulation.partition(SERVER, CLIENT);
    simulation.run_for(Duration::from_millis(70));
    simulation.heal(SERVER, CLIENT);
    simulation.run_for(Duration::from_secs(3));
    connection.send(b"ping").unwrap();
    simulation.run_for(Duration::from_secs(3));
    assert_eq!(server.metrics().accepted, 1);
    assert_eq!(client.messages().len(), 2);
    assert_eq!(client.messages()[1], b"ping");
}

#[test]
fn time_never_goes_back_when_a_frozen_host_thaws() {
    let simulation = Simulation::new(12);
    let (_server, _network) = server_and_client(&simulation);
    let raw = simulation.raw_datagrams("10.0.0.9:9").unwrap();
    raw.send_to("10.0.0.1:7000".parse().unwrap(), b"x");
    simulation.run_for(Duration::from_millis(500));
    simulation.freeze(SERVER, Duration::from_secs(500));
    let mut last = simulation.now();
    while simulation.step() {
        assert!(simulation.now() >= last);
        last = simulation.now();
        if last > Instant::from_micros(1_000_000_000) {
            break;
        }
    }
}

#[test]
fn a_listener_without_descriptors_tries_again_at_its_pace_however_many_call() {
    let simulation = Simulation::new(13);
    let server = simulation.network(SERVER).descriptors(1).start().unwrap();
    server
        .listen(Transport::Tcp, "10.0.0.1:7000", |_| Some(Echo))
        .unwrap();
    let network = simulation.network(CLIENT).start().unwrap();
    for _ in 0..500 {
        Client::default().connect(&network, Transport::Tcp, "10.0.0.1:7000");
    }
    simulation.run_for(Duration::from_secs(1));
    let failed = server.metrics().accept_failed;
    assert!((40..=51).contains(&failed), "{failed}");
}

#[test]
fn a_raw_call_that_was_refused_stays_refused() {
    let simulation = Simulation::new(14);
    let _host = simulation.network(SERVER).start().unwrap();
    let raw = simulation.raw_connect(CLIENT, "10.0.0.1:9").unwrap();
    simulation.run_for(Duration::from_millis(500));
    assert_eq!(raw.end(), Some(RawEnd::Failed(CloseReason::Refused)));
    let listener = simulation.raw_listen("10.0.0.1:9").unwrap();
    simulation.run_for(Duration::from_secs(5));
    assert!(listener.accepted().is_empty());
}

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
fn whatever_the_application_gave_may_use_connections_as_it_is_dropped() {
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
        let refused = network.connect(transport, "10.0.0.1:8000", move |_| {
            let _ = &held;
            None::<Echo>
        });
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
        let connection = network.connect(transport, "10.0.0.1:7000", |_| None::<Echo>);
        connection.unwrap().send(b"hello").unwrap();
        simulation.run_for(Duration::from_secs(30));
        assert!(server.is_stopped());
        simulation.audit().unwrap();
    }
}

#[test]
fn who_is_let_in_as_the_listener_closes_is_closed_and_counted_once() {
    for stops in [false, true] {
        let simulation = Simulation::new(17);
        let limits = Limits {
            max_peers: 1,
            full_policy: cubenet_sim::FullPolicy::EvictSilentFor(Duration::ZERO),
            ..Limits::default()
        };
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
            let raw = simulation
                .raw_datagrams(([10, 0, 1, nth].into(), 9))
                .unwrap();
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
fn nothing_goes_on_for_ever_about_a_host_that_crashed() {
    let simulation = Simulation::new(18);
    let (_server, network) = server_and_client(&simulation);
    let listener = simulation.raw_listen("10.0.0.9:1").unwrap();
    let client = Client::default();
    let connection = client.connect(&network, Transport::Tcp, "10.0.0.9:1");
    simulation.run_for(Duration::from_millis(10));
    connection.send([0; 50_000]).unwrap();
    simulation.step();
    simulation.crash(CLIENT);
    simulation.run_until_idle();
    drop(listener);
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
fn the_core_keeps_little_of_a_connection_and_an_idle_one_holds_nothing() {
    use cubenet_core::{Growing, Receiver, Sender};
    let halves = size_of::<Receiver<Growing>>() + size_of::<Sender>();
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
