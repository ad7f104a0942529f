//! A lobby: rooms with chat and moving players, on one node or on several, and bots that play in it.
//!
//! Chat goes by way of sessions, so that no line is lost or comes twice, even if a node dies. Positions go in
//! datagrams: a thread of the application's sends them twenty times a second.
//!
//! `cargo run --release --example lobby -- --bots 200`

#![allow(unreachable_pub)] // An example is no library.

#[path = "../support/mod.rs"]
#[macro_use]
mod support;

mod bots;
mod chat;
mod hall;
mod metrics;
mod node;
mod player;
mod protocol;

use bots::{Bots, Progress};
use clap::Parser;
use cubenet_mio::{ConnectOptions, ListenOptions, Report, Transport};
use indicatif::{ProgressBar, ProgressStyle};
use node::{Node, Plan};
use std::error::Error;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use support::restart::{RestartOptions, drain};
use support::{system, tls::ServerOptions};

/// Rooms with chat over sessions and positions over datagrams. Without --listen or --connect: one node in
/// memory, and bots that play on it. Ends with status 1 if anything acknowledged was lost or came twice.
#[derive(Parser)]
struct Options {
    /// Bots that play.
    #[arg(long)]
    bots: Option<usize>,
    /// How long they talk.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// In how many rooms; by default one for 20 bots.
    #[arg(long)]
    rooms: Option<usize>,
    /// Lines that each bot says in a second.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    lines: u32,
    /// The result as JSON instead of a table.
    #[arg(long)]
    json: bool,

    /// A node: listens on this address, over TCP and UDP, until SIGTERM.
    #[arg(long, value_name = "ADDRESS", value_parser = system::address, conflicts_with_all = ["connect", "bots"])]
    listen: Option<SocketAddr>,
    /// The node's name, as its metrics have it.
    #[arg(long, default_value = "one")]
    node: String,
    /// Where the nodes of a service keep sessions and chat, such as `redis://127.0.0.1/`; by default in the
    /// node's memory.
    #[arg(long, value_name = "URL", requires = "listen")]
    redis: Option<String>,
    /// Where players reach the node's datagrams, if not at the address that it listens on.
    #[arg(long, value_name = "ADDRESS", value_parser = system::address, requires = "listen")]
    announce: Option<SocketAddr>,
    /// How long a session waits for its player to come back, in seconds.
    #[arg(long, default_value_t = 60)]
    wait: u64,
    /// Shows the node over HTTP on this address: a page with charts at /, /metrics for Prometheus, and
    /// /health for load balancers, which is 200, and 404 once the node is to stop.
    #[arg(long, value_name = "ADDRESS", value_parser = system::address)]
    metrics: Option<SocketAddr>,
    /// How long a node that is to stop goes on, so that load balancers see it and send it no more clients, in
    /// milliseconds.
    #[arg(long, default_value_t = 0, requires = "listen", requires = "metrics")]
    drain: u64,
    #[command(flatten)]
    restart: RestartOptions,
    #[command(flatten)]
    tls: ServerOptions,

    /// The bots alone, for a node or a load balancer at this address.
    #[arg(long, value_name = "ADDRESS", value_parser = system::address, requires = "bots")]
    connect: Option<SocketAddr>,
}

fn main() -> ExitCode {
    system::log();
    system::descriptors();
    let options = Options::parse();
    if let Err(problem) = check(&options) {
        complain!("{problem}");
        return ExitCode::from(2);
    }
    match run(&options) {
        Ok(true) => support::print::ended(ExitCode::SUCCESS),
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            complain!("{}", Report::new(&*error));
            ExitCode::FAILURE
        }
    }
}

fn check(options: &Options) -> Result<(), &'static str> {
    let of_nodes = options.redis.is_some() || options.restart.is_asked() || options.tls.is_asked();
    if options.listen.is_none() && of_nodes {
        return Err(
            "--redis, --handover, --proxy-protocol and --tls-cert are for a node: say with --listen where",
        );
    }
    if options.bots == Some(0) || options.rooms == Some(0) || options.seconds == 0 {
        return Err("there must be a bot, a room and a second at least");
    }
    if options.node.is_empty() || options.node.len() > protocol::MAX_NAME {
        return Err("--node must have 1 to 32 bytes");
    }
    let is_everywhere = options
        .listen
        .is_some_and(|address| address.ip().is_unspecified());
    if is_everywhere && options.announce.is_none() {
        return Err(
            "players cannot send datagrams to an address that stands for all: say with \
                    --announce where they reach this node",
        );
    }
    Ok(())
}

fn run(options: &Options) -> Result<bool, Box<dyn Error>> {
    let end = system::End::watch();
    match (options.listen, options.connect) {
        (Some(listen), _) => serve(options, listen, &end),
        (None, Some(address)) => play(options, address, &end),
        (None, None) => {
            let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
            let node = start(options, loopback, &end)?;
            show(&node, options, &end)?;
            let good = play(options, node.address(), &end)?;
            let ticks = node.ticks();
            let settled = node.stop(Duration::from_secs(5));
            if !options.json {
                let count = ticks.count.load(Relaxed).max(1);
                say!(
                    "{count} ticks took {:.2} ms each, the longest {:.2} ms",
                    ticks.micros.load(Relaxed) as f64 / count as f64 / 1e3,
                    ticks.longest.load(Relaxed) as f64 / 1e3
                );
                let good = good && settled;
                say!(
                    "{}",
                    if good {
                        "all is well"
                    } else {
                        "something was wrong"
                    }
                );
            }
            Ok(good && settled)
        }
    }
}

fn start(options: &Options, listen: SocketAddr, end: &system::End) -> Result<Node, Box<dyn Error>> {
    let offered = options.tls.load(&[])?;
    offered.reload_on_hangup(end);
    Node::start(Plan {
        listen,
        announce: options.announce,
        redis: options.redis.clone(),
        options: offered.layers(ListenOptions::new(), Transport::Tcp),
        wait: Duration::from_secs(options.wait),
        inherited: options.restart.inherit()?,
    })
}

/// Has the node seen from outside, if that is asked for.
fn show(node: &Node, options: &Options, end: &system::End) -> std::io::Result<()> {
    if let Some(address) = options.metrics {
        let address = metrics::serve(node, &options.node, address, end)?;
        say!("seen at http://{address}/");
    }
    Ok(())
}

/// A node, until the end is asked for.
fn serve(options: &Options, listen: SocketAddr, end: &system::End) -> Result<bool, Box<dyn Error>> {
    let mut node = start(options, listen, end)?;
    show(&node, options, end)?;
    node.ready()?;
    for listener in &*node.listeners {
        say!(
            "listening on {} {}",
            listener.transport(),
            listener.local_addr()
        );
    }
    options.restart.offer(&node.listeners, end)?;
    end.wait();
    // Those who are about to log in may do so; then players come back to the process that has the sockets now.
    // Where there is none, those who come meanwhile are served.
    let logins = Duration::from_millis(500);
    drain(&node.network, node.listeners.to_vec(), end, logins);
    if !end.is_handed_over() {
        std::thread::sleep(Duration::from_millis(options.drain));
    }
    let (players, rooms) = (node.hall.players(), node.hall.rooms());
    say!("stopping with {players} players in {rooms} rooms");
    let (hall, counted) = (std::sync::Arc::clone(&node.hall), node.metrics());
    let settled = node.stop(Duration::from_secs(5));
    say!("{counted}");
    say!(
        "lines published: {}",
        hall.counts.lines_published.load(Relaxed)
    );
    let ended = hall.counts.ended.lock().expect("no thread panics with it");
    for (reason, count) in &*ended {
        say!("sessions ended, {reason:?}: {count}");
    }
    if !settled {
        complain!("not all that was done could be stored; players are sent it again");
    }
    Ok(settled)
}

/// Bots that play at this address.
fn play(options: &Options, address: SocketAddr, end: &system::End) -> Result<bool, Box<dyn Error>> {
    let bots = options.bots.unwrap_or(200);
    let plan = bots::Plan {
        address,
        options: ConnectOptions::new(),
        bots,
        rooms: options.rooms.unwrap_or_else(|| bots.div_ceil(20)),
        lines: options.lines,
        duration: Duration::from_secs(options.seconds),
    };
    let duration = plan.duration;
    let style = ProgressStyle::with_template("{elapsed_precise} [{bar:40}] {msg}");
    let style = style
        .expect("the template is well-formed")
        .progress_chars("=> ");
    let bar = ProgressBar::new(duration.as_millis() as u64).with_style(style);
    let mut printed = 0;
    let outcome = Bots::new(plan)?.run(end, |progress: &Progress| {
        let Progress {
            elapsed,
            active,
            said,
            heard,
            wrong,
        } = progress;
        let text = format!("{active} bots, {said} lines said, {heard} heard, {wrong} wrong");
        bar.set_position(elapsed.min(&duration).as_millis() as u64);
        if !std::io::stderr().is_terminal() && elapsed.as_secs() > printed {
            printed = elapsed.as_secs();
            complain!("{printed} of {} s: {text}", duration.as_secs());
        }
        bar.set_message(text);
    });
    bar.finish_and_clear();
    if !outcome.joined {
        complain!(
            "not all bots could log in at {address}: {}",
            outcome.refusals()
        );
    }
    if options.json {
        say!("{}", outcome.as_json());
    } else {
        say!("{}", outcome.table());
    }
    Ok(outcome.is_good())
}
