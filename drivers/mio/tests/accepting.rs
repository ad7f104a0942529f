//! Who accepts connections, and who gets them.

use cubenet_mio::{Connection, Handler, Link, Message, Network, Transport};
use cubenet_tests::{PATIENCE, RawClient};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Answers; told to, waits until the test lets it go on.
struct Blocks(Arc<Mutex<Receiver<()>>>);

impl Handler for Blocks {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        if &*message == b"block" {
            let _ = self.0.lock().unwrap().recv_timeout(PATIENCE);
        }
        link.send(&message).unwrap();
    }
}

fn blocking(network: &Network) -> (std::net::SocketAddr, Sender<()>) {
    let (release, released) = channel();
    let released = Arc::new(Mutex::new(released));
    let accept = move |_: &Connection| Some(Blocks(Arc::clone(&released)));
    let listener = network.listen(Transport::Tcp, "127.0.0.1:0", accept);
    (listener.unwrap().local_addr(), release)
}

#[test]
fn a_callback_that_blocks_keeps_no_new_connection_from_a_worker_that_is_free() {
    for _ in 0..10 {
        let network = Network::builder().workers(2).start().unwrap();
        let (address, release) = blocking(&network);
        let mut blocked = RawClient::connect(address);
        blocked.send(b"block");
        // Until it shows that a callback blocks there.
        thread::sleep(Duration::from_millis(60));
        for _ in 0..20 {
            let mut client = RawClient::connect(address);
            client.send(b"hello");
            assert_eq!(client.receive(), b"hello");
        }
        release.send(()).unwrap();
        assert_eq!(blocked.receive(), b"block");
    }
}

#[test]
fn a_connection_that_comes_together_with_one_that_blocks_is_served_at_once() {
    for _ in 0..30 {
        let network = Network::builder().workers(2).start().unwrap();
        let (address, release) = blocking(&network);
        let mut clients = [(); 2].map(|()| RawClient::connect(address));
        clients[0].send(b"block");
        clients[1].send(b"hello");
        assert_eq!(clients[1].receive(), b"hello");
        release.send(()).unwrap();
        assert_eq!(clients[0].receive(), b"block");
    }
}
