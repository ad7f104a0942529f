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

    pub(crate) fn is_cut(&self, from: HostId, to: HostId) -> bool {
        !self.cut.is_empty() && self.cut.contains(&(from, to))
    }

    pub(crate) fn conditions(&self, from: HostId, to: HostId) -> &Conditions {
        if self.own.is_empty() {
            return &self.default;
        }
        self.own.get(&(from, to)).unwrap_or(&self.default)
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
        let changes = random.chance(if is_bad { bursts.end } else { bursts.begin });
        if is_bad && changes {
            self.bad.remove(&path);
        } else if changes {
            self.bad.insert(path);
        }
        if is_bad { bursts.loss } else { loss }
    }

    /// When a packet of `len` bytes that is sent `now` arrives; `None` if it does not.
    pub(crate) fn carry(
        &mut self,
        from: HostId,
        to: HostId,
        len: usize,
        now: Instant,
        random: &mut Random,
    ) -> Option<Instant> {
        if self.is_cut(from, to) {
            return None;
        }
        let conditions = self.conditions(from, to);
        let (latency, jitter) = (conditions.latency, conditions.jitter);
        let (loss, bandwidth, queue) = (conditions.loss, conditions.bandwidth, conditions.queue);
        let bursts = conditions.bursts;
        let mut departs = now;
        if let Some(bits) = bandwidth {
            let busy = self.busy.entry((from, to)).or_insert(now);
            let takes = |bytes: usize| {
                let micros = bytes as u128 * 8_000_000 / u128::from(bits);
                Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
            };
            if busy.since(now) > takes(queue) {
                return None;
            }
            *busy = (*busy).max(now).after(takes(len));
            departs = *busy;
        }
        let loss = match bursts {
            Some(bursts) => self.in_bursts(bursts, loss, (from, to), random),
            None => loss,
        };
        if random.chance(loss) {
            return None;
        }
        Some(departs.after(latency).after(random.duration(jitter)))
    }
}
