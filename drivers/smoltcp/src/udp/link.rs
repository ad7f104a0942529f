//! What the handler of a datagram connection is handed.

use crate::network::shared::Context;
use crate::stack::address;
use crate::udp::peer::Remote;
use core::net::SocketAddr;
use cubenet_core::{
    Backlog, CloseReason, ConnectionId, DatagramHalf, Instant, Link, SendError, Transport,
};
use smoltcp::socket::udp;

/// A datagram peer, for its handler.
pub(crate) struct PeerLink<'l, 's> {
    pub(crate) socket: &'l mut udp::Socket<'s>,
    pub(crate) remote: Remote,
    pub(crate) id: ConnectionId,
    pub(crate) half: &'l mut DatagramHalf,
    pub(crate) context: Context<'l>,
}

impl Link for PeerLink<'_, '_> {
    fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        // What lies in the ring was handed over: all peers of the port share it, and it is sent
        // whatever happens to this connection. Nothing else waits.
        let backlog = Backlog::fixed(0, self.socket.payload_send_capacity());
        self.half
            .admit(message.len(), backlog, self.context.limits)?;
        if self.remote.send(self.socket, message) {
            return Ok(());
        }
        Err(self.half.handle_full())
    }

    fn close(&mut self) {
        self.half.close();
    }

    fn abort(&mut self) {
        self.half.abort(CloseReason::Local);
    }

    fn is_closed(&self) -> bool {
        !self.half.state().accepts_messages()
    }

    fn transport(&self) -> Transport {
        Transport::Udp
    }

    fn peer_addr(&self) -> SocketAddr {
        address(self.remote.endpoint)
    }

    fn local_addr(&self) -> SocketAddr {
        SocketAddr::new(self.remote.local.into(), self.socket.endpoint().port)
    }

    fn id(&self) -> ConnectionId {
        self.id
    }

    fn queued(&self) -> usize {
        self.socket.send_queue()
    }

    fn pause(&mut self) {
        self.half.set_paused(true);
    }

    fn resume(&mut self) {
        self.half.set_paused(false);
    }

    fn now(&self) -> Instant {
        self.context.now
    }
}
