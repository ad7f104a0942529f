//! A stream connection as all threads share it.
//!
//! The worker that owns a connection reads it and holds the only strong reference that lasts to
//! its [`StreamShared`]. Handles hold weak ones, so that a handle which outlives its connection
//! keeps nothing of it open.
//!
//! A thread that sends does so under the lock in here. The worker needs no lock as long as no
//! handle exists: [`StreamShared::with`].

use crate::conn::home::Home;
use crate::conn::info::{Conn, ConnInfo};
use crate::conn::key::ConnKey;
use crate::sync::{Mutex, MutexGuard};
use crate::sys;
use crate::tcp::conn::StreamConn;
use crate::tcp::layers::Layers;
use crate::tcp::send_state::{SendState, SpareRares, WriteBuf};
use cubenet_core::{Action, CloseReason, Frame, Identity, SendError, SendHalf, Transport};
use mio::net::TcpStream;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::{Arc, PoisonError};

/// A stream connection, as its worker and the handles of the application see it.
pub(crate) struct StreamShared {
    conn: StreamConn,
    send: Mutex<SendState>,
}

impl Deref for StreamShared {
    type Target = StreamConn;

    #[inline]
    fn deref(&self) -> &StreamConn {
        &self.conn
    }
}

impl Conn for StreamShared {
    const TRANSPORT: Transport = Transport::Tcp;

    #[inline]
    fn info(&self) -> &ConnInfo {
        self.conn.info()
    }

    #[inline]
    fn home(&self) -> &Home {
        self.conn.home()
    }

    fn key(&self) -> ConnKey {
        self.conn.key()
    }
}

impl StreamShared {
    /// Makes a connection of a stream. It must then be handed over to its worker.
    pub(crate) fn new(
        home: &Arc<Home>,
        mut stream: TcpStream,
        peer: SocketAddr,
        half: SendHalf,
        layers: Option<Layers>,
    ) -> io::Result<Arc<Self>> {
        let token = home.worker.register(&mut stream, sys::STREAM_INTEREST)?;
        let info = ConnInfo::new(peer.into(), token, half.state());
        let conn = StreamConn::new(home, stream, info);
        let send = Mutex::new(SendState::new(half, layers));
        Ok(Arc::new(StreamShared { conn, send }))
    }

    /// Does `change` with the sending half, then makes its new state known. Takes no lock
    /// if no other thread can reach the connection.
    pub(crate) fn with<R>(
        this: &mut Arc<Self>,
        change: impl FnOnce(&StreamConn, &mut SendState) -> R,
    ) -> R {
        if let Some(alone) = Arc::get_mut(this) {
            let send = alone.send.get_mut();
            let send = send.unwrap_or_else(PoisonError::into_inner);
            let answer = change(&alone.conn, send);
            alone.conn.info().set_state(send.half.state());
            return answer;
        }
        this.locked(change)
    }

    /// The same for a thread that cannot tell whether it is alone.
    pub(crate) fn locked<R>(&self, change: impl FnOnce(&StreamConn, &mut SendState) -> R) -> R {
        let mut send = self.lock();
        let answer = change(&self.conn, &mut send);
        self.conn.info().set_state(send.half.state());
        answer
    }

    fn lock(&self) -> MutexGuard<'_, SendState> {
        // Nothing in here can be left half done by a panic: the state is copied last.
        self.send.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends from outside the connection's callbacks: at once if nothing waits.
    pub(crate) fn send(&self, payload: &[u8]) -> Result<(), SendError> {
        self.send_with(payload.len(), |header| WriteBuf::Parts(header, payload))
    }

    /// The same for a frame, whose bytes are shared if they have to wait.
    pub(crate) fn send_frame(&self, frame: &Frame) -> Result<(), SendError> {
        self.send_with(frame.payload().len(), |_| WriteBuf::Frame(frame))
    }

    fn send_with<'a>(
        &self,
        len: usize,
        buf: impl FnOnce([u8; 2]) -> WriteBuf<'a>,
    ) -> Result<(), SendError> {
        let (needs_worker, sent) = self.locked(|conn, send| {
            let (needs_worker, header) = send.admit(conn, len, None);
            match header {
                Ok(header) => (needs_worker | send.transmit(conn, buf(header)), Ok(())),
                Err(error) => (needs_worker, Err(error)),
            }
        });
        if needs_worker {
            self.wake();
        }
        sent?;
        self.home().counts.sent(1, len as u64);
        Ok(())
    }

    /// Gathers a message for a batch of this thread; see `gathered`. Returns whether the batch must
    /// remember the connection.
    pub(crate) fn gather(
        &self,
        payload: &[u8],
        batch: u64,
        spare: &mut SpareRares,
    ) -> Result<bool, SendError> {
        let (needs_worker, gathered) =
            self.locked(|conn, send| send.gather(conn, payload, batch, spare));
        if needs_worker {
            self.wake();
        }
        gathered
    }

    /// Hands what a batch has gathered to the stream.
    pub(crate) fn flush_gathered(&self, spare: &mut SpareRares) {
        if self.locked(|conn, send| send.flush_gathered(conn, Some(spare))) {
            self.wake();
        }
    }

    /// Asks the sending half itself, so that it remembers that it owes a `writable`.
    pub(crate) fn admit(&self, len: usize) -> Result<[u8; 2], SendError> {
        let (needs_worker, header) = self.locked(|conn, send| send.admit(conn, len, None));
        if needs_worker {
            self.wake();
        }
        header
    }

    /// Whether it has layers.
    pub(crate) fn is_layered(&self) -> bool {
        self.lock().layers().is_some()
    }

    /// What the handshake of the layers has shown.
    pub(crate) fn identity(&self) -> Option<Arc<Identity>> {
        let identity = self.lock().layers()?.identity();
        identity.map(Arc::new)
    }

    /// Delivers what was sent, then closes. The worker must look at it next.
    pub(crate) fn close(&self) {
        self.locked(|conn, send| send.half.close(conn.network().now()));
    }

    /// Closes at once. The worker must look at it next.
    pub(crate) fn abort(&self, reason: CloseReason) {
        self.locked(|_, send| send.half.abort(reason));
    }

    /// The application turned the connection away, after it had sent what is queued and this many
    /// bytes more. Returns how the socket is to be closed.
    pub(crate) fn turn_away(&self, gathered: usize) -> Action {
        self.locked(|conn, send| send.half.turn_away(conn.info().queued() + gathered))
    }
}

impl Drop for StreamShared {
    fn drop(&mut self) {
        // Mostly that has been done; a connection that the application turned away has not had
        // an end of its own.
        let send = self.send.get_mut().unwrap_or_else(PoisonError::into_inner);
        send.discard(&self.conn);
    }
}
