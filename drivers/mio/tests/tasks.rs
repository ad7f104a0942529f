//! Tasks of the application's that run on a connection's worker.

use cubenet_mio::{
    CloseReason, Connection, Handler, Limits, Link, Message, Network, SendError, Transport,
};
use cubenet_tests::{PATIENCE, Reports, accepted, eventually, ignore, network, one_worker};
use std::net::UdpSocket;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

/// Keeps the worker of a connection busy until the sender is dropped.
fn busy(connection: &Connection) -> std::sync::mpsc::Sender<()> {
    let (release, released) = channel::<()>();
    let (begun, has_begun) = channel();
    connection
        .run_on_worker(move |_| {
            begun.send(()).unwrap();
            let _ = released.recv_timeout(PATIENCE);
        })
        .unwrap();
    has_begun.recv_timeout(PATIENCE).unwrap();
    release
}

#[test]
fn tasks_run_on_the_thread_of_the_callbacks_in_the_order_they_were_asked_for() {
    struct Threads(Arc<Mutex<Vec<ThreadId>>>);
    impl Handler for Threads {
        fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
            self.0.lock().unwrap().push(thread::current().id());
            link.send(&message).unwrap();
        }
    }
    for transport in [Transport::Tcp, Transport::Udp] {
        let network = network();
        let threads = Arc::<Mutex<Vec<_>>>::default();
        let (opened, connections) = channel();
        let of_handler = Arc::clone(&threads);
        let accept = move |connection: &Connection| {
            opened.send(connection.clone()).unwrap();
            Some(Threads(Arc::clone(&of_handler)))
        };
        let listener = network.listen(transport, "127.0.0.1:0", accept).unwrap();
        let client = Reports::default();
        let peer = client.connect(&network, transport, listener.local_addr(), ignore);
        client.opened();
        peer.send(b"hello").unwrap();
        assert_eq!(client.received(), b"hello");
        let connection: Connection = connections.recv_timeout(PATIENCE).unwrap();
        for number in 0..20_u8 {
            let threads = Arc::clone(&threads);
            let expected = (transport, connection.id(), connection.peer_addr());
            connection
                .run_on_worker(move |link| {
                    threads.lock().unwrap().push(thread::current().id());
                    assert_eq!((link.transport(), link.id(), link.peer_addr()), expected);
                    link.send(&[number]).unwrap();
                })
                .unwrap();
        }
        for number in 0..20_u8 {
            assert_eq!(client.received(), [number]);
        }
        let threads = threads.lock().unwrap();
        assert_eq!(threads.len(), 21);
        assert!(threads.iter().all(|thread| *thread == threads[0]));
    }
}

#[test]
fn what_tasks_send_leaves_together() {
    let network = one_worker(Limits::default());
    let (connection, mut peer, _reports) = accepted(&network);
    let release = busy(&connection);
    let (queued, seen) = channel();
    for number in 0..5_u8 {
        let queued = queued.clone();
        connection
            .run_on_worker(move |link| {
                link.send(&[number; 8]).unwrap();
                queued.send(link.queued()).unwrap();
            })
            .unwrap();
    }
    drop(release);
    for number in 0..5_u8 {
        assert_eq!(peer.receive(), [number; 8]);
    }
    assert!(seen.iter().take(5).eq([10, 20, 30, 40, 50]));
    eventually("nothing is left", || connection.queued() == 0);
}

#[test]
fn a_task_that_panics_closes_its_connection_and_no_other() {
    let network = one_worker(Limits::default());
    let (connection, _peer, reports) = accepted(&network);
    let (other, mut peer_of_other, _others) = accepted(&network);
    connection
        .run_on_worker(|link| {
            link.send(b"lost").unwrap();
            panic!("in a task");
        })
        .unwrap();
    assert_eq!(reports.closed(), CloseReason::Panicked);
    other
        .run_on_worker(|link| link.send(b"well").unwrap())
        .unwrap();
    assert_eq!(peer_of_other.receive(), b"well");
    assert_eq!(network.metrics().panics, 1);
}

#[test]
fn a_task_may_close_pause_and_abort() {
    let network = network();
    let (connection, mut peer, reports) = accepted(&network);
    let (paused, has_paused) = channel();
    connection
        .run_on_worker(move |link| {
            link.pause();
            paused.send(()).unwrap();
        })
        .unwrap();
    has_paused.recv_timeout(PATIENCE).unwrap();
    peer.send(b"paused");
    reports.nothing();
    connection
        .run_on_worker(|link| {
            link.resume();
            link.send(b"bye").unwrap();
        })
        .unwrap();
    assert_eq!(reports.received(), b"paused");
    connection.run_on_worker(|link| link.close()).unwrap();
    assert_eq!(peer.receive(), b"bye");
    assert_eq!(peer.rest(), (Vec::new(), true));
    drop(peer);
    assert_eq!(reports.closed(), CloseReason::Local);
    let (connection, _peer, reports) = accepted(&network);
    connection.run_on_worker(|link| link.abort()).unwrap();
    assert_eq!(reports.closed(), CloseReason::Local);
}

#[test]
fn a_datagram_connection_has_tasks_too() {
    let network = network();
    let reports = Reports::default();
    let address = reports.listen(&network, Transport::Udp, ignore);
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer.send_to(b"hello", address).unwrap();
    let connection = reports.opened();
    assert_eq!(reports.received(), b"hello");
    connection
        .run_on_worker(|link| {
            link.send(b"answer").unwrap();
            link.close();
        })
        .unwrap();
    let mut buffer = [0; 10];
    assert_eq!(peer.recv(&mut buffer).unwrap(), 6);
    assert_eq!(peer.recv(&mut buffer).unwrap(), 0, "the close datagram");
    assert_eq!(reports.closed(), CloseReason::Local);
}

/// Tells when it is dropped.
struct Dropped(std::sync::mpsc::Sender<()>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(());
        panic!("a destructor of the application's");
    }
}

#[test]
fn a_task_of_a_connection_that_ended_is_dropped_and_none_is_accepted_then() {
    let network = one_worker(Limits::default());
    let (connection, _peer, reports) = accepted(&network);
    let (other, _peer_of_other, _others) = accepted(&network);
    let release = busy(&other);
    let (dropped, is_dropped) = channel();
    let owned = Dropped(dropped);
    connection.abort();
    // The worker has not seen the end.
    connection
        .run_on_worker(move |_| {
            let _owned = &owned;
            unreachable!("it has ended");
        })
        .unwrap_or_else(|error| assert_eq!(error, SendError::Closed));
    drop(release);
    is_dropped.recv_timeout(PATIENCE).unwrap();
    assert_eq!(reports.closed(), CloseReason::Local);
    eventually("it has gone", || {
        connection.run_on_worker(|_| {}) == Err(SendError::Closed)
    });
}

#[test]
fn no_more_tasks_wait_than_allowed() {
    let network = Network::builder().workers(1).max_tasks(3).start().unwrap();
    let (connection, _peer, _reports) = accepted(&network);
    let release = busy(&connection);
    let (ran, runs): (_, Receiver<u8>) = channel();
    let outcomes: Vec<_> = (0..5)
        .map(|number| {
            let ran = ran.clone();
            connection.run_on_worker(move |_| ran.send(number).unwrap())
        })
        .collect();
    // The one that keeps the worker busy counts.
    let full = Err(SendError::Full);
    assert_eq!(outcomes, [Ok(()), Ok(()), full, full, full]);
    drop(release);
    assert!(runs.iter().take(2).eq([0, 1]));
    eventually("there is room again", || {
        connection.run_on_worker(|_| {}).is_ok()
    });
}

#[test]
fn a_connection_whose_connect_has_not_returned_takes_no_task() {
    let network = network();
    for transport in [Transport::Tcp, Transport::Udp] {
        let server = Reports::default();
        let address = server.listen(&network, transport, ignore);
        let client = Reports::default();
        let reporter = client.reporter(ignore);
        let connection = network.connect(transport, address, |connection| {
            // So that the worker looks for it before it comes.
            connection.send(b"early").unwrap();
            thread::sleep(std::time::Duration::from_millis(20));
            assert_eq!(connection.run_on_worker(|_| {}), Err(SendError::Full));
            reporter
        });
        let connection = connection.unwrap();
        let (ran, runs) = channel();
        connection
            .run_on_worker(move |link| {
                ran.send(()).unwrap();
                link.close();
            })
            .unwrap();
        runs.recv_timeout(PATIENCE).unwrap();
        server.opened();
        assert_eq!(server.received(), b"early");
        assert_eq!(server.closed(), CloseReason::Peer);
    }
}
