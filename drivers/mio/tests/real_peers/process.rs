//! Servers and the examples, each as a process of its own.

use cubenet_tests::system::processor_time;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Once;
use std::time::Duration;

/// A server in a process of its own, ended with the test.
pub(crate) struct Server {
    process: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Server {
    pub(crate) fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("the server starts");
        let stdout = process.stdout.take().expect("it was piped");
        let lines = BufReader::new(stdout).lines();
        Server { process, lines }
    }

    /// The address in its next line, `listening on TRANSPORT ADDRESS`.
    pub(crate) fn address(&mut self) -> SocketAddr {
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

    /// Sends it this signal.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        let mut kill = Command::new("kill");
        assert!(kill.args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Ends it as a user would, and returns what it printed.
    pub(crate) fn interrupt(mut self) -> Vec<String> {
        self.signal("INT");
        let rest: Vec<String> = self.lines.by_ref().map(Result::unwrap).collect();
        assert!(
            self.process.wait().unwrap().success(),
            "it stops gracefully"
        );
        rest
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One of the examples, which `cargo test --workspace` has built; otherwise it is now.
pub(crate) fn example(name: &str) -> Command {
    static BUILD: Once = Once::new();
    let deps = std::env::current_exe().unwrap();
    let profile = deps.parent().and_then(|deps| deps.parent()).unwrap();
    let path = profile.join("examples").join(name);
    BUILD.call_once(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "cubenet-mio", "--examples"]);
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        let _ = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status();
    });
    Command::new(path)
}

/// The example to try: this system's, or another's by the command in `CUBENET_EXAMPLES`, in which
/// `{}` stands for its name.
pub(crate) fn tried(name: &str) -> Command {
    let Ok(given) = std::env::var("CUBENET_EXAMPLES") else {
        return example(name);
    };
    let given = given.replace("{}", name);
    let mut words = given.split_whitespace();
    let mut command = Command::new(words.next().expect("CUBENET_EXAMPLES is a command"));
    command.args(words);
    command
}

pub(crate) fn echo_server() -> (Server, SocketAddr) {
    let mut echo = Server::start(tried("echo").args(["--listen", "127.0.0.1:0"]));
    let address = echo.address();
    (echo, address)
}

pub(crate) fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// The processor's time that a server has taken, to 10 ms; `None` where the system does not say.
/// That of the process in `CUBENET_EXAMPLES_HELPER`, which works for it, included.
pub(crate) fn server_time(server: &Server) -> Option<Duration> {
    let helper = match std::env::var("CUBENET_EXAMPLES_HELPER") {
        Ok(helper) => processor_time(helper.parse().ok()?)?,
        Err(_) => Duration::ZERO,
    };
    Some(processor_time(server.process.id())? + helper)
}
