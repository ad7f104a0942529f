//! The demultiplexer does what a plain list of peers would do, with a fixed table, with one in
//! lent memory and with a growing one: peers send, open, close, go idle, and find it full.

use crate::model::demux::Model;
use crate::read;
use arbitrary::Arbitrary;
use cubenet_core::demux::{Arrival, Demux, FixedTable, GrowingTable, SliceTable, Slot, Table};
use cubenet_core::{FullPolicy, Instant, Limits};
use std::time::Duration;

/// How the input of this check is read.
#[derive(Arbitrary, Debug)]
struct Scenario {
    key: (u64, u64),
    max_peers: u8,
    /// How long a peer must have been silent to make way; none makes way if it is odd.
    evict_after: u8,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    /// A datagram from this peer, of this length; it is admitted if it is to be.
    Datagram { peer: u8, len: u8, admitted: bool },
    /// A peer is let in without having spoken.
    Insert(u8),
    /// A peer is forgotten.
    Remove(u8),
    /// A slot is freed, if a peer is in it.
    RemoveSlot(u8),
    /// Time passes, and the silent go.
    Milliseconds(u8),
}

/// Slots of the fixed table.
const SLOTS: usize = 16;

const MAX_DATAGRAM: usize = 200;

/// Panics if `data` breaks the property of this module.
pub fn check(data: &[u8]) {
    let Some(scenario) = read::<Scenario>(data) else {
        return;
    };
    let limits = Limits::new()
        .with_max_datagram(MAX_DATAGRAM)
        .with_max_peers(usize::from(scenario.max_peers).max(1))
        .with_full_policy(match scenario.evict_after {
            odd if odd % 2 == 1 => FullPolicy::Refuse,
            silence => FullPolicy::EvictIdleFor(Duration::from_millis(silence.into())),
        })
        .with_datagram_idle_timeout(Duration::from_millis(500))
        // Drawn from the key, which does not matter otherwise.
        .with_reserved_peers(scenario.key.0 as usize % 4)
        .with_empty_datagram_closes(scenario.key.1 % 4 != 3);
    let growing = Demux::new(GrowingTable::new(), scenario.key, &limits);
    run(growing, Model::new(&limits, usize::MAX), &scenario.steps);
    let fixed = FixedTable::<u16, SLOTS, 8>::new();
    let fixed = Demux::new(fixed, scenario.key, &limits);
    run(fixed, Model::new(&limits, SLOTS), &scenario.steps);
    let (mut slots, mut heads) = ([Slot::FREE; SLOTS], [0; 8]);
    let slice = SliceTable::new(&mut slots, &mut heads).expect("there are heads");
    let slice = Demux::new(slice, scenario.key, &limits);
    run(slice, Model::new(&limits, SLOTS), &scenario.steps);
}

fn run<T: Table<u16>>(mut demux: Demux<u16, T>, mut model: Model, steps: &[Step]) {
    let mut now = Instant::ZERO;
    for step in steps {
        match *step {
            Step::Datagram {
                peer,
                len,
                admitted,
            } => {
                let peer = u16::from(peer);
                let arrival = demux.handle_datagram(&peer, len.into(), || true, now);
                let answer = model.handle_datagram(peer, len.into(), true, now);
                assert_eq!(Model::answer(arrival, |slot| demux.peer(slot)), answer);
                arrived(&mut demux, &mut model, peer, arrival, admitted, now);
            }
            Step::Insert(peer) => insert(&mut demux, &mut model, peer.into(), now),
            Step::Remove(peer) => {
                if let Some(slot) = slot_of(&demux, peer.into()) {
                    demux.remove(slot);
                }
                model.remove(peer.into());
            }
            Step::RemoveSlot(slot) => {
                if let Some(peer) = demux.peer(slot.into()) {
                    model.remove(peer);
                }
                demux.remove(slot.into());
                assert_eq!(demux.peer(slot.into()), None);
            }
            Step::Milliseconds(count) => {
                now = now.after(Duration::from_millis(count.into()));
                expire(&mut demux, &mut model, now);
            }
        }
        assert_eq!(demux.len(), model.len());
        assert_eq!(demux.is_empty(), model.is_empty());
        assert_eq!(demux.poll_timeout(), model.poll_timeout());
        for (recognised, has_room) in [(false, true), (true, true), (false, false)] {
            let arrival = demux.newcomer(recognised, has_room, now);
            let answer = Model::answer(arrival, |slot| demux.peer(slot));
            assert_eq!(answer, model.newcomer(recognised, has_room, now));
        }
    }
    // Whatever is there can be taken out again, and nothing is left.
    let peers: Vec<u16> = model.peers().collect();
    for peer in peers {
        let slot = slot_of(&demux, peer).expect("the model has them, so has the table");
        demux.remove(slot);
    }
    assert!(demux.is_empty());
    assert_eq!(demux.poll_timeout(), Instant::NEVER);
    assert_eq!(demux.handle_timeout(Instant::NEVER), None);
}

/// Does what the demultiplexer said.
fn arrived<T: Table<u16>>(
    demux: &mut Demux<u16, T>,
    model: &mut Model,
    peer: u16,
    arrival: Arrival,
    admitted: bool,
    now: Instant,
) {
    match arrival {
        Arrival::Deliver(slot) | Arrival::TooLong(Some(slot)) => {
            assert_eq!(demux.peer(slot), Some(peer));
        }
        Arrival::Close(slot) => {
            assert_eq!(demux.peer(slot), Some(peer));
            demux.remove(slot);
            model.remove(peer);
        }
        Arrival::Admit if admitted => insert(demux, model, peer, now),
        Arrival::Evict(slot) if admitted => {
            // As drivers do it: there may be a place that is kept for others, and so another slot.
            let evicted = demux.peer(slot).expect("a peer is evicted");
            let before = demux.insert(peer, now);
            assert_eq!(before.is_some(), model.insert(peer, now));
            demux.remove(slot);
            model.remove(evicted);
            let after = demux.insert(peer, now);
            assert_eq!(after, before.or(Some(slot)), "the slot that was promised");
            assert!(model.insert(peer, now));
        }
        Arrival::Refuse if model.is_full() => assert_eq!(demux.insert(peer, now), None),
        _ => {}
    }
}

fn insert<T: Table<u16>>(demux: &mut Demux<u16, T>, model: &mut Model, peer: u16, now: Instant) {
    let there = demux.insert(peer, now);
    assert_eq!(there.is_some(), model.insert(peer, now));
    if let Some(slot) = there {
        assert_eq!(demux.peer(slot), Some(peer));
        assert_eq!(demux.insert(peer, now), Some(slot), "twice is once");
    }
}

fn expire<T: Table<u16>>(demux: &mut Demux<u16, T>, model: &mut Model, now: Instant) {
    while let Some(slot) = demux.handle_timeout(now) {
        let silent = demux.peer(slot).expect("a peer is idle");
        assert_eq!(model.handle_timeout(now), Some(silent));
        demux.remove(slot);
        model.remove(silent);
    }
    assert_eq!(model.handle_timeout(now), None);
}

/// The slot of `peer`, found without a datagram from it.
fn slot_of<T: Table<u16>>(demux: &Demux<u16, T>, peer: u16) -> Option<usize> {
    (0..256).find(|slot| demux.peer(*slot) == Some(peer))
}
