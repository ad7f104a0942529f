//! The peers of a datagram socket: admitting, delivering, and seeing each connection to its end.

use crate::network::shared::Shared;
use crate::stack::has_route;
use crate::udp::link::PeerLink;
use crate::udp::peer::{Peer, Remote, wants_poll};
use crate::udp::port::{Port, Role};
use cubenet_core::connection::datagram::reports_errors;
use cubenet_core::{
    Action, Arrival, Backlog, CloseReason, ConnectError, ConnectionId, DatagramHalf, Handler, Link,
    Message, Reading, State, Transport, TransportError,
};
use smoltcp::iface::{Interface, SocketSet};
use smoltcp::socket::udp;

impl<'a, H: Handler> Port<'a, H> {
    /// A datagram arrived; it lies in the scratch, unless it is too long.
    pub(super) fn datagram(
        &mut self,
        remote: Remote,
        len: usize,
        interface: &mut Interface,
        socket: &mut udp::Socket<'a>,
        shared: &mut Shared<'a>,
    ) {
        let has_room = || shared.open.has_room(Transport::Udp, &shared.limits);
        let arrival = self
            .demux
            .handle_datagram(&remote, len, has_room, shared.now);
        match arrival {
            // An answer would stay in the ring, before all others.
            Arrival::Admit | Arrival::Evict(_)
                if !has_route(interface, remote.endpoint.addr, shared) => {}
            Arrival::Deliver(slot) => return self.deliver(slot, len, socket, shared),
            Arrival::Close(slot) => {
                self.peers[slot].half.handle_close_datagram();
                return self.finish(slot, socket, shared);
            }
            Arrival::Admit => return self.admit(remote, len, None, socket, shared),
            Arrival::Evict(slot) => return self.admit(remote, len, Some(slot), socket, shared),
            Arrival::TooLong(Some(slot)) if reports_errors(self.peers[slot].half.state()) => {
                let limit = shared.limits.max_datagram();
                let too_long = TransportError::DatagramTooLong { len, limit };
                self.call(slot, socket, shared, |handler, link| {
                    handler.error(link, too_long);
                });
            }
            Arrival::Refuse => shared.counts.refused = shared.counts.refused.wrapping_add(1),
            _ => {}
        }
        shared.counts.dropped = shared.counts.dropped.wrapping_add(1);
    }

    fn deliver(
        &mut self,
        slot: usize,
        len: usize,
        socket: &mut udp::Socket<'a>,
        shared: &mut Shared<'a>,
    ) {
        if self.peers[slot].half.reading() != Reading::Deliver {
            shared.counts.dropped = shared.counts.dropped.wrapping_add(1);
            return;
        }
        shared.counts.received = shared.counts.received.wrapping_add(1);
        let scratch = core::mem::take(&mut shared.scratch);
        let message = Message::lent(&scratch[..len]);
        self.call(slot, socket, shared, |handler, link| {
            handler.received(link, message);
        });
        shared.scratch = scratch;
    }

    /// Asks the application about a new peer, and delivers its first datagram. `evicted` has
    /// to make way for it, once the application wants it.
    fn admit(
        &mut self,
        remote: Remote,
        len: usize,
        evicted: Option<usize>,
        socket: &mut udp::Socket<'a>,
        shared: &mut Shared<'a>,
    ) {
        let admitted = self.ask(remote, evicted, socket, shared);
        let Some(slot) = admitted else {
            shared.counts.refused = shared.counts.refused.wrapping_add(1);
            shared.counts.dropped = shared.counts.dropped.wrapping_add(1);
            return;
        };
        shared.counts.accepted = shared.counts.accepted.wrapping_add(1);
        self.needs_poll |= wants_poll(self.peers[slot].half);
        self.deliver(slot, len, socket, shared);
    }

    fn ask(
        &mut self,
        remote: Remote,
        evicted: Option<usize>,
        socket: &mut udp::Socket<'a>,
        shared: &mut Shared<'a>,
    ) -> Option<usize> {
        let Role::Listening(accepted, _) = self.role else {
            return None;
        };
        shared.open.add(Transport::Udp);
        let serial = shared.serials.next();
        // What the application is shown must know its slot: that of the evicted, or a new one.
        let inserted = match evicted {
            Some(_) => None,
            None => self.demux.insert(remote, shared.now),
        };
        let slot = evicted.or(inserted);
        let mut half = DatagramHalf::new();
        let handler = slot.and_then(|slot| {
            let place = self.place(slot);
            let before = socket.send_queue();
            let handler = accepted(&mut PeerLink {
                socket,
                remote,
                id: serial.id(place),
                half: &mut half,
                context: shared.context(place),
            });
            self.queued += socket.send_queue() - before;
            handler
        });
        let (Some(slot), Some(handler)) = (slot, handler) else {
            if let Some(slot) = inserted {
                self.demux.remove(slot);
            }
            shared.open.remove(Transport::Udp);
            return None;
        };
        if let Some(evicted) = evicted {
            self.abort(evicted, CloseReason::Overflow);
            self.report_closed(evicted, socket, shared);
            self.demux.replace(evicted, remote, shared.now);
        }
        self.peers[slot] = Peer {
            serial,
            half,
            handler: Some(handler),
        };
        Some(slot)
    }

    /// Whether the interface has lost the local address of the connection in `slot`, or the way to
    /// its peer.
    fn has_lost(&self, slot: usize, interface: &mut Interface, shared: &Shared<'a>) -> bool {
        let remote = self.demux.peer(slot);
        remote.is_some_and(|remote| {
            !interface.has_ip_addr(remote.local)
                || !has_route(interface, remote.endpoint.addr, shared)
        })
    }

    /// Whether the interface has lost the local address of a connection, or the way to its peer.
    pub(crate) fn has_lost_an_address(
        &self,
        interface: &mut Interface,
        shared: &Shared<'a>,
    ) -> bool {
        (0..self.peers.len()).any(|slot| self.has_lost(slot, interface, shared))
    }

    /// Closes the connections whose local address, or way, the interface has lost. What they have sent is
    /// dropped, and what waits behind it: it would leave in another device's name.
    pub(crate) fn check_addresses(
        &mut self,
        interface: &mut Interface,
        sockets: &mut SocketSet<'a>,
        shared: &mut Shared<'a>,
    ) {
        let socket = sockets.get_mut::<udp::Socket>(self.handle);
        let mut lost = false;
        for slot in 0..self.peers.len() {
            if self.has_lost(slot, interface, shared) {
                self.abort(slot, CloseReason::Io);
                self.finish(slot, socket, shared);
                lost = true;
            }
        }
        if lost && socket.send_queue() > 0 || self.close_pending && !socket.can_send() {
            self.drop_stalled(socket, shared);
        }
    }

    /// Closes the peers that are to be closed, and calls `writable` of those that waited for room.
    pub(super) fn handle_actions(&mut self, socket: &mut udp::Socket<'a>, shared: &mut Shared<'a>) {
        self.needs_poll = false;
        // The one whose `writable` was called last comes last.
        let (first, count) = (self.writable_last + 1, self.peers.len());
        for slot in (0..count).map(|nth| (first + nth) % count) {
            let Some(remote) = self.demux.peer(slot) else {
                continue;
            };
            let half = &mut self.peers[slot].half;
            // What lies in the ring was handed over: nothing waits.
            if half.poll_action(0) == Action::SendFin {
                self.close_pending = true;
                if remote.send(socket, b"") {
                    half.handle_fin_sent();
                    let _ = half.poll_action(0);
                }
            }
            if half.state() == State::Closed {
                self.finish(slot, socket, shared);
                continue;
            }
            let backlog = Backlog::fixed(socket.send_queue(), socket.payload_send_capacity());
            if socket.can_send() && half.poll_writable(backlog, &shared.limits) {
                self.writable_last = slot;
                self.call(slot, socket, shared, |handler, link| handler.writable(link));
            }
            self.needs_poll |= wants_poll(self.peers[slot].half);
        }
    }

    pub(super) fn abort(&mut self, slot: usize, reason: CloseReason) {
        self.peers[slot].half.abort(reason);
    }

    /// The connection is over.
    pub(super) fn finish(
        &mut self,
        slot: usize,
        socket: &mut udp::Socket<'a>,
        shared: &mut Shared<'a>,
    ) {
        self.report_closed(slot, socket, shared);
        self.demux.remove(slot);
    }

    /// Tells the handler that the connection is over, and gives its place back.
    pub(super) fn report_closed(
        &mut self,
        slot: usize,
        socket: &mut udp::Socket<'a>,
        shared: &mut Shared<'a>,
    ) {
        let reason = self.peers[slot].half.close_reason();
        let reason = reason.unwrap_or(CloseReason::Io);
        let needs_poll = self.needs_poll;
        let is_drained = !matches!(self.role, Role::Connecting);
        self.call(slot, socket, shared, |handler, link| {
            if is_drained {
                return handler.closed(link, reason);
            }
            let (id, peer) = (link.id(), link.peer_addr());
            handler.connect_failed(ConnectError::new(id, Transport::Udp, peer, reason));
        });
        if !is_drained {
            self.role = Role::Connected;
        }
        // Nothing is left to be done for this peer.
        self.needs_poll = needs_poll;
        self.peers[slot] = Peer::EMPTY;
        shared.counts.closed = shared.counts.closed.wrapping_add(1);
        shared.open.remove(Transport::Udp);
    }

    /// Calls the handler in `slot`, if there is one.
    pub(super) fn call(
        &mut self,
        slot: usize,
        socket: &mut udp::Socket<'a>,
        shared: &Shared<'a>,
        callback: impl FnOnce(&mut H, &mut dyn Link),
    ) {
        self.with(slot, socket, shared, |handler, link| {
            if let Some(handler) = handler {
                callback(handler, link);
            }
        });
    }

    /// Hands out the peer in `slot`, if there is one.
    fn with<R>(
        &mut self,
        slot: usize,
        socket: &mut udp::Socket<'a>,
        shared: &Shared<'a>,
        callback: impl FnOnce(Option<&mut H>, &mut dyn Link) -> R,
    ) -> Option<R> {
        let place = self.place(slot);
        let remote = self.demux.peer(slot)?;
        let peer = self.peers.get_mut(slot)?;
        let before = socket.send_queue();
        let result = callback(
            peer.handler.as_mut(),
            &mut PeerLink {
                socket,
                remote,
                id: peer.serial.id(place),
                half: &mut peer.half,
                context: shared.context(place),
            },
        );
        self.needs_poll |= wants_poll(peer.half);
        let put = socket.send_queue() - before;
        if before == 0 && put > 0 {
            self.first = Some(remote.endpoint.addr);
        }
        self.queued += put;
        Some(result)
    }

    /// Hands out the peer with this id, if it is there, to the application outside of callbacks.
    pub(crate) fn with_link<R>(
        &mut self,
        slot: usize,
        id: ConnectionId,
        sockets: &mut SocketSet<'a>,
        shared: &Shared<'a>,
        callback: impl FnOnce(&mut dyn Link) -> R,
    ) -> Option<R> {
        if self.peers.get(slot)?.serial.id(self.place(slot)) != id {
            return None;
        }
        let socket = sockets.get_mut::<udp::Socket>(self.handle);
        self.with(slot, socket, shared, |_, link| callback(link))
    }

    /// Marks every peer, to be closed at the next poll.
    pub(crate) fn close_all(&mut self, in_order: bool) {
        self.stop_admitting();
        for slot in 0..self.peers.len() {
            if self.demux.peer(slot).is_some() {
                let half = &mut self.peers[slot].half;
                if in_order {
                    half.close();
                } else {
                    half.abort(CloseReason::Local);
                }
                self.needs_poll = true;
            }
        }
    }
}
