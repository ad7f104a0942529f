//! An echo server on TCP and UDP.
//!
//! `cargo run --release --example echo -- --listen 127.0.0.1:7000`

#[macro_use]
mod support;

use clap::{Parser, ValueEnum};
use cubenet_mio::{Connection, ListenOptions, Network, Report, Transport};
use prometheus_client::registry::Registry;
use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;
use support::restart::{RestartOptions, drain};
use support::{echo::Echo, kept::OnHeap, openmetrics, system, tls::ServerOptions, web};

/// Sends every message back to where it came from.
#[derive(Parser)]
struct Options {
    /// The address to listen on; port 0 lets the system choose one.
    #[arg(long, default_value = "127.0.0.1:7000", value_parser = system::address)]
    listen: SocketAddr,
    /// On which transport.
    #[arg(long, value_enum, default_value = "both")]
    transport: Choice,
    /// Threads that serve; by default as many as there are processors.
    #[arg(long)]
    workers: Option<usize>,
    /// How long a worker goes on asking for events before it sleeps, in microseconds.
    #[arg(long, default_value_t = 0)]
    spin: u64,
    /// Serves what the server counts on this address: /metrics, for Prometheus.
    #[arg(long, value_name = "ADDRESS", value_parser = system::address)]
    metrics: Option<SocketAddr>,
    #[command(flatten)]
    restart: RestartOptions,
    #[command(flatten)]
    tls: ServerOptions,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Choice {
    Tcp,
    Udp,
    Both,
}

fn main() -> ExitCode {
    system::log();
    system::descriptors();
    match run(&Options::parse()) {
        Ok(()) => support::print::ended(ExitCode::SUCCESS),
        Err(error) => {
            complain!("{}", Report::new(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let end = system::End::watch();
    let offered = options.tls.load(&[])?;
    offered.reload_on_hangup(&end);
    let mut builder = Network::builder().spin(Duration::from_micros(options.spin));
    if let Some(workers) = options.workers {
        builder = builder.workers(workers);
    }
    let network = builder.start()?;
    let mut listeners = Vec::new();
    let mut inherited = options.restart.inherit()?;
    for (transport, choice) in [(Transport::Tcp, Choice::Tcp), (Transport::Udp, Choice::Udp)] {
        if options.transport == choice || options.transport == Choice::Both {
            let of_listener = offered.layers(ListenOptions::new(), transport);
            let accepted = |_: &Connection| Some(Echo::<OnHeap>::default());
            let listener = match inherited.sockets(transport) {
                Some(sockets) => network.listen_on(of_listener, sockets, accepted)?,
                None => network.listen_with(of_listener, transport, options.listen, accepted)?,
            };
            say!("listening on {transport} {}", listener.local_addr());
            listeners.push(listener);
        }
    }
    if let Some(address) = options.metrics {
        let mut registry = Registry::default();
        openmetrics::register_network(&mut registry, &network, &listeners.clone().into());
        let address = web::serve(address, move |asked| {
            (asked.path == "/metrics").then(|| openmetrics::page(&registry, asked))
        })?;
        say!("seen at http://{address}/metrics");
    }
    inherited.ready()?;
    options.restart.offer(&listeners, &end)?;
    end.wait();
    // Those who are connected go on until they have enough.
    drain(&network, listeners, &end, Duration::from_secs(30));
    network.stop(Duration::from_secs(5));
    say!("{}", network.metrics());
    Ok(())
}
