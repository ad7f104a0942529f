//! The client of the README: it says hello to an echo server on this machine, prints the answer,
//! and ends.
//!
//! ```sh
//! cargo run --release --example echo -- --listen 127.0.0.1:7000
//! cargo run --release --example client
//! ```

use cubenet_mio::{CloseReason, Error, Handler, Link, Message, Network, Transport};
use std::time::Duration;

struct Greeter(Network);
impl Handler for Greeter {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        println!("{}", String::from_utf8_lossy(&message));
        link.close();
    }
    fn closed(&mut self, _link: &mut dyn Link, _reason: CloseReason) {
        self.0.stop(Duration::ZERO); // in a callback it only begins to
    }
}

fn main() -> Result<(), Error> {
    let network = Network::builder().start()?;
    let of_handler = network.clone();
    let connection =
        network.connect(Transport::Tcp, "127.0.0.1:7000", |outcome| match outcome {
            Ok(_connection) => Some(Greeter(of_handler)),
            Err(error) => {
                eprintln!("{error}"); // it names the address and the cause
                of_handler.stop(Duration::ZERO);
                None
            }
        })?;
    let _ = connection.send(b"hello"); // waits until the call is answered
    network.join();
    Ok(())
}
