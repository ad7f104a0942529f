//! A datagram socket and its peers: demultiplexing, delivering, and seeing each connection to
//! its end.

use crate::common::{Accepted, Common};
use crate::id::{Place, Serial};
use crate::link::PeerLink;
use crate::memory::PortParts;
use crate::stack::{has_route, swapped};
use core::hash::{Hash, Hasher};
use core::time::Duration;
use cubenet_core::demux::SliceTable;
use cubenet_core::{
    Action, Arrival, Backlog, CloseReason, ConnectError, ConnectionId, DatagramHalf, Demux,
    Handler, Instant, Limits, Link, Message, Reading, State, Timeout, Transport, TransportError,
};
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::udp;
use smoltcp::wire::{IpAddress, IpEndpoint, IpListenEndpoint};

/// So long a port waits for its first datagram to leave: for a device that takes nothing, or for a
/// way that has been lost. Those behind it wait, too.
pub(crate) const NEIGHBOUR_TIMEOUT: Duration = Duration::from_secs(3);

/// A peer's address, and the one of ours that it spoke to.
#[derive(Clone, Copy, Debug)]
pub struct Remote {
    pub(crate) endpoint: IpEndpoint,
    pub(crate) local: IpAddress,
}

impl PartialEq for Remote {
    fn eq(&self, other: &Self) -> bool {
        self.endpoint == other.endpoint
    }
}

impl Eq for Remote {}

impl Hash for Remote {
    fn hash<S: Hasher>(&self, state: &mut S) {
        self.endpoint.hash(state);
    }
}

impl Remote {
    /// Sends a datagram; `false` if the ring has no room for it.
    pub(crate) fn send(&self, socket: &mut udp::Socket<'_>, datagram: &[u8]) -> bool {
        let mut metadata = udp::UdpMetadata::from(self.endpoint);
        metadata.local_address = Some(self.local);
        socket.send_slice(datagram, metadata).is_ok()
    }
}

/// Whether a peer's connection asks for something to be done.
fn asks(half: DatagramHalf) -> bool {
    half.owes_writable() || half.state() != State::Open
}

/// A place for one peer's connection.
#[derive(Debug)]
pub struct Peer<H> {
    serial: Serial,
    half: DatagramHalf,
    handler: Option<H>,
}

impl<H> Peer<H> {
    /// A place that is not used.
    pub const NOBODY: Peer<H> = Peer {
        serial: Serial::NONE,
        half: DatagramHalf::new(),
        handler: None,
    };
}

/// What a port is for. Zero is left for a place without a port.
#[repr(u32)]
enum Role<'a, H> {
    /// Nothing; its socket is closed.
    Free = 1,
    /// Whoever speaks is a peer, if it is wanted.
    Listens(Accepted<'a, H>, u32),
    /// One peer, to which this side connects; its handler has not been told.
    Connects,
    /// Those who are there are peers, and nobody else: a call, or a listener that was closed.
    Keeps,
    /// Nobody is left. Goodbyes may still wait for the way to their peers to be found, until
    /// then, or until the port is needed.
    Leaves(Instant),
}

/// A datagram socket and its peers.
pub struct Port<'a, H> {
    demux: Demux<Remote, SliceTable<'a, Remote>>,
    peers: &'a mut [Peer<H>],
    role: Role<'a, H>,
    handle: SocketHandle,
    number: usize,
    /// A peer has a flag that may ask for something.
    attend: bool,
    /// An empty datagram was sent, of which smoltcp does not tell whether it has left.
    said_goodbye: bool,
    /// The slot of the peer that was told last that there is room.
    told_last: usize,
    /// Bytes in the transmit ring after the last round of sending, and those put there since.
    queued: usize,
    /// The host that the first of them is for, if that is known.
    first: Option<IpAddress>,
    /// Since when none has left it.
    stuck_since: Instant,
}

impl<'a, H: Handler> Port<'a, H> {
    /// A port in this memory; `None` if there is no room for one peer, or one datagram each way.
    pub(crate) fn new(
        parts: PortParts<'a, H>,
        number: usize,
        sockets: &mut SocketSet<'a>,
        limits: &Limits,
        key: (u64, u64),
    ) -> Option<Self> {
        let room = parts.slots.len().min(parts.peers.len());
        if room == 0 || parts.incoming.0.is_empty() || parts.outgoing.0.is_empty() {
            return None;
        }
        let table = SliceTable::new(&mut parts.slots[..room], parts.heads)?;
        let limits = limits.clone();
        let max_peers = limits.max_peers().min(room);
        let limits = limits.with_max_peers(max_peers);
        let (metadata_in, bytes_in) = parts.incoming;
        let (metadata_out, bytes_out) = parts.outgoing;
        let socket = udp::Socket::new(
            udp::PacketBuffer::new(metadata_in, bytes_in),
            udp::PacketBuffer::new(metadata_out, bytes_out),
        );
        Some(Port {
            demux: Demux::new(table, key, &limits),
            peers: parts.peers,
            role: Role::Free,
            handle: sockets.add(socket),
            number,
            attend: false,
            said_goodbye: false,
            told_last: 0,
            queued: 0,
            first: None,
            stuck_since: Instant::NEVER,
        })
    }

    /// Waits no longer for goodbyes to leave.
    pub(crate) fn hurry(&mut self, sockets: &mut SocketSet<'a>) {
        if let Role::Leaves(_) = self.role {
            self.free(sockets.get_mut::<udp::Socket>(self.handle));
        }
    }

    /// Whether it has nothing to send that smoltcp tells of.
    pub(crate) fn is_told(&self, sockets: &SocketSet<'a>) -> bool {
        sockets.get::<udp::Socket>(self.handle).send_queue() == 0 && !self.attend
    }

    /// Nobody has it any more.
    fn free(&mut self, socket: &mut udp::Socket<'_>) {
        socket.close();
        self.role = Role::Free;
        self.stuck_since = Instant::NEVER;
        self.queued = 0;
        self.said_goodbye = false;
        self.attend = false;
    }

    /// How many peers it has room for, if it is not in use.
    pub(crate) fn free_room(&self) -> Option<usize> {
        matches!(self.role, Role::Free).then_some(self.peers.len())
    }

    /// Listens.
    pub(crate) fn listen(
        &mut self,
        address: IpListenEndpoint,
        accepted: Accepted<'a, H>,
        generation: u32,
        sockets: &mut SocketSet<'a>,
    ) -> Result<(), udp::BindError> {
        sockets.get_mut::<udp::Socket>(self.handle).bind(address)?;
        self.role = Role::Listens(accepted, generation);
        Ok(())
    }

    /// Admits nobody any more, if it is this listener.
    pub(crate) fn close_listener(&mut self, generation: u32) {
        if matches!(self.role, Role::Listens(_, of_this) if of_this == generation) {
            self.retire();
        }
    }

    /// Admits nobody any more.
    pub(crate) fn retire(&mut self) {
        if let Role::Listens(..) = self.role {
            self.role = Role::Keeps;
        }
    }

    /// Calls `remote` from `port` of ours. The caller is told at the next poll.
    pub(crate) fn connect(
        &mut self,
        remote: Remote,
        port: u16,
        handler: H,
        serial: Serial,
        sockets: &mut SocketSet<'a>,
        now: Instant,
    ) -> Option<Place> {
        let socket = sockets.get_mut::<udp::Socket>(self.handle);
        let slot = self.demux.insert(remote, now)?;
        if socket.bind(port).is_err() {
            self.demux.remove(slot);
            return None;
        }
        self.role = Role::Connects;
        self.peers[slot] = Peer {
            serial,
            half: DatagramHalf::new(),
            handler: Some(handler),
        };
        Some(self.place(slot))
    }

    fn place(&self, slot: usize) -> Place {
        let port = self.number;
        Place::Peer { port, slot }
    }

    /// Receives and delivers what arrived, and sees to who is to be closed or waits for room.
    pub(crate) fn turn(
        &mut self,
        interface: &mut Interface,
        sockets: &mut SocketSet<'a>,
        common: &mut Common<'a>,
    ) {
        if matches!(self.role, Role::Free) {
            return;
        }
        let socket = sockets.get_mut::<udp::Socket>(self.handle);
        self.tell_caller(socket, common);
        while let Ok((datagram, metadata)) = socket.recv() {
            let endpoint = metadata.endpoint;
            // Not what was sent to everybody.
            let own = metadata
                .local_address
                .filter(|to| interface.has_ip_addr(*to));
            let local = own.or_else(|| interface.get_source_address(&endpoint.addr));
            let Some(local) =
                local.filter(|_| endpoint.port != 0 && !endpoint.addr.is_unspecified())
            else {
                // Nobody could answer it.
                common.counts.dropped = common.counts.dropped.wrapping_add(1);
                continue;
            };
            let len = datagram.len();
            if let Some(scratch) = common.scratch.get_mut(..len) {
                scratch.copy_from_slice(datagram);
            }
            let remote = Remote { endpoint, local };
            self.datagram(remote, len, interface, socket, common);
        }
        if self.attend {
            self.settle(socket, common);
        }
        if common.strikes {
            while let Some(slot) = self.demux.handle_timeout(common.now) {
                self.abort(slot, CloseReason::Timeout(Timeout::Idle));
                self.finish(slot, socket, common);
            }
        }
        common.datagrams |= socket.send_queue() > 0 || !socket.can_send();
        if common.strikes && common.now >= self.poll_stuck(&common.limits) {
            self.give_up(socket, common);
        }
        match self.role {
            Role::Keeps
                if self.demux.is_empty() && !self.said_goodbye && socket.send_queue() == 0 =>
            {
                self.free(socket);
            }
            Role::Keeps if self.demux.is_empty() => {
                self.said_goodbye = false;
                self.role = Role::Leaves(common.now.after(common.limits.drain_timeout()));
                common.clock_set = true;
            }
            Role::Leaves(until) if common.now >= until => self.free(socket),
            _ => {}
        }
        common.unsent |= self.attend;
    }

    /// A call needs no answer: it is connected as soon as somebody looks.
    fn tell_caller(&mut self, socket: &mut udp::Socket<'a>, common: &mut Common<'a>) {
        if !matches!(self.role, Role::Connects) {
            return;
        }
        self.role = Role::Keeps;
        let Some(slot) = (0..self.peers.len()).find(|slot| self.demux.peer(*slot).is_some()) else {
            return;
        };
        common.counts.connected = common.counts.connected.wrapping_add(1);
        self.call(slot, socket, common, |handler, link| {
            handler.connected(link);
        });
    }

    /// A datagram arrived; it lies in the scratch, unless it is too long.
    fn datagram(
        &mut self,
        remote: Remote,
        len: usize,
        interface: &mut Interface,
        socket: &mut udp::Socket<'a>,
        common: &mut Common<'a>,
    ) {
        let arrival = self.demux.handle_datagram(&remote, len, common.now);
        match arrival {
            // An answer would stay in the ring, before all others.
            Arrival::Admit | Arrival::Evict(_)
                if !has_route(interface, remote.endpoint.addr, common) => {}
            Arrival::Deliver(slot) => return self.deliver(slot, len, socket, common),
            Arrival::Close(slot) => {
                self.peers[slot].half.handle_close_datagram();
                return self.finish(slot, socket, common);
            }
            Arrival::Admit => return self.admit(remote, len, None, socket, common),
            Arrival::Evict(slot) => return self.admit(remote, len, Some(slot), socket, common),
            Arrival::TooLong(Some(slot)) if self.peers[slot].half.state() == State::Open => {
                let limit = common.limits.max_datagram();
                let too_long = TransportError::DatagramTooLong { len, limit };
                self.call(slot, socket, common, |handler, link| {
                    handler.error(link, too_long);
                });
            }
            _ => {}
        }
        common.counts.dropped = common.counts.dropped.wrapping_add(1);
    }

    fn deliver(
        &mut self,
        slot: usize,
        len: usize,
        socket: &mut udp::Socket<'a>,
        common: &mut Common<'a>,
    ) {
        if self.peers[slot].half.reading() != Reading::Deliver {
            common.counts.dropped = common.counts.dropped.wrapping_add(1);
            return;
        }
        common.counts.received = common.counts.received.wrapping_add(1);
        let scratch = core::mem::take(&mut common.scratch);
        let message = Message::lent(&scratch[..len]);
        self.call(slot, socket, common, |handler, link| {
            handler.received(link, message);
        });
        common.scratch = scratch;
    }

    /// Asks the application about a new peer, and delivers its first datagram. `evicted` has
    /// to make way for it, once the application wants it.
    fn admit(
        &mut self,
        remote: Remote,
        len: usize,
        evicted: Option<usize>,
        socket: &mut udp::Socket<'a>,
        common: &mut Common<'a>,
    ) {
        let admitted = self.ask(remote, evicted, socket, common);
        let Some(slot) = admitted else {
            common.counts.refused = common.counts.refused.wrapping_add(1);
            common.counts.dropped = common.counts.dropped.wrapping_add(1);
            return;
        };
        common.counts.accepted = common.counts.accepted.wrapping_add(1);
        self.attend |= asks(self.peers[slot].half);
        self.deliver(slot, len, socket, common);
    }

    fn ask(
        &mut self,
        remote: Remote,
        evicted: Option<usize>,
        socket: &mut udp::Socket<'a>,
        common: &mut Common<'a>,
    ) -> Option<usize> {
        let Role::Listens(accepted, _) = self.role else {
            return None;
        };
        // Whoever makes way in the table leaves its place among all connections, too.
        let evicted = evicted.or_else(|| {
            let evictable = self.demux.evictable(common.now);
            evictable.filter(|_| !common.has_room(Transport::Udp))
        });
        let serial = match evicted {
            Some(_) => common.take_place(Transport::Udp),
            None => common.reserve(Transport::Udp)?,
        };
        // What the application is shown must know its slot: that of the evicted, or a new one.
        let inserted = match evicted {
            Some(_) => None,
            None => self.demux.insert(remote, common.now),
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
                context: common.context(place),
            });
            self.queued += socket.send_queue() - before;
            handler
        });
        let (Some(slot), Some(handler)) = (slot, handler) else {
            if let Some(slot) = inserted {
                self.demux.remove(slot);
            }
            common.release(Transport::Udp);
            return None;
        };
        if let Some(evicted) = evicted {
            self.abort(evicted, CloseReason::Overflow);
            self.tell_closed(evicted, socket, common);
            self.demux.replace(evicted, remote, common.now);
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
    fn has_lost(&self, slot: usize, interface: &mut Interface, common: &Common<'a>) -> bool {
        let remote = self.demux.peer(slot);
        remote.is_some_and(|remote| {
            !interface.has_ip_addr(remote.local)
                || !has_route(interface, remote.endpoint.addr, common)
        })
    }

    /// Whether the interface has lost the local address of a connection, or the way to its peer.
    pub(crate) fn has_lost_an_address(
        &self,
        interface: &mut Interface,
        common: &Common<'a>,
    ) -> bool {
        (0..self.peers.len()).any(|slot| self.has_lost(slot, interface, common))
    }

    /// Closes the connections whose local address, or way, the interface has lost. What they have sent is
    /// dropped, and what waits behind it: it would leave in another device's name.
    pub(crate) fn check_addresses(
        &mut self,
        interface: &mut Interface,
        sockets: &mut SocketSet<'a>,
        common: &mut Common<'a>,
    ) {
        let socket = sockets.get_mut::<udp::Socket>(self.handle);
        let mut lost = false;
        for slot in 0..self.peers.len() {
            if self.has_lost(slot, interface, common) {
                self.abort(slot, CloseReason::Io);
                self.finish(slot, socket, common);
                lost = true;
            }
        }
        if lost && socket.send_queue() > 0 || self.said_goodbye && !socket.can_send() {
            self.give_up(socket, common);
        }
    }

    /// Closes whoever is to be closed, and tells those who waited for room.
    fn settle(&mut self, socket: &mut udp::Socket<'a>, common: &mut Common<'a>) {
        self.attend = false;
        // Whoever was told of room last comes last.
        let (first, count) = (self.told_last + 1, self.peers.len());
        for slot in (0..count).map(|nth| (first + nth) % count) {
            let Some(remote) = self.demux.peer(slot) else {
                continue;
            };
            let half = &mut self.peers[slot].half;
            if half.poll_action(0) == Action::SendFin {
                self.said_goodbye = true;
                if remote.send(socket, b"") {
                    half.handle_fin_sent();
                    let _ = half.poll_action(0);
                }
            }
            if half.state() == State::Closed {
                self.finish(slot, socket, common);
                continue;
            }
            let backlog = Backlog::fixed(socket.send_queue(), socket.payload_send_capacity());
            if socket.can_send() && half.poll_writable(backlog, &common.limits) {
                self.told_last = slot;
                self.call(slot, socket, common, |handler, link| handler.writable(link));
            }
            self.attend |= asks(self.peers[slot].half);
        }
    }

    fn abort(&mut self, slot: usize, reason: CloseReason) {
        self.peers[slot].half.abort(reason);
    }

    /// The connection is over.
    fn finish(&mut self, slot: usize, socket: &mut udp::Socket<'a>, common: &mut Common<'a>) {
        self.tell_closed(slot, socket, common);
        self.demux.remove(slot);
    }

    /// Tells the handler that the connection is over, and gives its place back.
    fn tell_closed(&mut self, slot: usize, socket: &mut udp::Socket<'a>, common: &mut Common<'a>) {
        let reason = self.peers[slot].half.close_reason();
        let reason = reason.unwrap_or(CloseReason::Io);
        let attend = self.attend;
        let is_told = !matches!(self.role, Role::Connects);
        self.call(slot, socket, common, |handler, link| {
            if is_told {
                return handler.closed(link, reason);
            }
            let (id, peer) = (link.id(), link.peer_addr());
            handler.connect_failed(ConnectError::new(id, Transport::Udp, peer, reason));
        });
        if !is_told {
            self.role = Role::Keeps;
        }
        // Nothing is left to be done for this peer.
        self.attend = attend;
        self.peers[slot] = Peer::NOBODY;
        common.counts.closed = common.counts.closed.wrapping_add(1);
        common.release(Transport::Udp);
    }

    /// Calls the handler in `slot`, if there is one.
    fn call(
        &mut self,
        slot: usize,
        socket: &mut udp::Socket<'a>,
        common: &Common<'a>,
        callback: impl FnOnce(&mut H, &mut dyn Link),
    ) {
        self.with(slot, socket, common, |handler, link| {
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
        common: &Common<'a>,
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
                context: common.context(place),
            },
        );
        self.attend |= asks(peer.half);
        let put = socket.send_queue() - before;
        if before == 0 && put > 0 {
            self.first = Some(remote.endpoint.addr);
        }
        self.queued += put;
        Some(result)
    }

    /// Hands out the peer with this id, if it is there, to somebody outside.
    pub(crate) fn reach<R>(
        &mut self,
        slot: usize,
        id: ConnectionId,
        sockets: &mut SocketSet<'a>,
        common: &Common<'a>,
        callback: impl FnOnce(&mut dyn Link) -> R,
    ) -> Option<R> {
        if self.peers.get(slot)?.serial.id(self.place(slot)) != id {
            return None;
        }
        let socket = sockets.get_mut::<udp::Socket>(self.handle);
        self.with(slot, socket, common, |_, link| callback(link))
    }

    /// Marks every peer, to be closed at the next poll.
    pub(crate) fn close_all(&mut self, with_goodbye: bool) {
        self.retire();
        for slot in 0..self.peers.len() {
            if self.demux.peer(slot).is_some() {
                let half = &mut self.peers[slot].half;
                if with_goodbye {
                    half.close();
                } else {
                    half.abort(CloseReason::Local);
                }
                self.attend = true;
            }
        }
    }

    /// Sees, once all that can be sent was, whether something is stuck.
    pub(crate) fn see_what_left(&mut self, sockets: &SocketSet<'a>, common: &mut Common<'a>) {
        if matches!(self.role, Role::Free) {
            return;
        }
        let socket = sockets.get::<udp::Socket>(self.handle);
        let queued = socket.send_queue();
        // Close datagrams have no bytes, but a ring may be full of them.
        if queued == 0 && socket.can_send() {
            self.stuck_since = Instant::NEVER;
        } else if queued < self.queued || self.stuck_since == Instant::NEVER {
            if queued < self.queued {
                self.first = None;
            }
            self.stuck_since = common.now;
            common.clock_set = true;
        }
        self.queued = queued;
        common.datagrams |= queued > 0 || !socket.can_send();
    }

    pub(crate) fn handle(&self) -> SocketHandle {
        self.handle
    }

    /// Its socket, if that has something to send.
    pub(crate) fn sends(&self, sockets: &SocketSet<'_>) -> Option<SocketHandle> {
        let queued = sockets.get::<udp::Socket>(self.handle).send_queue();
        (queued > 0).then_some(self.handle)
    }

    /// Two sockets have changed places.
    pub(crate) fn swap(&mut self, first: SocketHandle, second: SocketHandle) {
        swapped(&mut self.handle, first, second);
    }

    /// The host that has to be found for its datagrams to leave.
    pub(crate) fn seeks(&self) -> Option<IpAddress> {
        self.first.filter(|_| self.queued > 0)
    }

    /// Gives up what is stuck. smoltcp sends nothing past a datagram that it cannot send, so one
    /// peer that cannot be reached would silence all others.
    fn give_up(&mut self, socket: &mut udp::Socket<'a>, common: &mut Common<'a>) {
        let address = socket.endpoint();
        socket.close();
        let _ = socket.bind(address);
        common.counts.stalled = common.counts.stalled.wrapping_add(1);
        self.stuck_since = Instant::NEVER;
        self.queued = 0;
    }

    fn poll_stuck(&self, limits: &Limits) -> Instant {
        let patience = limits.write_stall_timeout().min(NEIGHBOUR_TIMEOUT);
        self.stuck_since.after(patience)
    }

    /// When it has to be looked at, whatever arrives.
    pub(crate) fn poll_timeout(&self, limits: &Limits) -> Instant {
        let leaves = match self.role {
            Role::Leaves(until) => until,
            _ => Instant::NEVER,
        };
        leaves
            .min(self.demux.poll_timeout())
            .min(self.poll_stuck(limits))
    }
}
