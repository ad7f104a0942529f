//! Two cores back to back in the simulator, under its faults, with time that jumps and a
//! close or an abort at every step. The invariants are checked after every step.

use cubenet_core::{CloseReason, Handler, Limits, Link, Message, Transport};
use cubenet_sim::{Bursts, Conditions, Connection, Faults, Network, Simulation};
use cubenet_tests::late;
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

/// The longest message that is sent.
const LONGEST: usize = 5_000;

/// What one end did and saw.
#[derive(Default)]
struct End {
    connection: Option<Connection>,
    /// Messages that `send` accepted.
    sent: u32,
    received: u32,
    closed: Option<CloseReason>,
    dropped: bool,
}

type Ends = Arc<Mutex<[End; 2]>>;

/// One end's handler: checks what it receives against what the other sent.
struct Checked {
    ends: Ends,
    /// Its own place among the ends; the other's is the other.
    own: usize,
    stream: bool,
}

impl Handler for Checked {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        assert!(!link.is_closed(), "invariant 4: nothing after a close");
        let ends = &mut *self.ends.lock().unwrap();
        let end = &mut ends[self.own];
        assert_eq!(end.closed, None, "invariant 4: nothing after the end");
        if self.stream {
            // Invariants 1 and 5: whole, in order, once, however it was cut on the way.
            assert_eq!(*message, *message_of(end.received));
        }
        end.received += 1;
    }

    fn closed(&mut self, _link: &mut dyn Link, reason: CloseReason) {
        let end = &mut self.ends.lock().unwrap()[self.own];
        assert_eq!(end.closed.replace(reason), None, "invariant 4: once");
    }
}

impl Drop for Checked {
    fn drop(&mut self) {
        // A test that has failed already has nothing more to say.
        if let Ok(mut ends) = self.ends.lock() {
            ends[self.own].dropped = true;
        }
    }
}

fn message_of(number: u32) -> Vec<u8> {
    let len = match number % 7 {
        0 => 0,
        6 => LONGEST,
        _ => number as usize * 37 % 600,
    };
    (0..len).map(|at| (at as u32 ^ number) as u8).collect()
}

/// What is done to an end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Deed {
    Send,
    Close,
    Abort,
    Pause,
    Resume,
}

/// A deed, to which end, after how many steps.
type Script = Vec<(Deed, usize, usize)>;

#[derive(Clone, Debug)]
struct Weather {
    seed: u64,
    conditions: Conditions,
    faults: Faults,
}

struct Storm {
    simulation: Simulation,
    networks: [Network; 2],
    ends: Ends,
    stream: bool,
    steps: usize,
}

fn limits() -> Limits {
    Limits::new()
        .with_max_message(LONGEST)
        .with_max_datagram(LONGEST)
        .with_max_queued(20_000)
        .with_low_watermark(5_000)
        .with_max_queued_total(60_000)
        // So slow a path takes its time.
        .with_stream_idle_timeout(Duration::from_secs(10_000))
        .with_write_stall_timeout(Duration::from_secs(5_000))
        .with_frame_timeout(Duration::from_secs(5_000))
}

impl Storm {
    fn new(weather: &Weather, transport: Transport) -> Self {
        let builder = Simulation::builder().seed(weather.seed);
        let builder = builder.conditions(weather.conditions.clone());
        let simulation = builder.faults(weather.faults.clone()).build().unwrap();
        let start = |host| {
            let builder = simulation.network(host).limits(limits());
            builder.stream_buffer(8_000).start().unwrap()
        };
        let networks = [start(CLIENT), start(SERVER)];
        let ends = Ends::default();
        let stream = transport == Transport::Tcp;
        let of_server = Arc::clone(&ends);
        let accepted = move |connection: &Connection| {
            let end = &mut of_server.lock().unwrap()[1];
            // A SYN that was answered twice, or a forged peer: one of them is the other end.
            if end.connection.is_some() {
                return None;
            }
            end.connection = Some(connection.clone());
            Some(Checked {
                ends: Arc::clone(&of_server),
                own: 1,
                stream,
            })
        };
        networks[1]
            .listen(transport, (SERVER, 7), accepted)
            .unwrap();
        let of_client = Arc::clone(&ends);
        let connected = move |outcome: Result<&Connection, _>| {
            outcome.is_ok().then(|| Checked {
                ends: of_client,
                own: 0,
                stream,
            })
        };
        let connection = networks[0].connect(transport, (SERVER, 7), late(connected));
        ends.lock().unwrap()[0].connection = Some(connection.unwrap());
        Storm {
            simulation,
            networks,
            ends,
            stream,
            steps: 0,
        }
    }

    fn perform(&self, deed: Deed, own: usize) {
        let (connection, number) = {
            let end = &self.ends.lock().unwrap()[own];
            let Some(connection) = end.connection.clone() else {
                return;
            };
            (connection, end.sent)
        };
        match deed {
            Deed::Send => {
                if connection.send(message_of(number)).is_ok() {
                    self.ends.lock().unwrap()[own].sent += 1;
                }
            }
            Deed::Close => connection.close(),
            Deed::Abort => connection.abort(),
            Deed::Pause => connection.pause(),
            Deed::Resume => connection.resume(),
        }
        self.check();
    }

    /// Steps, and checks after each. Returns whether there was one.
    fn step(&mut self) -> bool {
        let before = self.simulation.now();
        let stepped = self.simulation.step();
        assert!(self.simulation.now() >= before, "time goes on");
        self.steps += 1;
        self.check();
        stepped
    }

    /// What holds at every moment.
    fn check(&self) {
        // Invariant 6, and that what is counted is there.
        self.simulation.audit().unwrap();
        let census = self.simulation.census();
        // A handler's panic ends its connection, not the test.
        assert!(
            self.networks
                .iter()
                .all(|network| network.metrics().panics == 0)
        );
        // Invariant 3: two ends, each with at most one frame under way.
        let constant = size_of::<Vec<u8>>();
        assert!(census.partial_bytes <= 2 * (2 * LONGEST + constant));
        let ends = self.ends.lock().unwrap();
        for (own, other) in [(0, 1), (1, 0)] {
            if self.stream {
                assert!(ends[own].received <= ends[other].sent, "nothing is made up");
                let all = ends[own].received == ends[other].sent;
                let orderly = ends[own].closed == Some(CloseReason::Peer);
                assert!(
                    all || !orderly,
                    "invariant 5: an orderly end comes after everything"
                );
            }
        }
    }

    /// Closes what is open and runs until nothing happens any more.
    fn finish(&mut self) {
        for own in [0, 1] {
            self.perform(Deed::Resume, own);
            self.perform(Deed::Close, own);
        }
        while self.step() {}
        // The connect may be answered only now.
        self.perform(Deed::Close, 1);
        while self.step() {}
        let ends = self.ends.lock().unwrap();
        for end in ends.iter().filter(|end| end.closed.is_some()) {
            assert!(end.dropped, "invariant 8: the handler is gone");
            assert!(end.connection.as_ref().unwrap().is_closed());
        }
        let census = self.simulation.census();
        let left = (
            census.connections,
            census.queued_bytes,
            census.partial_bytes,
        );
        assert_eq!(left, (0, 0, 0), "invariant 8");
        // The two listeners stay.
        assert_eq!(
            (census.sockets, census.pending, census.timers),
            (1, 0, 0),
            "invariant 8"
        );
    }

    fn run(&mut self, script: &Script) -> u64 {
        for (deed, own, steps) in script {
            for _ in 0..*steps {
                self.step();
            }
            self.perform(*deed, *own);
        }
        self.finish();
        self.simulation.trace_hash()
    }
}

fn rate(most: f64) -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), 0.0..most]
}

fn bursts() -> impl Strategy<Value = Option<Bursts>> {
    let bursts = (rate(0.01), 0.05..0.5, rate(1.0));
    prop::option::of(bursts.prop_map(|(begin, end, loss)| {
        Bursts::new()
            .with_begin(begin)
            .with_end(end)
            .with_loss(loss)
    }))
}

fn weather() -> impl Strategy<Value = Weather> {
    let conditions = (
        (0..100_u64, 0..50_u64, rate(0.3), bursts()),
        (rate(0.2), rate(0.2), rate(0.2), rate(0.1)),
        (
            prop::option::of(100_000..10_000_000_u64),
            1_000..100_000_usize,
            600..1_600_usize,
            rate(1.0),
        ),
        (rate(0.3), rate(0.02), rate(0.02)),
    );
    let conditions = conditions.prop_map(|(time, datagrams, link, streams)| {
        let (latency, jitter, loss, bursts) = time;
        let (duplicate, reorder, corrupt, spoof) = datagrams;
        let ((bandwidth, queue, mtu, undetected), (refuse, reset, half_open)) = (link, streams);
        Conditions::new()
            .with_latency(Duration::from_millis(latency))
            .with_jitter(Duration::from_millis(jitter))
            .with_loss(loss)
            .with_bursts(bursts)
            .with_duplicate(duplicate)
            .with_reorder(reorder)
            .with_corrupt(corrupt)
            .with_spoof(spoof)
            .with_bandwidth(bandwidth)
            .with_queue(queue)
            .with_mtu(mtu)
            .with_undetected(undetected)
            .with_refuse(refuse)
            .with_reset(reset)
            .with_half_open(half_open)
    });
    let faults = (
        rate(1.0),
        rate(1.0),
        rate(0.5),
        rate(0.3),
        0..5_000_u64,
        rate(0.5),
        rate(1.0),
    );
    let faults = faults.prop_map(
        |(short_read, partial_write, full_buffer, stall, millis, accept, unread)| {
            Faults::new()
                .with_short_read(short_read)
                .with_partial_write(partial_write)
                .with_full_buffer(full_buffer)
                .with_stall(stall)
                .with_stall_for(Duration::from_millis(millis))
                .with_accept_failure(accept)
                .with_reset_loses_unread(unread)
        },
    );
    (any::<u64>(), conditions, faults).prop_map(|(seed, conditions, faults)| Weather {
        seed,
        conditions,
        faults,
    })
}

fn script() -> impl Strategy<Value = Script> {
    let deed = prop_oneof![
        20 => Just(Deed::Send),
        1 => Just(Deed::Close),
        1 => Just(Deed::Abort),
        1 => Just(Deed::Pause),
        3 => Just(Deed::Resume),
    ];
    prop::collection::vec((deed, 0..2_usize, 0..8_usize), 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: Some(Box::new(
            proptest::test_runner::FileFailurePersistence::WithSource("regressions"),
        )),
        ..ProptestConfig::default()
    })]

    #[test]
    fn streams_keep_the_invariants_in_any_weather(weather in weather(), script in script()) {
        let hash = Storm::new(&weather, Transport::Tcp).run(&script);
        // Invariant 7.
        prop_assert_eq!(Storm::new(&weather, Transport::Tcp).run(&script), hash);
    }

    #[test]
    fn what_a_stream_accepted_arrives_without_further_calls(
        weather in weather(), sends in prop::collection::vec((0..2_usize, 0..4_usize), 1..120),
    ) {
        let mut weather = weather;
        let loss = weather.conditions.loss().min(0.1);
        weather.conditions = weather
            .conditions
            .with_reset(0.0)
            .with_half_open(0.0)
            .with_refuse(0.0)
            .with_loss(loss);
        let mut storm = Storm::new(&weather, Transport::Tcp);
        let opened = |storm: &Storm| {
            storm.ends.lock().unwrap().iter().all(|end| end.connection.is_some())
        };
        let ends = Arc::clone(&storm.ends);
        storm.simulation.run_while(Duration::from_secs(9), || {
            ends.lock().unwrap().iter().any(|end| end.connection.is_none())
        });
        prop_assume!(opened(&storm));
        for (own, steps) in sends {
            storm.perform(Deed::Send, own);
            for _ in 0..steps {
                // With nothing under way the next step is the end of all patience.
                if storm.simulation.census().pending > 0 {
                    storm.step();
                }
            }
        }
        let all = || {
            let ends = ends.lock().unwrap();
            ends[0].received == ends[1].sent && ends[1].received == ends[0].sent
        };
        let arrived = storm.simulation.run_while(Duration::from_mins(50), || !all());
        let seen = || {
            let ends = ends.lock().unwrap();
            ends.iter().map(|end| (end.sent, end.received, end.closed)).collect::<Vec<_>>()
        };
        prop_assert!(arrived, "{:?}", seen());
        storm.finish();
    }

    #[test]
    fn datagrams_keep_the_invariants_in_any_weather(weather in weather(), script in script()) {
        let hash = Storm::new(&weather, Transport::Udp).run(&script);
        prop_assert_eq!(Storm::new(&weather, Transport::Udp).run(&script), hash);
    }
}

#[test]
fn a_close_and_an_abort_at_every_step_of_a_conversation_keep_the_invariants() {
    for transport in [Transport::Tcp, Transport::Udp] {
        let talk = |storm: &mut Storm, steps: usize| {
            for step in 0..steps {
                if step % 3 == 0 {
                    storm.perform(Deed::Send, step % 2);
                }
                storm.step();
            }
        };
        for seed in 0..4 {
            let weather = Weather {
                seed,
                conditions: Conditions::new()
                    .with_latency(Duration::from_millis(10))
                    .with_jitter(Duration::from_millis(10))
                    .with_loss(0.05 * seed as f64),
                faults: Faults::new()
                    .with_short_read(0.3)
                    .with_partial_write(0.3)
                    .with_full_buffer(0.1),
            };
            for step in 0..90 {
                for (deed, own) in [
                    (Deed::Close, 0),
                    (Deed::Close, 1),
                    (Deed::Abort, 0),
                    (Deed::Abort, 1),
                ] {
                    let mut storm = Storm::new(&weather, transport);
                    talk(&mut storm, step);
                    storm.perform(deed, own);
                    talk(&mut storm, 10);
                    storm.finish();
                }
            }
        }
    }
}
