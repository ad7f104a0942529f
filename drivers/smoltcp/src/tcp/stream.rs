//! One stream: a socket of smoltcp's, from where it waits in the pool of a listener to where
//! its FIN has been acknowledged, and the connection that uses it meanwhile.

use crate::id::{Place, Serial};
use crate::network::shared::{Context, Shared};
use crate::stack::{address, swapped};
use crate::tcp::conn::StreamConn;
use crate::tcp::link::{Output, StreamLink};
use crate::tcp::listeners::Listeners;
use crate::tcp::live::{Live, discard};
use cubenet_core::{
    Action, CloseReason, ConnectError, ConnectionId, Handler, Instant, Limits, Link, Transport,
};
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::wire::{IpAddress, IpEndpoint};

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
    /// In the pool of a listener, with the moment at which it got a SYN.
    Pooled {
        listener: u8,
        syn_at: Option<Instant>,
    },
    /// It carries a connection.
    Live(Live<H>),
    /// The connection is over; what is left is sent until the deadline, or
    /// longer, while the socket is not needed.
    Ending { deadline: Instant },
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
    /// The place of the listener for which it waits, and has no SYN yet.
    pub(crate) fn listens_for(&self) -> Option<usize> {
        match self.stage {
            Stage::Pooled {
                listener,
                syn_at: None,
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
    /// Connects, with a socket that has begun to.
    pub(crate) fn connect(
        &mut self,
        handler: H,
        serial: Serial,
        peer: IpEndpoint,
        local: IpEndpoint,
        now: Instant,
    ) {
        let conn = StreamConn::connecting(serial, peer, local, now);
        self.stage = Stage::Live(Live { handler, conn });
    }

    /// Hands out the connection with this id, if it is there, to the application outside of callbacks.
    pub(crate) fn with_link<'a, R>(
        &mut self,
        slot: usize,
        id: ConnectionId,
        socket: &mut tcp::Socket<'a>,
        shared: &mut Shared<'a>,
        callback: impl FnOnce(&mut dyn Link) -> R,
    ) -> Option<R> {
        let place = Place::Stream(slot);
        let Stage::Live(live) = &mut self.stage else {
            return None;
        };
        if live.conn.serial.id(place) != id {
            return None;
        }
        live.conn.set_needs_poll(true);
        let context = Context {
            limits: &shared.limits,
            now: shared.now,
            place,
        };
        let output = if live.is_connecting() {
            Output::PendingSends {
                capacity: socket.send_capacity(),
                frames: &mut shared.pending_sends,
            }
        } else {
            Output::Ring(socket)
        };
        Some(callback(&mut StreamLink {
            conn: &mut live.conn,
            output,
            context,
            slot,
        }))
    }

    /// Closes its connection, or gives it up, at the next poll.
    pub(crate) fn close(&mut self, in_order: bool, now: Instant) {
        if let Stage::Live(live) = &mut self.stage {
            let connection = &mut live.conn.connection;
            if in_order {
                connection.close(now);
            } else {
                connection.abort(CloseReason::Local);
            }
            live.conn.set_needs_poll(true);
        }
    }

    /// Looks at the socket: delivers, answers, and enters the next stage when it is time.
    pub(crate) fn poll(
        &mut self,
        slot: usize,
        socket: &mut tcp::Socket<'_>,
        listeners: &Listeners<'_, H>,
        shared: &mut Shared<'_>,
    ) {
        if let Stage::Pooled { listener, syn_at } = &mut self.stage {
            match socket.state() {
                tcp::State::Listen => {
                    *syn_at = None;
                    return;
                }
                tcp::State::SynReceived => {
                    match *syn_at {
                        None => {
                            shared.timeout_set = true;
                            *syn_at = Some(shared.now);
                        }
                        Some(syn_at)
                            if shared.timeouts_due
                                && shared.now >= syn_at.after(shared.limits.connect_timeout()) =>
                        {
                            self.end(socket, false, shared);
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
                    self.accept(slot, listener, socket, listeners, shared);
                }
            }
        }
        match &mut self.stage {
            Stage::Live(live) => {
                if live.is_at_rest(socket) && !shared.timeouts_due {
                    return;
                }
                live.poll(slot, socket, shared);
                let mut queued = socket.send_queue();
                if !live.conn.connection.send.was_open() {
                    queued += shared.pending_sends.queued(slot);
                }
                match live.conn.connection.poll_action(queued) {
                    Action::Close(reason) => self.closed(reason, true, slot, socket, shared),
                    Action::Reset(reason) => self.closed(reason, false, slot, socket, shared),
                    Action::Wait | Action::SendFin => {}
                }
            }
            Stage::Ending { deadline } => {
                discard(socket);
                if socket.state() == tcp::State::Closed && socket.remote_endpoint().is_none() {
                    self.stage = Stage::Free;
                } else if socket.state() == tcp::State::TimeWait {
                    // smoltcp has a timer for that.
                    *deadline = Instant::NEVER;
                } else if shared.now >= *deadline {
                    if socket.state() == tcp::State::Closed {
                        // Not even the RST can be sent.
                        self.forget(socket);
                    } else {
                        self.end(socket, false, shared);
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
        shared: &mut Shared<'_>,
    ) {
        let wanted = if let Some(peer) = socket.remote_endpoint()
            && let Some(local) = socket.local_endpoint()
            && let Some(accepted) = listeners.accepted(listener)
            && let Some(serial) = shared.reserve(Transport::Tcp)
        {
            let mut conn = StreamConn::accepted(serial, peer, local, shared.now);
            let mut link = StreamLink {
                conn: &mut conn,
                output: Output::Ring(socket),
                context: shared.context(Place::Stream(slot)),
                slot,
            };
            let handler = accepted(&mut link);
            if handler.is_none() {
                shared.open.remove(Transport::Tcp);
            }
            handler.map(|handler| (handler, conn))
        } else {
            None
        };
        let Some((handler, conn)) = wanted else {
            return self.refuse(socket, shared);
        };
        shared.counts.accepted = shared.counts.accepted.wrapping_add(1);
        self.stage = Stage::Live(Live { handler, conn });
    }

    /// Reports to the handler that it is over, and lets the socket end.
    fn closed(
        &mut self,
        reason: CloseReason,
        in_order: bool,
        slot: usize,
        socket: &mut tcp::Socket<'_>,
        shared: &mut Shared<'_>,
    ) {
        let live = core::mem::replace(&mut self.stage, Stage::Free);
        let Stage::Live(Live {
            mut handler,
            mut conn,
        }) = live
        else {
            return;
        };
        shared.counts.closed = shared.counts.closed.wrapping_add(1);
        shared.open.remove(Transport::Tcp);
        shared.pending_sends.take(slot, |_| ());
        let place = Place::Stream(slot);
        if conn.connection.send.was_open() {
            let mut link = StreamLink {
                conn: &mut conn,
                output: Output::Nowhere,
                context: shared.context(place),
                slot,
            };
            handler.closed(&mut link, reason);
        } else {
            let (id, peer) = (conn.serial.id(place), address(conn.peer));
            handler.connect_failed(ConnectError::new(id, Transport::Tcp, peer, reason));
        }
        self.end(socket, in_order, shared);
    }

    /// Gives the stream back although the peer has got neither FIN nor RST.
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
    pub(crate) fn with_output(&self, sockets: &SocketSet<'_>) -> Option<SocketHandle> {
        let handle = self.handle?;
        let socket = sockets.get::<tcp::Socket>(handle);
        let with_output = match socket.state() {
            tcp::State::Listen | tcp::State::TimeWait => false,
            tcp::State::Established | tcp::State::CloseWait | tcp::State::FinWait2 => {
                socket.send_queue() > 0
            }
            // A reset, or a part of a handshake.
            _ => socket.remote_endpoint().is_some(),
        };
        with_output.then_some(handle)
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
            Stage::Live(live) => live.conn.was_accepted(),
            Stage::Ending { .. } => true,
            Stage::Free | Stage::Pooled { .. } => false,
        }
    }

    /// Resets a new connection.
    pub(crate) fn refuse(&mut self, socket: &mut tcp::Socket<'_>, shared: &mut Shared<'_>) {
        shared.counts.refused = shared.counts.refused.wrapping_add(1);
        self.end(socket, false, shared);
    }

    /// Whether it connects, and the peer has not answered.
    pub(crate) fn is_connecting(&self) -> bool {
        matches!(&self.stage, Stage::Live(live) if live.is_connecting())
    }

    /// The peer whose host has to be found for it to go on.
    pub(crate) fn peer_to_resolve(&self, socket: &tcp::Socket<'_>) -> Option<IpAddress> {
        match &self.stage {
            Stage::Live(live) if live.is_connecting() || socket.send_queue() > 0 => {
                Some(live.conn.peer.addr)
            }
            _ => None,
        }
    }

    /// Whether the interface has lost the local address of the connection.
    pub(crate) fn has_lost_its_address(&self, interface: &Interface) -> bool {
        match &self.stage {
            Stage::Live(live) => !interface.has_ip_addr(live.conn.local.addr),
            _ => false,
        }
    }

    /// Ends a connection whose local address the interface has lost.
    pub(crate) fn check_address(&mut self, interface: &Interface) {
        if self.has_lost_its_address(interface)
            && let Stage::Live(live) = &mut self.stage
        {
            live.conn.connection.abort(CloseReason::Io);
            live.conn.set_needs_poll(true);
        }
    }

    /// Lets the socket end, in order or with a reset.
    fn end(&mut self, socket: &mut tcp::Socket<'_>, in_order: bool, shared: &mut Shared<'_>) {
        shared.poll_again = true;
        if socket.state() == tcp::State::SynSent {
            // A peer that answers all the same is refused.
            return self.forget(socket);
        }
        if in_order {
            socket.close();
        } else {
            socket.abort();
        }
        let deadline = shared.now.after(shared.limits.drain_timeout());
        self.stage = Stage::Ending { deadline };
    }

    /// When it has to be looked at, whatever arrives.
    pub(crate) fn poll_timeout(&self, limits: &Limits) -> Instant {
        match &self.stage {
            Stage::Free => Instant::NEVER,
            Stage::Pooled { syn_at, .. } => {
                syn_at.map_or(Instant::NEVER, |at| at.after(limits.connect_timeout()))
            }
            Stage::Ending { deadline } => *deadline,
            Stage::Live(Live { conn, .. }) => conn.connection.poll_timeout(false, limits),
        }
    }
}
