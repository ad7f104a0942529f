//! The loop that runs jobs: under the lock up to a callback, and the callback without it.

use crate::conn_info::ConnInfo;
use crate::job::{Call, Callback, Input, Job, Origin};
use crate::kernel::Iteration;
use crate::link::CallbackLink;
use crate::shared::Shared;
use crate::threads::{Outcome, Pause};
use cubenet_core::{ConnectError, Handler, Instant, Message};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// How long a thread is held up at a point, at most, if not for no time at all.
const LONGEST_PAUSE: Duration = Duration::from_millis(1);
/// How long threads may be blocked while others sleep, in virtual time.
const BLOCKED_FOR: Duration = Duration::from_secs(10);

/// Runs a job: here, or on a thread that can be held up if the simulation interleaves.
pub(crate) fn start(shared: &Arc<Shared>, job: Job) {
    let Origin::Worker {
        network, number, ..
    } = job.origin
    else {
        return run(shared, job);
    };
    let mut world = shared.lock();
    if !world.interleaves {
        drop(world);
        return run(shared, job);
    }
    let host = world.network(network).host;
    let address = world.kernel.host(host).address();
    let iteration = world.kernel.iteration;
    drop(world);
    let doing = format!("worker {number} of {address}");
    let on_thread = Arc::clone(shared);
    let job = Box::new(move || run(&on_thread, job));
    assign(shared, doing, true, job, iteration);
}

/// Runs a job to its end.
fn run(shared: &Arc<Shared>, mut job: Job) {
    let mut world = shared.lock();
    while let Some(task) = job.pop() {
        let Some(mut call) = world.step(task, &mut job) else {
            continue;
        };
        drop(world);
        shared.point();
        let panic = catch_unwind(AssertUnwindSafe(|| make(shared, &mut call))).err();
        shared.point();
        world = shared.lock();
        world.returned(call, panic, &mut job);
    }
    world.finish_job(job);
}

/// Runs a callback. No lock is held.
fn make(shared: &Arc<Shared>, call: &mut Call) {
    let link = &mut CallbackLink {
        shared,
        info: call.info,
        identity: &call.identity,
        now: call.now,
    };
    if let Callback::Accepted(accept) = &call.callback {
        call.handler = accept(&call.info);
        return;
    }
    let Some(handler) = &mut call.handler else {
        return;
    };
    match &mut call.callback {
        Callback::Accepted(_) => {}
        Callback::Connected => handler.connected(link),
        Callback::ReceivedBytes(input) => {
            if let Some(input) = input {
                input.deliver(&mut **handler, link);
            }
        }
        Callback::ReceivedDatagram(datagram) => {
            handler.received(link, Message::lent(datagram));
        }
        Callback::Writable => handler.writable(link),
        Callback::Error(error) => handler.error(link, *error),
        Callback::Closed(reason) => handler.closed(link, *reason),
        Callback::ConnectFailed(reason, failed) => {
            let ConnInfo {
                key,
                transport,
                peer_addr,
                ..
            } = call.info;
            let mut error = ConnectError::new(key.id, transport, peer_addr, *reason);
            if let Some(failed) = failed.take() {
                error = error.with_source(failed);
            }
            handler.connect_failed(error);
        }
    }
    if let Callback::Closed(_) | Callback::ConnectFailed(..) = call.callback {
        call.handler = None;
    }
}

impl Input {
    /// Decodes, and hands each message to the handler.
    fn deliver(&mut self, handler: &mut dyn Handler, link: &mut CallbackLink<'_>) {
        let mut rest = &self.bytes[..];
        while self.messages < self.budget {
            // Messages are delivered when this begins; each may change that. If nothing is left,
            // the decoder only gives back the memory of the last message.
            if self.messages > 0 && !rest.is_empty() && !link.is_receiving() {
                break;
            }
            match self.recv.handle_input(&mut rest, link.now) {
                Ok(Some(message)) => {
                    self.messages += 1;
                    self.volume += message.len() as u64;
                    handler.received(link, message);
                }
                Ok(None) => break,
                Err(error) => {
                    self.violation = Some(error);
                    break;
                }
            }
        }
        self.bytes = self.bytes.slice(self.bytes.len() - rest.len()..);
    }
}

/// Has something done by a thread of the simulation, which begins at once.
fn assign(
    shared: &Arc<Shared>,
    doing: String,
    is_worker: bool,
    what: Box<dyn FnOnce() + Send>,
    iteration: Iteration,
) {
    match shared.threads.assign(doing, is_worker, what) {
        Ok(thread) => {
            shared.lock().set_iteration(thread, iteration);
            resume(shared, thread);
        }
        Err(error) => panic!("the system has no thread for the simulation: {error}"),
    }
}

/// A test's own thread begins.
pub(crate) fn spawn(shared: &Arc<Shared>, doing: String, what: Box<dyn FnOnce() + Send>) {
    assign(shared, doing, false, what, Iteration::NONE);
}

/// Lets a thread run on.
pub(crate) fn resume(shared: &Arc<Shared>, thread: usize) {
    let mut world = shared.lock();
    let iteration = world.iteration_of(thread);
    // Nothing runs on a host that stands still.
    let host = iteration
        .socket
        .and_then(|socket| world.kernel.host_of(socket));
    let frozen_until = host.map(|host| world.kernel.host(host).frozen_until);
    if let Some(until) = frozen_until.filter(|until| *until > world.kernel.now) {
        return world.kernel.resume_at(until, thread as u32);
    }
    world.kernel.iteration = iteration;
    drop(world);
    let outcome = shared.threads.run(thread);
    let mut world = shared.lock();
    let iteration = std::mem::replace(&mut world.kernel.iteration, Iteration::NONE);
    world.set_iteration(thread, iteration);
    match outcome {
        Outcome::Done => {}
        Outcome::HeldUp(pause) => {
            let pause = match pause {
                Pause::Chosen if world.kernel.random.chance(0.5) => Duration::ZERO,
                Pause::Chosen => world.kernel.random.duration(LONGEST_PAUSE),
                Pause::For(duration) => duration,
            };
            let at = world.kernel.now.after(pause);
            world.kernel.resume_at(at, thread as u32);
        }
        Outcome::Blocked => {
            let now = world.kernel.now;
            world.blocked_since.get_or_insert(now);
        }
    }
}

/// Sees to the threads that wait for a lock of the application's own. Nothing else happens before
/// `until`. Panics if a callback can never go on.
pub(crate) fn check_blocked(shared: &Arc<Shared>, until: Instant) {
    let world = shared.lock();
    let now = world.kernel.now;
    // What happens until then may let them go on.
    let next = world.kernel.next_at().min(world.timers.next_at());
    let by = if next > until { until.min(next) } else { now };
    drop(world);
    let blocked = shared.threads.check_blocked();
    let mut world = shared.lock();
    for thread in &blocked.held_up {
        world.kernel.resume_at(now, *thread as u32);
    }
    let since = *world.blocked_since.get_or_insert(now);
    if !blocked.are_left {
        world.blocked_since = None;
    } else if !blocked.held_up.is_empty() {
        world.blocked_since = Some(now);
    }
    drop(world);
    // What is still to happen may let it go on, for a while.
    let is_hopeless = by.since(since) > BLOCKED_FOR;
    if blocked.has_worker
        && blocked.held_up.is_empty()
        && is_hopeless
        && shared.threads.are_deadlocked()
    {
        let report = shared.threads.report();
        panic!("deadlock: these callbacks wait for locks that are never released: {report}");
    }
}
