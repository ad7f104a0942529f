//! Thousands of TCP and UDP connections in one process, every echo verified.
//!
//! `cargo run --release --example demo`

#[macro_use]
mod support;

use clap::Parser;
use cubenet_mio::{
    ConnectOptions, Handler, Link, ListenOptions, Message, Network, Report, Transport,
};
use std::error::Error;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use support::load::{Load, Outcome, Plan};
use support::{report, system};

/// The server: this is all of it.
struct Echo;

impl Handler for Echo {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        let _ = link.send(&message);
    }
}

fn serve(tcp: ListenOptions) -> Result<(Network, [cubenet_mio::Listener; 2]), cubenet_mio::Error> {
    let network = Network::builder().start()?;
    let tcp = network.listen_with(tcp, Transport::Tcp, "127.0.0.1:0", |_| Some(Echo))?;
    let udp = network.listen(Transport::Udp, "127.0.0.1:0", |_| Some(Echo))?;
    Ok((network, [tcp, udp]))
}

/// Serves thousands of clients over loopback and verifies every answer. Ends with status 1
/// if anything was wrong.
#[derive(Parser)]
struct Options {
    /// TCP connections; two descriptors each.
    #[arg(long, default_value_t = 2_000)]
    tcp: usize,
    /// UDP connections; one descriptor each.
    #[arg(long, default_value_t = 2_000)]
    udp: usize,
    /// Messages on their way at once on each connection.
    #[arg(long, default_value_t = 1)]
    window: usize,
    /// Bytes of a message.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// How long, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// TLS over TCP, with a certificate that is made for this.
    #[arg(long)]
    tls: bool,
}

fn main() -> ExitCode {
    system::log();
    let options = Options::parse();
    if options.tcp + options.udp == 0 || options.window == 0 || options.seconds == 0 {
        complain!("there must be a connection, a window and a second at least");
        return ExitCode::from(2);
    }
    if options.window > 65_536 {
        complain!("--window must be at most 65,536");
        return ExitCode::from(2);
    }
    if !(1..=65_507).contains(&options.size) {
        complain!("--size must be 1 to 65,507 bytes");
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

fn run(options: &Options) -> Result<bool, Box<dyn Error>> {
    let end = system::End::watch();
    let [tcp, udp] = bounded(options);
    let (mut of_server, mut of_client) = (ListenOptions::new(), ConnectOptions::new());
    if options.tls {
        let (server, client) = support::tls::of_our_own()?;
        of_server = of_server.layer(server);
        of_client = of_client.layer(client);
    }
    let (server, listeners) = serve(of_server)?;
    let clients = Network::builder().start()?;
    let memory_before = system::resident_bytes();
    complain!("connecting {tcp} TCP and {udp} UDP clients ...");
    let mut loads = Vec::new();
    let each = [(tcp, of_client), (udp, ConnectOptions::new())];
    for (listener, (connections, options_of_connect)) in listeners.iter().zip(each) {
        let plan = Plan {
            transport: listener.transport(),
            address: listener.local_addr(),
            connections,
            window: options.window,
            size: options.size,
            options: options_of_connect,
        };
        if connections > 0 {
            loads.push(Load::connect(&clients, &plan, &end)?);
        }
    }
    let memory = memory_before.zip(system::resident_bytes());
    let outcomes = run_together(loads, Duration::from_secs(options.seconds), &end);
    say!("{}", report::table(&outcomes));
    if let Some((before, after)) = memory {
        let each = after.saturating_sub(before) / (tcp + udp) as u64;
        say!("memory: {each} bytes per connection, both ends and the load's own books");
    }
    let served = server.metrics();
    let dropped = served.dropped_total();
    say!(
        "the server dropped {dropped} datagrams and closed {} connections with an error",
        { served.closed_total() - served.closed(cubenet_mio::CloseReason::Peer) }
    );
    clients.stop(Duration::from_secs(5));
    server.stop(Duration::from_secs(5));
    let good = outcomes.iter().all(Outcome::is_good) && dropped == 0;
    say!(
        "{}",
        if good {
            "all is well"
        } else {
            "something was wrong"
        }
    );
    Ok(good)
}

/// How many connections of each kind the system's descriptors allow.
fn bounded(options: &Options) -> [usize; 2] {
    let allowed = system::descriptors().saturating_sub(64) as usize;
    let wanted = 2 * options.tcp + options.udp;
    if wanted <= allowed {
        return [options.tcp, options.udp];
    }
    complain!("{wanted} descriptors are wanted and {allowed} allowed: fewer connections, then");
    [options.tcp, options.udp].map(|count| count * allowed / wanted)
}

/// Runs the loads at the same time.
fn run_together(loads: Vec<Load>, duration: Duration, end: &system::End) -> Vec<Outcome> {
    let counts: Vec<_> = loads.iter().map(Load::counts).collect();
    let running: Vec<_> = loads
        .into_iter()
        .map(|load| {
            let end = end.clone();
            thread::spawn(move || load.run(duration, &end, |_, _| {}))
        })
        .collect();
    let mut progress = report::Progress::new(duration);
    let start = std::time::Instant::now();
    while !running.iter().all(thread::JoinHandle::is_finished) {
        thread::sleep(Duration::from_millis(100));
        let counts: Vec<_> = counts.iter().map(|counts| &**counts).collect();
        progress.show(start.elapsed(), &counts);
    }
    progress.finish();
    let outcomes = running
        .into_iter()
        .map(|load| load.join().expect("a load does not panic"));
    outcomes.collect()
}
