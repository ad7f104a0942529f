//! What all parts of a simulation share: the world and its lock, the threads, the capture's file.

use crate::kernel::{CaptureFile, Kernel};
use crate::threads::{Pause, Threads};
use crate::world::World;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) struct Shared {
    /// Callbacks run without this lock.
    world: Mutex<World>,
    pub(crate) threads: Arc<Threads>,
    /// Of the points at which a thread may be held up, those at which it is.
    interleave: f64,
    /// The file of the capture, apart from the world: writing to it runs code of the application.
    capture_file: Mutex<Option<CaptureFile>>,
}

impl Shared {
    pub(crate) fn new(kernel: Kernel, interleave: f64) -> Arc<Self> {
        Arc::new(Shared {
            world: Mutex::new(World::new(kernel, interleave > 0.0)),
            threads: Arc::default(),
            interleave,
            capture_file: Mutex::default(),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        // Callbacks run without the lock, so nothing in here panics half way.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the file of the capture, and leaves another.
    pub(crate) fn set_capture_file(&self, file: Option<CaptureFile>) -> Option<CaptureFile> {
        let before = self.capture_file.lock();
        let mut before = before.unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *before, file)
    }

    /// Writes captured packets to their file. No lock is held.
    pub(crate) fn write_captured(&self, bytes: &[u8]) {
        if let Some(mut file) = self.set_capture_file(None) {
            file.write(bytes);
            self.set_capture_file(Some(file));
        }
    }

    /// A point at which the thread that this runs on may be held up. The lock is not held.
    pub(crate) fn point(&self) {
        self.threads.point(|| {
            let chosen = self.interleave > 0.0 && self.lock().kernel.random.chance(self.interleave);
            chosen.then_some(Pause::Chosen)
        });
    }

    /// The world, after a point.
    pub(crate) fn at_point(&self) -> MutexGuard<'_, World> {
        self.point();
        self.lock()
    }
}
