//! Sessions in a real Redis: nodes that die, and Redis that stops and comes back.

use crate::support::*;
use cubenet_session::Redis;
use cubenet_session::wire::Refusal;
use cubenet_tests::system::skipped;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A server of Redis on a port of its own, which is ended.
pub(crate) struct Server {
    process: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Server {
    /// `None` where Redis is not installed: then the test says that it was skipped.
    pub(crate) fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let port = cubenet_tests::unused_port();
        let process = Command::new("redis-server")
            .args([
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
            ])
            .arg("--dir")
            .arg(folder.path())
            .stdout(Stdio::null())
            .spawn();
        let Ok(process) = process else {
            skipped("Redis is not installed");
            return None;
        };
        let server = Server {
            process,
            port,
            _folder: folder,
        };
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < end, "Redis does not start");
            sleep(Duration::from_millis(10));
        }
        Some(server)
    }

    pub(crate) fn store(&self) -> Redis {
        let url = format!("redis://127.0.0.1:{}", self.port);
        Redis::new(&url)
            .unwrap()
            .with_timeout(Duration::from_millis(500))
    }

    fn signal(&self, signal: &str) {
        let process = self.process.id().to_string();
        let done = Command::new("kill").args([signal, &process]).status();
        assert!(done.unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_session_goes_from_node_to_node() {
    if let Some(server) = Server::start() {
        outlives_its_nodes(|| server.store(), 11);
    }
}

#[test]
fn redis_that_stops_and_goes_on_loses_nothing() {
    let Some(server) = Server::start() else {
        return;
    };
    let network = clients();
    let node = Node::start(server.store(), roomy());
    let player = Shared::new(3_000);
    player.connect(&network, node.address);
    player.wait("it plays", |player| player.echoed > 100);
    server.signal("-STOP");
    let other = Shared::new(1);
    other.connect(&network, node.address);
    other.wait("it is refused", |player| {
        player.refused == [Refusal::StoreAway]
    });
    server.signal("-CONT");
    player.wait("it goes on", |player| player.echoed == player.goal);
    assert_eq!(node.wrong.load(SeqCst), 0);
    other.connect(&network, node.address);
    other.wait("it plays", |player| player.echoed == 1);
    network.stop(Duration::ZERO);
}

#[test]
fn a_wrong_url_says_so() {
    let error = Redis::new("no url").unwrap_err();
    let source = std::error::Error::source(&error).expect("what is wrong with it");
    assert!(source.to_string().contains("URL"), "{source}");
}
