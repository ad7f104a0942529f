//! The client of the README: it says hello to an echo server on this machine, prints the answer,
//! and ends.
//!
//! ```sh
//! cargo run --release --example echo -- --listen 127.0.0.1:7000
//! cargo run --release --example client
//! ```

use cubenet_mio::{CloseReason, ConnectError, Error, Handler, Link, Message, Network, Transport};
use std::time::Duration;

struct Greeter(Network);
impl Handler for Greeter {
    fn connected(&mut self, link: &mut dyn Link) {
        let _ = link.send(b"hello");
    }
    fn connect_failed(&mut self, error: ConnectError) {
        eprintln!("{error}"); // it names the address and the cause
        self.0.stop(Duration::ZERO); // in a callback it only begins to stop
    }
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        println!("{}", String::from_utf8_lossy(&message));
        link.close();
    }
    fn closed(&mut self, _link: &mut dyn Link, _reason: CloseReason) {
        self.0.stop(Duration::ZERO);
    }
}

fn main() -> Result<(), Error> {
    let network = Network::builder().start()?;
    network.connect(Transport::Tcp, "127.0.0.1:7000", |_connection| {
        Greeter(network.clone())
    })?;
    network.join();
    Ok(())
}
