//! A store that fails, and a handler that does.

use crate::support::*;
use cubenet_session::store::{Opening, Resume, StoreError, Stored, Update};
use cubenet_session::wire::{End, Refusal};
use cubenet_session::{Memory, SessionId, SessionLimits, Store};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A store that can be away.
#[derive(Clone, Default)]
struct Flaky {
    memory: Arc<Memory>,
    is_away: Arc<AtomicBool>,
    /// Of those that fail, every second has been done all the same, unless all fail.
    failed: Arc<AtomicUsize>,
    all_fail: Arc<AtomicBool>,
    /// The last message to a client that is stored.
    kept: Arc<AtomicU64>,
}

impl Flaky {
    fn may_fail<R>(
        &self,
        operation: impl FnOnce() -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        if !self.is_away.load(SeqCst) {
            return operation();
        }
        if self.failed.fetch_add(1, SeqCst) % 2 == 1 && !self.all_fail.load(SeqCst) {
            operation()?;
        }
        Err(StoreError::Away("of a test".into()))
    }
}

impl Store for Flaky {
    fn open(&self, session: SessionId, opening: &Opening) -> Result<(), StoreError> {
        self.may_fail(|| self.memory.open(session, opening))
    }

    fn resume(&self, session: SessionId, resume: &Resume) -> Result<Stored, StoreError> {
        self.may_fail(|| self.memory.resume(session, resume))
    }

    fn update(&self, session: SessionId, fence: u64, update: &Update) -> Result<(), StoreError> {
        self.may_fail(|| {
            self.memory.update(session, fence, update)?;
            let last = update.first + update.messages.len() as u64 - 1;
            self.kept.fetch_max(last, SeqCst);
            Ok(())
        })
    }

    fn end(&self, session: SessionId, fence: u64) -> Result<(), StoreError> {
        self.may_fail(|| self.memory.end(session, fence))
    }
}

#[test]
fn a_store_that_is_away_holds_up_sessions_and_loses_nothing() {
    let store = Flaky::default();
    let node = Node::start(store.clone(), SessionLimits::new());
    let network = clients();
    let player = Shared::new(10_000);
    player.connect(&network, node.address);
    player.wait("it plays", |player| player.echoed > 100);
    store.is_away.store(true, SeqCst);
    let failed = || store.failed.load(SeqCst);
    let end = Instant::now() + PATIENCE;
    while failed() < 4 {
        assert!(Instant::now() < end, "updates are tried again");
        sleep(Duration::from_millis(1));
    }
    let other = Shared::new(1);
    other.connect(&network, node.address);
    other.wait("it is refused", |player| {
        player.refused == [Refusal::StoreAway]
    });
    let echoed = player.get(|player| player.echoed);
    assert!(
        echoed <= store.kept.load(SeqCst),
        "nothing is told before it is stored"
    );
    store.is_away.store(false, SeqCst);
    player.wait("it goes on", |player| player.echoed == player.goal);
    assert_eq!(node.wrong.load(SeqCst), 0);
    network.stop(Duration::ZERO);
}

#[test]
fn a_node_that_cannot_renew_in_time_gives_its_sessions_up() {
    let store = Flaky::default();
    let wait = Duration::from_secs(1);
    let node = Node::start(store.clone(), SessionLimits::new().with_wait(wait));
    let network = clients();
    let player = Shared::new(1);
    player.connect(&network, node.address);
    player.wait("it plays", |player| player.echoed == 1);
    store.all_fail.store(true, SeqCst);
    store.is_away.store(true, SeqCst);
    player.wait("it ends", |player| !player.ended.is_empty());
    node.hears(&Heard::Opened);
    let heard = node.heard.recv_timeout(PATIENCE).unwrap();
    assert_eq!(heard, Heard::Ended(End::LeaseLost));
    assert_eq!(player.get(|player| player.ended.clone()), [End::LeaseLost]);
    network.stop(Duration::ZERO);
}

#[test]
fn what_a_callback_does_is_stored_when_it_returns() {
    let store = Flaky::default();
    let node = Node::start(store.clone(), SessionLimits::new());
    let network = clients();
    let player = Shared::new(1);
    player.connect(&network, node.address);
    player.wait("it plays", |player| player.echoed == 1);
    let kept = || store.kept.load(SeqCst);
    let end = Instant::now() + PATIENCE;
    while kept() < 1 {
        assert!(Instant::now() < end, "the echo is stored");
        sleep(Duration::from_millis(1));
    }
    // Its callback sends something, and does not return.
    let (entered, leave) = node.block();
    player.get(|player| player.text = Some(b"block"));
    node.sessions.all()[0].send(b"wakes it up").unwrap();
    entered.recv_timeout(PATIENCE).unwrap();
    let before = kept();
    node.sessions.all()[0].send(b"from another thread").unwrap();
    sleep(Duration::from_millis(100));
    assert_eq!(kept(), before, "nothing is stored in the middle of it");
    drop(leave);
    player.wait("all of it arrives", |player| player.texts.len() == 3);
    let texts = player.get(|player| player.texts.clone());
    assert_eq!(
        texts[1..],
        [&b"from the callback"[..], b"from another thread"]
    );
    network.stop(Duration::ZERO);
}

#[test]
fn a_node_that_stops_waits_until_everything_is_stored() {
    let store = Flaky::default();
    let node = Node::start(store.clone(), SessionLimits::new());
    let network = clients();
    let player = Shared::new(1_000_000);
    player.connect(&network, node.address);
    player.wait("it plays", |player| player.echoed > 100);
    store.all_fail.store(true, SeqCst);
    store.is_away.store(true, SeqCst);
    node.network.stop(Duration::ZERO);
    assert!(
        !node.sessions.settle(Duration::from_millis(100)),
        "the store is away"
    );
    store.is_away.store(false, SeqCst);
    assert!(node.sessions.settle(PATIENCE));
    // Its next node has nothing to do again.
    let next = Node::start(store.clone(), SessionLimits::new());
    player.connect(&network, next.address);
    let before = player.get(|player| player.echoed);
    player.wait("it goes on", |player| player.echoed > before + 100);
    assert_eq!(node.wrong.load(SeqCst) + next.wrong.load(SeqCst), 0);
    network.stop(Duration::ZERO);
}

#[test]
fn an_application_that_is_told_full_is_told_when_there_is_room() {
    // Less than what a client acknowledges of its own accord.
    let limits = SessionLimits::new().with_max_unacknowledged(500);
    let node = Node::start(Memory::new(), limits);
    let network = clients();
    let player = Shared::new(0);
    player.connect(&network, node.address);
    player.wait("it is there", |player| player.opened == 1);
    let session = node.sessions.all().pop().unwrap();
    let end = Instant::now() + PATIENCE;
    let mut full = 0;
    for _ in 0..100 {
        while session.send(b"tick").is_err() {
            full += 1;
            assert!(Instant::now() < end, "there is room again");
            sleep(Duration::from_millis(1));
        }
    }
    player.wait("all of it arrives", |player| player.texts.len() == 100);
    assert!(full > 0);
    node.hears(&Heard::Opened);
    node.hears(&Heard::Writable);
    network.stop(Duration::ZERO);
}

#[test]
fn a_session_that_its_handler_ends_at_once_leaves_nothing() {
    let node = Node::start(Memory::new(), SessionLimits::new().with_max_sessions(1));
    let network = clients();
    for _ in 0..3 {
        let player = Shared::new(0);
        player.get(|player| player.credentials = b"end at once".to_vec());
        player.connect(&network, node.address);
        player.wait("it ends", |player| player.ended == [End::Application]);
        node.hears(&Heard::Ended(End::Application));
    }
    assert!(node.sessions.is_empty());
    network.stop(Duration::ZERO);
}

#[test]
fn a_handler_that_panics_ends_its_session_alone() {
    let node = Node::start(Memory::new(), SessionLimits::new());
    let network = clients();
    let [player, other] = [(); 2].map(|()| Shared::new(1));
    for one in [&player, &other] {
        one.connect(&network, node.address);
        one.wait("it plays", |player| player.echoed == 1);
    }
    player.get(|player| player.text = Some(b"panic"));
    player.connect(&network, node.address);
    player.wait("it ends", |player| player.ended == [End::Application]);
    assert_eq!(node.sessions.len(), 1);
    other.get(|player| player.goal = 2);
    other.connect(&network, node.address);
    other.wait("it plays on", |player| player.echoed == 2);
    network.stop(Duration::ZERO);
}
