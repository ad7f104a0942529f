//! The paths between hosts: how long a packet takes, and whether it arrives.

use super::host::HostId;
use crate::conditions::{Bursts, Conditions};
use crate::random::Random;
use cubenet_core::Instant;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// All paths; each has a direction.
pub(crate) struct Paths {
    default: Arc<Conditions>,
    /// Those that differ from the default.
    own: BTreeMap<(HostId, HostId), Arc<Conditions>>,
    /// Those that carry nothing.
    cut: BTreeSet<(HostId, HostId)>,
    /// Those that are in a burst of losses.
    bad: BTreeSet<(HostId, HostId)>,
    /// Until when each of those with a bounded bandwidth has something to send.
    busy: BTreeMap<(HostId, HostId), Instant>,
}

impl Paths {
    pub(crate) fn new(default: Conditions) -> Self {
        Paths {
            default: Arc::new(default),
            own: BTreeMap::new(),
            cut: BTreeSet::new(),
            bad: BTreeSet::new(),
            busy: BTreeMap::new(),
        }
    }

    pub(crate) fn set_default(&mut self, conditions: Conditions) {
        self.default = Arc::new(conditions);
    }

    pub(crate) fn set(&mut self, from: HostId, to: HostId, conditions: Conditions) {
        self.own.insert((from, to), Arc::new(conditions));
    }

    pub(crate) fn set_cut(&mut self, from: HostId, to: HostId, cut: bool) {
        if cut {
            self.cut.insert((from, to));
        } else {
            self.cut.remove(&(from, to));
        }
    }

    /// What was said of the paths of `host` is said of those of `heir`, unless that has been
    /// set otherwise.
    pub(crate) fn inherit(&mut self, host: HostId, heir: HostId) {
        let of_heir = |(from, to): (HostId, HostId)| {
            let renamed = |end| if end == host { heir } else { end };
            (from == host || to == host).then(|| (renamed(from), renamed(to)))
        };
        let own = self.own.iter();
        let own: Vec<_> = own
            .filter_map(|(path, conditions)| Some((of_heir(*path)?, conditions.clone())))
            .collect();
        for (path, conditions) in own {
            self.own.entry(path).or_insert(conditions);
        }
        let cut: Vec<_> = self.cut.iter().copied().filter_map(of_heir).collect();
        self.cut.extend(cut);
    }

    pub(crate) fn is_cut(&self, from: HostId, to: HostId) -> bool {
        !self.cut.is_empty() && self.cut.contains(&(from, to))
    }

    pub(crate) fn conditions(&self, from: HostId, to: HostId) -> &Conditions {
        if self.own.is_empty() {
            return &self.default;
        }
        self.own.get(&(from, to)).unwrap_or(&self.default)
    }

    /// How long a packet that is sent `now` takes, if nothing happens to it.
    pub(crate) fn delay(&self, from: HostId, to: HostId, now: Instant) -> Duration {
        let busy = self.busy.get(&(from, to));
        let queued = busy.map_or(Duration::ZERO, |busy| busy.since(now));
        self.conditions(from, to).latency() + queued
    }

    /// The rate of loss for the next packet on a path with bursts.
    fn in_bursts(
        &mut self,
        bursts: Bursts,
        loss: f64,
        path: (HostId, HostId),
        random: &mut Random,
    ) -> f64 {
        let is_bad = self.bad.contains(&path);
        let changes = random.chance(if is_bad { bursts.end() } else { bursts.begin() });
        if is_bad && changes {
            self.bad.remove(&path);
        } else if changes {
            self.bad.insert(path);
        }
        if is_bad { bursts.loss() } else { loss }
    }

    /// What becomes of a packet of `len` bytes, headers included, that is sent `now`.
    pub(crate) fn carry(
        &mut self,
        from: HostId,
        to: HostId,
        len: usize,
        now: Instant,
        random: &mut Random,
    ) -> Carried {
        if self.is_cut(from, to) {
            return Carried::Lost;
        }
        let conditions = self.conditions(from, to);
        let (latency, jitter) = (conditions.latency(), conditions.jitter());
        let (loss, bandwidth, queue) = (
            conditions.loss(),
            conditions.bandwidth(),
            conditions.queue(),
        );
        let (bursts, corrupt) = (conditions.bursts(), conditions.corrupt());
        let mut departs = now;
        if let Some(bits) = bandwidth {
            let busy = self.busy.entry((from, to)).or_insert(now);
            let takes = |bytes: usize| {
                let micros = bytes as u128 * 8_000_000 / u128::from(bits);
                Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
            };
            if busy.since(now) > takes(queue) {
                return Carried::Lost;
            }
            *busy = (*busy).max(now).after(takes(len));
            departs = *busy;
        }
        let loss = match bursts {
            Some(bursts) => self.in_bursts(bursts, loss, (from, to), random),
            None => loss,
        };
        if random.chance(loss) {
            return Carried::Lost;
        }
        let at = departs.after(latency).after(random.duration(jitter));
        if random.chance(corrupt) {
            return Carried::Damaged(at);
        }
        Carried::Arrives(at)
    }
}

/// What becomes of a packet on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carried {
    Arrives(Instant),
    /// It arrives then, with bytes changed.
    Damaged(Instant),
    Lost,
}

impl Carried {
    /// When it arrives, if its checksum is right.
    pub(crate) fn intact(self) -> Option<Instant> {
        match self {
            Carried::Arrives(at) => Some(at),
            _ => None,
        }
    }

    /// What becomes of the whole that this is a fragment of, beside another fragment.
    pub(crate) fn and(self, other: Carried) -> Carried {
        match (self, other) {
            (Carried::Lost, _) | (_, Carried::Lost) => Carried::Lost,
            (Carried::Arrives(at), Carried::Arrives(later)) => Carried::Arrives(at.max(later)),
            (
                Carried::Damaged(at) | Carried::Arrives(at),
                Carried::Damaged(later) | Carried::Arrives(later),
            ) => Carried::Damaged(at.max(later)),
        }
    }
}
