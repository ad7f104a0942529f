//! What happens next: who is told what, by which worker, on which thread.

use crate::kernel::{Key, Notice};
use crate::owners::Owner;
use crate::threads::{Outcome, Pause};
use crate::trace::Record;
use crate::workers::Turn;
use crate::world::{Guard, NetworkId, Shared};
use crate::{peers, raw, stream};
use cubenet_core::Instant;
use std::sync::Arc;
use std::time::Duration;

/// How long after a failed `accept` it is tried again.
pub(crate) const ACCEPT_AGAIN: Duration = Duration::from_millis(20);
/// How long a thread is held up at a point, at most, if not for no time at all.
const LONGEST_PAUSE: Duration = Duration::from_millis(1);
/// How long threads may be blocked while others sleep, in virtual time.
const BLOCKED_FOR: Duration = Duration::from_secs(10);

/// A socket may go on. It does at once, unless it has to wait for its worker.
pub(crate) fn noticed<'a>(shared: &'a Arc<Shared>, mut world: Guard<'a>, key: Key, notice: Notice) {
    let Some(host) = world.kernel.host_of(key) else {
        return;
    };
    let frozen_until = world.kernel.host(host).frozen_until;
    if frozen_until > world.now() {
        return world.kernel.notify_at(frozen_until, key, notice);
    }
    let network = world.owners.get(key).and_then(|owner| owner.network());
    let Some(network) = network else {
        drop(handle(shared, world, key, notice));
        return;
    };
    if notice == Notice::Readable && world.owners.is_in_line(key) {
        // It is read when its turn comes.
        return;
    }
    if world.waits_for_workers(network) {
        return world.line_up(network, key, notice);
    }
    let budgets = &world.networks[network.0 as usize].budgets;
    let messages = world.owners.budget(key, budgets);
    let now = world.kernel.now;
    world.kernel.turn = Turn::of(key, messages, budgets, now);
    let mut world = handle(shared, world, key, notice);
    let turn = std::mem::replace(&mut world.kernel.turn, Turn::NONE);
    if turn.has_more {
        // The others come first.
        let now = world.kernel.now;
        world.kernel.notify_at(now, key, Notice::NextTurn);
    }
}

/// Does what a socket may do.
fn handle<'a>(
    shared: &'a Arc<Shared>,
    mut world: Guard<'a>,
    key: Key,
    notice: Notice,
) -> Guard<'a> {
    match (world.owners.get(key), notice) {
        (Some(Owner::Listener { .. }), _) => accept(shared, world, key),
        (Some(Owner::Stream(_)), Notice::Connected) => stream::connected(shared, world, key),
        (Some(Owner::Stream(_)), Notice::Readable | Notice::NextTurn) => {
            stream::read(shared, world, key)
        }
        (Some(Owner::Stream(_)), Notice::Failed) => stream::failed(shared, world, key),
        (Some(Owner::Stream(_)), Notice::Late) => stream::handle_timeout(shared, world, key),
        (Some(Owner::Stream(_)), _) => stream::flush(shared, world, key),
        (Some(Owner::Peers(_)), Notice::Readable | Notice::NextTurn) => {
            peers::read(shared, world, key)
        }
        (Some(Owner::Peers(_)), Notice::Late) => peers::handle_timeout(shared, world, key),
        (Some(Owner::Peers(_)), _) => peers::attend(shared, world, key),
        (Some(Owner::Raw(_)), _) => {
            raw::noticed(&mut world, key, notice);
            world
        }
        (None, _) => world,
    }
}

/// Takes the calls that wait, as long as there are descriptors.
fn accept<'a>(shared: &'a Arc<Shared>, mut world: Guard<'a>, listener: Key) -> Guard<'a> {
    let now = world.now();
    while let Some(Owner::Listener {
        network,
        accept,
        again,
    }) = world.owners.get(listener)
    {
        if *again > now {
            // A listener that waits to try again goes on waiting when another connection arrives.
            return world;
        }
        let (network, accept) = (*network, Arc::clone(accept));
        if !world.kernel.turn.goes_on() {
            return world;
        }
        match world.kernel.accept(listener) {
            Ok(Some(key)) => {
                world.kernel.turn.messages -= 1;
                world = stream::accepted(shared, world, network, &*accept, key);
                world.bury(accept);
            }
            Ok(None) => return world,
            Err(_) => {
                world.network(network).metrics.accept_failed += 1;
                let at = now.after(ACCEPT_AGAIN);
                if let Some(Owner::Listener { again, .. }) = world.owners.get(listener) {
                    *again = at;
                }
                world.kernel.notify_at(at, listener, Notice::Acceptable);
                return world;
            }
        }
    }
    world
}

/// The timer of a socket has come up.
pub(crate) fn timer<'a>(shared: &'a Arc<Shared>, mut world: Guard<'a>, key: Key) {
    let Some(host) = world.kernel.host_of(key) else {
        return;
    };
    let frozen_until = world.kernel.host(host).frozen_until;
    if frozen_until > world.now() {
        return world.timers.again(key, frozen_until);
    }
    let now = world.now();
    world.kernel.trace.record(now, Record::Timer, 0, &[]);
    noticed(shared, world, key, Notice::Late);
}

/// A worker goes on.
pub(crate) fn work<'a>(
    shared: &'a Arc<Shared>,
    mut world: Guard<'a>,
    network: NetworkId,
    number: u32,
) {
    let began = world.kernel.now;
    let Some((key, notice)) = world.next_work(network, number) else {
        return;
    };
    if !world.interleaves {
        let mut world = handle(shared, world, key, notice);
        return world.work_done(network, number, began);
    }
    let host = world.networks[network.0 as usize].host;
    let address = world.kernel.host(host).address();
    let doing = format!("worker {number} of {address}");
    let turn = world.kernel.turn;
    drop(world);
    let of_job = Arc::clone(shared);
    let job = move || {
        let mut world = handle(&of_job, of_job.lock(), key, notice);
        world.work_done(network, number, began);
    };
    assign(shared, doing, true, Box::new(job), turn);
}

/// Has something done by a thread of the simulation, which begins at once.
fn assign(
    shared: &Arc<Shared>,
    doing: String,
    is_worker: bool,
    job: Box<dyn FnOnce() + Send>,
    turn: Turn,
) {
    match shared.threads.assign(doing, is_worker, job) {
        Ok(slot) => {
            shared.lock().set_turn(slot, turn);
            resume(shared, slot);
        }
        Err(error) => panic!("the system has no thread for the simulation: {error}"),
    }
}

/// A test's own thread begins.
pub(crate) fn spawn(shared: &Arc<Shared>, doing: String, job: Box<dyn FnOnce() + Send>) {
    assign(shared, doing, false, job, Turn::NONE);
}

/// Lets a thread run on.
pub(crate) fn resume(shared: &Arc<Shared>, slot: usize) {
    let mut world = shared.lock();
    let turn = world.turn_of(slot);
    // Nothing runs on a host that stands still.
    let host = turn.key.and_then(|key| world.kernel.host_of(key));
    let frozen_until = host.map(|host| world.kernel.host(host).frozen_until);
    if let Some(until) = frozen_until.filter(|until| *until > world.now()) {
        return world.kernel.resume_at(until, slot as u32);
    }
    world.kernel.turn = turn;
    drop(world);
    let outcome = shared.threads.run(slot);
    let mut world = shared.lock();
    let turn = std::mem::replace(&mut world.kernel.turn, Turn::NONE);
    world.set_turn(slot, turn);
    match outcome {
        Outcome::Done => {}
        Outcome::HeldUp(pause) => {
            let pause = match pause {
                Pause::Chosen if world.kernel.random.chance(0.5) => Duration::ZERO,
                Pause::Chosen => world.kernel.random.duration(LONGEST_PAUSE),
                Pause::For(duration) => duration,
            };
            let at = world.kernel.now.after(pause);
            world.kernel.resume_at(at, slot as u32);
        }
        Outcome::Blocked => {
            let now = world.kernel.now;
            world.blocked_since.get_or_insert(now);
        }
    }
}

/// Sees to the threads that wait for a lock of the application's own. Nothing else happens before
/// `by`. Panics if a callback can never go on.
pub(crate) fn look_at_loose<'a>(shared: &'a Arc<Shared>, world: Guard<'a>, by: Instant) {
    let now = world.kernel.now;
    drop(world);
    let loose = shared.threads.look_at_loose();
    let mut world = shared.lock();
    for slot in &loose.held_up {
        world.kernel.resume_at(now, *slot as u32);
    }
    let since = *world.blocked_since.get_or_insert(now);
    if !loose.are_left {
        world.blocked_since = None;
    } else if !loose.held_up.is_empty() {
        world.blocked_since = Some(now);
    }
    drop(world);
    // What is still to happen may let it go on, for a while.
    let is_hopeless = by.since(since) > BLOCKED_FOR;
    if loose.is_worker_blocked
        && loose.held_up.is_empty()
        && is_hopeless
        && shared.threads.are_deadlocked()
    {
        let report = shared.threads.report();
        panic!("deadlock: these callbacks wait for locks that are never released: {report}");
    }
}
