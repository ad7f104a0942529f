//! One stream: a socket of smoltcp's, from where it waits in the pool of a listener to where
//! its end has been delivered, and the connection that lives on it meanwhile.

use crate::common::{Common, Context};
use crate::id::{Place, Serial};
use crate::link::{Held, Output, StreamLink};
use crate::pool::Listeners;
use crate::stack::{address, swapped};
use cubenet_core::frame::HEADER_LEN;
use cubenet_core::{
    Action, Backlog, CloseReason, ConnectError, Connection, ConnectionId, FrameError, Handler,
    Instant, Limits, Link, Message, Reading, RingDecoder, Transport,
};
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::wire::{IpAddress, IpEndpoint};

/// Bytes delivered from one stream before the others are served.
const READ_BUDGET: usize = 1 << 18;

/// A place for one stream, in [`StreamMemory`](crate::StreamMemory).
pub struct Stream<H> {
    pub(crate) stage: Stage<H>,
    /// Its socket, once it has been given to a network.
    pub(crate) handle: Option<SocketHandle>,
}

/// What a stream's socket is for. The first is 0, so that a `static` of streams that are not used
/// is all zeros, and takes no room in flash.
#[repr(u8)]
pub(crate) enum Stage<H> {
    /// Nothing.
    Free = 0,
    /// In the pool of a listener, with the moment at which it got a caller, who may have begun
    /// and not go on.
    Pooled {
        listener: u8,
        called_at: Option<Instant>,
    },
    /// It carries a connection.
    Live(Live<H>),
    /// The connection is over; what is left to tell the peer is told until the deadline, or
    /// longer, if nobody needs the socket.
    Ending { deadline: Instant },
}

/// A connection.
pub(crate) struct Live<H> {
    handler: H,
    pub(crate) ends: Ends,
}

/// A connection, and what its link tells of it.
pub(crate) struct Ends {
    pub(crate) connection: Connection<RingDecoder>,
    /// Bytes that lay in the transmit ring at the last look, and were sent since.
    queued: u32,
    pub(crate) serial: Serial,
    /// In one byte, since there is a connection of it for each stream.
    marks: u8,
    pub(crate) peer: IpEndpoint,
    pub(crate) local: IpEndpoint,
}

impl Ends {
    /// The peer has opened it.
    const ACCEPTED: u8 = 1;
    /// The application has asked for something from outside.
    const ATTEND: u8 = 2;
    /// This side connects, and the peer has not answered.
    const CONNECTING: u8 = 4;
    /// The handler has not been told that the connection is there.
    const UNTOLD: u8 = 8;

    fn attend(&mut self) {
        self.marks |= Ends::ATTEND;
    }

    fn is_connecting(&self) -> bool {
        self.marks & Ends::CONNECTING != 0
    }

    fn new(
        connection: Connection<RingDecoder>,
        serial: Serial,
        peer: IpEndpoint,
        local: IpEndpoint,
    ) -> Self {
        Ends {
            connection,
            queued: 0,
            serial,
            marks: Ends::ATTEND,
            peer,
            local,
        }
    }

    /// So much waits to be confirmed, after something was sent.
    pub(crate) fn queued(&mut self, now: Instant, queued: usize) {
        self.queued = queued as u32;
        self.connection.send.handle_written(false, queued, now);
    }
}

impl<H> Stream<H> {
    /// A place that is not used.
    pub const fn new() -> Self {
        Stream {
            stage: Stage::Free,
            handle: None,
        }
    }
}

impl<H> Stream<H> {
    /// The place of the listener for which it waits, and has no caller yet.
    pub(crate) fn waits_at(&self) -> Option<usize> {
        match self.stage {
            Stage::Pooled {
                listener,
                called_at: None,
            } => Some(usize::from(listener)),
            _ => None,
        }
    }
}

impl<H> Default for Stream<H> {
    fn default() -> Self {
        Stream::new()
    }
}

impl<H: Handler> Stream<H> {
    /// Calls, from a socket that is on its way.
    pub(crate) fn call(
        &mut self,
        handler: H,
        serial: Serial,
        peer: IpEndpoint,
        local: IpEndpoint,
        now: Instant,
    ) {
        let connection = Connection::connecting(RingDecoder::new(), now);
        let mut ends = Ends::new(connection, serial, peer, local);
        ends.marks |= Ends::CONNECTING | Ends::UNTOLD;
        self.stage = Stage::Live(Live { handler, ends });
    }

    /// Hands out the connection with this id, if it is there, to somebody outside.
    pub(crate) fn reach<'a, R>(
        &mut self,
        slot: usize,
        id: ConnectionId,
        socket: &mut tcp::Socket<'a>,
        common: &mut Common<'a>,
        callback: impl FnOnce(&mut dyn Link) -> R,
    ) -> Option<R> {
        let place = Place::Stream(slot);
        let Stage::Live(live) = &mut self.stage else {
            return None;
        };
        if live.ends.serial.id(place) != id {
            return None;
        }
        live.ends.attend();
        let context = Context {
            limits: &common.limits,
            now: common.now,
            place,
        };
        let output = if live.is_called() {
            Output::Early {
                capacity: socket.send_capacity(),
                frames: &mut common.early,
            }
        } else {
            Output::Ring(socket)
        };
        Some(callback(&mut StreamLink {
            ends: &mut live.ends,
            output,
            context,
            slot,
        }))
    }

    /// Looks at the socket: delivers, answers, and goes on to the next stage if it is time.
    pub(crate) fn turn(
        &mut self,
        slot: usize,
        socket: &mut tcp::Socket<'_>,
        listeners: &Listeners<'_, H>,
        common: &mut Common<'_>,
    ) {
        if let Stage::Pooled {
            listener,
            called_at,
        } = &mut self.stage
        {
            match socket.state() {
                tcp::State::Listen => {
                    *called_at = None;
                    return;
                }
                tcp::State::SynReceived => {
                    match *called_at {
                        None => {
                            common.clock_set = true;
                            *called_at = Some(common.now);
                        }
                        Some(called_at)
                            if common.strikes
                                && common.now
                                    >= called_at.after(common.limits.connect_timeout()) =>
                        {
                            self.end(socket, false, common);
                        }
                        Some(_) => {}
                    }
                    return;
                }
                // The interface has lost the address.
                tcp::State::Closed => {
                    self.stage = Stage::Free;
                    return;
                }
                _ => {
                    let listener = usize::from(*listener);
                    self.accept(slot, listener, socket, listeners, common);
                }
            }
        }
        match &mut self.stage {
            Stage::Live(live) => {
                if live.is_at_rest(socket) && !common.strikes {
                    return;
                }
                live.turn(slot, socket, common);
                let queued = if live.is_called() {
                    common.early.queued(slot)
                } else {
                    socket.send_queue()
                };
                match live.ends.connection.poll_action(queued) {
                    Action::Close(reason) => self.closed(reason, true, slot, socket, common),
                    Action::Reset(reason) => self.closed(reason, false, slot, socket, common),
                    Action::Wait | Action::SendFin => {}
                }
            }
            Stage::Ending { deadline } => {
                discard(socket);
                if socket.state() == tcp::State::Closed && socket.remote_endpoint().is_none() {
                    self.stage = Stage::Free;
                } else if socket.state() == tcp::State::TimeWait {
                    // smoltcp has a clock for that.
                    *deadline = Instant::NEVER;
                } else if common.now >= *deadline {
                    if socket.state() == tcp::State::Closed {
                        // Not even the reset can be delivered.
                        self.forget(socket);
                    } else {
                        self.end(socket, false, common);
                    }
                }
            }
            Stage::Free | Stage::Pooled { .. } => {}
        }
    }

    /// The handshake is done: asks the application.
    fn accept(
        &mut self,
        slot: usize,
        listener: usize,
        socket: &mut tcp::Socket<'_>,
        listeners: &Listeners<'_, H>,
        common: &mut Common<'_>,
    ) {
        let addresses = (socket.remote_endpoint(), socket.local_endpoint());
        let wanted = if let ((Some(peer), Some(local)), Some(accepted), Some(serial)) = (
            addresses,
            listeners.accepted(listener),
            common.reserve(Transport::Tcp),
        ) {
            let connection = Connection::accepted(RingDecoder::new(), common.now);
            let mut ends = Ends::new(connection, serial, peer, local);
            ends.marks |= Ends::ACCEPTED;
            let mut link = StreamLink {
                ends: &mut ends,
                output: Output::Ring(socket),
                context: common.context(Place::Stream(slot)),
                slot,
            };
            let handler = accepted(&mut link);
            if handler.is_none() {
                common.release(Transport::Tcp);
            }
            handler.map(|handler| (handler, ends))
        } else {
            None
        };
        let Some((handler, ends)) = wanted else {
            return self.refuse(socket, common);
        };
        common.counts.accepted = common.counts.accepted.wrapping_add(1);
        self.stage = Stage::Live(Live { handler, ends });
    }

    /// Tells the application that it is over, and lets the socket end.
    fn closed(
        &mut self,
        reason: CloseReason,
        in_order: bool,
        slot: usize,
        socket: &mut tcp::Socket<'_>,
        common: &mut Common<'_>,
    ) {
        let live = core::mem::replace(&mut self.stage, Stage::Free);
        let Stage::Live(Live {
            mut handler,
            mut ends,
        }) = live
        else {
            return;
        };
        common.counts.closed = common.counts.closed.wrapping_add(1);
        common.release(Transport::Tcp);
        common.early.take(slot, |_| ());
        let place = Place::Stream(slot);
        if ends.marks & Ends::UNTOLD != 0 {
            let (id, peer) = (ends.serial.id(place), address(ends.peer));
            handler.connect_failed(ConnectError::new(id, Transport::Tcp, peer, reason));
        } else {
            let mut link = StreamLink {
                ends: &mut ends,
                output: Output::Nowhere,
                context: common.context(place),
                slot,
            };
            handler.closed(&mut link, reason);
        }
        self.end(socket, in_order, common);
    }

    /// Gives the stream back although the peer has not been told.
    #[cold]
    #[inline(never)]
    fn forget(&mut self, socket: &mut tcp::Socket<'_>) {
        // smoltcp forgets the peer when it listens.
        socket.abort();
        let _ = socket.listen(1);
        socket.close();
        self.stage = Stage::Free;
    }

    /// Its socket, if that may have something to send.
    pub(crate) fn sends(&self, sockets: &SocketSet<'_>) -> Option<SocketHandle> {
        let handle = self.handle?;
        let socket = sockets.get::<tcp::Socket>(handle);
        let sends = match socket.state() {
            tcp::State::Listen | tcp::State::TimeWait => false,
            tcp::State::Established | tcp::State::CloseWait | tcp::State::FinWait2 => {
                socket.send_queue() > 0
            }
            // A reset, or a part of a handshake.
            _ => socket.remote_endpoint().is_some(),
        };
        sends.then_some(handle)
    }

    /// Two sockets have changed places.
    pub(crate) fn swap(&mut self, first: SocketHandle, second: SocketHandle) {
        if let Some(handle) = &mut self.handle {
            swapped(handle, first, second);
        }
    }

    /// Whether its peer has opened it, as far as that is known: not of one that is ending.
    pub(crate) fn was_accepted(&self) -> bool {
        match &self.stage {
            Stage::Live(live) => live.ends.marks & Ends::ACCEPTED != 0,
            Stage::Ending { .. } => true,
            Stage::Free | Stage::Pooled { .. } => false,
        }
    }

    /// Turns a caller away.
    pub(crate) fn refuse(&mut self, socket: &mut tcp::Socket<'_>, common: &mut Common<'_>) {
        common.counts.refused = common.counts.refused.wrapping_add(1);
        self.end(socket, false, common);
    }

    /// Whether it is a call that is not answered.
    pub(crate) fn is_called(&self) -> bool {
        matches!(&self.stage, Stage::Live(live) if live.is_called())
    }

    /// The peer whose host has to be found for it to go on.
    pub(crate) fn seeks(&self, socket: &tcp::Socket<'_>) -> Option<IpAddress> {
        match &self.stage {
            Stage::Live(live) if live.is_called() || socket.send_queue() > 0 => {
                Some(live.ends.peer.addr)
            }
            _ => None,
        }
    }

    /// Whether the interface has lost the local address of the connection.
    pub(crate) fn has_lost_its_address(&self, interface: &Interface) -> bool {
        match &self.stage {
            Stage::Live(live) => !interface.has_ip_addr(live.ends.local.addr),
            _ => false,
        }
    }

    /// Ends a connection whose local address the interface has lost.
    pub(crate) fn check_address(&mut self, interface: &Interface) {
        if self.has_lost_its_address(interface)
            && let Stage::Live(live) = &mut self.stage
        {
            live.ends.connection.abort(CloseReason::Io);
            live.ends.attend();
        }
    }

    /// Lets the socket end, in order or with a reset.
    fn end(&mut self, socket: &mut tcp::Socket<'_>, in_order: bool, common: &mut Common<'_>) {
        common.to_do = true;
        if socket.state() == tcp::State::SynSent {
            // A peer that answers all the same is refused.
            return self.forget(socket);
        }
        if in_order {
            socket.close();
        } else {
            socket.abort();
        }
        let deadline = common.now.after(common.limits.drain_timeout());
        self.stage = Stage::Ending { deadline };
    }

    /// When it has to be looked at, whatever arrives.
    pub(crate) fn poll_timeout(&self, limits: &Limits) -> Instant {
        match &self.stage {
            Stage::Free => Instant::NEVER,
            Stage::Pooled { called_at, .. } => {
                called_at.map_or(Instant::NEVER, |at| at.after(limits.connect_timeout()))
            }
            Stage::Ending { deadline } => *deadline,
            Stage::Live(Live { ends, .. }) => ends.connection.poll_timeout(false, limits),
        }
    }
}

impl<H: Handler> Live<H> {
    /// Whether it is a call that is not answered.
    fn is_called(&self) -> bool {
        self.ends.is_connecting()
    }

    fn turn(&mut self, slot: usize, socket: &mut tcp::Socket<'_>, common: &mut Common<'_>) {
        self.ends.marks &= !Ends::ATTEND;
        if self.is_called() {
            match socket.state() {
                tcp::State::SynSent | tcp::State::SynReceived => return self.expire(common),
                tcp::State::Closed => return self.ends.connection.abort(CloseReason::Refused),
                _ => self.connected(slot, socket, common),
            }
        }
        self.written(slot, socket, common);
        let more = self.read(slot, socket, common);
        common.to_do |= more;
        if !more {
            self.ended(socket, common.now);
        }
        self.expire(common);
    }

    /// Whether nothing has happened since the last look, as it mostly has not.
    fn is_at_rest(&self, socket: &tcp::Socket<'_>) -> bool {
        socket.state() == tcp::State::Established
            && !socket.can_recv()
            && socket.send_queue() == self.ends.queued as usize
            && self.ends.marks & Ends::ATTEND == 0
            && !self.is_called()
    }

    /// The call was answered.
    fn connected(&mut self, slot: usize, socket: &mut tcp::Socket<'_>, common: &mut Common<'_>) {
        let ends = &mut self.ends;
        ends.marks &= !Ends::CONNECTING;
        ends.connection.handle_connected(common.now);
        common.counts.connected = common.counts.connected.wrapping_add(1);
        let mut refused = 0;
        common.early.take(slot, |frame| {
            refused += frame.len() - socket.send_slice(frame).unwrap_or(0);
        });
        debug_assert_eq!(refused, 0, "what waited was bounded by the ring");
        ends.queued(common.now, socket.send_queue());
        let mut link = StreamLink {
            ends,
            output: Output::Ring(socket),
            context: common.context(Place::Stream(slot)),
            slot,
        };
        // One that was closed meanwhile only delivers what it was given.
        if !link.is_closed() {
            link.ends.marks &= !Ends::UNTOLD;
            self.handler.connected(&mut link);
        }
    }

    /// Sees what the peer has confirmed.
    fn written(&mut self, slot: usize, socket: &mut tcp::Socket<'_>, common: &mut Common<'_>) {
        let queued = socket.send_queue();
        let before = self.ends.queued as usize;
        let send = &mut self.ends.connection.send;
        if queued != before {
            self.ends.queued = queued as u32;
            send.handle_written(queued < before, queued, common.now);
        }
        let backlog = Backlog::fixed(queued, socket.send_capacity());
        if send.poll_writable(backlog, &common.limits) {
            let mut link = StreamLink {
                ends: &mut self.ends,
                output: Output::Ring(socket),
                context: common.context(Place::Stream(slot)),
                slot,
            };
            self.handler.writable(&mut link);
        }
    }

    /// Delivers the messages that lie whole in the receive ring, within the budget of a turn.
    /// Returns whether more of them may.
    fn read(&mut self, slot: usize, socket: &mut tcp::Socket<'_>, common: &mut Common<'_>) -> bool {
        let handler = &mut self.handler;
        let ends = &mut self.ends;
        let context = Context {
            limits: &common.limits,
            now: common.now,
            place: Place::Stream(slot),
        };
        let mut budget = READ_BUDGET;
        while socket.can_recv() && ends.connection.reading() == Reading::Deliver {
            let frame_len = match lend(handler, ends, socket, common.scratch, context, slot) {
                Ok(Found::Lent(frame_len)) => frame_len,
                Ok(Found::Broken(frame_len)) => {
                    let frame = &mut common.scratch[..frame_len];
                    let _ = socket.recv_slice(frame);
                    let mut link = StreamLink {
                        ends,
                        output: Output::Ring(socket),
                        context,
                        slot,
                    };
                    handler.received(&mut link, Message::lent(&frame[HEADER_LEN..]));
                    frame_len
                }
                Ok(Found::Nothing) | Err(_) => return false,
            };
            common.counts.received = common.counts.received.wrapping_add(1);
            budget = budget.saturating_sub(frame_len);
            if budget == 0 {
                return true;
            }
        }
        false
    }

    /// Sees whether the peer has ended its direction, or the connection.
    fn ended(&mut self, socket: &mut tcp::Socket<'_>, now: Instant) {
        use tcp::State::{CloseWait, Closed, Closing, LastAck, TimeWait};
        let connection = &mut self.ends.connection;
        match socket.state() {
            Closed => {
                // What the peer has acknowledged before this counts first.
                let _ = connection.poll_action(socket.send_queue());
                connection.abort(CloseReason::Reset);
            }
            // An end during a pause is heard after it.
            CloseWait | LastAck | Closing | TimeWait if connection.reading() != Reading::Hold => {
                connection.handle_fin(now);
            }
            _ => {}
        }
        if connection.reading() == Reading::Discard {
            discard(socket);
            // smoltcp sends the FIN behind what is queued, so it need not wait for
            // `Action::SendFin`.
            socket.close();
        }
    }

    /// Closes what took too long.
    fn expire(&mut self, common: &Common<'_>) {
        if common.strikes {
            let connection = &mut self.ends.connection;
            connection.handle_timeout(false, common.now, &common.limits);
        }
    }
}

/// What a receive ring begins with.
enum Found {
    /// A frame of this length, which was lent to the handler and is gone.
    Lent(usize),
    /// A frame of this length, which goes over the ring's end.
    Broken(usize),
    /// No whole frame.
    Nothing,
}

/// Lends the frame at the front of the receive ring to the handler, where it is. What that
/// sends meanwhile is held in the scratch, and sent after it.
fn lend<H: Handler>(
    handler: &mut H,
    ends: &mut Ends,
    socket: &mut tcp::Socket<'_>,
    scratch: &mut [u8],
    context: Context<'_>,
    slot: usize,
) -> Result<Found, FrameError> {
    let len = socket.recv_queue();
    let mut held = Held {
        frames: scratch,
        len: 0,
        queued: socket.send_queue(),
        capacity: socket.send_capacity(),
    };
    let Context { limits, now, .. } = context;
    let found = socket.recv(|ring| {
        if ring.len() < HEADER_LEN.min(len) {
            return (0, None);
        }
        let payload_len = match ends.connection.handle_ring(ring, len, limits, now) {
            Ok(Some(payload_len)) => payload_len,
            Ok(None) => return (0, Some(Ok(Found::Nothing))),
            Err(error) => return (0, Some(Err(error))),
        };
        let frame_len = HEADER_LEN + payload_len;
        let Some(payload) = ring.get(HEADER_LEN..frame_len) else {
            return (0, Some(Ok(Found::Broken(frame_len))));
        };
        let mut link = StreamLink {
            ends,
            output: Output::Held(&mut held),
            context,
            slot,
        };
        handler.received(&mut link, Message::lent(payload));
        (frame_len, Some(Ok(Found::Lent(frame_len))))
    });
    if held.len > 0 {
        let _ = socket.send_slice(&held.frames[..held.len]);
    }
    if let Some(found) = found.unwrap_or_default() {
        return found;
    }
    // The ring's end is inside the header.
    let mut header = [0; HEADER_LEN];
    let _ = socket.peek_slice(&mut header);
    let payload_len = ends.connection.handle_ring(&header, len, limits, now)?;
    Ok(payload_len.map_or(Found::Nothing, |len| Found::Broken(HEADER_LEN + len)))
}

/// Throws away what arrived.
fn discard(socket: &mut tcp::Socket<'_>) {
    while socket.can_recv() && socket.recv(|ring| (ring.len(), ())).is_ok() {}
}
