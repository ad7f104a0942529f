//! A listener whose peers are spread over the workers.

use super::*;
use std::collections::HashMap;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, ThreadId};

/// Answers, and tells on which thread.
struct Tells(std::sync::mpsc::Sender<(SocketAddr, ThreadId)>);

impl Handler for Tells {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        let thread = thread::current().id();
        self.0.send((link.peer_addr(), thread)).unwrap();
        link.send(&message).unwrap();
    }
}

type Told = Receiver<(SocketAddr, ThreadId)>;

fn listen(network: &Network) -> (cubenet_mio::Listener, Told) {
    let (sender, told) = channel();
    let accept = move |_: &Connection| Some(Tells(sender.clone()));
    let listener = network.listen(Transport::Udp, "127.0.0.1:0", accept);
    (listener.unwrap(), told)
}

/// Has each peer ask three times. Returns which thread answered which.
fn ask(peers: &[UdpSocket], told: &Told) -> HashMap<SocketAddr, ThreadId> {
    let mut threads = HashMap::new();
    for _ in 0..3 {
        for peer in peers {
            peer.send(b"hello").unwrap();
            assert_eq!(receive(peer), b"hello");
            let (address, thread) = told.recv_timeout(PATIENCE).unwrap();
            assert_eq!(address, peer.local_addr().unwrap());
            let known = *threads.entry(address).or_insert(thread);
            assert_eq!(known, thread, "a peer has one worker");
        }
    }
    threads
}

fn count(threads: &HashMap<SocketAddr, ThreadId>) -> usize {
    threads.values().collect::<HashSet<_>>().len()
}

#[test]
fn peers_are_spread_over_the_workers_unless_that_is_off() {
    for spread in [true, false] {
        let builder = Network::builder().workers(3).spread_datagrams(spread);
        let network = builder.start().unwrap();
        let (listener, told) = listen(&network);
        let peers: Vec<_> = (0..40).map(|_| client(listener.local_addr())).collect();
        let workers = count(&ask(&peers, &told));
        if cfg!(target_os = "linux") && spread {
            // That a worker gets none of 40 happens once in ten million times.
            assert_eq!(workers, 3);
        } else {
            assert_eq!(workers, 1);
        }
    }
}

#[test]
fn a_peer_keeps_its_worker_until_the_last_connection_of_a_closed_listener_has_gone() {
    let network = Network::builder().workers(3).start().unwrap();
    let (listener, told) = listen(&network);
    let address = listener.local_addr();
    let mut peers: Vec<_> = (0..30).map(|_| client(address)).collect();
    let before = ask(&peers, &told);
    listener.close();
    assert_eq!(ask(&peers, &told), before);
    // Of one worker all go, so that it has none.
    let first = before[&peers[0].local_addr().unwrap()];
    let of_first = |peer: &UdpSocket| before[&peer.local_addr().unwrap()] == first;
    let (gone, stay): (Vec<_>, Vec<_>) = peers.drain(..).partition(of_first);
    for peer in &gone {
        peer.send(b"").unwrap();
    }
    let open = stay.len() as u64;
    eventually("they have gone", || network.metrics().open == open);
    let after = ask(&stay, &told);
    assert!(after.iter().all(|(peer, thread)| before[peer] == *thread));
    // No one new is admitted.
    let late = client(address);
    late.send(b"late").unwrap();
    receives_nothing(&late);
    for peer in &stay {
        peer.send(b"").unwrap();
    }
    eventually("the address is free", || UdpSocket::bind(address).is_ok());
}

#[test]
fn the_limit_of_a_listener_holds_for_all_its_workers_together() {
    let limits = Limits::new().with_max_peers(10).with_reserved_peers(3);
    let builder = Network::builder().workers(3).limits(limits);
    let network = builder.start().unwrap();
    let options = cubenet_mio::ListenOptions::new().admit(|_, datagram| match datagram {
        b"known" => cubenet_mio::Admission::Recognise,
        _ => cubenet_mio::Admission::Admit,
    });
    let accept = |_: &Connection| Some(Echo);
    let listener = network
        .listen_with(options, Transport::Udp, "127.0.0.1:0", accept)
        .unwrap();
    let peers: Vec<_> = (0..25).map(|_| client(listener.local_addr())).collect();
    let mut known = HashSet::new();
    for (nth, peer) in peers.iter().enumerate() {
        let message: &[u8] = if nth < 20 { b"hello" } else { b"known" };
        peer.send(message).unwrap();
        peer.set_read_timeout(Some(Duration::from_millis(150)))
            .unwrap();
        if peer.recv(&mut [0; 10]).is_ok() {
            known.insert(nth);
        }
    }
    let expected: HashSet<_> = (0..7).chain(20..23).collect();
    assert_eq!(known, expected);
    assert_eq!(network.metrics().open, 10);
    assert_eq!(network.metrics().dropped_table_full, 15);
}

#[test]
fn a_second_listener_on_the_address_is_an_error() {
    let network = Network::builder().workers(3).start().unwrap();
    let other = Network::builder().workers(3).start().unwrap();
    for transport in [Transport::Udp, Transport::Tcp] {
        let accept = |_: &Connection| Some(Echo);
        let listener = network.listen(transport, "127.0.0.1:0", accept).unwrap();
        for network in [&network, &other] {
            let error = network
                .listen(transport, listener.local_addr(), accept)
                .unwrap_err();
            assert!(error.to_string().contains("in use"), "{error}");
        }
    }
}
