//! How fast the simulator is and how much it holds: echo connections without faults, on one
//! thread.

use clap::Parser;
use cubenet_sim::{
    CloseReason, Connection, Handler, Link, Message, Network, Simulation, Transport,
};
use std::error::Error;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Measures the simulator: connections at once in one process, and messages a second of
/// real time on one core.
#[derive(Parser)]
struct Options {
    /// Connections; each has two ends in this process.
    #[arg(long, default_value_t = 64)]
    connections: u32,
    /// Messages under way at once on each connection.
    #[arg(long, default_value_t = 1)]
    window: u32,
    /// Bytes of a message; at least two.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Round trips in all, two messages each; 0: only connect.
    #[arg(long, default_value_t = 2_000_000)]
    round_trips: u64,
    /// Over UDP instead of TCP.
    #[arg(long)]
    udp: bool,
}

struct Echo;

impl Handler for Echo {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        let _ = link.send(&message);
    }
}

#[derive(Default)]
struct Counts {
    answered: AtomicU64,
    closed: AtomicU64,
}

/// Sends every answer back again.
struct Client {
    counts: Arc<Counts>,
}

impl Handler for Client {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        // What opened a datagram connection is not part of the measurement.
        if message.len() > 1 {
            self.counts.answered.fetch_add(1, Relaxed);
            let _ = link.send(&message);
        }
    }

    fn closed(&mut self, _link: &mut dyn Link, _reason: CloseReason) {
        self.counts.closed.fetch_add(1, Relaxed);
    }
}

/// Connections that one host makes: it has no more ports.
const PER_HOST: u32 = 28_000;

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let transport = if options.udp {
        Transport::Udp
    } else {
        Transport::Tcp
    };
    let simulation = Simulation::new(1);
    let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    let server = simulation
        .network(address)
        .backlog(options.connections as usize)
        .limits(
            cubenet_sim::Limits::new()
                .with_max_connections(options.connections.max(1) as usize)
                .with_max_peers(options.connections.max(1) as usize),
        )
        .start()?;
    server.listen(transport, (address, 7_000), |_| Some(Echo))?;
    let before = resident();
    let start = Instant::now();
    let counts = Arc::new(Counts::default());
    let connections = connect(&simulation, transport, &options, (address, 7_000), &counts)?;
    for connection in &connections {
        // A datagram peer is one once it has spoken.
        if options.udp {
            connection.send([0])?;
        }
    }
    simulation.run_for(Duration::from_secs(1));
    let open = server.metrics().open as usize;
    println!(
        "{open} connections in {:.1} s; {} bytes resident for each end, kernel, queue of events \
         and driver together",
        start.elapsed().as_secs_f64(),
        (resident().saturating_sub(before)) / (2 * open.max(1)),
    );
    if open != options.connections as usize {
        return Err(format!("{} connections were asked for", options.connections).into());
    }
    if options.round_trips > 0 {
        measure(&simulation, &connections, &options, &counts)?;
    }
    simulation.audit()?;
    match counts.closed.load(Relaxed) {
        0 => Ok(()),
        closed => Err(format!("{closed} connections closed").into()),
    }
}

fn connect(
    simulation: &Simulation,
    transport: Transport,
    options: &Options,
    to: (IpAddr, u16),
    counts: &Arc<Counts>,
) -> Result<Vec<Connection>, Box<dyn Error>> {
    let mut connections = Vec::with_capacity(options.connections as usize);
    let mut networks: Vec<Network> = Vec::new();
    for nth in 0..options.connections {
        if nth % PER_HOST == 0 {
            let host = IpAddr::V4(Ipv4Addr::from(0x0a01_0001 + nth / PER_HOST));
            networks.push(simulation.network(host).start()?);
        }
        let network = &networks[networks.len() - 1];
        let counts = Arc::clone(counts);
        connections.push(network.connect(transport, to, |_| Client { counts })?);
    }
    Ok(connections)
}

fn measure(
    simulation: &Simulation,
    connections: &[Connection],
    options: &Options,
    counts: &Counts,
) -> Result<(), Box<dyn Error>> {
    let message = vec![7; options.size.max(2)];
    let before = counts.answered.load(Relaxed);
    let start = Instant::now();
    let virtual_start = simulation.now();
    for connection in connections {
        for _ in 0..options.window {
            connection.send(&message)?;
        }
    }
    let answered = || counts.answered.load(Relaxed) - before;
    while answered() < options.round_trips && simulation.step() {}
    let elapsed = start.elapsed().as_secs_f64();
    println!(
        "{} messages in {elapsed:.2} s: {:.2} million a second, {:.0} ns each; {:.3} s of virtual \
         time",
        2 * answered(),
        2.0 * answered() as f64 / elapsed / 1e6,
        elapsed * 1e9 / (2.0 * answered() as f64),
        simulation.now().since(virtual_start).as_secs_f64(),
    );
    Ok(())
}

/// Bytes of physical memory this process has.
fn resident() -> usize {
    memory_stats::memory_stats().map_or(0, |stats| stats.physical_mem)
}
