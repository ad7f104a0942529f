//! Work of the application's that is to run on the worker of a connection.

use crate::network::shared::NetworkShared;
use crate::user::UserValue;
use cubenet_core::{Instant, SendError};
use std::sync::Arc;

/// What is to run, at a moment.
pub(crate) type BoxedTask = Box<dyn FnOnce(Instant) + Send>;

/// Work on its way to the worker of its connection.
pub(crate) struct UserTask {
    run: UserValue<BoxedTask>,
    _permit: TaskPermit,
}

impl UserTask {
    /// Work, if there is room for it among all that waits.
    pub(crate) fn new(network: &Arc<NetworkShared>, run: BoxedTask) -> Result<Self, SendError> {
        let run = UserValue::new(run);
        let permit = TaskPermit::take(network).ok_or(SendError::Full)?;
        Ok(UserTask {
            run,
            _permit: permit,
        })
    }

    /// Runs it.
    pub(super) fn run(self, now: Instant) {
        (self.run.into_inner())(now);
    }
}

/// The permit to wait for a worker, which is given back when it is dropped.
struct TaskPermit(Arc<NetworkShared>);

impl TaskPermit {
    fn take(network: &Arc<NetworkShared>) -> Option<Self> {
        let begins = network.begin_task();
        begins.then(|| TaskPermit(Arc::clone(network)))
    }
}

impl Drop for TaskPermit {
    fn drop(&mut self) {
        self.0.end_task();
    }
}
