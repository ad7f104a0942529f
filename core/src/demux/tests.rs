//! Unit tests of the demultiplexer.

use super::*;
use std::vec::Vec;

type Small = Demux<u16, FixedTable<u16, 4, 4>>;

fn second(seconds: u64) -> Instant {
    Instant::from_micros(seconds * 1_000_000)
}

fn small(policy: FullPolicy) -> Small {
    let limits = Limits::new()
        .with_max_peers(3)
        .with_full_policy(policy)
        .with_datagram_idle_timeout(Duration::from_secs(60));
    Demux::new(FixedTable::new(), (1, 2), &limits)
}

fn filled(policy: FullPolicy) -> Small {
    let mut demux = small(policy);
    for peer in 1..=3 {
        demux.insert(peer, second(u64::from(peer))).unwrap();
    }
    demux
}

#[test]
fn an_empty_datagram_of_an_unknown_peer_builds_nothing() {
    let mut demux = small(FullPolicy::Refuse);
    assert_eq!(
        demux.handle_datagram(&1, 0, || true, second(0)),
        Arrival::Ignore
    );
    assert!(demux.is_empty());
}

#[test]
fn a_datagram_over_the_limit_makes_no_peer_and_is_reported_to_a_known_one() {
    let mut demux = small(FullPolicy::Refuse);
    let long = Limits::default().max_datagram() + 1;
    let arrival = demux.handle_datagram(&1, long, || true, second(0));
    assert_eq!(arrival, Arrival::TooLong(None));
    let slot = demux.insert(1, second(0));
    let arrival = demux.handle_datagram(&1, long, || true, second(0));
    assert_eq!(arrival, Arrival::TooLong(slot));
}

#[test]
fn a_full_table_refuses_new_peers_and_serves_the_others() {
    let mut demux = filled(FullPolicy::Refuse);
    assert_eq!(
        demux.handle_datagram(&9, 1, || true, second(59)),
        Arrival::Refuse
    );
    assert_eq!(demux.insert(9, second(59)), None);
    assert!(matches!(
        demux.handle_datagram(&2, 1, || true, second(59)),
        Arrival::Deliver(_)
    ));
}

#[test]
fn a_full_table_of_lent_memory_takes_no_slot_and_keeps_its_memory() {
    let (mut slots, mut heads) = ([Slot::<u16>::FREE; 1], [0; 1]);
    let mut table = SliceTable::new(&mut slots, &mut heads).unwrap();
    assert!(table.push(Slot::FREE));
    assert!(!table.push(Slot::FREE));
    assert!(!table.release());
    assert_eq!(table.slots().len(), 1);
}

#[test]
fn a_table_in_lent_memory_has_as_much_room_as_that() {
    let mut slots = [Slot::<u16>::FREE; 3];
    assert!(SliceTable::new(&mut slots, &mut []).is_none());
    // Heads that are no power of two, and hold something.
    let mut heads = [7; 3];
    let table = SliceTable::new(&mut slots, &mut heads).unwrap();
    let mut demux = Demux::new(table, (1, 2), &Limits::default());
    for peer in 1..=3 {
        assert!(demux.insert(peer, second(1)).is_some());
    }
    assert_eq!(demux.insert(4, second(1)), None);
    let second_slot = demux.insert(2, second(1)).unwrap();
    demux.remove(second_slot);
    assert!(demux.insert(4, second(1)).is_some());
    let found = [1, 2, 3, 4].map(|peer| demux.find(&peer).is_some());
    assert_eq!(found, [true, false, true, true]);
}

#[test]
fn a_full_table_can_evict_the_peer_that_is_idle_longest() {
    let mut demux = filled(FullPolicy::EvictIdleFor(Duration::from_secs(10)));
    demux.handle_datagram(&1, 1, || true, second(5));
    assert_eq!(
        demux.handle_datagram(&9, 1, || true, second(11)),
        Arrival::Refuse
    );
    let Arrival::Evict(slot) = demux.handle_datagram(&9, 1, || true, second(12)) else {
        panic!("no peer is evicted");
    };
    assert_eq!(demux.peer(slot), Some(2));
}

#[test]
fn a_table_with_fewer_slots_than_peers_allowed_makes_way_too() {
    let limits = Limits::new().with_full_policy(FullPolicy::EvictIdleFor(Duration::from_secs(10)));
    let mut demux = Demux::new(FixedTable::<u16, 2, 2>::new(), (1, 2), &limits);
    for peer in 1..=2 {
        demux.insert(peer, second(u64::from(peer))).unwrap();
    }
    assert_eq!(
        demux.handle_datagram(&9, 1, || true, second(10)),
        Arrival::Refuse
    );
    let arrival = demux.handle_datagram(&9, 1, || true, second(11));
    assert!(matches!(arrival, Arrival::Evict(_)), "{arrival:?}");
}

#[test]
fn an_idle_peer_has_twice_the_time_while_datagrams_wait() {
    let mut demux = Demux::new(GrowingTable::new(), (1, 2), &Limits::default());
    let slot = demux.insert(1, second(0)).unwrap();
    let at = demux.poll_timeout();
    demux.set_backlog(true);
    let later = at.after(at.since(second(0)));
    assert_eq!(demux.poll_timeout(), later);
    assert_eq!(demux.handle_timeout(at), None);
    assert_eq!(demux.handle_timeout(later), Some(slot));
    demux.set_backlog(false);
    assert_eq!(demux.handle_timeout(at), Some(slot));
}

#[test]
fn a_driver_without_room_can_evict_a_peer_before_the_table_is_full() {
    let mut demux = small(FullPolicy::EvictIdleFor(Duration::from_secs(10)));
    let full = demux.newcomer(false, false, Instant::NEVER);
    assert_eq!(full, Arrival::Refuse, "there is no peer to evict");
    let slot = demux.insert(1, second(1)).unwrap();
    assert_eq!(
        demux.handle_datagram(&9, 1, || true, second(11)),
        Arrival::Admit
    );
    let early = demux.handle_datagram(&9, 1, || false, second(10));
    assert_eq!(early, Arrival::Refuse);
    let evicts = demux.handle_datagram(&9, 1, || false, second(11));
    assert_eq!(evicts, Arrival::Evict(slot));
}

#[test]
fn a_new_peer_takes_the_slot_of_the_peer_it_replaces() {
    let mut demux = filled(FullPolicy::EvictIdleFor(Duration::from_secs(1)));
    let slot = demux.find(&2).map(|slot| slot as usize).unwrap();
    assert!(!demux.replace(slot, 1, second(4)), "it has a slot");
    assert!(!demux.replace(3, 9, second(4)), "nothing to replace");
    assert!(demux.replace(slot, 9, second(4)));
    assert_eq!(demux.len(), 3);
    assert_eq!(demux.peer(slot), Some(9));
    assert_eq!(
        demux.handle_datagram(&2, 0, || true, second(4)),
        Arrival::Ignore
    );
    let arrival = demux.handle_datagram(&9, 1, || true, second(5));
    assert_eq!(arrival, Arrival::Deliver(slot));
    // It is the newest, whatever the age of the other was.
    for (peer, due) in [(1, 61), (3, 63), (9, 65)] {
        let slot = demux.handle_timeout(second(due)).unwrap();
        assert_eq!(demux.peer(slot), Some(peer));
        demux.remove(slot);
    }
}

#[test]
fn reserved_places_are_for_peers_that_are_recognised() {
    let limits = Limits::new().with_max_peers(3).with_reserved_peers(1);
    let mut demux = Demux::new(FixedTable::<u16, 4, 4>::new(), (1, 2), &limits);
    for peer in 1..=2 {
        assert_eq!(
            demux.handle_datagram(&peer, 1, || true, second(0)),
            Arrival::Admit
        );
        demux.insert(peer, second(0)).unwrap();
    }
    assert_eq!(
        demux.handle_datagram(&3, 1, || true, second(0)),
        Arrival::Refuse
    );
    assert_eq!(demux.newcomer(true, true, second(0)), Arrival::Admit);
    demux.insert(3, second(0)).unwrap();
    assert_eq!(demux.newcomer(true, true, second(0)), Arrival::Refuse);
}

#[test]
fn an_empty_datagram_closes_only_if_it_is_to() {
    let limits = Limits::new().with_empty_datagram_closes(false);
    let mut demux = Demux::new(FixedTable::<u16, 4, 4>::new(), (1, 2), &limits);
    let slot = demux.insert(1, second(0)).unwrap();
    assert_eq!(
        demux.handle_datagram(&1, 0, || true, second(0)),
        Arrival::Ignore
    );
    assert_eq!(demux.peer(slot), Some(1));
}

#[test]
fn a_peer_is_not_idle_while_the_driver_is_busy_with_it() {
    let mut demux = filled(FullPolicy::Refuse);
    demux.handle_delivered(&1, second(50));
    demux.handle_delivered(&9, second(50));
    assert_eq!(demux.len(), 3);
    let slot = demux.handle_timeout(second(63)).unwrap();
    assert_eq!(demux.peer(slot), Some(2));
    demux.remove(slot);
    let slot = demux.handle_timeout(second(63)).unwrap();
    assert_eq!(demux.peer(slot), Some(3));
    demux.remove(slot);
    assert_eq!(demux.poll_timeout(), second(110));
}

#[test]
fn peers_expire_in_the_order_in_which_they_last_sent() {
    let mut demux = filled(FullPolicy::Refuse);
    demux.handle_datagram(&1, 1, || true, second(10));
    for (peer, due) in [(2, 62), (3, 63), (1, 70)] {
        assert_eq!(demux.poll_timeout(), second(due));
        assert_eq!(demux.handle_timeout(second(due - 1)), None);
        let slot = demux.handle_timeout(second(due)).unwrap();
        assert_eq!(demux.peer(slot), Some(peer));
        demux.remove(slot);
    }
    assert_eq!(demux.poll_timeout(), Instant::NEVER);
    assert_eq!(demux.handle_timeout(Instant::NEVER), None);
}

#[test]
fn a_fixed_table_is_full_when_its_slots_are_and_can_be_filled_again() {
    let limits = Limits::default();
    let mut demux = Demux::new(FixedTable::<u16, 2, 2>::new(), (1, 2), &limits);
    for _ in 0..3 {
        let slots = [1, 2].map(|peer| demux.insert(peer, second(0)).unwrap());
        assert_eq!(demux.insert(3, second(0)), None);
        for slot in slots {
            demux.remove(slot);
        }
        assert!(demux.is_empty());
    }
}

#[cfg(feature = "alloc")]
#[test]
fn a_growing_table_has_as_many_heads_as_peers_and_gives_its_memory_back() {
    let limits = Limits::default();
    let mut demux = Demux::new(GrowingTable::default(), (1, 2), &limits);
    let slots: Vec<_> = (0..1_024_u16)
        .map(|peer| demux.insert(peer, second(0)).unwrap())
        .collect();
    assert_eq!(demux.table.heads().len(), 1_024);
    // Hashed: about a third of the heads is empty, by chance, and no more.
    let used = demux.table.heads().iter().filter(|head| **head != NIL);
    assert!(used.count() > 500);
    for (peer, slot) in slots.iter().enumerate() {
        let arrival = demux.handle_datagram(&(peer as u16), 1, || true, second(0));
        assert_eq!(arrival, Arrival::Deliver(*slot));
    }
    for slot in slots {
        demux.remove(slot);
    }
    assert_eq!(demux.table.heads().len(), 1);
    assert!(demux.table.slots().is_empty());
}

#[test]
fn a_fixed_table_keeps_its_heads_for_any_number_of_peers() {
    let limits = Limits::default();
    let table = FixedTable::<u16, 16, 2>::default();
    let mut demux = Demux::new(table, (1, 2), &limits);
    let slots: Vec<_> = (0..16)
        .map(|peer| demux.insert(peer, second(0)).unwrap())
        .collect();
    assert_eq!(demux.table.heads().len(), 2);
    // From the middle of a chain, from its end, from its beginning.
    for slot in slots
        .iter()
        .skip(3)
        .step_by(2)
        .chain(&[slots[15], slots[0]])
    {
        demux.remove(*slot);
    }
    for (peer, slot) in slots.iter().enumerate() {
        let known = demux.peer(*slot).is_some();
        let arrival = demux.handle_datagram(&(peer as u16), 1, || true, second(0));
        assert_eq!(known, arrival == Arrival::Deliver(*slot));
    }
}

#[test]
fn peers_that_were_looked_for_ahead_are_found_where_they_are() {
    let mut demux = Demux::new(FixedTable::<u16, 64, 8>::new(), (1, 2), &Limits::new());
    let slots: Vec<_> = (0..40)
        .map(|peer| demux.insert(peer, second(0)).unwrap())
        .collect();
    let peers: Vec<u16> = (0..60).chain([3, 3]).collect();
    let mut hints = [Hint::NONE; 64];
    demux.look_ahead(peers.iter(), &mut hints);
    for (peer, hint) in peers.iter().zip(hints) {
        assert_eq!(hint.slot(), slots.get(usize::from(*peer)).copied());
    }
    assert_eq!(hints[62..], [Hint::NONE; 2]);
    // One that has gone since, and one whose slot is another's, are not taken for it.
    demux.remove(slots[1]);
    demux.remove(slots[2]);
    let slot = demux.insert(2, second(0)).unwrap();
    let arrival = |peer: u16, demux: &mut Demux<u16, FixedTable<u16, 64, 8>>| {
        let hint = hints[usize::from(peer)];
        demux.handle_datagram_at(hint, &peer, 1, || true, second(1))
    };
    assert_eq!(arrival(1, &mut demux), Arrival::Admit);
    assert_eq!(arrival(2, &mut demux), Arrival::Deliver(slot));
    assert_eq!(arrival(3, &mut demux), Arrival::Deliver(slots[3]));
    assert_eq!(arrival(50, &mut demux), Arrival::Admit);
}
