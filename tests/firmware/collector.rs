//! What the sensor speaks to: appends each reading to a file, and acknowledges it then.
//!
//! `collector FILE TCP_PORT UDP_PORT`; prints where it listens.

use cubenet_mio::{Handler, Link, Message, Network, Transport};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::{Arc, Mutex};

struct Readings(Arc<Mutex<File>>);

impl Handler for Readings {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        let number = message.first_chunk::<4>().expect("a reading has a number");
        let mut file = self.0.lock().expect("no thread panicked with it");
        writeln!(file, "{}", u32::from_be_bytes(*number)).expect("the file can be written to");
        let _ = link.send(number);
    }
}

struct Heartbeats;

impl Handler for Heartbeats {
    fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {
        println!("heartbeat");
    }
}

fn main() -> Result<(), cubenet_mio::Error> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, file, tcp, udp] = &arguments[..] else {
        panic!("collector FILE TCP_PORT UDP_PORT");
    };
    let file = OpenOptions::new().create(true).append(true).open(file);
    let file = Arc::new(Mutex::new(file.expect("the file can be opened")));
    let network = Network::builder().workers(1).start()?;
    let readings = network.listen(Transport::Tcp, format!("127.0.0.1:{tcp}"), move |_| {
        Some(Readings(Arc::clone(&file)))
    })?;
    let heartbeats = network.listen(Transport::Udp, format!("127.0.0.1:{udp}"), |_| {
        Some(Heartbeats)
    })?;
    println!(
        "{} {}",
        readings.local_addr().port(),
        heartbeats.local_addr().port()
    );
    network.join();
    Ok(())
}
