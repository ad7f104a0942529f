//! A datagram socket and its peers: demultiplexing, delivering, and seeing each connection to
//! its end.

use crate::id::{Place, Serial};
use crate::network::shared::{Accepted, Shared};
use crate::stack::swapped;
use crate::udp::memory::PortParts;
use crate::udp::peer::{Peer, Remote};
use core::time::Duration;
use cubenet_core::demux::SliceTable;
use cubenet_core::{CloseReason, DatagramHalf, Demux, Handler, Instant, Limits, Timeout};
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::udp;
use smoltcp::wire::{IpAddress, IpListenEndpoint};

/// How long a port waits for its first datagram to leave, over a device that takes nothing or
/// without a route. Those behind it wait, too.
pub(crate) const NEIGHBOUR_TIMEOUT: Duration = Duration::from_secs(3);

/// What a port is for. Zero is left for a place without a port.
#[repr(u32)]
pub(super) enum Role<'a, H> {
    /// Nothing; its socket is closed.
    Free = 1,
    /// A new address is a new peer, if the application accepts it.
    Listening(Accepted<'a, H>, u32),
    /// One peer, to which this side connects; `connected` was not called yet.
    Connecting,
    /// No new peers: this side has connected, or its listener was closed.
    Connected,
    /// No peer is left. Close datagrams may still wait for their hosts to be found, until then, or
    /// until the port is needed.
    Draining(Instant),
}

/// A datagram socket and its peers.
pub struct Port<'a, H> {
    pub(super) demux: Demux<Remote, SliceTable<'a, Remote>>,
    pub(super) peers: &'a mut [Peer<H>],
    pub(super) role: Role<'a, H>,
    pub(super) handle: SocketHandle,
    pub(super) number: usize,
    /// A peer closes, or waits for room.
    pub(super) needs_poll: bool,
    /// An empty datagram was sent, of which smoltcp does not tell whether it has left.
    pub(super) close_pending: bool,
    /// The slot of the peer whose `writable` was called last.
    pub(super) writable_last: usize,
    /// Bytes in the transmit ring after the last round of sending, and those put there since.
    pub(super) queued: usize,
    /// The host that the first of them is for, if that is known.
    pub(super) first: Option<IpAddress>,
    /// Since when none has left it.
    stalled_since: Instant,
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
        if room == 0 || parts.incoming.entries.is_empty() || parts.outgoing.entries.is_empty() {
            return None;
        }
        let table = SliceTable::new(&mut parts.slots[..room], parts.heads)?;
        let limits = limits.clone();
        let max_peers = limits.max_peers().min(room);
        let limits = limits.with_max_peers(max_peers);
        let (incoming, outgoing) = (parts.incoming, parts.outgoing);
        let socket = udp::Socket::new(
            udp::PacketBuffer::new(incoming.entries, incoming.bytes),
            udp::PacketBuffer::new(outgoing.entries, outgoing.bytes),
        );
        Some(Port {
            demux: Demux::new(table, key, &limits),
            peers: parts.peers,
            role: Role::Free,
            handle: sockets.add(socket),
            number,
            needs_poll: false,
            close_pending: false,
            writable_last: 0,
            queued: 0,
            first: None,
            stalled_since: Instant::NEVER,
        })
    }

    /// Waits no longer for close datagrams to leave.
    pub(crate) fn release_draining(&mut self, sockets: &mut SocketSet<'a>) {
        if let Role::Draining(_) = self.role {
            self.free(sockets.get_mut::<udp::Socket>(self.handle));
        }
    }

    /// Whether it has nothing to send, as far as smoltcp says.
    pub(crate) fn is_drained(&self, sockets: &SocketSet<'a>) -> bool {
        sockets.get::<udp::Socket>(self.handle).send_queue() == 0 && !self.needs_poll
    }

    /// It is free again.
    fn free(&mut self, socket: &mut udp::Socket<'_>) {
        socket.close();
        self.role = Role::Free;
        self.stalled_since = Instant::NEVER;
        self.queued = 0;
        self.close_pending = false;
        self.needs_poll = false;
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
        self.role = Role::Listening(accepted, generation);
        Ok(())
    }

    /// Admits no more peers, if it is this listener.
    pub(crate) fn close_listener(&mut self, generation: u32) {
        if matches!(self.role, Role::Listening(_, of_this) if of_this == generation) {
            self.stop_admitting();
        }
    }

    /// Admits no more peers.
    pub(crate) fn stop_admitting(&mut self) {
        if let Role::Listening(..) = self.role {
            self.role = Role::Connected;
        }
    }

    /// Connects to `remote` from `port` of ours. `connected` comes at the next poll.
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
        self.role = Role::Connecting;
        self.peers[slot] = Peer {
            serial,
            half: DatagramHalf::new(),
            handler: Some(handler),
        };
        Some(self.place(slot))
    }

    pub(super) fn place(&self, slot: usize) -> Place {
        let port = self.number;
        Place::Peer { port, slot }
    }

    /// Receives and delivers what arrived, and handles the peers that close or wait for room.
    pub(crate) fn poll(
        &mut self,
        interface: &mut Interface,
        sockets: &mut SocketSet<'a>,
        shared: &mut Shared<'a>,
    ) {
        if matches!(self.role, Role::Free) {
            return;
        }
        let socket = sockets.get_mut::<udp::Socket>(self.handle);
        self.report_connected(socket, shared);
        while let Ok((datagram, metadata)) = socket.recv() {
            let endpoint = metadata.endpoint;
            // Not what was sent to a multicast or broadcast address.
            let own = metadata
                .local_address
                .filter(|to| interface.has_ip_addr(*to));
            let local = own.or_else(|| interface.get_source_address(&endpoint.addr));
            let Some(local) =
                local.filter(|_| endpoint.port != 0 && !endpoint.addr.is_unspecified())
            else {
                // It could not be answered.
                shared.counts.dropped = shared.counts.dropped.wrapping_add(1);
                continue;
            };
            let len = datagram.len();
            if let Some(scratch) = shared.scratch.get_mut(..len) {
                scratch.copy_from_slice(datagram);
            }
            let remote = Remote { endpoint, local };
            self.datagram(remote, len, interface, socket, shared);
        }
        if self.needs_poll {
            self.handle_actions(socket, shared);
        }
        if shared.timeouts_due {
            while let Some(slot) = self.demux.handle_timeout(shared.now) {
                self.abort(slot, CloseReason::Timeout(Timeout::Idle));
                self.finish(slot, socket, shared);
            }
        }
        shared.datagrams |= socket.send_queue() > 0 || !socket.can_send();
        if shared.timeouts_due && shared.now >= self.poll_stall_timeout(&shared.limits) {
            self.drop_stalled(socket, shared);
        }
        match self.role {
            Role::Connected
                if self.demux.is_empty() && !self.close_pending && socket.send_queue() == 0 =>
            {
                self.free(socket);
            }
            Role::Connected if self.demux.is_empty() => {
                self.close_pending = false;
                self.role = Role::Draining(shared.now.after(shared.limits.drain_timeout()));
                shared.timeout_set = true;
            }
            Role::Draining(until) if shared.now >= until => self.free(socket),
            _ => {}
        }
        shared.unsent |= self.needs_poll;
    }

    /// A connect over UDP needs no answer: it is reported in the first poll.
    fn report_connected(&mut self, socket: &mut udp::Socket<'a>, shared: &mut Shared<'a>) {
        if !matches!(self.role, Role::Connecting) {
            return;
        }
        self.role = Role::Connected;
        let Some(slot) = (0..self.peers.len()).find(|slot| self.demux.peer(*slot).is_some()) else {
            return;
        };
        shared.counts.connected = shared.counts.connected.wrapping_add(1);
        self.call(slot, socket, shared, |handler, link| {
            handler.connected(link);
        });
    }

    /// Sees, once all that can be sent was, whether something stalls.
    pub(crate) fn after_egress(&mut self, sockets: &SocketSet<'a>, shared: &mut Shared<'a>) {
        if matches!(self.role, Role::Free) {
            return;
        }
        let socket = sockets.get::<udp::Socket>(self.handle);
        let queued = socket.send_queue();
        // Close datagrams have no bytes, but a ring may be full of them.
        if queued == 0 && socket.can_send() {
            self.stalled_since = Instant::NEVER;
        } else if queued < self.queued || self.stalled_since == Instant::NEVER {
            if queued < self.queued {
                self.first = None;
            }
            self.stalled_since = shared.now;
            shared.timeout_set = true;
        }
        self.queued = queued;
        shared.datagrams |= queued > 0 || !socket.can_send();
    }

    pub(crate) fn handle(&self) -> SocketHandle {
        self.handle
    }

    /// Its socket, if that has something to send.
    pub(crate) fn with_output(&self, sockets: &SocketSet<'_>) -> Option<SocketHandle> {
        let queued = sockets.get::<udp::Socket>(self.handle).send_queue();
        (queued > 0).then_some(self.handle)
    }

    /// Two sockets have changed places.
    pub(crate) fn swap(&mut self, first: SocketHandle, second: SocketHandle) {
        swapped(&mut self.handle, first, second);
    }

    /// The host that has to be found for its datagrams to leave.
    pub(crate) fn peer_to_resolve(&self) -> Option<IpAddress> {
        self.first.filter(|_| self.queued > 0)
    }

    /// Drops what stalls. smoltcp sends nothing past a datagram that it cannot send, so one
    /// peer that cannot be reached would silence all others.
    pub(super) fn drop_stalled(&mut self, socket: &mut udp::Socket<'a>, shared: &mut Shared<'a>) {
        let address = socket.endpoint();
        socket.close();
        let _ = socket.bind(address);
        shared.counts.stalled = shared.counts.stalled.wrapping_add(1);
        self.stalled_since = Instant::NEVER;
        self.queued = 0;
    }

    fn poll_stall_timeout(&self, limits: &Limits) -> Instant {
        let timeout = limits.write_stall_timeout().min(NEIGHBOUR_TIMEOUT);
        self.stalled_since.after(timeout)
    }

    /// When it has to be looked at, whatever arrives.
    pub(crate) fn poll_timeout(&self, limits: &Limits) -> Instant {
        let leaves = match self.role {
            Role::Draining(until) => until,
            _ => Instant::NEVER,
        };
        leaves
            .min(self.demux.poll_timeout())
            .min(self.poll_stall_timeout(limits))
    }
}
