//! The examples as servers: of this system, or of another.

use cubenet_tests::process::{Server, example};
use cubenet_tests::system::processor_time;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

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

/// The processor's time that a server has taken, to 10 ms; `None` where the system does not say.
/// That of the process in `CUBENET_EXAMPLES_HELPER`, which works for it, included.
pub(crate) fn server_time(server: &Server) -> Option<Duration> {
    let helper = match std::env::var("CUBENET_EXAMPLES_HELPER") {
        Ok(helper) => processor_time(helper.parse().ok()?)?,
        Err(_) => Duration::ZERO,
    };
    Some(processor_time(server.id())? + helper)
}
