//! Servers and the examples, each as a process of its own.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Once;

/// A server in a process of its own, ended with the test.
pub struct Server {
    process: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Server {
    /// Starts it.
    pub fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("the server starts");
        let stdout = process.stdout.take().expect("it was piped");
        let lines = BufReader::new(stdout).lines();
        Server { process, lines }
    }

    /// The address in its next line, `listening on TRANSPORT ADDRESS`.
    pub fn address(&mut self) -> SocketAddr {
        let line = self
            .lines
            .next()
            .expect("it says where it listens")
            .unwrap();
        let address = line.rsplit(' ').next().unwrap_or_default();
        address
            .parse()
            .unwrap_or_else(|_| panic!("no address: {line}"))
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The rest of its next line that begins with this.
    pub fn line(&mut self, prefix: &str) -> String {
        loop {
            let line = self.lines.next().expect("there is such a line").unwrap();
            if let Some(rest) = line.strip_prefix(prefix) {
                return rest.to_owned();
            }
        }
    }

    /// Sends it this signal.
    pub fn signal(&self, name: &str) {
        signal(self.id(), name);
    }

    /// Ends it, and waits for that.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Ends it as a user would, and returns what it printed.
    pub fn interrupt(self) -> Vec<String> {
        self.signal("INT");
        self.end()
    }

    /// What it still prints, to its end.
    pub fn rest(&mut self) -> Vec<String> {
        self.lines.by_ref().map(Result::unwrap).collect()
    }

    /// Waits until it has ended. Returns whether it says that all went well.
    pub fn has_succeeded(&mut self) -> bool {
        self.process.wait().unwrap().success()
    }

    /// Waits until it has ended well, and returns what it printed.
    pub fn end(mut self) -> Vec<String> {
        let rest = self.rest();
        assert!(self.has_succeeded(), "it stops gracefully: {rest:?}");
        rest
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a process this signal.
pub fn signal(process: u32, name: &str) {
    let mut kill = Command::new("kill");
    let kill = kill.args(["-s", name, &process.to_string()]);
    assert!(kill.status().unwrap().success());
}

/// One of the examples of the driver for servers, which `cargo test --workspace` has built; otherwise it is now.
pub fn example(name: &str) -> Command {
    static BUILD: Once = Once::new();
    let deps = std::env::current_exe().unwrap();
    let profile = deps.parent().and_then(|deps| deps.parent()).unwrap();
    let path = profile.join("examples").join(name);
    BUILD.call_once(|| {
        let mut cargo = Command::new(env!("CARGO"));
        // What cargo has told this test of its package would have it build others anew.
        let is_of_package = |name: &str| {
            let prefixes = [
                "CARGO_PKG_",
                "CARGO_MANIFEST_",
                "CARGO_BIN_",
                "CARGO_CRATE_",
            ];
            prefixes.iter().any(|prefix| name.starts_with(prefix))
        };
        let names = std::env::vars().map(|(name, _)| name);
        for name in names.filter(|name| is_of_package(name)) {
            cargo.env_remove(name);
        }
        cargo.args(["build", "--quiet", "--package", "cubenet-mio", "--examples"]);
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        let _ = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status();
    });
    Command::new(path)
}

/// All that a process has printed.
pub fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}
