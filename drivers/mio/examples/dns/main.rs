//! A small authoritative DNS server. DNS over TCP has cubenet's own framing, so one handler
//! serves both transports.
//!
//! `cargo run --release --example dns -- --listen 127.0.0.1:5353 --zone FILE`

#![allow(unreachable_pub)] // An example is no library.

#[macro_use]
#[path = "../support/mod.rs"]
mod support;
mod answer;
mod zone;

use clap::Parser;
use cubenet_mio::{
    FullPolicy, Handler, Limits, Link, ListenOptions, Message, Network, Report, SendError,
    Transport,
};
use domain::base::Name;
use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use support::{system, tls::ServerOptions};
use zone::Zone;

/// Serves the zone in a master file (RFC 1035, section 5) on UDP and TCP.
#[derive(Parser)]
struct Options {
    /// The address to listen on; port 0 lets the system choose one for each transport.
    #[arg(long, default_value = "127.0.0.1:5353", value_parser = system::address)]
    listen: SocketAddr,
    /// The zone's master file; its times are numbers of seconds.
    #[arg(long)]
    zone: PathBuf,
    /// What names in the file are relative to, until it says `$ORIGIN`.
    #[arg(long)]
    origin: Option<Name<bytes::Bytes>>,
    /// Threads that serve; by default as many as there are processors.
    #[arg(long)]
    workers: Option<usize>,
    /// With TLS the server speaks DNS over TLS (RFC 7858), and plain DNS over UDP.
    #[command(flatten)]
    tls: ServerOptions,
}

/// One peer of the server.
struct Dns {
    zone: Arc<Zone>,
    transport: Transport,
    /// The answer that found no room; no further query is taken until there is.
    refused: Option<Vec<u8>>,
}

impl Handler for Dns {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        let Some(answer) = answer::answer(&self.zone, self.transport, &message) else {
            return;
        };
        // Over UDP an answer that finds no room is lost, as the network might lose it.
        if link.send(&answer) == Err(SendError::Full) && self.transport == Transport::Tcp {
            self.refused = Some(answer);
            link.pause();
        }
    }

    fn writable(&mut self, link: &mut dyn Link) {
        if let Some(answer) = self.refused.take() {
            // There is room for it: that is what `writable` says.
            let _ = link.send(&answer);
            link.resume();
        }
    }
}

fn main() -> ExitCode {
    system::log();
    system::descriptors();
    let options = Options::parse();
    let zone = match zone::load(&options.zone, options.origin.clone()) {
        Ok(zone) => Arc::new(zone),
        Err(error) => {
            complain!("{error}");
            return ExitCode::FAILURE;
        }
    };
    match run(&options, &zone) {
        Ok(()) => support::print::ended(ExitCode::SUCCESS),
        Err(error) => {
            complain!("{}", Report::new(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options, zone: &Arc<Zone>) -> Result<(), Box<dyn Error>> {
    let end = system::End::watch();
    let offered = options.tls.load(&["dot"])?;
    offered.reload_on_hangup(&end);
    let mut builder = Network::builder();
    if let Some(workers) = options.workers {
        builder = builder.workers(workers);
    }
    let network = builder.start()?;
    for transport in [Transport::Udp, Transport::Tcp] {
        let zone = Arc::clone(zone);
        // A resolver asks from a new port every time: the port that has been silent longest
        // makes way for it.
        let limits = Limits::new()
            .with_full_policy(FullPolicy::EvictIdleFor(Duration::ZERO))
            .with_datagram_idle_timeout(Duration::from_secs(5));
        let of_listener = offered.layers(ListenOptions::new().limits(limits), transport);
        let listener =
            network.listen_with(of_listener, transport, options.listen, move |connection| {
                Some(Dns {
                    zone: Arc::clone(&zone),
                    transport: connection.transport(),
                    refused: None,
                })
            })?;
        say!("listening on {transport} {}", listener.local_addr());
    }
    end.wait();
    network.stop(Duration::from_secs(5));
    say!("{}", network.metrics());
    Ok(())
}
