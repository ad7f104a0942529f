//! A game's tick: many times a second, several messages to each of many players.
//!
//! A thread of the application's sends them through handles; the network's workers only receive. The
//! first half of the ticks sends each message by itself, the second does it in a batch, where all
//! that a player gets leaves in one write.
//!
//! `cargo run --release --example tick`

#[macro_use]
mod support;

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use cubenet_mio::{Connection, Error, Handler, Link, Message, Network, SendError, Transport};
use hdrhistogram::Histogram;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use support::system;

/// How long what was sent may take to arrive, at the end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Shows what a tick costs with each message sent by itself, and with all sent in a batch.
#[derive(Parser)]
struct Options {
    /// Players, each with a connection.
    #[arg(long, default_value_t = 1_000)]
    players: usize,
    /// Messages to each player in a tick.
    #[arg(long, default_value_t = 5)]
    messages: u64,
    /// Bytes of a message.
    #[arg(long, default_value_t = 40)]
    size: usize,
    /// Ticks in a second.
    #[arg(long, default_value_t = 20)]
    rate: u32,
    /// How long to go on, in seconds.
    #[arg(long, default_value_t = 4)]
    seconds: u32,
}

/// The server's side of a player: what it says is of no interest here.
struct Player;

impl Handler for Player {
    fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {}
}

/// A player, who counts what arrives.
struct Counts(Arc<AtomicU64>);

impl Handler for Counts {
    fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// How ticks went.
struct Ticks {
    name: &'static str,
    /// What each took, in microseconds.
    took: Histogram<u64>,
    sent: u64,
    /// Messages for players who read too slowly.
    refused: u64,
}

impl Ticks {
    fn new(name: &'static str) -> Self {
        // Up to ten minutes, with three digits.
        let took = Histogram::new_with_bounds(1, 600_000_000, 3);
        Ticks {
            name,
            took: took.expect("the bounds are in order"),
            sent: 0,
            refused: 0,
        }
    }

    /// Sends a tick's messages to all players, one after another.
    fn send(&mut self, players: &[Connection], messages: u64, message: &[u8]) {
        for player in players {
            for _ in 0..messages {
                match player.send(message) {
                    Ok(()) => self.sent += 1,
                    // One that has gone misses it, and so does one that does not keep up.
                    Err(SendError::Closed) => {}
                    Err(_) => self.refused += 1,
                }
            }
        }
    }

    /// A tick that began at this moment is over.
    fn record(&mut self, began: Instant) {
        self.took
            .saturating_record(began.elapsed().as_micros() as u64);
    }

    fn row(&self) -> [String; 5] {
        let millis = |quantile| {
            let micros = self.took.value_at_quantile(quantile);
            format!("{:.2} ms", micros as f64 / 1_000.0)
        };
        [
            self.name.to_string(),
            self.took.len().to_string(),
            millis(0.5),
            millis(1.0),
            self.refused.to_string(),
        ]
    }
}

fn main() -> ExitCode {
    system::log();
    let options = Options::parse();
    if options.players == 0 || options.messages == 0 || options.rate == 0 || options.seconds == 0 {
        complain!("there must be a player, a message, a tick and a second at least");
        return ExitCode::from(2);
    }
    let allowed = system::descriptors().saturating_sub(32) / 2;
    if options.players as u64 > allowed {
        complain!("there can be {allowed} players at most: each takes two descriptors");
        return ExitCode::from(2);
    }
    support::print::outcome(&run(&options))
}

fn run(options: &Options) -> Result<bool, Error> {
    let end = system::End::watch();
    let server = Network::builder().start()?;
    let (joined, players) = channel();
    let listener = server.listen(Transport::Tcp, "127.0.0.1:0", move |player: &Connection| {
        // If the game is over, no player is wanted.
        joined.send(player.clone()).ok()?;
        Some(Player)
    })?;
    let client = Network::builder().workers(1).start()?;
    let arrived = Arc::new(AtomicU64::new(0));
    for _ in 0..options.players {
        let counts = Counts(Arc::clone(&arrived));
        client.connect(Transport::Tcp, listener.local_addr(), |_| counts)?;
    }
    let joined = std::iter::from_fn(|| players.recv_timeout(PATIENCE).ok());
    let players: Vec<Connection> = joined.take(options.players).collect();
    if players.len() < options.players {
        complain!("only {} players have joined", players.len());
        return Ok(false);
    }

    let message = vec![b'm'; options.size];
    let (mut alone, mut gathered) = (Ticks::new("one by one"), Ticks::new("in a batch"));
    let ticks = options.rate.saturating_mul(options.seconds);
    let mut next = Instant::now();
    for tick in 0..ticks {
        let began = Instant::now();
        if tick < ticks / 2 {
            alone.send(&players, options.messages, &message);
            alone.record(began);
        } else {
            Connection::batch(|| gathered.send(&players, options.messages, &message));
            gathered.record(began);
        }
        next += Duration::from_secs(1) / options.rate;
        if end.wait_for(next.saturating_duration_since(Instant::now())) {
            break;
        }
    }

    let sent = alone.sent + gathered.sent;
    let waits = Instant::now();
    while arrived.load(Relaxed) < sent && waits.elapsed() < PATIENCE {
        end.wait_for(Duration::from_millis(10));
    }
    let arrived = arrived.load(Relaxed);
    client.stop(Duration::ZERO);
    server.stop(Duration::from_secs(1));

    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["messages are sent", "ticks", "median", "longest", "refused"]);
    table.add_row(alone.row());
    table.add_row(gathered.row());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    say!("{table}");
    say!("{arrived} of {sent} messages have arrived");
    Ok(arrived == sent)
}
