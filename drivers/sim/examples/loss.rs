//! Throughput against loss: one stream that sends as fast as it may over a slow path.

use clap::Parser;
use comfy_table::{Table, presets};
use cubenet_sim::{Conditions, Handler, Link, Message, Simulation, Transport};
use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Prints the throughput of a stream against the loss on its path.
#[derive(Parser)]
struct Options {
    /// Milliseconds one way.
    #[arg(long, default_value_t = 20)]
    latency: u64,
    /// Megabits a second.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    bandwidth: u64,
    /// Kilobytes that wait for the bandwidth before more are lost.
    #[arg(long, default_value_t = 100)]
    queue: usize,
    /// Seconds of virtual time for each rate of loss.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    seconds: u64,
    /// Determines the runs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Counts what arrives.
struct Sink(Arc<AtomicU64>);

impl Handler for Sink {
    fn received(&mut self, _link: &mut dyn Link, message: Message<'_>) {
        self.0.fetch_add(message.len() as u64, Relaxed);
    }
}

/// Sends whenever there is room.
struct Source;

impl Handler for Source {
    fn connected(&mut self, link: &mut dyn Link) {
        self.writable(link);
    }

    fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {}

    fn writable(&mut self, link: &mut dyn Link) {
        while link.send(&[0; 10_000]).is_ok() {}
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["loss", "Mbit/s", "segments sent again"]);
    for percent in [0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0] {
        let (megabits, again) = run(&options, percent / 100.0)?;
        table.add_row([
            format!("{percent} %"),
            format!("{megabits:.2}"),
            again.to_string(),
        ]);
    }
    println!("{table}");
    Ok(())
}

fn run(options: &Options, loss: f64) -> Result<(f64, u64), Box<dyn Error>> {
    let conditions = Conditions::new()
        .with_latency(Duration::from_millis(options.latency))
        .with_loss(loss)
        .with_bandwidth(Some(options.bandwidth * 1_000_000))
        .with_queue(options.queue * 1_000);
    let builder = Simulation::builder().seed(options.seed);
    let simulation = builder.conditions(conditions).build()?;
    let (server, client): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let arrived = Arc::new(AtomicU64::new(0));
    let of_sink = Arc::clone(&arrived);
    let network = simulation.network(server).stream_buffer(4 << 20).start()?;
    network.listen(Transport::Tcp, (server, 7_000), move |_| {
        Some(Sink(Arc::clone(&of_sink)))
    })?;
    let network = simulation.network(client).stream_buffer(4 << 20).start()?;
    network.connect(Transport::Tcp, (server, 7_000), |_| Source)?;
    let time = Duration::from_secs(options.seconds);
    simulation.run_for(time);
    let megabits = arrived.load(Relaxed) as f64 * 8.0 / 1e6 / time.as_secs_f64();
    Ok((megabits, simulation.traffic().sent_again))
}
