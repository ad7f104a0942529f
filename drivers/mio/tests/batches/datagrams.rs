//! What is sent over UDP: gathered with the thread, by socket, in few calls.

use cubenet_mio::{CloseReason, Connection, Limits, SendError, Transport};
use cubenet_tests::{PATIENCE, Reports, ignore, network, one_worker, pattern};
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

/// A datagram connection that was accepted, and its raw peer.
fn datagrams(reports: &Reports, address: SocketAddr) -> (Connection, UdpSocket) {
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.connect(address).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer.send(b"hello").unwrap();
    let connection = reports.opened();
    assert_eq!(reports.received(), b"hello");
    (connection, peer)
}

fn receive(peer: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    let len = peer.recv(&mut buffer).expect("a datagram arrives");
    buffer.truncate(len);
    buffer
}

fn has_nothing(peer: &UdpSocket) {
    thread::sleep(Duration::from_millis(20));
    peer.set_nonblocking(true).unwrap();
    assert!(peer.recv(&mut [0; 10]).is_err());
    peer.set_nonblocking(false).unwrap();
}

#[test]
fn datagrams_leave_when_the_batch_ends_in_order() {
    let network = network();
    let reports = Reports::default();
    let address = reports.listen(&network, Transport::Udp, ignore);
    let others = Reports::default();
    let elsewhere = others.listen(&network, Transport::Udp, ignore);
    let peers: Vec<_> = (0..10)
        .map(|nth| match nth % 2 {
            0 => datagrams(&reports, address),
            _ => datagrams(&others, elsewhere),
        })
        .collect();
    // Equal ones, which go out as one run, and others.
    let sizes = [40, 40, 40, 7, 1_500, 1_500, 1];
    Connection::batch(|| {
        for size in sizes {
            for (connection, _) in &peers {
                connection.send(pattern(size)).unwrap();
            }
        }
        for (connection, peer) in peers.iter().take(2) {
            has_nothing(peer);
            assert_eq!(connection.queued(), sizes.iter().sum::<usize>());
        }
    });
    for (connection, peer) in &peers {
        for size in sizes {
            assert_eq!(receive(peer), pattern(size));
        }
        assert_eq!(connection.queued(), 0);
    }
    assert_eq!(network.metrics().messages_out, 70);
}

#[test]
fn more_datagrams_than_leave_at_once_leave_in_a_batch() {
    // One worker, so that all leave on one socket.
    let network = one_worker(Limits::default());
    let reports = Reports::default();
    let address = reports.listen(&network, Transport::Udp, ignore);
    let peers: Vec<_> = (0..150).map(|_| datagrams(&reports, address)).collect();
    Connection::batch(|| {
        for (number, (connection, _)) in (0..150_u8).zip(&peers) {
            connection.send([number; 30]).unwrap();
        }
        let (_, peer) = &peers[0];
        assert_eq!(receive(peer), [0; 30], "the first have left");
    });
    for (number, (_, peer)) in (1..150_u8).zip(&peers[1..]) {
        assert_eq!(receive(peer), [number; 30]);
    }
}

#[test]
fn a_close_datagram_follows_what_was_gathered_whichever_thread_closes() {
    for by_another in [false, true] {
        let network = network();
        let reports = Reports::default();
        let address = reports.listen(&network, Transport::Udp, ignore);
        let (connection, peer) = datagrams(&reports, address);
        Connection::batch(|| {
            connection.send(b"gathered").unwrap();
            if by_another {
                let other = connection.clone();
                thread::spawn(move || other.close()).join().unwrap();
            } else {
                connection.close();
            }
            has_nothing(&peer);
            assert_eq!(connection.send(b"late"), Err(SendError::Closed));
        });
        assert_eq!(receive(&peer), b"gathered");
        assert_eq!(receive(&peer), b"");
        assert_eq!(reports.closed(), CloseReason::Local);
    }
}

#[test]
fn an_abort_drops_the_datagrams_that_were_gathered() {
    let network = network();
    let reports = Reports::default();
    let address = reports.listen(&network, Transport::Udp, ignore);
    let (connection, peer) = datagrams(&reports, address);
    let (other, peer_of_other) = datagrams(&reports, address);
    Connection::batch(|| {
        connection.send(b"gathered").unwrap();
        other.send(b"gathered, too").unwrap();
        connection.abort();
    });
    assert_eq!(receive(&peer_of_other), b"gathered, too");
    has_nothing(&peer);
    assert_eq!(reports.closed(), CloseReason::Local);
}

#[test]
fn a_batch_keeps_no_socket_beyond_its_end() {
    let network = network();
    let reports = Reports::default();
    let address = reports.listen(&network, Transport::Udp, ignore);
    let (connection, peer) = datagrams(&reports, address);
    Connection::batch(|| connection.send(b"one").unwrap());
    assert_eq!(receive(&peer), b"one");
    network.stop(Duration::ZERO);
    UdpSocket::bind(address).expect("nothing is bound to the address");
}

#[test]
fn datagrams_gathered_for_a_connection_that_another_thread_aborts_are_dropped() {
    let network = network();
    let reports = Reports::default();
    let address = reports.listen(&network, Transport::Udp, ignore);
    let (connection, peer) = datagrams(&reports, address);
    Connection::batch(|| {
        connection.send(b"gathered").unwrap();
        let other = connection.clone();
        thread::spawn(move || other.abort()).join().unwrap();
        assert_eq!(reports.closed(), CloseReason::Local);
    });
    has_nothing(&peer);
    assert_eq!(network.metrics().queued_bytes, 0);
}

#[test]
fn a_network_that_is_stopped_in_a_batch_delivers_what_was_gathered() {
    let network = network();
    let reports = Reports::default();
    let address = reports.listen(&network, Transport::Udp, ignore);
    let (connection, peer) = datagrams(&reports, address);
    let began = std::time::Instant::now();
    Connection::batch(|| {
        connection.send(b"gathered").unwrap();
        network.stop(PATIENCE);
    });
    assert!(began.elapsed() < PATIENCE / 2);
    assert_eq!(receive(&peer), b"gathered");
    assert_eq!(receive(&peer), b"");
}
