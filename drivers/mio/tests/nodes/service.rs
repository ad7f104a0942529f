//! A service: Redis, two nodes of the example `lobby`, `HAProxy` in front of them, and bots.

use cubenet_tests::process::{Server, example};
use cubenet_tests::services::{Haproxy, Redis};
use cubenet_tests::{eventually, unused_port};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How many bots play.
pub(crate) const BOTS: u64 = 200;
/// How long a session waits for its client; the store keeps it a third longer.
pub(crate) const WAIT: Duration = Duration::from_secs(6);
/// How long a node that is to stop goes on, so that `HAProxy` sees it.
const DRAIN: Duration = Duration::from_millis(700);

/// With places for the addresses.
const HAPROXY: &str = include_str!("haproxy.cfg");

/// A node, which is started again in the same place.
pub(crate) struct Node {
    name: &'static str,
    /// `None`: it keeps all in its memory.
    redis: Option<String>,
    pub(crate) address: SocketAddr,
    pub(crate) metrics: SocketAddr,
    flags: Vec<String>,
    pub(crate) server: Server,
}

impl Node {
    /// A single node, which keeps all in its memory.
    pub(crate) fn in_memory() -> Self {
        Self::start_with("one", None, &[])
    }

    /// A node with these flags besides.
    pub(crate) fn start(name: &'static str, redis: &str, flags: &[&str]) -> Self {
        Self::start_with(name, Some(redis.to_owned()), flags)
    }

    fn start_with(name: &'static str, redis: Option<String>, flags: &[&str]) -> Self {
        let [address, metrics] =
            [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], unused_port())));
        let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
        Node {
            name,
            server: Self::run(name, redis.as_deref(), address, metrics, &flags),
            redis,
            address,
            metrics,
            flags,
        }
    }

    fn run(
        name: &str,
        redis: Option<&str>,
        address: SocketAddr,
        metrics: SocketAddr,
        flags: &[String],
    ) -> Server {
        let mut server = Server::start(
            example("lobby")
                .args(["--listen", &address.to_string(), "--node", name])
                .args(redis.iter().flat_map(|url| ["--redis", url]))
                .args(["--metrics", &metrics.to_string()])
                .args(["--wait", &WAIT.as_secs().to_string()])
                .args(flags),
        );
        server.line("listening on udp ");
        server
    }

    /// Another process in its place, beside it.
    pub(crate) fn next(&self) -> Self {
        let Node {
            name,
            ref redis,
            address,
            metrics,
            ref flags,
            ..
        } = *self;
        Node {
            name,
            server: Self::run(name, redis.as_deref(), address, metrics, flags),
            redis: redis.clone(),
            address,
            metrics,
            flags: flags.clone(),
        }
    }

    /// Starts it again, where it was.
    pub(crate) fn start_again(&mut self) {
        *self = self.next();
    }

    /// Bots that play for so long on this node alone, once all of them have come.
    pub(crate) fn bots(&self, seconds: u64) -> Server {
        let bots = bots(self.address, seconds);
        eventually("all bots have come", || self.players() >= BOTS);
        bots
    }

    /// A page that it shows; nothing if it does not answer.
    pub(crate) fn page(&self, path: &str) -> String {
        get(self.metrics, path).unwrap_or_default()
    }

    /// The number behind this name in what it shows to Prometheus; 0 if there is none.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let page = self.page("/metrics");
        let mut lines = page.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().expect("a metric is a number"))
    }

    pub(crate) fn players(&self) -> u64 {
        self.metric("lobby_players")
    }
}

/// A page by HTTP.
pub(crate) fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

pub(crate) struct Service {
    pub(crate) redis: Redis,
    pub(crate) nodes: [Node; 2],
    pub(crate) haproxy: Haproxy,
}

impl Service {
    /// `None`, and it says so, where there is no Redis or no `HAProxy`.
    pub(crate) fn start() -> Option<Self> {
        let redis = Redis::start()?;
        let drain = DRAIN.as_millis().to_string();
        let flags = ["--proxy-protocol", "127.0.0.0/8", "--drain", &drain];
        let nodes = ["a", "b"].map(|name| Node::start(name, &redis.url(), &flags));
        let mut config = HAPROXY.to_owned();
        for node in &nodes {
            let name = node.name.to_uppercase();
            config = config.replace(&format!("NODE_{name}"), &node.address.to_string());
            let port = node.metrics.port().to_string();
            config = config.replace(&format!("METRICS_{name}"), &port);
        }
        let haproxy = Haproxy::start(&config, &[])?;
        Some(Service {
            redis,
            nodes,
            haproxy,
        })
    }

    /// Bots that play for so long, once all of them have come.
    pub(crate) fn bots(&self, seconds: u64) -> Server {
        let bots = bots(self.haproxy.address, seconds);
        eventually("all bots have come, to both nodes", || {
            let players = self.nodes.each_ref().map(Node::players);
            players.iter().sum::<u64>() == BOTS && players.iter().all(|count| *count > BOTS / 3)
        });
        bots
    }
}

/// Bots that come to this address and play for so long.
fn bots(address: SocketAddr, seconds: u64) -> Server {
    Server::start(
        example("lobby")
            .args(["--connect", &address.to_string(), "--json"])
            .args(["--bots", &BOTS.to_string()])
            .args(["--seconds", &seconds.to_string()]),
    )
}

/// What bots say at the end, if nothing was lost and nothing came twice.
pub(crate) fn outcome(bots: Server) -> serde_json::Value {
    let printed = bots.end();
    let outcome = printed.last().expect("a line of JSON");
    eprintln!("{outcome}");
    let outcome: serde_json::Value = serde_json::from_str(outcome).unwrap();
    for nothing in ["lost", "doubled", "not_acknowledged"] {
        assert_eq!(outcome[nothing], 0, "{nothing}");
    }
    assert!(outcome["said"].as_u64() > Some(BOTS));
    outcome
}

/// The longest time that a bot was without its session, in seconds.
pub(crate) fn longest_away(outcome: &serde_json::Value) -> f64 {
    outcome["away_ms"]["max"].as_f64().unwrap() / 1e3
}
