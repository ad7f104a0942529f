//! What sessions need besides connections: threads that may block, time, and randomness.

use cubenet_core::Instant;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Work that may block.
pub type Job = Box<dyn FnOnce() + Send>;

/// What sessions need besides connections. [`Threads`] has it for servers; in a simulation another
/// runs jobs and tells the time.
pub trait Environment: Send + Sync + 'static {
    /// Runs a job soon. It may block, so it must not run on a network's thread.
    fn run(&self, job: Job);

    /// Runs a job after this time.
    fn run_after(&self, delay: Duration, job: Job);

    /// The time, by a clock that only goes forward.
    fn now(&self) -> Instant;

    /// Fills a slice with random bytes that cannot be guessed.
    ///
    /// # Errors
    ///
    /// There are none to be had.
    fn random(&self, bytes: &mut [u8]) -> io::Result<()>;
}

/// Threads that run jobs, the clock of the system and its random bytes.
///
/// The threads end once this is dropped. Jobs that have not begun are dropped.
pub struct Threads {
    shared: Arc<Shared>,
    start: std::time::Instant,
}

#[derive(Default)]
struct Shared {
    jobs: Mutex<Jobs>,
    /// There is another job, or a timer that is due before the others, or the end.
    changed: Condvar,
}

#[derive(Default)]
struct Jobs {
    ready: VecDeque<Job>,
    timers: BinaryHeap<Reverse<Timer>>,
    /// Timers that were ever set: those of one moment come up in their order.
    timers_set: u64,
    ending: bool,
}

struct Timer {
    at: std::time::Instant,
    nth: u64,
    job: Job,
}

impl Timer {
    fn key(&self) -> (std::time::Instant, u64) {
        (self.at, self.nth)
    }
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl Threads {
    /// Starts this many threads; at least one. As many operations of the store are under way at once.
    ///
    /// # Errors
    ///
    /// The system has no room for a thread.
    pub fn start(count: usize) -> io::Result<Self> {
        let threads = Threads {
            shared: Arc::default(),
            start: std::time::Instant::now(),
        };
        for nth in 0..count.max(1) {
            let shared = Arc::clone(&threads.shared);
            let builder = thread::Builder::new().name(format!("cubenet-session-{nth}"));
            builder.spawn(move || shared.work())?;
        }
        Ok(threads)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let mut jobs = self.shared.lock();
        jobs.ending = true;
        let dropped = (
            std::mem::take(&mut jobs.ready),
            std::mem::take(&mut jobs.timers),
        );
        drop(jobs);
        self.shared.changed.notify_all();
        // They may hold what the application made.
        drop(dropped);
    }
}

impl Environment for Threads {
    fn run(&self, job: Job) {
        self.shared.lock().ready.push_back(job);
        self.shared.changed.notify_one();
    }

    fn run_after(&self, delay: Duration, job: Job) {
        let now = std::time::Instant::now();
        let Some(at) = now.checked_add(delay) else {
            // Never.
            return;
        };
        let mut jobs = self.shared.lock();
        jobs.timers_set += 1;
        let nth = jobs.timers_set;
        jobs.timers.push(Reverse(Timer { at, nth, job }));
        drop(jobs);
        self.shared.changed.notify_one();
    }

    fn now(&self) -> Instant {
        Instant::ZERO.after(self.start.elapsed())
    }

    fn random(&self, bytes: &mut [u8]) -> io::Result<()> {
        getrandom::fill(bytes).map_err(io::Error::other)
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads").finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs jobs until the end.
    fn work(&self) {
        while let Some(job) = self.next() {
            // A panic has been reported by the hook; the jobs of other sessions go on.
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
    }

    /// Waits for a job; `None` at the end.
    fn next(&self) -> Option<Job> {
        let mut jobs = self.lock();
        loop {
            if jobs.ending {
                return None;
            }
            // Those that are due first: there are few, and leases depend on them.
            let now = std::time::Instant::now();
            let first = jobs.timers.peek().map(|Reverse(timer)| timer.at);
            if first.is_some_and(|at| at <= now) {
                let Reverse(timer) = jobs.timers.pop()?;
                return Some(timer.job);
            }
            if let Some(job) = jobs.ready.pop_front() {
                return Some(job);
            }
            jobs = if let Some(at) = first {
                let wait = self.changed.wait_timeout(jobs, at - now);
                wait.unwrap_or_else(PoisonError::into_inner).0
            } else {
                let wait = self.changed.wait(jobs);
                wait.unwrap_or_else(PoisonError::into_inner)
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn jobs_run_at_their_time_and_a_panic_ends_no_thread() {
        let threads = Threads::start(1).unwrap();
        let (done, order) = channel();
        for (delay, name) in [(30, "second"), (10, "first")] {
            let done = done.clone();
            let job = Box::new(move || done.send(name).unwrap());
            threads.run_after(Duration::from_millis(delay), job);
        }
        threads.run(Box::new(|| panic!("of a test")));
        let at_once = Box::new(move || done.send("at once").unwrap());
        threads.run(at_once);
        let order: Vec<_> = (0..3).map(|_| order.recv_timeout(LONG).unwrap()).collect();
        // The panic may take longer than the timers.
        let at = |name| order.iter().position(|one| *one == name);
        assert!(
            at("at once").is_some() && at("first") < at("second"),
            "{order:?}"
        );
        assert!(at("first").is_some());
    }

    #[test]
    fn a_job_that_has_not_begun_is_dropped_at_the_end() {
        let threads = Threads::start(2).unwrap();
        let (held, dropped) = channel::<()>();
        threads.run_after(LONG, Box::new(move || drop(held)));
        threads.run_after(Duration::MAX, Box::new(|| {}));
        assert!(threads.now() < threads.now().after(LONG));
        drop(threads);
        assert!(dropped.recv_timeout(LONG).is_err(), "it never runs");
    }

    #[test]
    fn random_bytes_differ() {
        let threads = Threads::start(0).unwrap();
        let [mut one, mut other] = [[0; 16]; 2];
        threads.random(&mut one).unwrap();
        threads.random(&mut other).unwrap();
        assert_ne!(one, other);
    }
}
