//! What an application may do in its own code without hurting a thread of the library: panic
//! anywhere, block no thread but its own, and use whatever it likes from destructors.

use cubenet_mio::{
    Connection, Handler, Limits, Link, Listener, Message, Network, SendError, Transport,
};
use cubenet_tests::{PATIENCE, RawClient, Reports, echo, eventually, ignore, network, one_worker};
use std::cell::RefCell;
use std::panic::panic_any;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Does something when it is dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

struct Deaf;
impl Handler for Deaf {
    fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {}
}

/// That all workers of `network` answer, and that listening works.
fn is_alive(network: &Network) {
    let address = Reports::default().listen(network, Transport::Tcp, echo);
    let mut clients: Vec<_> = (0..8).map(|_| RawClient::connect(address)).collect();
    for client in &mut clients {
        client.send(b"alive");
        assert_eq!(client.receive(), b"alive");
    }
}

/// Runs `code` on another thread, and fails if it does not come back.
fn comes_back(code: impl FnOnce() + Send + 'static) {
    let (done, is_done) = channel();
    let running = thread::spawn(move || {
        code();
        done.send(()).unwrap();
    });
    is_done.recv_timeout(PATIENCE).expect("it comes back");
    running.join().unwrap();
}

#[test]
fn a_closure_that_panics_as_it_is_dropped_ends_no_thread() {
    let network = network();
    for transport in [Transport::Tcp, Transport::Udp] {
        for _ in 0..4 {
            let bomb = OnDrop(|| panic!("on purpose"));
            let accepted = move |_: &Connection| {
                let _ = &bomb;
                Some(Deaf)
            };
            let listener = network.listen(transport, "127.0.0.1:0", accepted).unwrap();
            let connection = std::net::TcpStream::connect(listener.local_addr());
            assert_eq!(connection.is_ok(), transport == Transport::Tcp);
            // The closure is dropped by the thread that has it last, which may be this one.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| listener.close()));
        }
    }
    comes_back(move || {
        is_alive(&network);
        network.stop(Duration::ZERO);
    });
}

#[test]
fn a_connect_whose_handler_cannot_be_made_leaves_nothing() {
    let network = network();
    for transport in [Transport::Tcp, Transport::Udp] {
        let connecting = || {
            network.connect(transport, "127.0.0.1:9", |_| -> Deaf {
                panic!("on purpose");
            })
        };
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(connecting)).is_err());
        assert_eq!(network.metrics().open, 0);
    }
    comes_back(move || {
        is_alive(&network);
        network.stop(Duration::ZERO);
    });
}

#[test]
fn a_closure_that_uses_the_network_as_it_is_dropped_blocks_no_thread() {
    let network = network();
    for transport in [Transport::Tcp, Transport::Udp] {
        let inner: Arc<Mutex<Option<Listener>>> = Arc::default();
        let of_closure = (network.clone(), Arc::clone(&inner));
        let uses = OnDrop(move || {
            let (network, inner) = &of_closure;
            let listener = network.listen(Transport::Tcp, "127.0.0.1:0", |_| Some(Deaf));
            let address = listener.as_ref().unwrap().local_addr();
            let other = network.connect(Transport::Tcp, address, |_| Deaf);
            other.unwrap().abort();
            let _ = network.metrics();
            listener.unwrap().close();
            if let Some(inner) = inner.lock().unwrap().take() {
                inner.close();
            }
        });
        let accepted = move |_: &Connection| {
            let _ = &uses;
            Some(Deaf)
        };
        let outer = network.listen(transport, "127.0.0.1:0", accepted).unwrap();
        let accepted = |_: &Connection| Some(Deaf);
        let listener = network.listen(transport, "127.0.0.1:0", accepted).unwrap();
        *inner.lock().unwrap() = Some(listener);
        comes_back(move || outer.close());
    }
    comes_back(move || is_alive(&network));
}

#[test]
fn a_network_can_be_stopped_by_a_closure_as_it_is_dropped() {
    let network = network();
    let of_closure = network.clone();
    let stops = OnDrop(move || of_closure.stop(Duration::ZERO));
    let accepted = move |_: &Connection| {
        let _ = &stops;
        Some(Deaf)
    };
    let listener = network.listen(Transport::Tcp, "127.0.0.1:0", accepted);
    let listener = listener.unwrap();
    comes_back(move || {
        listener.close();
        network.join();
    });
}

#[test]
fn handlers_and_payloads_that_panic_as_they_are_dropped_end_no_thread() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic_any(Bomb);
        }
    }
    struct Explodes(Bomb);
    impl Handler for Explodes {
        fn received(&mut self, _link: &mut dyn Link, message: Message<'_>) {
            if &*message == b"panic" {
                panic_any(Bomb);
            }
        }
    }
    let network = network();
    let accepted = |_: &Connection| Some(Explodes(Bomb));
    let listener = network.listen(Transport::Tcp, "127.0.0.1:0", accepted);
    let address = listener.unwrap().local_addr();
    for message in [&b"panic"[..], b"leave"] {
        let mut clients: Vec<_> = (0..4).map(|_| RawClient::connect(address)).collect();
        for client in &mut clients {
            client.send(message);
        }
    }
    eventually("all have closed", || network.metrics().closed_total() == 8);
    is_alive(&network);
    assert_eq!(
        network.metrics().panics,
        12,
        "four in callbacks, eight in drops"
    );
}

#[test]
fn a_connection_can_be_used_in_the_destructor_of_a_thread_local() {
    type AtTheEnd = OnDrop<Box<dyn FnMut()>>;
    thread_local! {
        static LAST: RefCell<Vec<AtTheEnd>> = const { RefCell::new(Vec::new()) };
    }
    struct Keeps(Connection, Sender<bool>);
    impl Handler for Keeps {
        fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
            let (connection, report) = (self.0.clone(), self.1.clone());
            LAST.with_borrow_mut(|last| {
                last.push(OnDrop(Box::new(move || {
                    let sent = connection.send(b"too late");
                    let _ = connection.queued();
                    connection.close();
                    connection.abort();
                    let _ = report.send(sent == Err(SendError::Closed));
                })));
            });
            link.send(&message).unwrap();
        }
    }
    let network = network();
    let (report, reported) = channel();
    let of_handlers = report.clone();
    let accepted =
        move |connection: &Connection| Some(Keeps(connection.clone(), of_handlers.clone()));
    let listener = network.listen(Transport::Tcp, "127.0.0.1:0", accepted);
    let mut client = RawClient::connect(listener.unwrap().local_addr());
    client.send(b"hello");
    assert_eq!(client.receive(), b"hello");
    // On a thread of the application's, too.
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let mut other = RawClient::connect(address);
    let connection = server.opened();
    thread::spawn(move || {
        let used_before = connection.clone();
        LAST.with_borrow_mut(|last| {
            last.push(OnDrop(Box::new(move || {
                let _ = report.send(connection.send(b"from a destructor").is_ok());
            })));
        });
        // What the library keeps for this thread is made after that, and destroyed before it.
        let _ = used_before.queued();
    })
    .join()
    .unwrap();
    assert!(reported.recv_timeout(PATIENCE).unwrap());
    assert_eq!(other.receive(), b"from a destructor");
    network.stop(Duration::ZERO);
    assert!(reported.recv_timeout(PATIENCE).unwrap());
}

#[test]
fn a_message_may_use_its_connection_as_it_is_read() {
    struct Nested(Connection);
    impl AsRef<[u8]> for Nested {
        fn as_ref(&self) -> &[u8] {
            self.0.send(b"first").unwrap();
            assert!(!self.0.is_closed());
            let _ = self.0.queued();
            b"second"
        }
    }
    struct Sends(Connection);
    impl Handler for Sends {
        fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {
            self.0.send(Nested(self.0.clone())).unwrap();
        }
    }
    let network = network();
    let accepted = |connection: &Connection| Some(Sends(connection.clone()));
    let listener = network.listen(Transport::Tcp, "127.0.0.1:0", accepted);
    let mut client = RawClient::connect(listener.unwrap().local_addr());
    client.send(b"go");
    assert_eq!(client.receive(), b"first");
    assert_eq!(client.receive(), b"second");
}

#[test]
fn messages_of_a_connection_that_is_asked_to_pause_a_million_times_cost_no_memory() {
    // The worker is held up meanwhile, so that it answers none of them.
    struct Blocks(std::sync::mpsc::Receiver<()>);
    impl Handler for Blocks {
        fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {
            let _ = self.0.recv();
        }
    }
    let network = one_worker(Limits::default());
    let server = Reports::default();
    let address = server.listen(&network, Transport::Tcp, ignore);
    let _paused = RawClient::connect(address);
    let connection = server.opened();
    let (go_on, waits) = channel();
    let waits = Mutex::new(Some(waits));
    let accepted = move |_: &Connection| waits.lock().unwrap().take().map(Blocks);
    let listener = network.listen(Transport::Tcp, "127.0.0.1:0", accepted);
    let mut blocks = RawClient::connect(listener.unwrap().local_addr());
    blocks.send(b"block");
    thread::sleep(Duration::from_millis(100));
    let before = cubenet_tests::allocation::live_bytes();
    for _ in 0..500_000 {
        connection.pause();
        connection.resume();
    }
    connection.abort();
    let taken = cubenet_tests::allocation::live_bytes() - before;
    go_on.send(()).unwrap();
    // Other tests allocate beside this one; the mailbox took 64 MiB.
    assert!(taken < 8 << 20, "{taken} bytes");
    eventually("it is closed", || connection.is_closed());
}

#[global_allocator]
static ALLOCATOR: cubenet_tests::allocation::Counting = cubenet_tests::allocation::Counting;
