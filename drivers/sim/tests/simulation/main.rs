//! What a user of the simulator relies on.

mod capture;
mod faults;
mod kernels;
mod layers;
mod lifetime;
mod workers;

use cubenet_sim::{
    Bursts, CloseReason, Conditions, ConnectError, Connection, Faults, Handler, Instant, Limits,
    Link, Message, Network, RawEnd, Report, SendError, Simulation, Timeout, Transport,
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
    fn connect_failed(&mut self, error: ConnectError) {
        panic!("it is answered: {error}");
    }

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
        network.connect(transport, to, |_| handler).unwrap()
    }

    fn messages(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().messages.clone()
    }

    fn closed(&self) -> Vec<CloseReason> {
        self.0.lock().unwrap().closed.clone()
    }
}

fn server_and_client(simulation: &Simulation) -> (Network, Network) {
    // Where there is no cost and nothing is interleaved, two are as one.
    let builder = simulation.network(SERVER).threads(2);
    let server = builder.start().unwrap();
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
    let conditions = Conditions::new()
        .with_latency(Duration::from_millis(20))
        .with_jitter(Duration::from_millis(15))
        .with_loss(0.05)
        .with_bursts(Some(
            Bursts::new().with_begin(0.001).with_end(0.1).with_loss(0.5),
        ))
        .with_duplicate(0.02)
        .with_reorder(0.02)
        .with_corrupt(0.02)
        .with_undetected(0.5)
        .with_spoof(0.02)
        .with_bandwidth(Some(20_000_000))
        .with_queue(64 * 1024)
        .with_mtu(1_500)
        .with_refuse(0.05)
        .with_reset(0.000_5)
        .with_half_open(0.000_5);
    let faults = Faults::new()
        .with_short_read(0.3)
        .with_partial_write(0.2)
        .with_full_buffer(0.1)
        .with_stall(0.02)
        .with_stall_for(Duration::from_millis(500))
        .with_accept_failure(0.1)
        .with_reset_loses_unread(0.5);
    (conditions, faults)
}

fn stormy_run(seed: u64, interleave: f64) -> (u64, u64) {
    let (conditions, faults) = storm();
    let simulation = Simulation::builder()
        .seed(seed)
        .interleave(interleave)
        .conditions(conditions)
        .faults(faults)
        .build()
        .unwrap();
    let (_server, network) = server_and_client(&simulation);
    for nth in 0..40 {
        let transport = [Transport::Tcp, Transport::Udp][nth % 2];
        let connection = network
            .connect(transport, "10.0.0.1:7000", |_| Echo)
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
    for interleave in [0.0, 0.2] {
        let first = stormy_run(42, interleave);
        assert!(first.1 > 10_000, "{first:?}");
        assert_eq!(first, stormy_run(42, interleave));
        assert_ne!(first.0, stormy_run(43, interleave).0);
    }
}

#[test]
fn a_stream_loses_nothing_to_what_goes_wrong_on_its_way() {
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
        let conditions = conditions
            .with_reset(0.0)
            .with_half_open(0.0)
            .with_refuse(0.0)
            .with_spoof(0.0);
        let builder = Simulation::builder().seed(seed);
        let simulation = builder
            .conditions(conditions)
            .faults(faults)
            .build()
            .unwrap();
        let limits = Limits::new().with_first_message_timeout(Duration::from_secs(100));
        let server = simulation.network(SERVER).limits(limits).start().unwrap();
        let receiver = Client::default();
        let handler = receiver.clone();
        let listening = server.listen(Transport::Tcp, "10.0.0.1:7000", move |_| {
            Some(handler.clone())
        });
        let limits = Limits::new().with_drain_timeout(Duration::from_secs(100));
        let network = simulation.network(CLIENT).limits(limits).start().unwrap();
        let client = Client::default();
        let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
        // Answered, however often the SYN was lost.
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
        assert_eq!(receiver.messages(), expected, "seed {seed}");
        assert_eq!(receiver.closed(), [CloseReason::Peer], "seed {seed}");
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
fn a_scheduled_function_may_schedule_another() {
    let simulation = Simulation::new(1);
    let done = Arc::<Mutex<Vec<u64>>>::default();
    let first = Arc::clone(&done);
    simulation.at(Instant::from_micros(5), move |simulation| {
        let second = Arc::clone(&first);
        simulation.at(Instant::from_micros(9), move |simulation| {
            second.lock().unwrap().push(simulation.now().as_micros());
        });
        first.lock().unwrap().push(simulation.now().as_micros());
    });
    simulation.run_until_idle();
    assert_eq!(*done.lock().unwrap(), [5, 9]);
}

#[test]
fn bad_input_is_refused_with_a_reason() {
    let simulation = Simulation::new(11);
    let (server, network) = server_and_client(&simulation);
    let taken = server.listen(Transport::Tcp, "10.0.0.1:7000", |_| Some(Echo));
    let taken = taken.unwrap_err();
    assert!(Report::new(&taken).to_string().contains("in use"));
    let foreign = server.listen(Transport::Tcp, "10.0.0.2:7000", |_| Some(Echo));
    let foreign = foreign.unwrap_err();
    assert!(
        Report::new(&foreign)
            .to_string()
            .contains("not this host's")
    );
    let name = network.connect(Transport::Tcp, "localhost:1", |_| Echo);
    assert!(name.unwrap_err().to_string().contains("numbers"));
    assert!(simulation.network(SERVER).start().is_err());
    let conditions = Conditions::new().with_loss(2.0);
    let refused = simulation.set_conditions(conditions).unwrap_err();
    assert!(refused.to_string().contains("`loss`"), "{refused}");
}
