//! A flag that says whether the worker has been asked to look at something, so that asking again
//! costs nothing and takes no room in its mailbox.

use crate::sync::atomic::{AtomicBool, Ordering::AcqRel};

/// Whether a command to look is in the worker's mailbox.
pub(crate) struct Wake(AtomicBool);

impl Wake {
    pub(crate) fn new() -> Self {
        Wake(AtomicBool::new(false))
    }

    /// Whether the caller is to leave a command: none is there yet.
    pub(crate) fn ask(&self) -> bool {
        !self.0.swap(true, AcqRel)
    }

    /// The worker is about to look. What was done before a command was asked for in vain is seen
    /// by this look; what is done from here on asks for another.
    pub(crate) fn answered(&self) {
        self.0.swap(false, AcqRel);
    }
}
