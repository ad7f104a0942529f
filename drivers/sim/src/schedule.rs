//! When a socket is served: at once, or when its worker comes to it.

use crate::job::{Job, Origin};
use crate::kernel::{Iteration, Key, Notice};
use crate::network_state::NetworkId;
use crate::world::World;
use cubenet_core::Instant;
use std::time::Duration;

impl World {
    /// The kernel has a notice for a socket. Returns what is to be done now.
    pub(crate) fn handle_notice(&mut self, socket: Key, notice: Notice) -> Option<Job> {
        let host = self.kernel.host_of(socket)?;
        let frozen_until = self.kernel.host(host).frozen_until;
        if frozen_until > self.kernel.now {
            self.kernel.notify_at(frozen_until, socket, notice);
            return None;
        }
        let Some(id) = self.owners.get(socket)?.network() else {
            self.handle_raw_notice(socket, notice);
            return None;
        };
        if notice == Notice::Readable && self.owners.has_unread(socket) {
            // It is read in its next iteration.
            return None;
        }
        let network = &self.networks[id.0 as usize];
        if self.interleaves || network.has_costs() {
            self.schedule(id, socket, notice);
            return None;
        }
        let messages = self.owners.budget(socket, &network.budgets);
        self.kernel.iteration = Iteration::of(socket, messages, &network.budgets, self.kernel.now);
        let tasks = std::mem::take(&mut self.spare_tasks);
        Some(Job::new(Origin::Socket(socket), tasks, socket, notice))
    }

    /// Puts a socket in the run queue of its worker.
    fn schedule(&mut self, network: NetworkId, socket: Key, notice: Notice) {
        let state = &mut self.networks[network.0 as usize];
        let number = socket.slot as usize % state.workers.len();
        let worker = &mut state.workers[number];
        worker.run_queue.push_back((socket, notice));
        if !std::mem::replace(&mut worker.is_awake, true) {
            let at = worker.busy_until.max(self.kernel.now);
            self.kernel.work_at(at, network.0, number as u32);
        }
    }

    /// What a worker does next: it goes on with an iteration, or serves the next socket in its run
    /// queue.
    pub(crate) fn next_job(&mut self, network: NetworkId, number: u32) -> Option<Job> {
        let now = self.kernel.now;
        let state = &mut self.networks[network.0 as usize];
        let frozen_until = self.kernel.host(state.host).frozen_until;
        if frozen_until > now {
            self.kernel.work_at(frozen_until, network.0, number);
            return None;
        }
        let has_costs = state.has_costs();
        let worker = &mut state.workers[number as usize];
        let unfinished = worker.iteration.take();
        let next = match unfinished.and_then(|iteration| iteration.socket) {
            Some(socket) => Some((socket, Notice::RunAgain)),
            None => loop {
                let next = worker.run_queue.pop_front();
                // One that is in the queue for what it has left is not served for news before.
                let is_old = |(socket, notice): (Key, Notice)| {
                    notice == Notice::Readable && self.owners.has_unread(socket)
                };
                if !next.is_some_and(is_old) {
                    break next;
                }
            },
        };
        let Some((socket, notice)) = next else {
            worker.is_awake = false;
            return None;
        };
        let messages = self.owners.budget(socket, &state.budgets);
        let iteration =
            unfinished.unwrap_or_else(|| Iteration::of(socket, messages, &state.budgets, now));
        worker.iteration = Some(iteration);
        // If callbacks take time, each has a moment of its own: one runs, and then the next.
        let at_most = if has_costs { 1 } else { usize::MAX };
        self.kernel.iteration = Iteration {
            messages: iteration.messages.min(at_most),
            has_more: false,
            spent: 0,
            ..iteration
        };
        let origin = Origin::Worker {
            network,
            number,
            began: now,
        };
        let tasks = std::mem::take(&mut self.spare_tasks);
        Some(Job::new(origin, tasks, socket, notice))
    }

    /// A job is done: says when its socket is served again, if it has more to do.
    pub(crate) fn finish_job(&mut self, job: Job) {
        let Job { origin, tasks } = job;
        self.spare_tasks = tasks;
        let done = std::mem::replace(&mut self.kernel.iteration, Iteration::NONE);
        match origin {
            Origin::Socket(socket) if done.has_more => {
                // The others come first.
                let now = self.kernel.now;
                self.kernel.notify_at(now, socket, Notice::RunAgain);
            }
            Origin::Socket(_) => {}
            Origin::Worker {
                network,
                number,
                began,
            } => self.finish_iteration(network, number, began, done),
        }
    }

    /// A worker has done what it began at `began`: says until when it was busy with that, and what
    /// comes next.
    fn finish_iteration(&mut self, id: NetworkId, number: u32, began: Instant, done: Iteration) {
        let state = &mut self.networks[id.0 as usize];
        let has_costs = state.has_costs();
        let worker = &mut state.workers[number as usize];
        let spent = done.spent.saturating_add(worker.rest.into());
        worker.rest = (spent % 1_000) as u32;
        let spent = Duration::from_micros(spent / 1_000);
        state.busy += spent;
        worker.busy_until = began.after(spent).max(self.kernel.now);
        let before = worker.iteration.take();
        if let (Some(before), true, Some(socket)) = (before, done.has_more, done.socket) {
            let left = Iteration {
                messages: before.messages.saturating_sub(usize::from(has_costs)),
                ..done
            };
            let is_left = has_costs && left.messages > 0 && left.bytes > 0;
            if is_left && worker.busy_until < left.deadline {
                worker.iteration = Some(left);
            } else {
                worker.run_queue.push_back((socket, Notice::RunAgain));
            }
        }
        worker.is_awake = worker.iteration.is_some() || !worker.run_queue.is_empty();
        if worker.is_awake {
            let at = worker.busy_until;
            self.kernel.work_at(at, id.0, number);
        }
    }
}
