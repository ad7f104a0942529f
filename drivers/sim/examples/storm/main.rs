//! Clients and a server under all faults at once, in virtual time; nothing may be lost that
//! must not be.

mod ledger;
mod weather;

use clap::Parser;
use comfy_table::{Table, presets};
use cubenet_sim::{
    ConnectOptions, Connection, Error, Limits, ListenOptions, Network, SendError, Simulation,
    Transport,
};
use cubenet_tests::tls::Tls;
use indicatif::{ProgressBar, ProgressStyle};
use ledger::{Client, Ledger, Server};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Runs clients and a server of the simulator under all faults at once, and checks that
/// nothing is lost that must not be.
#[derive(Parser)]
struct Options {
    /// Determines the run. Without it one is picked and printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Connections at once, half TCP and half UDP.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(2..=400_000))]
    connections: u32,
    /// Minutes of virtual time.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    minutes: u32,
    /// Write everything that is sent to this file, for Wireshark (pcapng). It grows to gigabytes
    /// unless the run is small.
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// TLS over every stream, without chance of its own.
    #[arg(long)]
    tls: bool,
}

pub(crate) const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const PORT: u16 = 7_000;
/// Hosts that the clients are on.
const HOSTS: u32 = 20;
/// How often the clients do something.
const TICK: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let mut options = Options::parse();
    let seed = options.seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(0, |now| now.as_nanos() as u64)
    });
    options.seed = Some(seed);
    println!("seed {seed}");
    let outcome = Storm::new(&options, seed).and_then(|storm| storm.run(&options));
    let failures = match outcome {
        Ok(failures) => failures,
        Err(error) => vec![error.to_string()],
    };
    if failures.is_empty() {
        println!("nothing was lost that must not be, and nothing is left");
        return ExitCode::SUCCESS;
    }
    for failure in failures.iter().take(20) {
        println!("FAILED: {failure}");
    }
    println!("this run again:");
    println!(
        "cargo run --release --example storm -- --seed {seed} --connections {} --minutes {}{}",
        options.connections,
        options.minutes,
        if options.tls { " --tls" } else { "" },
    );
    ExitCode::FAILURE
}

/// The clients' side of a connect.
struct Connect {
    number: u32,
    connection: Connection,
    sent: u32,
}

struct Storm {
    simulation: Simulation,
    ledger: Ledger,
    networks: Vec<Network>,
    server: Network,
    tls: Option<Tls>,
    connects: Vec<Option<Connect>>,
    refused: BTreeMap<String, u64>,
}

pub(crate) fn host(nth: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0x0a01_0001 + nth as u32))
}

fn limits(connections: u32) -> Limits {
    Limits::new()
        .with_max_queued(128 << 10)
        .with_low_watermark(32 << 10)
        .with_max_connections(4 * connections as usize)
        .with_max_peers(connections as usize)
        .with_stream_idle_timeout(Duration::from_secs(45))
        .with_datagram_idle_timeout(Duration::from_secs(20))
        .with_frame_timeout(Duration::from_secs(20))
        .with_write_stall_timeout(Duration::from_secs(15))
        .with_drain_timeout(Duration::from_secs(10))
}

impl Storm {
    fn new(options: &Options, seed: u64) -> Result<Self, Error> {
        let (conditions, faults) = weather::at_first();
        let builder = Simulation::builder().seed(seed);
        let simulation = builder.conditions(conditions).faults(faults).build()?;
        let ledger = Ledger::default();
        let limits = limits(options.connections);
        let server = simulation.network(SERVER).limits(limits.clone()).start()?;
        let tls = options.tls.then(|| Tls::seeded(seed));
        for transport in [Transport::Tcp, Transport::Udp] {
            let ledger = ledger.clone();
            let mut options = ListenOptions::new();
            if let Some(tls) = tls.as_ref().filter(|_| transport == Transport::Tcp) {
                options = options.layer(tls.server.clone());
            }
            server.listen_with(options, transport, (SERVER, PORT), move |connection| {
                Some(Server::new(
                    transport,
                    connection.peer_addr(),
                    ledger.clone(),
                ))
            })?;
        }
        let networks = (0..HOSTS as usize)
            .map(|nth| simulation.network(host(nth)).limits(limits.clone()).start())
            .collect::<Result<_, _>>()?;
        Ok(Storm {
            simulation,
            ledger,
            networks,
            server,
            tls,
            connects: (0..options.connections).map(|_| None).collect(),
            refused: BTreeMap::new(),
        })
    }

    fn run(mut self, options: &Options) -> Result<Vec<String>, Error> {
        if let Some(path) = &options.pcap {
            let file = File::create(path).map(BufWriter::new);
            if let Err(error) = file.and_then(|file| self.simulation.capture(file)) {
                return Ok(vec![format!("cannot write {}: {error}", path.display())]);
            }
        }
        let minutes = Duration::from_secs(60) * options.minutes;
        let ticks = (minutes.as_millis() / TICK.as_millis()) as u64;
        let style = ProgressStyle::with_template("{bar:40} {msg}");
        let bar = ProgressBar::new(ticks);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        for tick in 0..ticks {
            weather::change(
                &self.simulation,
                &mut self.networks,
                &limits(options.connections),
            )?;
            for _ in 0..self.connects.len().div_ceil(10) {
                self.act()?;
            }
            self.simulation.run_for(TICK);
            if tick % 50 == 0
                && let Err(problem) = self.simulation.audit()
            {
                self.ledger.fail(problem);
            }
            bar.set_position(tick);
            bar.set_message(self.line());
        }
        bar.finish_and_clear();
        self.wind_up(&limits(options.connections));
        if let Err(error) = self.simulation.end_capture() {
            self.ledger
                .fail(format!("the capture is not whole: {error}"));
        }
        self.report();
        Ok(self.ledger.failures())
    }

    fn line(&self) -> String {
        let census = self.simulation.census();
        let metrics = self.server.metrics();
        format!(
            "{:.0} s of virtual time, {} connections, {} messages",
            self.simulation.now().as_micros() as f64 / 1e6,
            census.connections,
            metrics.messages_in,
        )
    }

    /// A client, by chance, does something, by chance.
    fn act(&mut self) -> Result<(), Error> {
        let at = (self.simulation.random() % self.connects.len() as u64) as usize;
        let Some(connect) = self.connects[at]
            .as_mut()
            .filter(|connect| !connect.connection.is_closed())
        else {
            self.connects[at] = self.connect(at)?;
            return Ok(());
        };
        match self.simulation.random() % 100 {
            0 => connect.connection.close(),
            1 if self.simulation.random().is_multiple_of(4) => connect.connection.abort(),
            2 => connect.connection.pause(),
            3..10 => connect.connection.resume(),
            _ => {
                for _ in 0..=self.simulation.random() % 8 {
                    let size = self.simulation.random() % 700;
                    // One in a hundred is long.
                    let size = if size < 7 {
                        20_000 + size * 6_000
                    } else {
                        size
                    };
                    let message = ledger::message(connect.number, connect.sent, size as usize);
                    match connect.connection.send(&message) {
                        Ok(()) => {
                            connect.sent += 1;
                            self.ledger.sent(connect.number);
                        }
                        Err(SendError::Full | SendError::Closed) => break,
                        Err(other) => self.ledger.fail(format!("a send was refused: {other}")),
                    }
                }
            }
        }
        Ok(())
    }

    fn connect(&mut self, at: usize) -> Result<Option<Connect>, Error> {
        let transport = [Transport::Tcp, Transport::Udp][at % 2];
        let host = at % self.networks.len();
        let number = self.ledger.connect(transport);
        let ledger = self.ledger.clone();
        let handler = |_: &Connection| Client::new(number, transport, ledger);
        let mut options = ConnectOptions::new();
        if let Some(tls) = self.tls.as_ref().filter(|_| transport == Transport::Tcp) {
            options = options.layer(tls.client.clone());
        }
        let network = &self.networks[host];
        let connecting = network.connect_with(&options, transport, (SERVER, PORT), handler);
        match connecting {
            Ok(connection) => {
                self.ledger
                    .connects_from(number, transport, connection.local_addr());
                Ok(Some(Connect {
                    number,
                    connection,
                    sent: 0,
                }))
            }
            Err(error @ (Error::Stopped | Error::Connect { .. })) => {
                *self.refused.entry(error.to_string()).or_default() += 1;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The faults end, every connection closes, and nothing may be left.
    fn wind_up(&mut self, limits: &Limits) {
        weather::clear(&self.simulation, self.networks.len());
        for connect in self.connects.iter().flatten() {
            connect.connection.resume();
        }
        // What was held up is sent again after two minutes at the latest; meanwhile no
        // connection is idle.
        for _ in 0..13 {
            for connect in self.connects.iter_mut().flatten() {
                let message = ledger::message(connect.number, connect.sent, 0);
                if connect.connection.send(&message).is_ok() {
                    connect.sent += 1;
                    self.ledger.sent(connect.number);
                }
            }
            self.simulation.run_for(Duration::from_secs(10));
        }
        // More than the sockets hold, and then no client does anything: whatever waits must
        // find its own way.
        for connect in self.connects.iter_mut().flatten().take(1_000) {
            for _ in 0..3 {
                let message = ledger::message(connect.number, connect.sent, 40_000);
                if connect.connection.send(&message).is_ok() {
                    connect.sent += 1;
                    self.ledger.sent(connect.number);
                }
            }
        }
        self.simulation.run_for(Duration::from_secs(10));
        self.ledger.all_is_received();
        for connect in self.connects.iter().flatten() {
            connect.connection.close();
        }
        self.simulation.run_for(limits.drain_timeout() * 2);
        for network in &self.networks {
            network.stop(Duration::from_secs(10));
        }
        self.server.stop(Duration::from_secs(10));
        self.simulation.run_until_idle();
        if let Err(problem) = self.simulation.audit() {
            self.ledger.fail(problem);
        }
        let census = self.simulation.census();
        let left = [
            census.sockets,
            census.connections,
            census.queued_bytes,
            census.partial_bytes,
            census.pending,
            census.timers,
        ];
        if left != [0; 6] {
            self.ledger.fail(format!("something is left: {census:?}"));
        }
        self.ledger.settle();
    }

    fn report(&self) {
        let traffic = self.simulation.traffic();
        let metrics = self.server.metrics();
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["what happened", "times"]);
        let rows = [
            ("connects", self.ledger.connects() as u64),
            ("accepted by the server", metrics.accepted),
            ("messages the server received", metrics.messages_in),
            ("packets", traffic.packets),
            ("packets lost", traffic.lost),
            ("segments sent again", traffic.sent_again),
            ("datagrams duplicated", traffic.duplicated),
            ("datagrams held back", traffic.reordered),
            ("datagrams corrupted", traffic.corrupted),
            ("datagrams forged", traffic.spoofed),
            ("connects refused by the network", traffic.refused),
            ("connections reset by the network", traffic.reset),
            ("readers that stood still", traffic.stalled),
            ("writes held up", traffic.held_up),
            ("accepts that failed", traffic.accept_failed),
        ];
        for (what, times) in rows {
            table.add_row([what.to_owned(), times.to_string()]);
        }
        for (what, times) in &self.refused {
            table.add_row([what.clone(), times.to_string()]);
        }
        for (name, times) in metrics.closed_by.iter().filter(|(_, n)| **n > 0) {
            table.add_row([format!("the server's ends: {name}"), times.to_string()]);
        }
        println!("{table}");
        println!("{}", self.ledger.summary());
        println!(
            "{:.0} s of virtual time, {} events, trace hash {:016x}",
            self.simulation.now().as_micros() as f64 / 1e6,
            self.simulation.events(),
            self.simulation.trace_hash()
        );
    }
}
