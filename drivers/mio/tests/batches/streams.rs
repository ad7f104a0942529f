//! What is sent over TCP: gathered with the connection, in one write.

use cubenet_mio::{
    CloseReason, Connection, Frame, Handler, Limits, Link, Message, SendError, Transport,
};
use cubenet_tests::layer::{Flipped, record};
use cubenet_tests::system::{RESETS, wine_cannot};
use cubenet_tests::{
    PATIENCE, RawClient, Reports, accepted, eventually, framed, ignore, network, network_with,
    pattern,
};
use std::io::{ErrorKind, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

/// Limits that a queue of a few messages is over.
fn small() -> Limits {
    let limits = Limits::new().with_max_message(9_000);
    limits.with_max_datagram(1_400).with_low_watermark(5_000)
}

/// That nothing has come to a stream's peer.
fn is_quiet(peer: &RawClient) {
    thread::sleep(Duration::from_millis(20));
    peer.stream.set_nonblocking(true).unwrap();
    let error = peer.stream.peek(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    peer.stream.set_nonblocking(false).unwrap();
}

#[test]
fn messages_leave_when_the_batch_ends_and_count_until_then() {
    let network = network();
    let (one, mut peer_of_one, _reports) = accepted(&network);
    let (other, mut peer_of_other, _others) = accepted(&network);
    let frame = Frame::new(b"to all").unwrap();
    let answer = Connection::batch(|| {
        for number in 0..5_u8 {
            one.send([number; 40]).unwrap();
            other.send_frame(&frame).unwrap();
        }
        assert_eq!((one.queued(), other.queued()), (5 * 42, 5 * 8));
        assert_eq!(network.metrics().queued_bytes, 5 * 50);
        is_quiet(&peer_of_one);
        is_quiet(&peer_of_other);
        17
    });
    assert_eq!(answer, 17);
    // All has left: no event follows that could send the rest.
    for number in 0..5_u8 {
        assert_eq!(peer_of_one.receive(), [number; 40]);
        assert_eq!(peer_of_other.receive(), b"to all");
    }
    assert_eq!((one.queued(), other.queued()), (0, 0));
    let metrics = network.metrics();
    assert_eq!((metrics.queued_bytes, metrics.messages_out), (0, 10));
    assert_eq!(metrics.bytes_out, 5 * 46);
}

#[test]
fn a_batch_that_panics_has_sent_what_it_gathered() {
    let network = network();
    let (connection, mut peer, _reports) = accepted(&network);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        Connection::batch(|| {
            connection.send(b"before").unwrap();
            panic!("in a batch");
        })
    }));
    assert!(outcome.is_err());
    assert_eq!(peer.receive(), b"before");
    // The thread is in no batch any more.
    connection.send(b"after").unwrap();
    assert_eq!(peer.receive(), b"after");
}

#[test]
fn a_batch_inside_another_is_part_of_it() {
    let network = network();
    let (connection, mut peer, _reports) = accepted(&network);
    Connection::batch(|| {
        Connection::batch(|| connection.send(b"inner").unwrap());
        is_quiet(&peer);
        connection.send(b"outer").unwrap();
    });
    assert_eq!(peer.receive(), b"inner");
    assert_eq!(peer.receive(), b"outer");
}

#[test]
fn what_another_thread_sends_meanwhile_leaves_behind_what_was_gathered() {
    let network = network();
    let (connection, mut peer, _reports) = accepted(&network);
    let long = Frame::new(&pattern(9_000)).unwrap();
    Connection::batch(|| {
        connection.send(b"gathered").unwrap();
        let other = connection.clone();
        thread::spawn(move || other.send(b"by another").unwrap())
            .join()
            .unwrap();
        // It did not wait for this batch.
        assert_eq!(peer.receive(), b"gathered");
        assert_eq!(peer.receive(), b"by another");
        connection.send(b"again").unwrap();
        // By itself, and in its place.
        connection.send_frame(&long).unwrap();
        connection.send(b"last").unwrap();
        assert_eq!(peer.receive(), b"again");
        assert_eq!(peer.receive(), pattern(9_000));
    });
    assert_eq!(peer.receive(), b"last");
}

#[test]
fn two_batches_may_gather_for_one_connection() {
    let network = network();
    let (connection, mut peer, _reports) = accepted(&network);
    Connection::batch(|| {
        connection.send(b"1").unwrap();
        let other = connection.clone();
        let inner = thread::spawn(move || Connection::batch(|| other.send(b"2").unwrap()));
        inner.join().unwrap();
        // The other batch has ended, so what it gathered has left, and what was before it.
        assert_eq!(peer.receive(), b"1");
        assert_eq!(peer.receive(), b"2");
        connection.send(b"3").unwrap();
    });
    assert_eq!(peer.receive(), b"3");
}

#[test]
fn a_close_delivers_what_was_gathered_whichever_thread_closes() {
    for by_another in [false, true] {
        let network = network();
        let (connection, mut peer, reports) = accepted(&network);
        Connection::batch(|| {
            connection.send(b"gathered").unwrap();
            if by_another {
                let other = connection.clone();
                thread::spawn(move || other.close()).join().unwrap();
            } else {
                connection.close();
            }
            assert_eq!(connection.send(b"late"), Err(SendError::Closed));
        });
        assert_eq!(peer.receive(), b"gathered");
        assert_eq!(peer.rest(), (Vec::new(), true));
        drop(peer);
        assert_eq!(reports.closed(), CloseReason::Local);
    }
}

#[test]
fn what_was_gathered_when_the_peer_ended_is_delivered() {
    let network = network();
    let (connection, mut peer, reports) = accepted(&network);
    Connection::batch(|| {
        connection.send(b"gathered").unwrap();
        peer.stream.shutdown(std::net::Shutdown::Write).unwrap();
        eventually("the end is seen", || connection.is_closed());
    });
    assert_eq!(peer.receive(), b"gathered");
    assert_eq!(peer.rest(), (Vec::new(), true));
    assert_eq!(reports.closed(), CloseReason::Peer);
}

#[test]
fn an_abort_drops_what_was_gathered() {
    let network = network();
    let (connection, mut peer, reports) = accepted(&network);
    Connection::batch(|| {
        connection.send(b"gathered").unwrap();
        connection.abort();
    });
    assert_eq!(reports.closed(), CloseReason::Local);
    let (received, ended) = peer.rest();
    assert_eq!(received, b"");
    assert!(wine_cannot(RESETS) || !ended, "it was reset");
    eventually("nothing is left", || network.metrics().queued_bytes == 0);
}

#[test]
fn a_connection_that_ends_in_a_batch_leaves_nothing_behind() {
    if wine_cannot(RESETS) {
        return;
    }
    let network = network();
    let (connection, peer, reports) = accepted(&network);
    Connection::batch(|| {
        connection.send(b"gathered").unwrap();
        socket2::SockRef::from(&peer.stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(peer);
        assert_eq!(reports.closed(), CloseReason::Reset);
        assert_eq!(connection.send(b"late"), Err(SendError::Closed));
    });
    let metrics = network.metrics();
    assert_eq!((metrics.queued_bytes, metrics.open), (0, 0));
}

#[test]
fn a_batch_may_send_more_than_may_wait() {
    let network = network_with(small().with_max_queued(10_000));
    let (connection, mut peer, _reports) = accepted(&network);
    let reading = thread::spawn(move || {
        for number in 0..2_000_u32 {
            assert_eq!(peer.receive()[..4], number.to_be_bytes());
        }
    });
    let mut refused = 0;
    for number in 0..2_000_u32 {
        let mut message = [0; 1_000];
        message[..4].copy_from_slice(&number.to_be_bytes());
        Connection::batch(|| {
            while connection.send(message) == Err(SendError::Full) {
                // What was gathered is not in the way, only what the system does not take.
                refused += 1;
                assert!(connection.queued() > 0);
                thread::yield_now();
            }
        });
    }
    reading.join().unwrap();
    println!("refused {refused} times");
}

#[test]
fn one_that_does_not_read_is_full_in_a_batch_and_writable_later() {
    let network = network_with(small().with_max_queued(50_000));
    let (connection, mut peer, reports) = accepted(&network);
    let mut sent = 0;
    Connection::batch(|| {
        while connection.send([7; 1_000]).is_ok() {
            sent += 1;
        }
        assert_eq!(connection.send([7; 1_000]), Err(SendError::Full));
        assert!(connection.queued() <= 50_000);
    });
    for _ in 0..sent {
        assert_eq!(peer.receive(), [7; 1_000]);
    }
    assert!(matches!(reports.next(), cubenet_tests::Event::Writable));
    assert_eq!(connection.queued(), 0);
}

#[test]
fn what_is_gathered_on_all_connections_keeps_to_the_limit_of_all() {
    let limits = small()
        .with_max_queued(30_000)
        .with_max_queued_total(40_000);
    let network = network_with(limits);
    let mut streams: Vec<_> = (0..20).map(|_| accepted(&network)).collect();
    Connection::batch(|| {
        for (connection, ..) in &streams {
            // A first message is accepted even where there is no room.
            connection.send(pattern(9_000)).unwrap();
            let queued = network.metrics().queued_bytes;
            assert!(queued <= 40_000, "{queued} bytes");
        }
    });
    for (_, peer, _) in &mut streams {
        assert_eq!(peer.receive(), pattern(9_000));
    }
    assert_eq!(network.metrics().open, 20);
}

#[test]
fn a_batch_in_a_callback_gathers_for_other_connections() {
    struct ToAll(Vec<Connection>);
    impl Handler for ToAll {
        fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
            Connection::batch(|| {
                for part in message.chunks(1) {
                    link.send(part).unwrap();
                    for other in &self.0 {
                        other.send(part).unwrap();
                    }
                }
                // Not yet.
                assert!(
                    self.0
                        .iter()
                        .all(|other| other.queued() == 3 * message.len())
                );
            });
            assert!(self.0.iter().all(|other| other.queued() == 0));
        }
    }
    let network = network();
    let mut streams: Vec<_> = (0..5).map(|_| accepted(&network)).collect();
    let others: Vec<_> = streams.iter().map(|(other, ..)| other.clone()).collect();
    let accept = move |_: &Connection| Some(ToAll(others.clone()));
    let listener = network
        .listen(Transport::Tcp, "127.0.0.1:0", accept)
        .unwrap();
    let mut speaker = RawClient::connect(listener.local_addr());
    speaker.send(b"abc");
    for part in [b"a", b"b", b"c"] {
        assert_eq!(speaker.receive(), part);
        for (_, peer, _) in &mut streams {
            assert_eq!(peer.receive(), part);
        }
    }
}

#[test]
fn a_batch_before_the_connect_is_answered_is_delivered_behind_it() {
    let network = network();
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let client = Reports::default();
    let connection = client.connect(&network, Transport::Tcp, address, ignore);
    Connection::batch(|| {
        for number in 0..3_u8 {
            connection.send([number]).unwrap();
        }
    });
    server.opened();
    for number in 0..3_u8 {
        assert_eq!(server.received(), [number]);
    }
}

#[test]
fn a_layer_gets_what_was_gathered_at_once() {
    let network = network();
    let (reports, address) = Reports::listen_layered(&network, Flipped::new(b"hi"), ignore);
    let mut peer = RawClient::connect(address);
    peer.write(b"hi");
    let connection = reports.opened();
    let mut greeting = [0; 2];
    peer.stream.read_exact(&mut greeting).unwrap();
    Connection::batch(|| {
        connection.send(b"one").unwrap();
        connection.send(b"two").unwrap();
    });
    let mut expected = framed(b"one");
    expected.extend(framed(b"two"));
    let mut received = vec![0; record(&expected).len()];
    peer.stream.read_exact(&mut received).unwrap();
    assert_eq!(received, record(&expected), "one record");
    assert_eq!(connection.queued(), 0);
}

#[test]
fn batches_of_many_threads_and_callbacks_lose_and_double_nothing() {
    const THREADS: u8 = 4;
    const EACH: u32 = 2_000;
    let network = network_with(Limits::new().with_max_queued(1 << 24));
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let mut peer = RawClient::connect(address);
    let connection = server.opened();
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for _ in 0..u32::from(THREADS) * EACH {
            sender.send(peer.receive()).unwrap();
        }
    });
    let senders: Vec<_> = (0..THREADS)
        .map(|name| {
            let connection = connection.clone();
            thread::spawn(move || {
                let mut number = 0_u32;
                while number < EACH {
                    let until = EACH.min(number + 7);
                    let some = || {
                        for number in number..until {
                            let mut message = vec![name; 100];
                            message[1..5].copy_from_slice(&number.to_be_bytes());
                            connection.send(&message).unwrap();
                        }
                    };
                    // One of them sends each by itself.
                    if name == 0 {
                        some();
                    } else {
                        Connection::batch(some);
                    }
                    number = until;
                }
            })
        })
        .collect();
    let mut next = [0_u32; THREADS as usize];
    for _ in 0..u32::from(THREADS) * EACH {
        let message = receiver.recv_timeout(PATIENCE).unwrap();
        let of_thread = &mut next[usize::from(message[0])];
        assert_eq!(message[1..5], of_thread.to_be_bytes());
        *of_thread += 1;
    }
    for sender in senders {
        sender.join().unwrap();
    }
    eventually("nothing is left", || network.metrics().queued_bytes == 0);
}

#[test]
fn a_queue_that_empties_while_a_batch_gathers_is_no_stall() {
    let stall = Duration::from_millis(300);
    let network = network_with(Limits::new().with_write_stall_timeout(stall));
    let (connection, mut peer, reports) = accepted(&network);
    let mut sent = 0;
    while connection.queued() == 0 {
        connection.send(pattern(9_000)).unwrap();
        sent += 1;
    }
    Connection::batch(|| {
        connection.send(b"gathered").unwrap();
        for _ in 0..sent {
            assert_eq!(peer.receive(), pattern(9_000));
        }
        eventually("the queue is empty", || connection.queued() == 10);
    });
    assert_eq!(peer.receive(), b"gathered");
    thread::sleep(2 * stall);
    reports.nothing();
    connection.send(b"still there").unwrap();
    assert_eq!(peer.receive(), b"still there");
}

#[test]
fn what_is_gathered_is_in_the_way_of_no_other_message() {
    let network = network_with(small().with_max_queued(16_000));
    let (connection, mut peer, _reports) = accepted(&network);
    let frame = Frame::new(&pattern(5_000)).unwrap();
    Connection::batch(|| {
        for _ in 0..15 {
            connection.send([7; 1_000]).unwrap();
        }
        connection.send_frame(&frame).unwrap();
        let other = connection.clone();
        let sends = thread::spawn(move || other.send(pattern(8_000)));
        for _ in 0..15 {
            assert_eq!(peer.receive(), [7; 1_000]);
        }
        assert_eq!(peer.receive(), pattern(5_000));
        sends.join().unwrap().unwrap();
        assert_eq!(peer.receive(), pattern(8_000));
    });
}
