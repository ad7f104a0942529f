//! The servers of `floor_ticks.c`, with cubenet: what threads of an application send.

use clap::{Parser, ValueEnum};
use cubenet_mio::{Connection, Frame, Handler, Link, Message, Network, SendError, Transport};
use std::error::Error;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Messages of a tick to each peer over TCP, and their bytes.
const MESSAGES: usize = 5;
const TICK: usize = 40;
/// Bytes of a broadcast.
const FRAME: usize = 200;
/// Answers that a thread sends at once, at most.
const ANSWERS: usize = 4_096;

/// Sends from a thread, as `floor_ticks` does.
#[derive(Parser)]
struct Options {
    /// What is sent.
    mode: Mode,
    /// The port to listen on.
    port: u16,
    /// Peers to wait for.
    #[arg(default_value_t = 0)]
    peers: usize,
    /// How often each of them is sent something.
    #[arg(default_value_t = 0)]
    ticks: u32,
    /// How long a tick takes, in milliseconds.
    #[arg(default_value_t = 0)]
    period: u64,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Mode {
    /// Five messages to each peer, each sent by itself.
    TcpSingle,
    /// The same in a batch.
    TcpGathered,
    /// A datagram to each peer, sent by itself.
    UdpSingle,
    /// The same in a batch.
    UdpGathered,
    /// A frame to each peer.
    Broadcast,
    /// An echo server that answers from another thread.
    Answers,
}

struct Ignore;

impl Handler for Ignore {
    fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {}
}

fn main() -> Result<(), Box<dyn Error>> {
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let options = Options::parse();
    let network = Network::builder().workers(1).start()?;
    let address = SocketAddr::from(([127, 0, 0, 1], options.port));
    if options.mode == Mode::Answers {
        return answer(&network, address);
    }
    let transport = match options.mode {
        Mode::UdpSingle | Mode::UdpGathered => Transport::Udp,
        _ => Transport::Tcp,
    };
    let (opened, connections) = sync_channel(options.peers);
    network.listen(transport, address, move |connection: &Connection| {
        opened.try_send(connection.clone()).ok()?;
        Some(Ignore)
    })?;
    let peers: Vec<Connection> = connections.iter().take(options.peers).collect();
    thread::sleep(Duration::from_millis(100));
    let frame = Frame::new(&[b'm'; FRAME])?;
    let mut counts = Counts::default();
    let begun = processor_time()?;
    let mut next = Instant::now();
    for _ in 0..options.ticks {
        match options.mode {
            Mode::TcpSingle => tick(&peers, MESSAGES, &mut counts),
            Mode::TcpGathered => Connection::batch(|| tick(&peers, MESSAGES, &mut counts)),
            Mode::UdpSingle => tick(&peers, 1, &mut counts),
            Mode::UdpGathered => Connection::batch(|| tick(&peers, 1, &mut counts)),
            Mode::Broadcast => {
                for peer in &peers {
                    counts.count(peer.send_frame(&frame));
                }
            }
            Mode::Answers => {}
        }
        next += Duration::from_millis(options.period);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let took = processor_time()?.saturating_sub(begun);
    println!("{} {} {}", counts.sent, counts.failed, took.as_nanos());
    Ok(())
}

fn tick(peers: &[Connection], messages: usize, counts: &mut Counts) {
    for peer in peers {
        for _ in 0..messages {
            counts.count(peer.send([b'm'; TICK]));
        }
    }
}

#[derive(Default)]
struct Counts {
    sent: u64,
    failed: u64,
}

impl Counts {
    fn count(&mut self, outcome: Result<(), SendError>) {
        match outcome {
            Ok(()) => self.sent += 1,
            Err(_) => self.failed += 1,
        }
    }
}

/// The processor's time that this process has taken.
#[cfg(unix)]
fn processor_time() -> Result<Duration, Box<dyn Error>> {
    let clock = nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID;
    Ok(nix::time::clock_gettime(clock)?.into())
}

#[cfg(not(unix))]
fn processor_time() -> Result<Duration, Box<dyn Error>> {
    Err("this system is not asked for the processor's time".into())
}

type Job = (Connection, Vec<u8>);

struct HandOver {
    connection: Connection,
    jobs: SyncSender<Job>,
}

impl Handler for HandOver {
    fn received(&mut self, _link: &mut dyn Link, message: Message<'_>) {
        // The load keeps fewer on their way than the channel holds.
        let _ = self.jobs.send((self.connection.clone(), message.to_vec()));
    }
}

fn answer(network: &Network, address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let (jobs, waiting) = sync_channel(1 << 16);
    thread::spawn(move || answer_all(&waiting));
    network.listen(Transport::Tcp, address, move |connection: &Connection| {
        Some(HandOver {
            connection: connection.clone(),
            jobs: jobs.clone(),
        })
    })?;
    network.join();
    Ok(())
}

/// Answers what waits, all of it in one batch.
fn answer_all(jobs: &Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        Connection::batch(|| {
            for (connection, message) in std::iter::once(first).chain(jobs.try_iter()).take(ANSWERS)
            {
                // One that has gone needs no answer.
                let _ = connection.send(message);
            }
        });
    }
}
