//! Threads of a simulation: one of them runs at a time, and which is chosen by the seed.
//!
//! A callback, or a thread that a test spawned, runs on a thread of the system, so that it can be
//! held up in the middle. It is at chosen *points*: where a callback begins and ends, and at each call of
//! a connection. The thread that runs the simulation hands control to one and waits until that is
//! held up or done. A thread that waits for a lock of the application's own, which another one that
//! is held up has, cannot say so: the system is asked, and the others go on meanwhile.

use std::any::Any;
use std::cell::Cell;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// What a thread is to do.
type Job = Box<dyn FnOnce() + Send>;

/// How often the system is asked about a thread that does not come back.
const ASK_AGAIN: Duration = Duration::from_millis(1);
/// How often in a row a thread must be asleep to count as blocked.
const ASLEEP_FOR: u32 = 5;
/// The same, where the system cannot be asked, and a callback that computes looks like one that
/// waits: ten seconds.
const SILENT_FOR: u32 = 1_000;
/// How long all threads must be blocked before that counts as a deadlock: a thread outside of the
/// simulation may hold the lock.
const DEADLOCK_AFTER: Duration = Duration::from_secs(2);
/// How long threads are waited for when the simulation is dropped.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

thread_local! {
    /// Which thread of which simulation this one is.
    static CURRENT: Cell<Option<(usize, usize)>> = const { Cell::new(None) };
}

/// The threads of one simulation.
#[derive(Default)]
pub(crate) struct Threads {
    state: Mutex<State>,
    /// The thread that runs the simulation waits here.
    runner: Condvar,
}

#[derive(Default)]
struct State {
    slots: Vec<Slot>,
    /// No thread is held up any more: the simulation is being dropped.
    is_closing: bool,
    /// What a thread of the application's own panicked with.
    panic: Option<Box<dyn Any + Send>>,
}

struct Slot {
    phase: Phase,
    woken: Arc<Condvar>,
    job: Option<Job>,
    /// Whether it runs callbacks.
    is_worker: bool,
    /// It was blocked while it ran. Its phase must be checked before the next step.
    was_blocked: bool,
    system_id: SystemId,
    /// For reports: what it is at.
    doing: String,
}

/// What became of threads that were blocked.
#[derive(Default)]
pub(crate) struct Blocked {
    /// They are held up at a point now, and have to be resumed.
    pub(crate) held_up: Vec<usize>,
    /// Some are still blocked.
    pub(crate) are_left: bool,
    /// One of those is in a callback.
    pub(crate) has_worker: bool,
}

/// The system's number of a thread.
#[derive(Clone)]
enum SystemId {
    /// It has not begun.
    NotYet,
    /// This system does not say.
    Unknown,
    Known(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Running,
    HeldUp(Pause),
    /// It waits for something that is not the simulation's.
    Blocked,
}

/// How long a thread is held up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// As the seed chooses.
    Chosen,
    /// This long.
    For(Duration),
}

/// Why a thread gave control back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    HeldUp(Pause),
    Blocked,
}

impl Threads {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn id(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// The number of the thread that this runs on, if it is one of these.
    pub(crate) fn current(&self) -> Option<usize> {
        let (of, slot) = CURRENT.get()?;
        (of == self.id()).then_some(slot)
    }

    /// Gives a thread something to do. It does nothing yet: see [`Threads::run`].
    pub(crate) fn assign(
        self: &Arc<Self>,
        doing: String,
        is_worker: bool,
        job: Job,
    ) -> std::io::Result<usize> {
        let mut state = self.lock();
        let idle = state
            .slots
            .iter()
            .position(|slot| slot.phase == Phase::Idle && slot.job.is_none() && !slot.was_blocked);
        if let Some(slot) = idle {
            let of_slot = &mut state.slots[slot];
            of_slot.job = Some(job);
            (of_slot.doing, of_slot.is_worker) = (doing, is_worker);
            return Ok(slot);
        }
        let slot = state.slots.len();
        let threads = Arc::clone(self);
        thread::Builder::new()
            .name(format!("cubenet-sim-{slot}"))
            .spawn(move || threads.serve(slot))?;
        state.slots.push(Slot {
            phase: Phase::Idle,
            woken: Arc::default(),
            job: Some(job),
            is_worker,
            was_blocked: false,
            system_id: SystemId::NotYet,
            doing,
        });
        Ok(slot)
    }

    /// What each thread of the system does.
    fn serve(&self, slot: usize) {
        CURRENT.set(Some((self.id(), slot)));
        let system_id = SystemId::of_this_thread();
        let mut state = self.lock();
        state.slots[slot].system_id = system_id;
        loop {
            let woken = Arc::clone(&state.slots[slot].woken);
            while state.slots[slot].phase != Phase::Running && !state.is_closing {
                state = woken.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let job = state.slots[slot].job.take();
            let is_closing = state.is_closing;
            drop(state);
            // What is dropped may use a connection.
            let done = match job {
                Some(job) if !is_closing => catch_unwind(AssertUnwindSafe(job)),
                _ => Ok(()),
            };
            state = self.lock();
            if let Err(panic) = done {
                state.panic.get_or_insert(panic);
            }
            state.slots[slot].phase = Phase::Idle;
            self.runner.notify_all();
            if state.is_closing {
                return;
            }
        }
    }

    /// Lets a thread run until it is done, held up or blocked.
    pub(crate) fn run(&self, slot: usize) -> Outcome {
        let mut state = self.lock();
        state.slots[slot].phase = Phase::Running;
        state.slots[slot].woken.notify_all();
        let mut asleep = 0;
        loop {
            match state.slots[slot].phase {
                Phase::Idle => {
                    let panic = state.panic.take();
                    drop(state);
                    return panic.map_or(Outcome::Done, |panic| resume_unwind(panic));
                }
                Phase::HeldUp(pause) => return Outcome::HeldUp(pause),
                Phase::Running if asleep >= state.slots[slot].system_id.blocked_after() => {
                    state.slots[slot].phase = Phase::Blocked;
                    state.slots[slot].was_blocked = true;
                    return Outcome::Blocked;
                }
                _ => {}
            }
            let waited = self.runner.wait_timeout(state, ASK_AGAIN);
            let timeout;
            (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            if timeout.timed_out() {
                let system_id = state.slots[slot].system_id.clone();
                drop(state);
                let is_asleep = system_id.is_asleep();
                asleep = if is_asleep { asleep + 1 } else { 0 };
                state = self.lock();
            }
        }
    }

    /// A point at which the thread that this runs on may be held up; nothing, on others. `pause`
    /// says how long, if it is to be. Returns whether the simulation is still there.
    pub(crate) fn point(&self, pause: impl FnOnce() -> Option<Pause>) -> bool {
        let Some(slot) = self.current() else {
            return true;
        };
        // One that was blocked runs beside another: it waits until it is resumed.
        let was_blocked = self.lock().slots[slot].phase == Phase::Blocked;
        let pause = if was_blocked {
            Some(Pause::For(Duration::ZERO))
        } else {
            pause()
        };
        let Some(pause) = pause else {
            return true;
        };
        let mut state = self.lock();
        if state.is_closing {
            return false;
        }
        state.slots[slot].phase = Phase::HeldUp(pause);
        self.runner.notify_all();
        let woken = Arc::clone(&state.slots[slot].woken);
        while state.slots[slot].phase != Phase::Running && !state.is_closing {
            state = woken.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.is_closing
    }

    /// Waits until each thread that was blocked is blocked again, or is held up at a point. Returns those
    /// that are held up and go on; and whether a worker is blocked.
    pub(crate) fn check_blocked(&self) -> Blocked {
        let mut blocked = Blocked::default();
        let mut state = self.lock();
        for slot in 0..state.slots.len() {
            if !state.slots[slot].was_blocked {
                continue;
            }
            let mut asleep = 0;
            // It may go on at this moment, and then comes to a point.
            while state.slots[slot].phase == Phase::Blocked && asleep < 2 {
                let system_id = state.slots[slot].system_id.clone();
                drop(state);
                let is_asleep = system_id.is_asleep();
                asleep = if is_asleep { asleep + 1 } else { 0 };
                thread::sleep(ASK_AGAIN / 10);
                state = self.lock();
            }
            let of_slot = &mut state.slots[slot];
            match of_slot.phase {
                Phase::Blocked => {
                    blocked.are_left = true;
                    blocked.has_worker |= of_slot.is_worker;
                }
                phase => {
                    of_slot.was_blocked = false;
                    if phase != Phase::Idle {
                        blocked.held_up.push(slot);
                    }
                }
            }
        }
        let panic = state.panic.take();
        drop(state);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        blocked
    }

    /// Whether every worker that is not idle is blocked, and all of them stay so.
    pub(crate) fn are_deadlocked(&self) -> bool {
        let wait = DEADLOCK_AFTER.as_micros() / (10 * ASK_AGAIN).as_micros();
        for _ in 0..wait {
            let state = self.lock();
            let is_blocked = |slot: &Slot| slot.is_worker && slot.phase == Phase::Blocked;
            if !state.slots.iter().any(is_blocked) {
                return false;
            }
            drop(state);
            thread::sleep(10 * ASK_AGAIN);
        }
        true
    }

    /// What the threads that are blocked are at.
    pub(crate) fn report(&self) -> String {
        let state = self.lock();
        let blocked = state
            .slots
            .iter()
            .filter(|slot| slot.phase == Phase::Blocked);
        let mut report = String::new();
        for slot in blocked {
            let and = if report.is_empty() { "" } else { ", and " };
            let _ = write!(report, "{and}{}", slot.doing);
        }
        report
    }

    /// Lets all threads run on and end, and waits a while for those that do.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.is_closing = true;
        for slot in &state.slots {
            slot.woken.notify_all();
        }
        let own = self.current();
        let runs = |(number, slot): (usize, &Slot)| {
            Some(number) != own && !matches!(slot.phase, Phase::Idle | Phase::Blocked)
        };
        let are_left = |state: &mut State| state.slots.iter().enumerate().any(runs);
        let waited = self
            .runner
            .wait_timeout_while(state, CLOSE_WITHIN, are_left);
        drop(waited);
    }
}

impl SystemId {
    fn of_this_thread() -> Self {
        let link = std::fs::read_link("/proc/thread-self");
        let number = link.ok().and_then(|link| {
            let number = link.file_name()?.to_str()?;
            Some(number.to_owned())
        });
        number.map_or(SystemId::Unknown, SystemId::Known)
    }

    /// How often in a row a thread must be asleep to count as blocked.
    fn blocked_after(&self) -> u32 {
        match self {
            SystemId::Known(_) => ASLEEP_FOR,
            SystemId::NotYet | SystemId::Unknown => SILENT_FOR,
        }
    }

    /// Whether the system says that the thread waits for something. Where it cannot be asked, it
    /// does.
    fn is_asleep(&self) -> bool {
        let number = match self {
            SystemId::NotYet => return false,
            SystemId::Unknown => {
                thread::sleep(10 * ASK_AGAIN);
                return true;
            }
            SystemId::Known(number) => number,
        };
        let Ok(stat) = std::fs::read_to_string(format!("/proc/self/task/{number}/stat")) else {
            return true;
        };
        // The name, in parentheses, may hold anything.
        let state = stat.rsplit_once(") ");
        state.is_some_and(|(_, state)| state.starts_with('S'))
    }
}
