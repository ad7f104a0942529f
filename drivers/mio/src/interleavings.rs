//! What the threads of an application and a worker do to one connection, in every order
//! that chance finds: built with `--cfg cubenet_shuttle`, the locks and atomics are
//! shuttle's, which decides at each of them which thread runs next.
//!
//! The worker here is the real one over a real socket; only its thread is a loop that polls
//! without waiting. Where the real one would sleep, nothing may be left to do: so a wake-up
//! that is lost shows as messages or an end that never come.

use crate::conn::permit::Permit;
use crate::connection::Connection;
use crate::network::listening::Listening;
use crate::network::shared::NetworkShared;
use crate::network::socket_options::SocketOptions;
use crate::sync::atomic::{AtomicBool, Ordering::SeqCst};
use crate::worker::Worker;
use crate::worker::handle::WorkerHandle;
use crate::worker::mailbox::{Accepted, Command, Mailbox, Target};
use cubenet_core::{
    AddressLimits, Budgets, CloseReason, Handler, Limits, Link, Message, SendError, Transport,
};
use mio::{Events, Poll};
use shuttle::thread;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

/// Schedules tried of each test.
const SCHEDULES: usize = 500;
/// How long the kernel may take over loopback before nothing more is expected of it.
const QUIET: Duration = Duration::from_millis(20);

/// What became of a connection.
#[derive(Default)]
struct Seen {
    closed: Vec<CloseReason>,
    writable: usize,
    dropped: bool,
}

struct Recorder(Arc<Mutex<Seen>>);

impl Handler for Recorder {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        let _ = link.send(&message);
    }

    fn writable(&mut self, _link: &mut dyn Link) {
        self.0.lock().unwrap().writable += 1;
    }

    fn closed(&mut self, _link: &mut dyn Link, reason: CloseReason) {
        self.0.lock().unwrap().closed.push(reason);
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.0.lock().unwrap().dropped = true;
    }
}

/// A worker with one connection, and the socket of its peer.
struct Scene {
    worker: Worker,
    events: Events,
    connection: Connection,
    peer: TcpStream,
    seen: Arc<Mutex<Seen>>,
}

impl Scene {
    fn new() -> Self {
        let limits = Limits::new()
            .with_max_message(20_000)
            .with_max_queued(100_000)
            .with_low_watermark(10_000);
        let options = SocketOptions {
            stream_buffer: Some(4_096),
            ..SocketOptions::default()
        };
        let addresses = AddressLimits::new();
        let network = Arc::new(NetworkShared::new(
            limits.clone(),
            Budgets::new(),
            options,
            addresses,
            (1, 2),
        ));
        let poll = Poll::new().unwrap();
        let handle = WorkerHandle::new(network, &poll).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        peer.set_nonblocking(true).unwrap();
        let (stream, address) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        // As a listener of the network's passes it on.
        stream.set_nodelay(true).unwrap();
        let stream = mio::net::TcpStream::from_std(stream);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (opened, connection) = mpsc::channel();
        let of_handler = Arc::clone(&seen);
        let accept = move |connection: &Connection| {
            opened.send(connection.clone()).unwrap();
            Some(Box::new(Recorder(Arc::clone(&of_handler))) as _)
        };
        // As a worker does that passes it on.
        let workers: Arc<[_]> = Arc::new([Arc::clone(&handle)]);
        let mailbox = Mailbox::new(handle);
        let Target { home, mailbox } = Target::each(&[mailbox], &Arc::new(limits)).remove(0);
        let permit = Permit::take(&home, Transport::Tcp, None).ok().unwrap();
        let accepted = Accepted {
            stream,
            peer: address,
            home,
            listening: Listening::new(Box::new(accept), None, None),
            permit,
            handshake: None,
        };
        assert!(mailbox.post(Command::Accept(accepted)).is_ok());
        let mut worker = Worker::new(poll, mailbox, workers);
        let mut events = Events::with_capacity(8);
        iterate(&mut worker, &mut events, QUIET);
        Scene {
            worker,
            events,
            connection: connection.try_recv().expect("the worker was woken"),
            peer,
            seen,
        }
    }

    /// Lets the worker run beside other threads until they are `done`.
    fn work_until(&mut self, done: &AtomicBool) {
        while !done.load(SeqCst) {
            iterate(&mut self.worker, &mut self.events, Duration::ZERO);
            thread::yield_now();
        }
    }

    /// Reads what the peer has been sent and lets the worker go on, as long as either has
    /// something to do. Returns what was read, and whether it ended.
    fn run_dry(&mut self) -> (Vec<u8>, bool) {
        let mut received = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        let mut ended = false;
        loop {
            let before = received.len();
            loop {
                match self.peer.read(&mut buffer) {
                    Ok(0) => {
                        ended = true;
                        break;
                    }
                    Ok(read) => received.extend_from_slice(&buffer[..read]),
                    Err(_) => break,
                }
            }
            let worked = iterate(&mut self.worker, &mut self.events, QUIET);
            if !worked && received.len() == before {
                return (received, ended);
            }
        }
    }
}

/// An iteration of the worker, if something wakes it up. Returns whether something did: a worker
/// that nothing wakes does not look into its mailbox.
fn iterate(worker: &mut Worker, events: &mut Events, timeout: Duration) -> bool {
    worker.wait(events, Some(timeout));
    let woken = !events.is_empty() || worker.poll_timeout() == Some(Duration::ZERO);
    if woken {
        worker.iterate(events);
    }
    woken
}

/// Runs `threads` beside the worker until all have ended.
fn beside(scene: &mut Scene, threads: Vec<Box<dyn FnOnce() + Send>>) {
    let done = Arc::new(AtomicBool::new(false));
    let all_done = Arc::clone(&done);
    let others = thread::spawn(move || {
        let threads: Vec<_> = threads.into_iter().map(thread::spawn).collect();
        for thread in threads {
            thread.join().unwrap();
        }
        all_done.store(true, SeqCst);
    });
    scene.work_until(&done);
    others.join().unwrap();
}

/// Cuts a stream into its messages.
fn messages(mut stream: &[u8]) -> Vec<&[u8]> {
    let mut messages = Vec::new();
    while let [first, second, rest @ ..] = stream {
        let (message, rest) = rest.split_at(usize::from(u16::from_be_bytes([*first, *second])));
        messages.push(message);
        stream = rest;
    }
    assert!(stream.is_empty(), "the last message is whole");
    messages
}

/// Sends `count` numbered messages of `len` bytes. Returns how many were accepted.
fn send(connection: &Connection, name: u8, count: u8, len: usize) -> u8 {
    for number in 0..count {
        let mut message = vec![name; len];
        message[1] = number;
        if connection.send(&message).is_err() {
            return number;
        }
    }
    count
}

#[test]
fn what_is_queued_is_sent_by_any_thread_in_any_order_with_the_worker() {
    shuttle::check_random(
        || {
            let mut scene = Scene::new();
            let threads = (0..2_u8).map(|name| {
                let connection = scene.connection.clone();
                let sends = move || assert_eq!(send(&connection, name, 3, 9_000), 3);
                // One of them in a batch.
                Box::new(move || match name {
                    0 => Connection::batch(sends),
                    _ => sends(),
                }) as Box<dyn FnOnce() + Send>
            });
            let threads = threads.collect();
            beside(&mut scene, threads);
            let (received, ended) = scene.run_dry();
            assert!(!ended);
            for name in 0..2 {
                let messages = messages(&received).into_iter();
                let of_thread = messages.filter(|message| message[0] == name);
                assert!(
                    of_thread.map(|message| message[1]).eq(0..3),
                    "each in its order"
                );
            }
            assert_eq!(scene.connection.queued(), 0);
        },
        SCHEDULES,
    );
}

#[test]
fn a_send_that_found_no_room_is_followed_by_writable() {
    shuttle::check_random(
        || {
            let mut scene = Scene::new();
            let connection = scene.connection.clone();
            let fills = Box::new(move || {
                while connection.send([0; 20_000]).is_ok() {}
                assert_eq!(connection.send([0; 20_000]), Err(SendError::Full));
            });
            beside(&mut scene, vec![fills]);
            scene.run_dry();
            assert_eq!(scene.seen.lock().unwrap().writable, 1);
        },
        SCHEDULES / 4,
    );
}

#[test]
fn a_close_delivers_what_was_accepted_before_it_and_nothing_is_accepted_after() {
    a_close_delivers(|sends| sends());
}

#[test]
fn a_close_delivers_what_a_batch_has_gathered() {
    a_close_delivers(|sends| Connection::batch(sends));
}

/// A thread sends, and does it as `run` says, while another closes.
fn a_close_delivers(run: fn(&mut dyn FnMut())) {
    shuttle::check_random(
        move || {
            let mut scene = Scene::new();
            let accepted = Arc::new(Mutex::new(0));
            let (connection, count) = (scene.connection.clone(), Arc::clone(&accepted));
            let sends = Box::new(move || {
                run(&mut || *count.lock().unwrap() = send(&connection, 7, 5, 6_000));
            });
            let connection = scene.connection.clone();
            let closes = Box::new(move || {
                connection.close();
                assert!(connection.is_closed());
                assert_eq!(connection.send([7; 10]), Err(SendError::Closed));
            });
            beside(&mut scene, vec![sends, closes]);
            let (received, ended) = scene.run_dry();
            assert!(ended, "the close reached the worker");
            let accepted = *accepted.lock().unwrap();
            assert!(
                messages(&received)
                    .iter()
                    .map(|message| message[1])
                    .eq(0..accepted)
            );
            // The peer ends, too.
            scene.peer.shutdown(std::net::Shutdown::Write).unwrap();
            scene.run_dry();
            let seen = scene.seen.lock().unwrap();
            assert_eq!(seen.closed, [CloseReason::Local]);
            assert!(seen.dropped);
        },
        SCHEDULES,
    );
}

#[test]
fn handles_used_and_dropped_while_the_worker_closes_leave_nothing() {
    shuttle::check_random(
        || {
            let mut scene = Scene::new();
            let peer = scene.peer.try_clone().unwrap();
            let leaves = Box::new(move || peer.shutdown(std::net::Shutdown::Write).unwrap());
            let mut threads: Vec<Box<dyn FnOnce() + Send>> = vec![leaves];
            for _ in 0..2 {
                let connection = scene.connection.clone();
                threads.push(Box::new(move || {
                    let other = connection.clone();
                    let _ = connection.send([1; 3_000]);
                    drop(connection);
                    other.pause();
                    other.resume();
                    let _ = other.queued();
                    let _ = other.is_closed();
                }));
            }
            beside(&mut scene, threads);
            let (received, ended) = scene.run_dry();
            messages(&received);
            assert!(ended);
            let seen = scene.seen.lock().unwrap();
            assert_eq!(seen.closed, [CloseReason::Peer]);
            assert!(seen.dropped);
            assert!(scene.connection.is_closed());
            assert_eq!(scene.connection.send(b"late"), Err(SendError::Closed));
        },
        SCHEDULES,
    );
}

#[test]
fn an_abort_against_a_close_against_the_worker_ends_once() {
    shuttle::check_random(
        || {
            let mut scene = Scene::new();
            let (one, other) = (scene.connection.clone(), scene.connection.clone());
            let closes = Box::new(move || {
                let _ = one.send([1; 8_000]);
                one.close();
            });
            let aborts = Box::new(move || other.abort());
            beside(&mut scene, vec![closes, aborts]);
            scene.run_dry();
            scene.peer.shutdown(std::net::Shutdown::Both).ok();
            scene.run_dry();
            let seen = scene.seen.lock().unwrap();
            assert_eq!(seen.closed, [CloseReason::Local]);
            assert!(seen.dropped);
        },
        SCHEDULES,
    );
}
