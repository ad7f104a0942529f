//! The network: its streams and its ports, and the order in which a poll serves them.

mod listener;
mod maintenance;
pub(crate) mod shared;
mod stopping;

pub use listener::Listener;

use crate::error::Error;
use crate::id::{MAX_PEERS, Place, Serial, Serials};
use crate::memory::Memory;
use crate::network::shared::{Accepted, Counts, Shared};
use crate::stack::{self, Stack, endpoint, listen_endpoint};
use crate::tcp::listeners::{Listeners, Listening, Used};
use crate::tcp::pending_sends::PendingSends;
use crate::tcp::pool;
use crate::tcp::stream::{Stage, Stream};
use crate::udp::memory::PortParts;
use crate::udp::peer::Remote;
use crate::udp::port::Port;
use core::net::SocketAddr;
use cubenet_core::{ConnectionId, Handler, Instant, Limits, Link, OpenConnections, Transport};
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::phy::Device;
use smoltcp::socket::tcp;
use smoltcp::wire::IpEndpoint;

/// Frames that a poll takes from its device, or sends of each socket, at most.
const FRAMES_PER_POLL: usize = 32;

/// Polls in a row in which timeouts are postponed because frames wait in the device. In so many
/// polls 256 frames are taken, more than a device's queue holds.
const MAX_POSTPONED: u8 = 8;

/// Listeners and connections over one smoltcp interface.
///
/// It does nothing by itself. Call [`Network::poll`] when the device has a frame, and when
/// the moment has come that [`Network::poll_at`] names.
pub struct Network<'a, D, H> {
    stack: Stack<'a, D>,
    streams: &'a mut [Stream<H>],
    listeners: Listeners<'a, H>,
    /// A bit for each place of those: whether a stream waits there.
    pooled: u32,
    ports: &'a mut [Option<Port<'a, H>>],
    shared: Shared<'a>,
    key: (u64, u64),
    /// Of the next listener: the number of the network, then that of the listener.
    generation: u32,
    /// The interface was lent to the application since the last poll.
    lent: bool,
    /// When it is to have stopped; `None` while it runs.
    stops_at: Option<Instant>,
    /// The socket that smoltcp serves first, and which stream or port has it, ports after streams.
    first_socket: Option<SocketHandle>,
    served_first: usize,
    /// For which stream or port a round of questions goes on.
    asked_of: usize,
    /// Polls in a row in which timeouts were not looked at.
    postponed: u8,
    /// When the stack has something to send, after the last poll.
    sends_at: Instant,
    /// No timeout is due before. Looking at all of them takes longer than a message does.
    next_timeout: Instant,
    /// Of the limits, in microseconds.
    shortest_timeout: u64,
}

impl<'a, D: Device, H: Handler> Network<'a, D, H> {
    /// A network over `interface`, which has its addresses and routes, and `device`.
    ///
    /// `key` is what peers must not know: draw it at random, anew each time. Of `limits`,
    /// `max_message` must be at least two bytes shorter than a receive ring and
    /// `max_datagram` no longer than the scratch or what the device can carry in one frame;
    /// `max_queued` is the length of a transmit ring if that is less, and `low_watermark` a
    /// quarter of it. `max_peers` holds for each port, if it has memory for so many. What the
    /// peer has not acknowledged counts as queued. `max_queued_total` and `max_held_total` bound
    /// nothing that the memory does not.
    pub fn new(
        interface: Interface,
        device: D,
        memory: Memory<'a, H>,
        mut limits: Limits,
        key: (u64, u64),
    ) -> Result<Self, Error> {
        limits.validate()?;
        let max_datagram = stack::max_datagram(&device);
        memory.check(&limits, device.capabilities().medium, max_datagram)?;
        let (receive, transmit) = memory.streams.rings();
        if transmit > 0 {
            let max_queued = limits.max_queued().min(transmit);
            let low_watermark = limits.low_watermark().min(max_queued / 4);
            limits = limits
                .with_max_queued(max_queued)
                .with_low_watermark(low_watermark);
        }
        let streams = memory.streams;
        let capacity = memory.sockets.len();
        let mut sockets = SocketSet::new(memory.sockets);
        let rings = streams
            .receive
            .chunks_exact_mut(receive.max(1))
            .zip(streams.transmit.chunks_exact_mut(transmit.max(1)));
        for (stream, (receive, transmit)) in streams.slots.iter_mut().zip(rings) {
            let mut socket = tcp::Socket::new(
                tcp::SocketBuffer::new(receive),
                tcp::SocketBuffer::new(transmit),
            );
            // A message is not to wait for the confirmation of the one before.
            socket.set_nagle_enabled(false);
            stream.handle = Some(sockets.add(socket));
        }
        let first_socket = streams.slots.first().and_then(|stream| stream.handle);
        let shortest_timeout = maintenance::shortest_timeout(&limits);
        let stack = Stack::new(interface, device, sockets, capacity, key);
        let serials = Serials::new();
        let is_ethernet = stack.is_ethernet();
        let generation = u32::from(serials.network()) << 24;
        Ok(Network {
            stack,
            streams: streams.slots,
            listeners: Listeners {
                places: streams.listeners,
                used: 0,
            },
            pooled: 0,
            ports: memory.ports,
            shared: Shared {
                limits,
                now: Instant::ZERO,
                open: OpenConnections::default(),
                streams_per_address: usize::MAX,
                serials,
                counts: Counts::default(),
                scratch: memory.scratch,
                pending_sends: PendingSends::new(memory.pending_sends),
                timeouts_due: false,
                timeout_set: false,
                unsent: false,
                datagrams: false,
                is_ethernet,
                poll_again: false,
            },
            key,
            generation,
            lent: true,
            stops_at: None,
            first_socket,
            served_first: 0,
            asked_of: 0,
            postponed: 0,
            sends_at: Instant::ZERO,
            next_timeout: Instant::ZERO,
            shortest_timeout,
        })
    }

    /// Gives the network memory for one port more: each datagram listener, and each datagram
    /// connect, needs one.
    pub fn add_port(&mut self, parts: PortParts<'a, H>) -> Result<(), Error> {
        let place = self.ports.iter().position(Option::is_none);
        let place = place.ok_or(Error::Memory {
            problem: "`ports` has no place left",
        })?;
        if !self.stack.has_room() {
            return Err(Error::Memory {
                problem: "`sockets` has no place left",
            });
        }
        if parts.peers.len() > MAX_PEERS {
            return Err(Error::Memory {
                problem: "a port has 2,048 peers at most",
            });
        }
        let sockets = &mut self.stack.sockets;
        let port = Port::new(parts, place, sockets, &self.shared.limits, self.key);
        let port = port.ok_or(Error::Memory {
            problem: "a port needs room for one peer, and for one datagram each way",
        })?;
        self.first_socket.get_or_insert(port.handle());
        self.ports[place] = Some(port);
        Ok(())
    }

    /// Listens at `address`; all zeros is every address of the interface, and port 0 one that
    /// is free. `accepted` is asked about every new connection.
    ///
    /// A datagram listener takes the free port with room for the most peers.
    pub fn listen(
        &mut self,
        transport: Transport,
        address: SocketAddr,
        accepted: Accepted<'a, H>,
    ) -> Result<Listener, Error> {
        self.running(transport)?;
        let failed = |problem| Error::Address {
            transport,
            address,
            problem,
        };
        let mut endpoint = listen_endpoint(address).map_err(failed)?;
        if endpoint.port == 0 {
            endpoint.port = self.stack.free_port(transport).map_err(failed)?;
        }
        if transport == Transport::Udp {
            self.release_draining(self.stack.is_taken(transport, endpoint));
        }
        let own = transport == Transport::Tcp && self.listeners.has(endpoint);
        if own || self.stack.is_taken(transport, endpoint) {
            return Err(failed("the address is in use"));
        }
        let generation = self.generation;
        if transport == Transport::Tcp {
            let mut places = self.listeners.places.iter_mut();
            let place = places.find(|place| place.is_none());
            *place.ok_or(Error::Memory {
                problem: "`StreamMemory` has no place for another listener",
            })? = Some(Listening {
                endpoint,
                accepted,
                generation,
                used: Used::Yes,
            });
            // To be shared out anew.
            self.empty_pools(None);
            self.listeners.count();
            self.fill_pools();
        } else {
            let ports = self.ports.iter_mut().flatten();
            let free = ports.filter_map(|port| Some((port.free_room()?, port)));
            let (_, port) = free
                .max_by_key(|(room, _)| *room)
                .ok_or(Error::NoRoom { transport })?;
            port.listen(endpoint, accepted, generation, &mut self.stack.sockets)
                .map_err(|_| failed("the socket cannot be bound"))?;
        }
        self.generation = generation & 0xff00_0000 | generation.wrapping_add(1) & 0x00ff_ffff;
        Ok(Listener {
            local: SocketAddr::new(address.ip(), endpoint.port),
            transport,
            generation,
        })
    }

    /// Lets one address have this many accepted streams at once; a peer that has as many is
    /// refused. At first there is no limit, and one host can hold every stream: behind one address
    /// there may be many. Unlike `AddressLimits`, this counts an IPv6 address by itself: the hosts of
    /// a link share its prefix.
    pub fn set_streams_per_address(&mut self, limit: usize) {
        self.shared.streams_per_address = limit;
    }

    /// Accepts no more connections. Those that are there stay.
    pub fn close_listener(&mut self, listener: Listener) {
        let generation = listener.generation;
        for port in self.ports.iter_mut().flatten() {
            port.close_listener(generation);
        }
        let place = self.listeners.places.iter().position(|place| {
            let of_this = place.as_ref().map(|listening| listening.generation);
            of_this == Some(generation)
        });
        if let Some(place) = place {
            self.listeners.places[place] = None;
            self.listeners.count();
            self.empty_pools(Some(place));
            self.fill_pools();
        }
        self.shared.poll_again = true;
    }

    /// Connects to `address` at `now`; `connected` or `connect_failed` says how it went. Messages can be sent at
    /// once, with [`Network::with`].
    ///
    /// A datagram connection takes the free port with room for the fewest peers. A stream that
    /// connects is missing in the pools of the listeners.
    pub fn connect(
        &mut self,
        transport: Transport,
        address: SocketAddr,
        handler: H,
        now: Instant,
    ) -> Result<ConnectionId, Error> {
        self.running(transport)?;
        let failed = |problem| Error::Address {
            transport,
            address,
            problem,
        };
        let peer = endpoint(address).map_err(failed)?;
        self.shared.advance(now);
        let now = self.shared.now;
        let limit = self.shared.limits.max_connections();
        let serial = self.shared.reserve(transport);
        let serial = serial.ok_or(Error::TooManyConnections { limit })?;
        let place = match transport {
            Transport::Tcp => self.connect_stream(peer, handler, serial, now),
            _ => self.connect_datagrams(peer, handler, serial, now),
        };
        self.shared.poll_again = true;
        match place {
            Ok(place) => Ok(serial.id(place)),
            Err(problem) => {
                self.shared.open.remove(transport);
                Err(problem.map_or(Error::NoRoom { transport }, failed))
            }
        }
    }

    /// Shares out the streams that are free, and those that have been in a handshake for long, if no
    /// other waits.
    fn fill_pools(&mut self) {
        let (sockets, now) = (&mut self.stack.sockets, self.shared.now);
        let half_open_before = pool::half_open_before(now);
        pool::fill_pools(self.streams, sockets, &self.listeners, half_open_before);
        self.pooled = pool::pooled(self.streams);
    }

    /// Takes the streams out of the pool of the listener at `place`, or of all.
    fn empty_pools(&mut self, place: Option<usize>) {
        let deadline = self.shared.now.after(self.shared.limits.drain_timeout());
        self.shared.timeout_set |= place.is_some();
        pool::empty_pools(self.streams, &mut self.stack.sockets, place, deadline);
    }

    /// Begins to connect a stream. `Err(None)`: no stream is free.
    fn connect_stream(
        &mut self,
        peer: IpEndpoint,
        handler: H,
        serial: Serial,
        now: Instant,
    ) -> Result<Place, Option<&'static str>> {
        let sockets = &mut self.stack.sockets;
        let slot = pool::take(self.streams, sockets, now).ok_or(None)?;
        self.pooled = pool::pooled(self.streams);
        let stream = &mut self.streams[slot];
        let handle = stream.handle.ok_or(None)?;
        let local = self.stack.connect(handle, peer)?;
        self.stack.connect_begins(now);
        stream.connect(handler, serial, peer, local, now);
        Ok(Place::Stream(slot))
    }

    /// Begins to connect a port. `Err(None)`: no port is free.
    fn connect_datagrams(
        &mut self,
        peer: IpEndpoint,
        handler: H,
        serial: Serial,
        now: Instant,
    ) -> Result<Place, Option<&'static str>> {
        let local = self.stack.source(peer.addr, &self.shared);
        let local = local.ok_or("it has no route")?;
        self.release_draining(false);
        let remote = Remote {
            endpoint: peer,
            local,
        };
        let number = self.stack.free_port(Transport::Udp)?;
        let ports = self.ports.iter_mut().flatten();
        let free = ports.filter_map(|port| Some((port.free_room()?, port)));
        let (_, port) = free.min_by_key(|(room, _)| *room).ok_or(None)?;
        let sockets = &mut self.stack.sockets;
        let place = port.connect(remote, number, handler, serial, sockets, now);
        place.ok_or(None)
    }

    /// Hands out the connection with this id at `now`; `None` if it is over. What is asked of
    /// it is done at the next poll, for which it is time at once.
    pub fn with<R>(
        &mut self,
        id: ConnectionId,
        now: Instant,
        with_link: impl FnOnce(&mut dyn Link) -> R,
    ) -> Option<R> {
        self.shared.advance(now);
        self.shared.poll_again = true;
        match Place::of(id) {
            Place::Stream(slot) => {
                let stream = self.streams.get_mut(slot)?;
                let socket = self.stack.sockets.get_mut::<tcp::Socket>(stream.handle?);
                stream.with_link(slot, id, socket, &mut self.shared, with_link)
            }
            Place::Peer { port, slot } => {
                let port = self.ports.get_mut(port)?.as_mut()?;
                port.with_link(slot, id, &mut self.stack.sockets, &self.shared, with_link)
            }
        }
    }

    /// Takes what arrived, delivers it, sends what there is to send, and handles timeouts. A bounded
    /// amount of work, whatever arrives.
    ///
    /// The clock must be monotonic. If `now` is before the time of an earlier call, it is taken
    /// for that: no deadline passes until the clock has caught up.
    pub fn poll(&mut self, now: Instant) {
        let now = now.max(self.shared.now);
        self.shared.now = now;
        if core::mem::take(&mut self.lent) && self.has_lost_an_address() {
            self.check_addresses();
        }
        let mut frames = 0;
        while frames < FRAMES_PER_POLL && self.ingress() {
            frames += 1;
            // At once, since the rings are small.
            self.serve();
        }
        // Not before the frames that wait in the device have been taken: after a late poll, some of
        // them are from peers that would be closed as idle. A flood postpones it for a while only.
        let due = now >= self.next_timeout;
        let more = frames == FRAMES_PER_POLL || due && !self.stack.can_send(now);
        if !more && self.pooled != self.listeners.used {
            // Handshakes that were completed in time have been seen.
            self.fill_pools();
        }
        self.postponed = if due && more { self.postponed + 1 } else { 0 };
        self.shared.timeouts_due = due && (!more || self.postponed > MAX_POSTPONED);
        if self.shared.timeouts_due {
            self.postponed = 0;
            self.stop_in_time();
        }
        let asked = core::mem::take(&mut self.shared.poll_again);
        if self.shared.timeouts_due || asked {
            self.serve();
        }
        if self.shared.timeouts_due {
            self.next_timeout = self.poll_timeout();
            self.shared.timeouts_due = false;
        }
        self.sends_at = self.stack.egress(now, FRAMES_PER_POLL);
        if self.stack.was_exhausted() {
            self.rotate_sockets();
        }
        if !more && now >= self.stack.neighbours_timeout() {
            self.resolve_neighbours();
        }
        if core::mem::take(&mut self.shared.datagrams) {
            for port in self.ports.iter_mut().flatten() {
                port.after_egress(&self.stack.sockets, &mut self.shared);
            }
        }
        if self.shared.unsent {
            // Connections that waited for that.
            self.serve();
            self.sends_at = self.stack.poll_at(now);
        }
        self.shared.poll_again |= more;
        // A timeout that began since the last look is due no earlier than this. Where nothing has
        // happened none began.
        let lives = self.shared.open.total() > 0 || self.shared.unsent;
        if lives && (frames > 0 || asked) || self.shared.timeout_set {
            self.shared.timeout_set = false;
            let soonest = now.as_micros().saturating_add(self.shortest_timeout);
            self.next_timeout = self.next_timeout.min(Instant::from_micros(soonest));
        }
    }

    /// Takes one frame from the device, if there is one.
    fn ingress(&mut self) -> bool {
        let Network {
            stack,
            listeners,
            shared,
            pooled,
            ..
        } = self;
        let syn_filter = |port| listeners.is_exhausted(*pooled, port);
        let any = *pooled != listeners.used;
        stack.ingress(shared.now, if any { Some(&syn_filter) } else { None })
    }

    /// Polls every stream and every port.
    fn serve(&mut self) {
        let Network {
            stack,
            streams,
            listeners,
            ports,
            shared,
            pooled,
            ..
        } = self;
        *pooled = 0;
        let mut free = false;
        shared.poll_again = false;
        shared.unsent = false;
        for slot in 0..streams.len() {
            let Some(handle) = streams[slot].handle else {
                continue;
            };
            let limit = shared.streams_per_address;
            let too_many =
                limit < usize::MAX && pool::is_one_too_many(streams, &stack.sockets, slot, limit);
            let socket = stack.sockets.get_mut::<tcp::Socket>(handle);
            if too_many {
                streams[slot].refuse(socket, shared);
            }
            let stream = &mut streams[slot];
            stream.poll(slot, socket, listeners, shared);
            match stream.stage {
                Stage::Live(_) => {}
                Stage::Free => free = true,
                Stage::Ending { .. } => shared.unsent = true,
                Stage::Pooled { .. } => {
                    *pooled |= stream.listens_for().map_or(0, |place| 1 << place);
                }
            }
        }
        let some_can_be_reused = *pooled != 0 || shared.unsent;
        if *pooled != listeners.used && some_can_be_reused || free {
            *pooled |= pool::fill_pools(streams, &mut stack.sockets, listeners, Instant::ZERO);
        }
        for port in ports.iter_mut().flatten() {
            port.poll(&mut stack.interface, &mut stack.sockets, shared);
        }
    }

    /// When the first timeout is due.
    fn poll_timeout(&self) -> Instant {
        let limits = &self.shared.limits;
        let mut at = Instant::NEVER;
        for stream in &*self.streams {
            at = at.min(stream.poll_timeout(limits));
        }
        for port in self.ports.iter().flatten() {
            at = at.min(port.poll_timeout(limits));
        }
        match self.stops_at {
            Some(stops_at) if stops_at > self.shared.now && !self.is_stopped() => at.min(stops_at),
            _ => at,
        }
    }

    /// When [`Network::poll`] has to be called next, unless a frame arrives before;
    /// [`Instant::NEVER`] if nothing is to come. It may be early, never late.
    pub fn poll_at(&mut self, now: Instant) -> Instant {
        if self.shared.poll_again {
            return now;
        }
        if self.lent {
            self.sends_at = self.stack.poll_at(now);
            if self.has_lost_an_address() {
                return now;
            }
        }
        let at = self.next_timeout.min(self.sends_at);
        at.min(self.stack.neighbours_timeout()).max(now)
    }

    /// A port is needed. If none is free, or its address is needed, those that only wait for close
    /// datagrams to leave wait no longer.
    fn release_draining(&mut self, address_is_needed: bool) {
        let mut ports = self.ports.iter().flatten();
        if address_is_needed || !ports.any(|port| port.free_room().is_some()) {
            for port in self.ports.iter_mut().flatten() {
                port.release_draining(&mut self.stack.sockets);
            }
        }
    }

    /// Whether a listen or a connect may begin.
    fn running(&self, transport: Transport) -> Result<(), Error> {
        if self.stops_at.is_some() {
            return Err(Error::Stopped);
        }
        match transport {
            Transport::Tcp | Transport::Udp => Ok(()),
            _ => Err(Error::Unsupported { transport }),
        }
    }

    /// Connections there are, pending connects included.
    pub fn open(&self) -> usize {
        self.shared.open.total()
    }

    /// What it has done so far.
    pub fn counts(&self) -> Counts {
        self.shared.counts
    }

    /// The bounds it keeps.
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// The device.
    pub fn device(&mut self) -> &mut D {
        &mut self.stack.device
    }

    /// The interface, the device and the sockets. Connections whose local address is taken from
    /// the interface end at the next poll, for which it is time at once.
    pub fn stack(&mut self) -> &mut Stack<'a, D> {
        self.lent = true;
        &mut self.stack
    }
}
