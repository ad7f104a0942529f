//! Work of the application's that is to run on the worker of a connection.

use crate::connection::Connection;
use crate::network::shared::NetworkShared;
use crate::user::UserValue;
use cubenet_core::{ConnectionId, Frame, Identity, Instant, Link, SendError, Transport};
use std::net::SocketAddr;
use std::sync::Arc;

/// What is to run.
pub(crate) type BoxedTask = Box<dyn FnOnce(&mut dyn Link) + Send>;

/// Work on its way to the worker of its connection.
pub(crate) struct UserTask {
    pub(crate) connection: Connection,
    run: UserValue<BoxedTask>,
    _permit: TaskPermit,
}

impl UserTask {
    /// Work, if there is room for it among all that waits.
    pub(crate) fn new(
        network: &Arc<NetworkShared>,
        connection: Connection,
        run: BoxedTask,
    ) -> Result<Self, SendError> {
        let run = UserValue::new(run);
        let permit = TaskPermit::take(network).ok_or(SendError::Full)?;
        Ok(UserTask {
            connection,
            run,
            _permit: permit,
        })
    }

    /// Runs it.
    pub(crate) fn run(self, now: Instant) {
        let mut link = TaskLink {
            connection: &self.connection,
            now,
        };
        (self.run.into_inner())(&mut link);
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

/// A connection inside such work: a handle, since what several tasks send is gathered in a batch.
struct TaskLink<'a> {
    connection: &'a Connection,
    now: Instant,
}

impl Link for TaskLink<'_> {
    fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        self.connection.send(message)
    }

    fn send_frame(&mut self, frame: &Frame) -> Result<(), SendError> {
        self.connection.send_frame(frame)
    }

    fn close(&mut self) {
        self.connection.close();
    }

    fn abort(&mut self) {
        self.connection.abort();
    }

    fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    fn transport(&self) -> Transport {
        self.connection.transport()
    }

    fn peer_addr(&self) -> SocketAddr {
        self.connection.peer_addr()
    }

    fn local_addr(&self) -> SocketAddr {
        self.connection.local_addr()
    }

    fn id(&self) -> ConnectionId {
        self.connection.id()
    }

    fn identity(&self) -> Option<Arc<Identity>> {
        self.connection.identity()
    }

    fn queued(&self) -> usize {
        self.connection.queued()
    }

    fn pause(&mut self) {
        self.connection.pause();
    }

    fn resume(&mut self) {
        self.connection.resume();
    }

    fn now(&self) -> Instant {
        self.now
    }
}
