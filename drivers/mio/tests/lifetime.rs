//! How a network starts and stops.

use cubenet_mio::{
    CloseReason, ConnectError, Connection, Error, Handler, Limits, Link, Message, Network,
    SendError, Transport,
};
use cubenet_tests::{RawClient, Reports, ignore, one_worker, pattern};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn limits_that_do_not_fit_are_refused_by_name() {
    let limits = Limits::new().with_low_watermark(2 << 20);
    let error = Network::builder().limits(limits).start().unwrap_err();
    assert!(matches!(error, Error::Limits(_)));
    assert!(error.to_string().contains("low_watermark"), "{error}");
}

#[test]
fn a_stop_delivers_what_is_queued_and_closes_every_connection() {
    let network = Network::builder()
        .workers(2)
        .stream_buffer(16 << 10)
        .start()
        .unwrap();
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let datagrams = Reports::default();
    let datagram_address = datagrams.listen(&network, Transport::Udp, ignore);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(b"hello", datagram_address).unwrap();
    let peer = datagrams.opened();
    datagrams.received();
    let mut client = RawClient::connect(address);
    let connection = server.opened();
    let mut sent = 0;
    while connection.send(pattern(20_000)).is_ok() {
        sent += 1;
    }
    let stopping = thread::spawn({
        let network = network.clone();
        move || network.stop(Duration::from_secs(20))
    });
    for _ in 0..sent {
        assert_eq!(client.receive(), pattern(20_000));
    }
    assert_eq!(client.rest(), (vec![], true));
    drop(client);
    stopping.join().unwrap();
    assert_eq!(server.closed(), CloseReason::Local);
    assert_eq!(datagrams.closed(), CloseReason::Local);
    assert_eq!(socket.recv(&mut [0; 10]).unwrap(), 0, "a close datagram");
    assert!(connection.is_closed() && peer.is_closed());
    assert_eq!(peer.send(b"x"), Err(SendError::Closed));
    let metrics = network.metrics();
    assert_eq!((metrics.open, metrics.queued_bytes), (0, 0));
    assert!(
        std::net::TcpStream::connect(address).is_err(),
        "the listener is closed"
    );
    let late = network.listen(Transport::Tcp, "127.0.0.1:0", |_| None::<Stops>);
    assert!(matches!(late, Err(Error::Stopped)));
    let late = network.connect(Transport::Udp, address, |_| Deaf);
    assert!(matches!(late, Err(Error::Stopped)));
}

#[test]
fn what_is_not_delivered_at_the_deadline_is_lost() {
    let network = Network::builder()
        .workers(1)
        .stream_buffer(16 << 10)
        .start()
        .unwrap();
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let _client = RawClient::connect(address);
    let connection = server.opened();
    while connection.send(pattern(20_000)).is_ok() {}
    let start = Instant::now();
    network.stop(Duration::from_millis(300));
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(290), "{took:?}");
    assert!(
        took < Duration::from_secs(4),
        "the drain time is longer: {took:?}"
    );
    assert_eq!(server.closed(), CloseReason::Local);
    assert_eq!(network.metrics().queued_bytes, 0);
}

/// Stops its network from inside a callback.
struct Stops(Network);
impl Handler for Stops {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        link.send(&message).unwrap();
        self.0.stop(Duration::from_secs(5));
        self.0.join();
    }
}

#[test]
fn a_callback_can_stop_the_network_and_another_thread_waits_for_it() {
    let network = Network::builder().workers(2).start().unwrap();
    let stops = network.clone();
    let accepted = move |_: &Connection| Some(Stops(stops.clone()));
    let listener = network
        .listen(Transport::Tcp, "127.0.0.1:0", accepted)
        .unwrap();
    let mut client = RawClient::connect(listener.local_addr());
    let (joined, seen) = channel();
    for _ in 0..2 {
        let network = network.clone();
        let joined = joined.clone();
        thread::spawn(move || {
            network.join();
            joined.send(()).unwrap();
        });
    }
    client.send(b"stop");
    assert_eq!(client.receive(), b"stop");
    assert_eq!(client.rest(), (vec![], true));
    drop(client);
    for _ in 0..2 {
        seen.recv_timeout(cubenet_tests::PATIENCE).unwrap();
    }
    network.stop(Duration::ZERO);
}

#[test]
fn dropping_the_last_handle_stops_the_network() {
    let server = Reports::default();
    let network = Network::builder().workers(2).start().unwrap();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let mut client = RawClient::connect(address);
    let connection = server.opened();
    drop(network.clone());
    client.send(b"alive");
    assert_eq!(server.received(), b"alive");
    drop(network);
    assert_eq!(server.closed(), CloseReason::Local);
    assert!(connection.is_closed());
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[test]
fn connections_are_spread_over_the_workers() {
    struct Where(std::sync::mpsc::Sender<thread::ThreadId>);
    impl Handler for Where {
        fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {
            self.0.send(thread::current().id()).unwrap();
        }
    }
    // A worker that the machine has held up for a while gets fewer, so there may have to be another try.
    let spread = || {
        let network = Network::builder().workers(3).start().unwrap();
        let (sender, receiver) = channel();
        let sender = std::sync::Mutex::new(sender);
        let accepted = move |_: &Connection| Some(Where(sender.lock().unwrap().clone()));
        let listener = network
            .listen(Transport::Tcp, "127.0.0.1:0", accepted)
            .unwrap();
        let mut clients: Vec<_> = (0..30)
            .map(|_| RawClient::connect(listener.local_addr()))
            .collect();
        let mut count = std::collections::HashMap::new();
        for client in &mut clients {
            client.send(b"where");
            *count.entry(receiver.recv().unwrap()).or_insert(0) += 1;
        }
        let mut counts: Vec<i32> = count.into_values().collect();
        counts.sort_unstable();
        counts
    };
    let even = [10, 10, 10];
    let tries = std::iter::repeat_with(spread).take(5);
    let tries: Vec<Vec<i32>> = tries.collect();
    assert!(tries.iter().any(|counts| *counts == even), "{tries:?}");
}

#[test]
fn a_connect_that_races_the_stop_is_answered_one_way_or_the_other() {
    for _ in 0..20 {
        let server = one_worker(Limits::default());
        let listener = server
            .listen(Transport::Tcp, "127.0.0.1:0", |_| Some(Deaf))
            .unwrap();
        let network = Network::builder().workers(2).start().unwrap();
        let answers = Arc::new(AtomicUsize::new(0));
        let connecting = thread::spawn({
            let (network, answers) = (network.clone(), Arc::clone(&answers));
            let address = listener.local_addr();
            move || {
                for connects in 0.. {
                    let answers = Arc::clone(&answers);
                    let transport = [Transport::Tcp, Transport::Udp][connects % 2];
                    let connection = network.connect(transport, address, |_| Answered(answers));
                    if connection.is_err() {
                        return connects;
                    }
                }
                0
            }
        });
        thread::sleep(Duration::from_millis(5));
        network.stop(Duration::ZERO);
        let connects = connecting.join().unwrap();
        assert_eq!(answers.load(SeqCst), connects);
        assert_eq!(network.metrics().open, 0);
    }
}

/// Counts how often its connect succeeds or fails, and closes.
struct Answered(Arc<AtomicUsize>);
impl Handler for Answered {
    fn connected(&mut self, link: &mut dyn Link) {
        self.0.fetch_add(1, SeqCst);
        link.close();
    }

    fn connect_failed(&mut self, _error: ConnectError) {
        self.0.fetch_add(1, SeqCst);
    }

    fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {}
}

struct Deaf;
impl Handler for Deaf {
    fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {}
}

/// Elsewhere a connect to a port without a listener takes seconds.
#[cfg(target_os = "linux")]
#[test]
fn once_a_listener_is_closed_accepted_is_not_called_any_more() {
    use std::sync::atomic::AtomicBool;
    for transport in [Transport::Tcp, Transport::Udp] {
        for _ in 0..20 {
            let network = Network::builder().workers(2).start().unwrap();
            let closed = Arc::new(AtomicBool::new(false));
            let late = Arc::new(AtomicBool::new(false));
            let (is_closed, was_late) = (Arc::clone(&closed), Arc::clone(&late));
            let listener = network
                .listen(transport, "127.0.0.1:0", move |_| {
                    thread::sleep(Duration::from_micros(200));
                    was_late.fetch_or(is_closed.load(SeqCst), SeqCst);
                    Some(Deaf)
                })
                .unwrap();
            let address = listener.local_addr();
            let connecting = thread::spawn(move || {
                for _ in 0..100 {
                    if transport == Transport::Tcp {
                        drop(std::net::TcpStream::connect(address));
                    } else {
                        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
                        let _ = socket.send_to(b"hello", address);
                    }
                }
            });
            thread::sleep(Duration::from_millis(5));
            listener.close();
            closed.store(true, SeqCst);
            connecting.join().unwrap();
            thread::sleep(Duration::from_millis(10));
            network.stop(Duration::ZERO);
            assert!(!late.load(SeqCst), "{transport}");
        }
    }
}
