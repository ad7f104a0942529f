//! The part of a stream connection that is read without its lock.

use crate::address::canonical;
use crate::conn::home::Home;
use crate::conn::info::{Conn, ConnInfo};
use crate::conn::key::ConnKey;
use cubenet_core::Transport;
use mio::net::TcpStream;
use std::net::SocketAddr;
use std::sync::Arc;

/// The part that is read without the lock.
pub(crate) struct StreamConn {
    info: ConnInfo,
    pub(crate) stream: TcpStream,
    /// The worker that owns the connection, and its limits.
    home: Arc<Home>,
}

impl Conn for StreamConn {
    const TRANSPORT: Transport = Transport::Tcp;

    #[inline]
    fn info(&self) -> &ConnInfo {
        &self.info
    }

    #[inline]
    fn home(&self) -> &Home {
        &self.home
    }

    fn key(&self) -> ConnKey {
        let token = self.info.number;
        ConnKey { token, slot: 0 }
    }
}

impl StreamConn {
    pub(crate) fn new(home: &Arc<Home>, stream: TcpStream, info: ConnInfo) -> Self {
        StreamConn {
            info,
            stream,
            home: Arc::clone(home),
        }
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        let local = self.stream.local_addr();
        canonical(local.unwrap_or_else(|_| ([0, 0, 0, 0], 0).into()))
    }

    /// Has the system reset the stream when it is closed, so that its peer does not take what has
    /// arrived for everything.
    pub(crate) fn reset(&self) {
        let at_once = Some(std::time::Duration::ZERO);
        let _ = socket2::SockRef::from(&self.stream).set_linger(at_once);
    }
}
