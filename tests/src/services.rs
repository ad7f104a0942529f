//! Servers that a service of several nodes has beside it, on ports of their own, ended with the test.

use crate::process::signal;
use crate::{eventually, have, unused_port};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A process that ends with its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until something listens on a port of loopback.
fn listens(what: &str, port: u16) {
    eventually(what, || TcpStream::connect(("127.0.0.1", port)).is_ok());
}

/// A server of Redis, which keeps what it has acknowledged on the disk.
pub struct Redis {
    process: Option<Ended>,
    port: u16,
    folder: tempfile::TempDir,
}

impl Redis {
    /// `None` where Redis is not installed: then the test says that it was skipped.
    pub fn start() -> Option<Self> {
        have("Redis", Command::new("redis-server").arg("--version")).then_some(())?;
        let mut redis = Redis {
            process: None,
            port: unused_port(),
            folder: tempfile::tempdir().expect("there is room"),
        };
        redis.start_again();
        Some(redis)
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Sends it this signal.
    pub fn signal(&self, name: &str) {
        let process = self.process.as_ref().expect("it runs");
        signal(process.0.id(), name);
    }

    /// Ends it.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Starts it after that, with what it had kept.
    pub fn start_again(&mut self) {
        let process = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "yes"])
            .args(["--appendfsync", "always"])
            .arg("--dir")
            .arg(self.folder.path())
            .stdout(Stdio::null())
            .spawn();
        self.process = Some(Ended(process.expect("Redis starts")));
        listens("Redis listens", self.port);
    }
}

/// `HAProxy` with a configuration of the test's.
pub struct Haproxy {
    process: Ended,
    /// Where its frontend listens.
    pub address: SocketAddr,
    folder: tempfile::TempDir,
}

impl Haproxy {
    /// One with this configuration, in which `ADDRESS` stands for where it is to listen and `FOLDER` for a
    /// folder of its own, in which these files are. `None`, and it says so, if there is none.
    pub fn start(config: &str, files: &[(&str, String)]) -> Option<Self> {
        have("haproxy", Command::new("haproxy").arg("-v")).then_some(())?;
        let folder = tempfile::tempdir().expect("there is room");
        let address = SocketAddr::from(([127, 0, 0, 1], unused_port()));
        let path = folder.path().join("haproxy.cfg");
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).expect("there is room");
        }
        let config = config.replace("ADDRESS", &address.to_string());
        let config = config.replace("FOLDER", &text(folder.path()));
        std::fs::write(&path, config).expect("there is room");
        let process = Command::new("haproxy")
            // A master, which starts another worker when it is to read its configuration again.
            .args(["-W", "-f"])
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let haproxy = Haproxy {
            process: Ended(process.expect("HAProxy starts")),
            address,
            folder,
        };
        listens("HAProxy listens", address.port());
        Some(haproxy)
    }

    /// Has it read its configuration again.
    pub fn reload(&self) {
        signal(self.process.0.id(), "USR2");
    }

    /// A folder of its own.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        // The master ends its workers, too, if it is asked; a worker that is left would go on.
        let _ = Command::new("kill")
            .args(["-s", "TERM", &self.process.0.id().to_string()])
            .status();
        let _ = self.process.0.wait();
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path of a test is text").to_owned()
}
