//! What the application does with sessions from threads of its own.

use crate::support::{Heard, Node, PATIENCE, Shared, clients, roomy};
use cubenet_mio::{Connection, Network, SendError, Transport};
use cubenet_session::store::{Opening, Resume, StoreError, Stored, Update};
use cubenet_session::wire::End;
use cubenet_session::{Memory, Session, SessionId, SessionLimits, Store};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::thread;

const TASKS: u64 = 2_000;

/// Sees that the last message of an update and the data in it are of one task.
struct Strict {
    memory: Memory,
    torn: Arc<AtomicUsize>,
}

impl Store for Strict {
    fn open(&self, session: SessionId, opening: &Opening) -> Result<(), StoreError> {
        self.memory.open(session, opening)
    }

    fn resume(&self, session: SessionId, resume: &Resume) -> Result<Stored, StoreError> {
        self.memory.resume(session, resume)
    }

    fn update(&self, session: SessionId, fence: u64, update: &Update) -> Result<(), StoreError> {
        let data = update.data.as_deref();
        if update.messages.last().map(|message| &message[..]) != data {
            self.torn.fetch_add(1, SeqCst);
        }
        self.memory.update(session, fence, update)
    }

    fn end(&self, session: SessionId, fence: u64) -> Result<(), StoreError> {
        self.memory.end(session, fence)
    }
}

fn session_of(node: &Node) -> Session {
    node.hears(&Heard::Opened);
    node.sessions.all().pop().expect("it was opened")
}

#[test]
fn what_a_task_does_is_stored_together() {
    let torn = Arc::new(AtomicUsize::new(0));
    let store = Strict {
        memory: Memory::new(),
        torn: Arc::clone(&torn),
    };
    let node = Node::start(store, roomy());
    let network = clients();
    let player = Shared::new(0);
    player.connect(&network, node.address);
    let session = session_of(&node);
    thread::scope(|scope| {
        for sender in [b'a', b'b'] {
            let session = session.clone();
            scope.spawn(move || {
                for nth in 0..TASKS {
                    let message = [&[sender][..], &nth.to_be_bytes()].concat();
                    let task = move |session: &Session| {
                        session.send(&message).expect("there is room");
                        thread::yield_now();
                        session.set_data(&message);
                    };
                    while session.run_in_turn(task.clone()) == Err(SendError::Full) {
                        thread::yield_now();
                    }
                    if nth % 64 == 0 {
                        // The client keeps up, so that there is room.
                        while session.unacknowledged() > 100_000 {
                            thread::yield_now();
                        }
                    }
                }
            });
        }
    });
    player.wait("all have come", |player| {
        player.texts.len() as u64 == 2 * TASKS
    });
    let texts = player.get(|player| std::mem::take(&mut player.texts));
    for sender in [b'a', b'b'] {
        let of_it = texts.iter().filter(|text| text[0] == sender);
        let numbers = of_it.map(|text| u64::from_be_bytes(text[1..].try_into().unwrap()));
        assert!(numbers.eq(0..TASKS), "in the order of its thread");
    }
    // The first update says that the client has its token, and has neither.
    assert_eq!(torn.load(SeqCst), 0);
    network.stop(std::time::Duration::ZERO);
}

#[test]
fn tasks_wait_for_a_callback_and_are_bounded_and_dropped_with_their_session() {
    let node = Node::start(Memory::new(), SessionLimits::new());
    let network = clients();
    let player = Shared::new(0);
    player.get(|player| player.text = Some(b"block"));
    let (entered, leave) = node.block();
    player.connect(&network, node.address);
    entered.recv_timeout(PATIENCE).unwrap();
    let session = session_of(&node);
    let (done, tasks) = channel();
    let task = |nth: usize| {
        let done = done.clone();
        session.run_in_turn(move |session: &Session| {
            if nth == 10 {
                session.end();
            }
            done.send(nth).unwrap();
        })
    };
    for nth in 0..1_024 {
        assert_eq!(task(nth), Ok(()));
    }
    assert_eq!(task(1_024), Err(SendError::Full));
    assert!(tasks.try_recv().is_err(), "the callback is not over");
    drop(leave);
    player.wait("it ends", |player| player.ended == [End::Application]);
    node.hears(&Heard::Ended(End::Application));
    assert_eq!(task(1_025), Err(SendError::Closed));
    drop(done);
    let done: Vec<usize> = tasks.iter().collect();
    assert!(done.iter().copied().eq(0..done.len()), "in order");
    assert!(done.len() > 10);
    network.stop(std::time::Duration::ZERO);
}

#[test]
fn a_task_that_panics_ends_its_session() {
    let node = Node::start(Memory::new(), SessionLimits::new());
    let network = clients();
    let player = Shared::new(0);
    player.connect(&network, node.address);
    let session = session_of(&node);
    let held = Arc::new(());
    let (tasks, of_session) = (Arc::clone(&held), session.clone());
    let _ = session.run_in_turn(move |_| {
        // Comes behind it, and is dropped.
        let task = move |_: &Session| drop(tasks);
        of_session.run_in_turn(task).expect("it is not over yet");
        panic!("of a test");
    });
    player.wait("it ends", |player| player.ended == [End::Application]);
    assert!(session.is_over());
    let end = std::time::Instant::now() + PATIENCE;
    while Arc::strong_count(&held) > 1 {
        assert!(std::time::Instant::now() < end, "the task is dropped");
        thread::yield_now();
    }
    network.stop(std::time::Duration::ZERO);
}

#[test]
fn a_session_behind_a_proxy_knows_its_client() {
    use cubenet_mio::{ConnectOptions, ListenOptions};
    use cubenet_proxy::{AcceptProxy, SendProxy};
    let node = Node::start(Memory::new(), SessionLimits::new());
    let proxies = AcceptProxy::new(["127.0.0.0/8".parse().unwrap()]);
    let gates = node.sessions.clone();
    let accept = move |connection: &Connection| Some(gates.gate(connection));
    let server = Network::builder().workers(1).start().unwrap();
    let options = ListenOptions::new().layer(proxies);
    let listener = server.listen_with(options, Transport::Tcp, "127.0.0.1:0", accept);
    let address = listener.unwrap().local_addr();
    let client = "203.0.113.7:4711".parse().unwrap();
    let network = clients();
    let player = Shared::new(0);
    let (handler, options) = (
        player.clone(),
        ConnectOptions::new().layer(SendProxy::new(client, address)),
    );
    let connect = network.connect_with(&options, Transport::Tcp, address, |_| handler);
    connect.unwrap();
    let session = session_of(&node);
    assert_eq!(node.logins(), [client]);
    assert_eq!(session.client_addr(), Some(client));
    for network in [network, server] {
        network.stop(std::time::Duration::ZERO);
    }
}
