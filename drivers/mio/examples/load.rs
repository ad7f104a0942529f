//! A closed-loop load against an echo server, every answer verified.
//!
//! `cargo run --release --example load -- --connect 127.0.0.1:7000 --transport tcp`

#[macro_use]
mod support;

use clap::{Parser, ValueEnum};
use cubenet_mio::{Limits, Network, Report, Transport};
use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;
use support::load::{Load, Outcome, Plan};
use support::tls::ClientOptions;
use support::{report, system};

/// Keeps a window of messages on their way on each connection and verifies each answer.
/// Ends with status 1 if a message over TCP was lost, if one was damaged, or if none was
/// answered.
#[derive(Parser)]
struct Options {
    /// The server's address.
    #[arg(long, value_parser = system::address)]
    connect: SocketAddr,
    /// On which transport.
    #[arg(long, value_enum, default_value = "tcp")]
    transport: Choice,
    /// Connections.
    #[arg(long, default_value_t = 64, value_parser = at_least_one)]
    connections: usize,
    /// Messages on their way at once on each connection; 65,536 at most.
    #[arg(long, default_value_t = 1, value_parser = window)]
    window: usize,
    /// Bytes of a message.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// How long, in seconds; a day at most.
    #[arg(long, default_value = "5", value_parser = seconds)]
    seconds: Duration,
    /// Threads that make the load.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    #[command(flatten)]
    tls: ClientOptions,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Choice {
    Tcp,
    Udp,
}

fn main() -> ExitCode {
    system::log();
    let options = Options::parse();
    let (smallest, largest) = match options.transport {
        Choice::Tcp => (0, Limits::default().max_message()),
        Choice::Udp => (1, Limits::default().max_datagram()),
    };
    if !(smallest..=largest).contains(&options.size) {
        complain!("--size must be {smallest} to {largest} bytes on this transport");
        return ExitCode::from(2);
    }
    let allowed = system::descriptors().saturating_sub(32);
    if options.connections as u64 > allowed {
        complain!("--connections can be {allowed} at most: that many descriptors are allowed");
        return ExitCode::from(2);
    }
    if options.tls.have_tls() && matches!(options.transport, Choice::Udp) {
        complain!("TLS is over TCP: --server-name needs --transport tcp");
        return ExitCode::from(2);
    }
    match run(&options) {
        Ok(outcome) => {
            if options.json {
                say!("{}", report::as_json(&outcome));
            } else {
                say!("{}", report::table(std::slice::from_ref(&outcome)));
            }
            support::print::ended(ExitCode::from(u8::from(!outcome.is_good())))
        }
        Err(error) => {
            complain!("{}", Report::new(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<Outcome, Box<dyn Error>> {
    let plan = Plan {
        transport: match options.transport {
            Choice::Tcp => Transport::Tcp,
            Choice::Udp => Transport::Udp,
        },
        address: options.connect,
        connections: options.connections,
        window: options.window,
        size: options.size,
        options: options.tls.load()?,
    };
    let network = Network::builder().workers(options.workers).start()?;
    let end = system::End::watch();
    let load = Load::connect(&network, &plan, &end)?;
    let duration = options.seconds;
    let mut progress = report::Progress::new(duration);
    let outcome = load.run(duration, &end, |elapsed, counts| {
        progress.show(elapsed, &[counts]);
    });
    progress.finish();
    network.stop(Duration::from_secs(2));
    Ok(outcome)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| String::from("it must be a number"))?;
    if !(0.1..=86_400.0).contains(&seconds) {
        return Err(String::from("it must be 0.1 to 86,400 seconds"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn window(text: &str) -> Result<usize, String> {
    match at_least_one(text)? {
        window if window > 65_536 => Err(String::from("it must be at most 65,536")),
        window => Ok(window),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err(String::from("it must be at least 1")),
        Ok(number) => Ok(number),
        Err(error) => Err(error.to_string()),
    }
}
