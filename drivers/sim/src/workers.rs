//! The worker threads of a network: what waits for each, what it is at, and until when it is busy.

use crate::conditions::{FaultError, check_durations};
use crate::kernel::{HostId, Key, Notice};
use crate::world::{NetworkId, NetworkState, World};
use cubenet_core::{Budgets, Instant};
use std::collections::VecDeque;
use std::time::Duration;

/// What work costs a worker thread of a network, in time. Nothing, by default: then a worker is
/// never busy.
///
/// System calls are counted as the driver over real sockets makes them: what one connection is sent
/// in one turn is one read, its answers are one write, datagrams go 64 at a time, and whatever goes
/// to another connection is a write of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Costs {
    /// Of each callback, without what [`Network::spend`](crate::Network::spend) adds.
    pub callback: Duration,
    /// Of each byte that is read or written.
    pub byte: Duration,
    /// Of each system call.
    pub system_call: Duration,
}

impl Costs {
    /// Whether the times make sense. [`NetworkBuilder::start`](crate::NetworkBuilder::start) asks.
    pub fn validate(&self) -> Result<(), FaultError> {
        check_durations([
            ("callback", self.callback),
            ("byte", self.byte),
            ("system_call", self.system_call),
        ])
    }
}

/// One worker thread.
pub(crate) struct Worker {
    /// What waits for it, in the order it came.
    line: VecDeque<(Key, Notice)>,
    /// The connection whose turn it is, and what is left of that.
    turn: Option<Turn>,
    busy_until: Instant,
    /// Nanoseconds of work that `busy_until`, in microseconds, leaves out.
    rest: u32,
    /// It runs, or will when an event says so.
    is_awake: bool,
}

impl Worker {
    pub(crate) fn new() -> Self {
        Worker {
            line: VecDeque::new(),
            turn: None,
            busy_until: Instant::ZERO,
            rest: 0,
            is_awake: false,
        }
    }
}

/// The turn of one socket: how much of its work is done before the others', and what that took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// Whose it is; `None` outside of any.
    pub(crate) key: Option<Key>,
    /// Callbacks that may run.
    pub(crate) messages: usize,
    /// Bytes that may be read.
    pub(crate) bytes: usize,
    /// When it ends in any case.
    deadline: Instant,
    /// There is more to do.
    pub(crate) has_more: bool,
    /// Nanoseconds of work.
    pub(crate) spent: u64,
    pub(crate) has_read: bool,
    pub(crate) has_written: bool,
    /// Datagrams sent and received.
    pub(crate) datagrams: u32,
}

impl Turn {
    /// Outside of any turn: nothing is bounded.
    pub(crate) const NONE: Turn = Turn {
        key: None,
        messages: usize::MAX,
        bytes: usize::MAX,
        deadline: Instant::NEVER,
        has_more: false,
        spent: 0,
        has_read: false,
        has_written: false,
        datagrams: 0,
    };

    /// The whole turn of a socket.
    pub(crate) fn of(key: Key, messages: usize, budgets: &Budgets, now: Instant) -> Self {
        Turn {
            key: Some(key),
            messages,
            bytes: budgets.read_bytes(),
            deadline: now.after(budgets.time()),
            ..Turn::NONE
        }
    }

    /// Adds the time that something took. Ignored outside of any turn.
    pub(crate) fn spend(&mut self, time: Duration) {
        if self.key.is_some() {
            let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            self.spent = self.spent.saturating_add(nanos);
        }
    }

    /// Whether anything is left of it. If not, there may be more to do in the next.
    pub(crate) fn goes_on(&mut self) -> bool {
        let goes_on = self.messages > 0 && self.bytes > 0;
        self.has_more |= !goes_on;
        goes_on
    }
}

impl NetworkState {
    /// Whether its workers take time, so that what comes for a busy one has to wait.
    fn has_workers(&self, world_interleaves: bool) -> bool {
        world_interleaves || self.costs != Costs::default()
    }
}

impl World {
    /// Whether what comes for a network's sockets waits for its workers, and is not done at once.
    pub(crate) fn waits_for_workers(&self, network: NetworkId) -> bool {
        let interleaves = self.interleaves;
        self.networks[network.0 as usize].has_workers(interleaves)
    }

    /// Puts something in the line of the worker that a socket belongs to.
    pub(crate) fn line_up(&mut self, network: NetworkId, key: Key, notice: Notice) {
        if notice == Notice::Readable && self.owners.is_in_line(key) {
            return;
        }
        let state = &mut self.networks[network.0 as usize];
        let number = key.slot as usize % state.workers.len();
        let worker = &mut state.workers[number];
        worker.line.push_back((key, notice));
        if !std::mem::replace(&mut worker.is_awake, true) {
            let at = worker.busy_until.max(self.kernel.now);
            self.kernel.work_at(at, network.0, number as u32);
        }
    }

    /// What a worker does next: goes on with a turn, or begins the next in its line. The kernel
    /// counts it from here.
    pub(crate) fn next_work(&mut self, id: NetworkId, number: u32) -> Option<(Key, Notice)> {
        let now = self.kernel.now;
        let state = &mut self.networks[id.0 as usize];
        let frozen_until = self.kernel.host(state.host).frozen_until;
        if frozen_until > now {
            self.kernel.work_at(frozen_until, id.0, number);
            return None;
        }
        let worker = &mut state.workers[number as usize];
        let going_on = worker.turn.take();
        let Some((key, notice)) = going_on
            .and_then(|turn| Some((turn.key?, Notice::NextTurn)))
            .or_else(|| {
                // One whose turn comes once more is not served for old news before.
                let is_old = |(key, notice): &(Key, Notice)| {
                    *notice == Notice::Readable && self.owners.is_in_line(*key)
                };
                while worker.line.front().is_some_and(is_old) {
                    worker.line.pop_front();
                }
                worker.line.pop_front()
            })
        else {
            worker.is_awake = false;
            return None;
        };
        let messages = self.owners.budget(key, &state.budgets);
        let turn = going_on.unwrap_or_else(|| Turn::of(key, messages, &state.budgets, now));
        // Where callbacks take time each is at its own, so one runs and then the next.
        let unit = if state.costs == Costs::default() {
            turn.messages
        } else {
            turn.messages.min(1)
        };
        worker.turn = Some(turn);
        self.kernel.turn = Turn {
            messages: unit,
            has_more: false,
            spent: 0,
            ..turn
        };
        Some((key, notice))
    }

    /// A worker has done what it began at `began`: says until when it was busy with that, and what
    /// comes next.
    pub(crate) fn work_done(&mut self, id: NetworkId, number: u32, began: Instant) {
        let done = std::mem::replace(&mut self.kernel.turn, Turn::NONE);
        let state = &mut self.networks[id.0 as usize];
        let worker = &mut state.workers[number as usize];
        let spent = done.spent.saturating_add(worker.rest.into());
        worker.rest = (spent % 1_000) as u32;
        let spent = Duration::from_micros(spent / 1_000);
        state.busy += spent;
        worker.busy_until = began.after(spent).max(self.kernel.now);
        let before = worker.turn.take();
        if let (Some(before), true, Some(key)) = (before, done.has_more, done.key) {
            let used = usize::from(state.costs != Costs::default());
            let left = Turn {
                messages: before.messages.saturating_sub(used),
                ..done
            };
            let is_left = used > 0 && left.messages > 0 && left.bytes > 0;
            if is_left && worker.busy_until < left.deadline {
                worker.turn = Some(left);
            } else {
                worker.line.push_back((key, Notice::NextTurn));
            }
        }
        worker.is_awake = worker.turn.is_some() || !worker.line.is_empty();
        if worker.is_awake {
            let at = worker.busy_until;
            self.kernel.work_at(at, id.0, number);
        }
    }

    /// A host has crashed, and with it its workers.
    pub(crate) fn forget_work(&mut self, host: HostId) {
        for network in &mut self.networks {
            if network.host == host {
                for worker in &mut network.workers {
                    worker.line.clear();
                }
            }
        }
    }
}
