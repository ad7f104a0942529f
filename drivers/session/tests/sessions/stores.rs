//! What every store does.

use crate::redis::store;
use bytes::Bytes;
use cubenet_session::store::{Opening, Resume, SecretHash, StoreError, Update};
use cubenet_session::{Memory, SessionId, Store};
use cubenet_tests::services::Redis as Server;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::sleep;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
/// Of the next update.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

fn hash(byte: u8) -> SecretHash {
    SecretHash([byte; 32])
}

fn resume(attempt: u64, presented: u8, next: u8, received: u64) -> Resume {
    Resume {
        presented: hash(presented),
        next: hash(next),
        attempt,
        received,
        expires_in: MINUTE,
    }
}

fn update(first: u64, messages: &[&'static [u8]]) -> Update {
    Update {
        number: NUMBERS.fetch_add(1, Relaxed),
        first,
        messages: messages.iter().copied().map(Bytes::from_static).collect(),
        expires_in: MINUTE,
        ..Update::default()
    }
}

/// Calls `test` with every store there is, and a session in it.
fn with_stores(test: impl Fn(&dyn Store, SessionId)) {
    let opening = Opening {
        secret: hash(1),
        data: Bytes::from_static(b"\0data\xff"),
        expires_in: MINUTE,
    };
    let id = SessionId::from_bytes([0xa5; 16]);
    let memory = Memory::new();
    memory.open(id, &opening).unwrap();
    test(&memory, id);
    if let Some(server) = Server::start() {
        let redis = store(&server);
        redis.open(id, &opening).unwrap();
        test(&redis, id);
    }
}

#[test]
fn a_session_is_kept_as_it_was() {
    with_stores(|store, id| {
        let all = Update {
            received: 5,
            data: Some(Bytes::from_static(b"other data")),
            ..update(1, &[b"one", b"\0two\xff", b""])
        };
        store.update(id, 1, &all).unwrap();
        store.update(id, 1, &update(4, &[b"four"])).unwrap();
        let stored = store.resume(id, &resume(1, 1, 2, 1)).unwrap();
        assert_eq!((stored.fence, stored.received, stored.sent), (2, 5, 4));
        assert_eq!(stored.messages, [&b"\0two\xff"[..], b"", b"four"]);
        assert_eq!(&stored.data[..], b"other data");
        let acknowledged = Update {
            acknowledged: 4,
            ..update(5, &[])
        };
        store.update(id, 2, &acknowledged).unwrap();
        let stored = store.resume(id, &resume(2, 1, 2, 4)).unwrap();
        assert!(stored.messages.is_empty());
        assert_eq!((stored.fence, stored.received, stored.sent), (3, 5, 4));
    });
}

#[test]
fn a_token_is_good_until_the_next_is_known_to_have_arrived() {
    with_stores(|store, id| {
        assert_eq!(store.resume(id, &resume(1, 1, 2, 0)).unwrap().fence, 2);
        // The answer with the second was lost.
        assert_eq!(store.resume(id, &resume(2, 1, 3, 0)).unwrap().fence, 3);
        let is_wrong = |presented| {
            let outcome = store.resume(id, &resume(3, presented, 9, 0));
            matches!(outcome, Err(StoreError::WrongToken))
        };
        assert!(is_wrong(2));
        let confirmed = Update {
            confirmed: true,
            ..update(1, &[])
        };
        store.update(id, 3, &confirmed).unwrap();
        assert!(is_wrong(1), "a replay");
        // One that is presented has arrived.
        store.resume(id, &resume(4, 3, 4, 0)).unwrap();
        store.resume(id, &resume(5, 4, 5, 0)).unwrap();
        assert!(is_wrong(3));
    });
}

#[test]
fn an_owner_before_is_refused() {
    with_stores(|store, id| {
        store.update(id, 1, &update(1, &[b"a"])).unwrap();
        store.resume(id, &resume(1, 1, 2, 0)).unwrap();
        let error = store.update(id, 1, &update(2, &[b"b"])).unwrap_err();
        assert!(matches!(error, StoreError::Fenced), "{error}");
        assert!(matches!(store.end(id, 1), Err(StoreError::Fenced)));
        store.end(id, 2).unwrap();
        store.end(id, 2).unwrap();
        let error = store.resume(id, &resume(2, 1, 2, 0)).unwrap_err();
        assert!(matches!(error, StoreError::Unknown), "{error}");
        let error = store.update(id, 2, &update(2, &[])).unwrap_err();
        assert!(matches!(error, StoreError::Unknown), "{error}");
    });
}

#[test]
fn an_update_may_be_made_twice() {
    with_stores(|store, id| {
        store.update(id, 1, &update(1, &[b"a", b"b"])).unwrap();
        store.update(id, 1, &update(1, &[b"a", b"b"])).unwrap();
        store.update(id, 1, &update(2, &[b"b", b"c"])).unwrap();
        let error = store.resume(id, &resume(1, 1, 2, 4)).unwrap_err();
        assert!(matches!(error, StoreError::Invalid), "{error}");
        let stored = store.resume(id, &resume(2, 1, 2, 1)).unwrap();
        assert_eq!((stored.sent, stored.received), (3, 0));
        assert_eq!(stored.messages, [&b"b"[..], b"c"]);
    });
}

#[test]
fn an_update_that_comes_behind_a_later_one_changes_nothing() {
    with_stores(|store, id| {
        let early = Update {
            received: 1,
            data: Some(Bytes::from_static(b"early")),
            ..update(1, &[b"a"])
        };
        let late = Update {
            received: 2,
            data: Some(Bytes::from_static(b"late")),
            ..update(1, &[b"a", b"b"])
        };
        for update in [&late, &late, &early] {
            store.update(id, 1, update).unwrap();
        }
        let stored = store.resume(id, &resume(1, 1, 2, 0)).unwrap();
        assert_eq!((stored.sent, stored.received), (2, 2));
        assert_eq!(stored.data, &b"late"[..]);
        // Another owner begins to count anew.
        let first = Update {
            number: 1,
            data: Some(Bytes::from_static(b"new")),
            ..update(3, &[])
        };
        store.update(id, 2, &first).unwrap();
        let stored = store.resume(id, &resume(2, 2, 3, 0)).unwrap();
        assert_eq!(stored.data, &b"new"[..]);
    });
}

#[test]
fn a_store_that_has_lost_an_update_says_so() {
    with_stores(|store, id| {
        let kept = update(1, &[]);
        store.update(id, 1, &kept).unwrap();
        let lost = kept.number + 1;
        let next = Update {
            number: lost + 1,
            last_kept: lost,
            received: 3,
            ..update(1, &[])
        };
        let error = store.update(id, 1, &next).unwrap_err();
        assert!(matches!(error, StoreError::Invalid), "{error}");
        assert_eq!(store.resume(id, &resume(1, 1, 2, 0)).unwrap().received, 0);
    });
}

#[test]
fn of_an_update_that_cannot_be_nothing_is_kept() {
    with_stores(|store, id| {
        store.update(id, 1, &update(1, &[b"a"])).unwrap();
        let gap = update(3, &[b"c"]);
        let acknowledges_too_much = Update {
            acknowledged: 3,
            ..update(2, &[b"b"])
        };
        for wrong in [gap, acknowledges_too_much] {
            let wrong = Update {
                received: 5,
                data: Some(Bytes::from_static(b"never")),
                ..wrong
            };
            let error = store.update(id, 1, &wrong).unwrap_err();
            assert!(matches!(error, StoreError::Invalid), "{error}");
        }
        let stored = store.resume(id, &resume(1, 1, 2, 0)).unwrap();
        assert_eq!((stored.sent, stored.received), (1, 0));
        assert_eq!(stored.messages, [&b"a"[..]]);
        assert_ne!(stored.data, &b"never"[..]);
    });
}

#[test]
fn a_resume_that_a_later_one_has_overtaken_is_refused() {
    with_stores(|store, id| {
        store.resume(id, &resume(7, 1, 2, 0)).unwrap();
        for attempt in [0, 6, 7] {
            let error = store.resume(id, &resume(attempt, 1, 3, 0)).unwrap_err();
            assert!(matches!(error, StoreError::Overtaken), "{error}");
        }
        // The token of the one that was refused is not its next.
        let error = store.resume(id, &resume(8, 3, 4, 0)).unwrap_err();
        assert!(matches!(error, StoreError::WrongToken), "{error}");
        assert_eq!(store.resume(id, &resume(9, 2, 5, 0)).unwrap().fence, 3);
    });
}

#[test]
fn what_is_not_updated_expires() {
    with_stores(|store, id| {
        let short = Update {
            expires_in: Duration::from_millis(20),
            ..update(1, &[b"a"])
        };
        store.update(id, 1, &short).unwrap();
        sleep(Duration::from_millis(40));
        let error = store.resume(id, &resume(1, 1, 2, 0)).unwrap_err();
        assert!(matches!(error, StoreError::Unknown), "{error}");
    });
}
