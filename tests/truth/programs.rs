//! The programs, and what is measured.

use crate::{Make, Path, World};
use cubenet_core::{CloseReason, Handler, Instant, Link, Message, SendError, Transport};
use cubenet_tests::harness::{Accept, Connected, Connection};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// One figure, or one word, of one program in one world.
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) value: Value,
}

pub(crate) enum Value {
    /// A number with its unit, and by which factor the other world's may differ.
    Number(f64, &'static str, f64),
    /// A share, and how much the other's may differ.
    Share(f64, f64),
    /// What the application saw; the other must see the same.
    Seen(String),
}

impl Row {
    pub(crate) fn shown(&self) -> String {
        match &self.value {
            Value::Number(number, unit, _) if *number < 10.0 => format!("{number:.1} {unit}"),
            Value::Number(number, unit, _) => format!("{number:.0} {unit}"),
            Value::Share(share, _) => format!("{:.1} %", 100.0 * share),
            Value::Seen(what) => what.clone(),
        }
    }

    pub(crate) fn must_be_like(&self, real: &Row) {
        let what = &self.what;
        match (&self.value, &real.value) {
            (Value::Number(own, _, factor), Value::Number(other, ..)) => {
                let ratio = own / other;
                let allowed = 1.0 / factor..*factor;
                assert!(allowed.contains(&ratio), "{what}: {own}, really {other}");
            }
            (Value::Share(own, most), Value::Share(other, _)) => {
                assert!((own - other).abs() < *most, "{what}: {own}, really {other}");
            }
            (Value::Seen(own), Value::Seen(other)) => assert_eq!(own, other, "{what}"),
            _ => unreachable!("a program measures one thing"),
        }
    }
}

/// Runs every program in worlds of one kind.
pub(crate) fn run(make: &Make) -> Vec<Row> {
    let mut rows = Vec::new();
    for loss in [0.0, 0.001, 0.01, 0.03] {
        throughput(&*make(Path::losing(loss), None), loss, &mut rows);
    }
    let narrow = Path {
        bandwidth: Some(8_000_000),
        ..Path::GOOD
    };
    narrow_throughput(&*make(narrow, None), &mut rows);
    for loss in [0.0, 0.03] {
        round_trips(&*make(Path::losing(loss), None), loss, &mut rows);
    }
    handshakes(&*make(Path::losing(0.1), None), &mut rows);
    for (loss, len) in [(0.03, 200), (0.03, 8_000)] {
        datagrams(&*make(Path::losing(loss), None), loss, len, &mut rows);
    }
    for buffer in [16 << 10, 64 << 10] {
        unread(&*make(Path::GOOD, Some(buffer)), buffer, &mut rows);
    }
    closes(make, &mut rows);
    rows
}

/// Counts what arrives.
#[derive(Clone, Default)]
struct Counts {
    messages: Arc<AtomicUsize>,
    bytes: Arc<AtomicUsize>,
}

impl Handler for Counts {
    fn received(&mut self, _link: &mut dyn Link, message: Message<'_>) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(message.len(), Ordering::Relaxed);
    }
}

impl Counts {
    fn messages(&self) -> usize {
        self.messages.load(Ordering::Relaxed)
    }

    fn accept(&self) -> Accept {
        let counts = self.clone();
        Box::new(move |_| Some(Box::new(counts.clone())))
    }

    fn connected(&self) -> Connected {
        let counts = self.clone();
        Box::new(move |outcome| outcome.is_ok().then(|| Box::new(counts) as _))
    }
}

/// Sends as fast as it may.
struct Pours;

impl Pours {
    fn pour(send: &mut dyn FnMut(&[u8]) -> Result<(), SendError>) {
        while send(&[7; 10_000]).is_ok() {}
    }
}

impl Handler for Pours {
    fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {}

    fn writable(&mut self, link: &mut dyn Link) {
        Pours::pour(&mut |message| link.send(message));
    }
}

/// Megabits a second of a stream that pours, once it has found its pace.
fn pace(world: &dyn World, time: Duration) -> f64 {
    let counts = Counts::default();
    let to = world.listen(Transport::Tcp, counts.accept());
    let connected: Connected = Box::new(|outcome| {
        let connection = outcome.ok()?;
        Pours::pour(&mut |message| connection.send(message));
        Some(Box::new(Pours))
    });
    let connection = world.connect(Transport::Tcp, to, connected);
    world.pass(Duration::from_secs(1));
    let (begun, before) = (world.now(), counts.bytes.load(Ordering::Relaxed));
    world.pass(time);
    let bytes = counts.bytes.load(Ordering::Relaxed) - before;
    let took = world.now().saturating_sub(begun);
    connection.abort();
    bytes as f64 * 8.0 / 1e6 / took.as_secs_f64()
}

fn throughput(world: &dyn World, loss: f64, rows: &mut Vec<Row>) {
    let rate = pace(world, Duration::from_secs(5));
    // Without loss, a kernel and a relay on a busy machine set the pace, and one that is busy may stand still.
    let factor = if loss == 0.0 { 30.0 } else { 4.0 };
    rows.push(Row {
        what: format!("throughput of one stream, {} % loss", 100.0 * loss),
        value: Value::Number(rate, "Mbit/s", factor),
    });
}

fn narrow_throughput(world: &dyn World, rows: &mut Vec<Row>) {
    rows.push(Row {
        what: "throughput of one stream, 8 Mbit/s".to_owned(),
        value: Value::Number(pace(world, Duration::from_secs(4)), "Mbit/s", 1.6),
    });
}

/// Sends the next message when the last has come back, and notes how long that took.
struct PingPong {
    sent: Option<Instant>,
    took: Arc<Mutex<Vec<Duration>>>,
}

impl Handler for PingPong {
    fn received(&mut self, link: &mut dyn Link, _message: Message<'_>) {
        let now = link.now();
        if let Some(sent) = self.sent.replace(now) {
            self.took.lock().unwrap().push(now.since(sent));
        }
        let _ = link.send(&[1; 100]);
    }
}

struct Echo;

impl Handler for Echo {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        let _ = link.send(&message);
    }
}

fn echo() -> Accept {
    Box::new(|_| Some(Box::new(Echo)))
}

fn round_trips(world: &dyn World, loss: f64, rows: &mut Vec<Row>) {
    const COUNT: usize = 250;
    let to = world.listen(Transport::Tcp, echo());
    let took = Arc::<Mutex<Vec<Duration>>>::default();
    let handler = PingPong {
        sent: None,
        took: Arc::clone(&took),
    };
    let connected: Connected = Box::new(move |outcome| {
        let _ = outcome.ok()?.send(&[1; 100]);
        Some(Box::new(handler))
    });
    let connection = world.connect(Transport::Tcp, to, connected);
    let done = world.until(Duration::from_secs(90), &mut || {
        took.lock().unwrap().len() >= COUNT
    });
    assert!(done, "the round trips are made");
    connection.abort();
    let mut took = took.lock().unwrap().clone();
    took.sort_unstable();
    for (name, at, factor) in [
        ("median", COUNT / 2, 2.0),
        ("97 of 100", COUNT * 97 / 100, 4.0),
    ] {
        rows.push(Row {
            what: format!("round trip over a stream, {} % loss, {name}", 100.0 * loss),
            value: Value::Number(took[at].as_secs_f64() * 1e3, "ms", factor),
        });
    }
}

fn handshakes(world: &dyn World, rows: &mut Vec<Row>) {
    const COUNT: usize = 200;
    let to = world.listen(Transport::Tcp, echo());
    let connected = Arc::<AtomicUsize>::default();
    let begun = world.now();
    let connections: Vec<_> = (0..COUNT)
        .map(|_| {
            let connected = Arc::clone(&connected);
            let connected: Connected = Box::new(move |outcome| {
                connected.fetch_add(usize::from(outcome.is_ok()), Ordering::Relaxed);
                Some(Box::new(Echo))
            });
            world.connect(Transport::Tcp, to, connected)
        })
        .collect();
    let count = || connected.load(Ordering::Relaxed);
    world.until(Duration::from_millis(500), &mut || count() == COUNT);
    let at_once = count();
    world.until(Duration::from_secs(30), &mut || count() == COUNT);
    let all = world.now().saturating_sub(begun);
    drop(connections);
    rows.push(Row {
        what: "connects answered within half a second, 10 % loss".to_owned(),
        value: Value::Share(at_once as f64 / COUNT as f64, 0.2),
    });
    rows.push(Row {
        what: "200 connects until the last is answered, 10 % loss".to_owned(),
        value: Value::Number(all.as_secs_f64(), "s", 8.0),
    });
}

fn datagrams(world: &dyn World, loss: f64, len: usize, rows: &mut Vec<Row>) {
    const COUNT: usize = 2_000;
    let counts = Counts::default();
    let to = world.listen(Transport::Udp, counts.accept());
    let connection = world.connect(Transport::Udp, to, Counts::default().connected());
    for _ in 0..COUNT {
        connection.send(&vec![7; len]).expect("there is room");
        world.pass(Duration::from_millis(1));
    }
    world.pass(Duration::from_millis(500));
    rows.push(Row {
        what: format!(
            "datagrams of {len} bytes that arrive, {} % loss",
            100.0 * loss
        ),
        value: Value::Share(counts.messages() as f64 / COUNT as f64, 0.08),
    });
}

/// Connections that are accepted are not read.
fn paused(counts: &Counts) -> Accept {
    let counts = counts.clone();
    Box::new(move |connection| {
        connection.pause();
        Some(Box::new(counts.clone()))
    })
}

fn unread(world: &dyn World, buffer: usize, rows: &mut Vec<Row>) {
    let to = world.listen(Transport::Tcp, paused(&Counts::default()));
    let connection = world.connect(Transport::Tcp, to, Counts::default().connected());
    world.pass(Duration::from_millis(200));
    let mut taken = 0_u32;
    while connection.queued() == 0 && taken < 10_000_000 {
        connection.send(&[7; 998]).expect("there is room");
        taken += 1_000;
        world.pass(Duration::from_millis(1));
    }
    rows.push(Row {
        what: format!(
            "bytes that two systems hold of a stream that is not read, buffers of {buffer}"
        ),
        value: Value::Number(taken.into(), "bytes", 2.2),
    });
}

/// Notes how its connection ends.
#[derive(Clone, Default)]
struct Ends {
    counts: Counts,
    reason: Arc<Mutex<Option<CloseReason>>>,
    handle: Arc<Mutex<Option<Arc<dyn Connection>>>>,
}

impl Handler for Ends {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        self.counts.received(link, message);
    }

    fn closed(&mut self, _link: &mut dyn Link, reason: CloseReason) {
        *self.reason.lock().unwrap() = Some(reason);
    }
}

impl Ends {
    fn seen(&self) -> String {
        let reason = *self.reason.lock().unwrap();
        reason.map_or_else(|| "nothing".to_owned(), |reason| format!("{reason:?}"))
    }
}

/// A connection, seen from both ends.
struct Pair {
    world: Box<dyn World>,
    client: Ends,
    server: Ends,
    connection: Arc<dyn Connection>,
}

impl Pair {
    fn new(make: &Make) -> Self {
        let world = make(Path::GOOD, Some(16 << 10));
        let (client, server) = (Ends::default(), Ends::default());
        let of_server = server.clone();
        let to = world.listen(
            Transport::Tcp,
            Box::new(move |connection| {
                *of_server.handle.lock().unwrap() = Some(connection);
                Some(Box::new(of_server.clone()))
            }),
        );
        let of_client = client.clone();
        let connected: Connected =
            Box::new(move |outcome| outcome.is_ok().then(|| Box::new(of_client) as _));
        let connection = world.connect(Transport::Tcp, to, connected);
        connection.send(b"first").expect("there is room");
        let begun = || server.counts.messages() == 1;
        assert!(
            world.until(Duration::from_secs(5), &mut || begun()),
            "it connects"
        );
        Pair {
            world,
            client,
            server,
            connection,
        }
    }

    fn of_server(&self) -> Arc<dyn Connection> {
        let handle = self.server.handle.lock().unwrap();
        Arc::clone(handle.as_ref().expect("it was accepted"))
    }

    fn send(&self, count: usize) {
        for _ in 0..count {
            let _ = self.connection.send(&[7; 1_000]);
        }
    }
}

fn closes(make: &Make, rows: &mut Vec<Row>) {
    let mut end = |what: &str, act: &dyn Fn(&Pair), shows_count: bool| {
        let pair = Pair::new(make);
        act(&pair);
        pair.world.pass(Duration::from_secs(2));
        let (client, server) = (pair.client.seen(), pair.server.seen());
        let messages = pair.server.counts.messages() - 1;
        let delivered = if shows_count {
            format!(", {messages} messages")
        } else {
            String::new()
        };
        rows.push(Row {
            what: what.to_owned(),
            value: Value::Seen(format!("client {client}, server {server}{delivered}")),
        });
    };
    let close = |pair: &Pair| {
        pair.send(100);
        pair.connection.close();
    };
    end("the client sends 100 messages and closes", &close, true);
    let abort = |pair: &Pair| {
        pair.send(3);
        pair.world.pass(Duration::from_millis(200));
        pair.connection.abort();
    };
    end(
        "the client sends 3 messages, and aborts later",
        &abort,
        true,
    );
    let paused = |pair: &Pair| {
        pair.of_server().pause();
        pair.world.pass(Duration::from_millis(50));
        pair.send(3);
        pair.world.pass(Duration::from_millis(200));
        pair.connection.abort();
        pair.world.pass(Duration::from_millis(200));
        pair.of_server().resume();
    };
    end("the same, and the server has paused", &paused, true);
    let answers = |pair: &Pair| {
        pair.of_server().close();
        for _ in 0..20 {
            pair.send(1);
            pair.world.pass(Duration::from_millis(5));
        }
    };
    end("the server closes while the client sends", &answers, false);
    let both = |pair: &Pair| {
        pair.connection.close();
        pair.of_server().close();
    };
    end("both close at once", &both, false);
    let unread = |pair: &Pair| {
        pair.of_server().pause();
        pair.world.pass(Duration::from_millis(50));
        pair.send(10);
        pair.world.pass(Duration::from_millis(200));
        pair.of_server().close();
    };
    end("the server closes with messages unread", &unread, false);
    let cut = |pair: &Pair| {
        pair.world.cut();
        pair.send(3);
        pair.world.pass(Duration::from_secs(4));
    };
    end("the path is cut, and the client sends", &cut, false);
    let stalls = |pair: &Pair| {
        pair.of_server().pause();
        pair.send(300);
        pair.world.pass(Duration::from_secs(4));
    };
    end(
        "the server does not read, and the client fills all buffers",
        &stalls,
        false,
    );

    let world = make(Path::GOOD, None);
    let reason = Arc::<Mutex<Option<CloseReason>>>::default();
    let tell = Arc::clone(&reason);
    let connected: Connected = Box::new(move |outcome| {
        *tell.lock().unwrap() = outcome.err();
        None
    });
    world.connect(Transport::Tcp, world.unused(), connected);
    world.pass(Duration::from_secs(1));
    let reason = *reason.lock().unwrap();
    rows.push(Row {
        what: "the client connects where no socket listens".to_owned(),
        value: Value::Seen(format!("client {reason:?}")),
    });
}
