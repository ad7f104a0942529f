//! One worker thread of a network: what waits for it, and until when it is busy.

use crate::kernel::{Iteration, Key, Notice};
use cubenet_core::Instant;
use std::collections::VecDeque;

pub(crate) struct Worker {
    /// Sockets that wait to be served, FIFO.
    pub(crate) run_queue: VecDeque<(Key, Notice)>,
    /// The iteration that it is in, and what is left of that.
    pub(crate) iteration: Option<Iteration>,
    pub(crate) busy_until: Instant,
    /// Nanoseconds of work that `busy_until`, in microseconds, leaves out.
    pub(crate) rest: u32,
    /// It runs, or will when an event says so.
    pub(crate) is_awake: bool,
}

impl Worker {
    pub(crate) fn new() -> Self {
        Worker {
            run_queue: VecDeque::new(),
            iteration: None,
            busy_until: Instant::ZERO,
            rest: 0,
            is_awake: false,
        }
    }
}
