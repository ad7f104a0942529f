//! What happens when the process runs out of descriptors: `accept` waits and goes on.

use cubenet_mio::{Limits, Network, Transport};
use cubenet_tests::system::limit_descriptors;
use cubenet_tests::{RawClient, Reports, echo, eventually, one_worker};
use std::fs::File;

#[test]
fn an_acceptor_without_descriptors_serves_its_connections_and_accepts_again_later() {
    let network = one_worker(Limits::default());
    let address = Reports::default().listen(&network, Transport::Tcp, echo);
    let mut served = RawClient::connect(address);
    served.send(b"before");
    assert_eq!(served.receive(), b"before");
    if !limit_descriptors(256) {
        return;
    }
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }
    let started = Network::builder().start();
    assert!(started.is_err(), "a network cannot start, and says so");
    // One descriptor for the client's end, none for the server's.
    hoard.pop();
    let mut waiting = RawClient::connect(address);
    eventually("it is noticed", || network.metrics().accept_failed > 0);
    served.send(b"meanwhile");
    assert_eq!(served.receive(), b"meanwhile");
    waiting.send(b"patience");
    hoard.truncate(hoard.len() / 2);
    assert_eq!(waiting.receive(), b"patience");
}
