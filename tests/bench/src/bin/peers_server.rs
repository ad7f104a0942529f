//! A datagram echo server for as many peers as it is told.

use cubenet_mio::{Connection, Handler, Limits, Link, Message, Network, Transport};
use std::error::Error;

struct Echo;

impl Handler for Echo {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        let _ = link.send(&message);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let (Some(port), Some(peers)) = (words.next(), words.next()) else {
        return Err("usage: peers_server PORT PEERS".into());
    };
    let limits = Limits::new()
        .with_max_peers(peers.parse()?)
        .with_max_connections(peers.parse()?)
        .with_datagram_idle_timeout(std::time::Duration::from_secs(3_600));
    let network = Network::builder().workers(1).limits(limits).start()?;
    let accept = |_: &Connection| Some(Echo);
    network.listen(Transport::Udp, format!("127.0.0.1:{port}").as_str(), accept)?;
    network.join();
    Ok(())
}
