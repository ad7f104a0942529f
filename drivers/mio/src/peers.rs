//! A datagram socket as its worker keeps it, with its peers: receiving, demultiplexing,
//! delivering, and seeing each connection to its end.

use crate::connection::Connection;
use crate::datagram::DatagramSocket;
use crate::link::{CallbackLink, guarded};
use crate::mailbox::{AcceptFn, ConnectFn};
use crate::shared::{OnSocket, Place, Shared, Wire};
use crate::sys::{Datagram, ReceiveBatch};
use crate::trouble::warn_limited;
use crate::worker::Context;
use cubenet_core::demux::GrowingTable;
use cubenet_core::lifecycle::State;
use cubenet_core::{
    Arrival, CloseReason, ConnectionId, Demux, Exception, Handler, Instant, Link, Message, Sender,
    Timeout, Transport,
};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// The most errors in a row a socket is read past before the others get their turn.
const MAX_ERRORS: usize = 64;

/// A datagram socket and its connections, as their worker keeps them.
pub(crate) struct Peers {
    socket: Arc<DatagramSocket>,
    demux: Demux<SocketAddr, GrowingTable<SocketAddr>>,
    /// The connections, by their slot in the demultiplexer.
    slots: Vec<Option<Peer>>,
    accept: Option<Arc<AcceptFn>>,
    pub(crate) armed: Instant,
    pub(crate) in_line: bool,
}

/// The handler of a connection that the application did not want in the end.
struct Nobody;

impl Handler for Nobody {
    fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {}
}

struct Peer {
    shared: Arc<Shared>,
    handler: Box<dyn Handler + Send>,
}

impl Peers {
    pub(crate) fn listening(socket: Arc<DatagramSocket>, accept: Arc<AcceptFn>) -> Self {
        Peers::new(socket, Some(accept), None)
    }

    /// A socket that was connected: one peer, which is there from the beginning. Tells the
    /// application so.
    pub(crate) fn connected(
        socket: Arc<DatagramSocket>,
        shared: Arc<Shared>,
        connected: ConnectFn,
        context: &mut Context,
    ) -> Self {
        let mut peers = Peers::new(socket, None, Some(1));
        let id = shared.core.id;
        let connection = Connection::new(&shared);
        peers.begin_output(context);
        let handler = guarded("connected", id, &mut context.tally, || {
            connected(Ok(&connection))
        });
        peers.end_output(context);
        context.tally.connected += 1;
        let handler = match handler {
            Some(Some(handler)) => handler,
            Some(None) => {
                shared.close();
                Box::new(Nobody)
            }
            None => {
                shared.locked(|_, out| out.sender.abort(CloseReason::Panicked));
                Box::new(Nobody)
            }
        };
        peers.demux.insert(shared.core.raw_peer(), context.now);
        peers.slots.push(Some(Peer { shared, handler }));
        peers.settle(0, context);
        peers
    }

    fn new(
        socket: Arc<DatagramSocket>,
        accept: Option<Arc<AcceptFn>>,
        max_peers: Option<usize>,
    ) -> Self {
        let common = &socket.worker.common;
        let mut limits = common.limits.clone();
        limits.max_peers = max_peers.unwrap_or(limits.max_peers);
        Peers {
            demux: Demux::new(GrowingTable::new(), common.hash_key, &limits),
            slots: Vec::new(),
            accept,
            socket,
            armed: Instant::NEVER,
            in_line: false,
        }
    }

    /// Whether nothing is left to do: no peers, none to come, nothing to send.
    pub(crate) fn is_done(&self) -> bool {
        self.demux.is_empty() && !self.socket.is_open() && !self.socket.has_waiting()
    }

    pub(crate) fn poll_timeout(&self) -> Instant {
        self.demux.poll_timeout()
    }

    /// Receives and delivers, within the budget of a turn.
    pub(crate) fn read(&mut self, entry: usize, context: &mut Context) {
        let batch = context.datagrams_in.take();
        let mut batch = batch.unwrap_or_else(|| Box::new(ReceiveBatch::new()));
        let mut left = context.common.limits.datagram_budget;
        let mut errors = 0;
        self.begin_output(context);
        loop {
            match batch.receive(&self.socket.socket) {
                Ok(more) => {
                    let mut received = 0;
                    for datagram in batch.datagrams() {
                        received += 1;
                        self.datagram(&datagram, context);
                    }
                    context.output.borrow_mut().flush_datagrams(&self.socket);
                    left = left.saturating_sub(received);
                    if !more {
                        break;
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => break,
                    io::ErrorKind::Interrupted => {}
                    kind => {
                        errors += 1;
                        self.receive_failed(kind, &error, context);
                    }
                },
            }
            // Until `WouldBlock`, since some systems tell of nothing new before.
            if left == 0 || errors == MAX_ERRORS {
                context.line_up(entry, &mut self.in_line);
                break;
            }
        }
        self.end_output(context);
        context.datagrams_in = Some(batch);
    }

    /// From here on, what the connections of this socket send is gathered.
    fn begin_output(&self, context: &Context) {
        context.output.borrow_mut().begin(self.socket.id);
    }

    /// Hands what was gathered to the socket.
    fn end_output(&self, context: &Context) {
        let mut output = context.output.borrow_mut();
        output.flush_datagrams(&self.socket);
        output.begin(0);
    }

    /// An error of a receive is about a datagram that was sent, or about nothing that lasts.
    fn receive_failed(&mut self, kind: io::ErrorKind, error: &io::Error, context: &mut Context) {
        use io::ErrorKind::{ConnectionRefused, ConnectionReset};
        if !matches!(kind, ConnectionRefused | ConnectionReset) {
            warn_limited!(local = %self.socket.local, %error, "datagram not received");
        }
        if self.accept.is_none() && !self.slots.is_empty() {
            self.excepted(0, Exception::Unreachable, context);
        }
    }

    fn datagram(&mut self, datagram: &Datagram<'_>, context: &mut Context) {
        let from = datagram.from;
        let len = datagram.bytes.len();
        match self.demux.handle_datagram(&from, len, context.now) {
            Arrival::Deliver(slot) => self.deliver(slot, datagram.bytes, context),
            Arrival::Close(slot) => self.peer_closed(slot, context),
            Arrival::Admit => self.admit(datagram, None, context),
            Arrival::Evict(slot) => self.admit(datagram, Some(slot), context),
            Arrival::Refuse => {
                context.tally.dropped_table_full += 1;
                warn_limited!(peer = %from, "datagram dropped: the table of peers is full");
            }
            Arrival::Ignore => context.tally.dropped_empty += 1,
            Arrival::TooLong(slot) => {
                context.tally.dropped_too_long += 1;
                if let Some(slot) = slot {
                    let limit = context.common.limits.max_datagram;
                    self.excepted(slot, Exception::DatagramTooLong { len, limit }, context);
                }
            }
        }
    }

    fn deliver(&mut self, slot: usize, datagram: &[u8], context: &mut Context) {
        let Some(peer) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        if !peer.shared.core.is_heard() {
            context.tally.dropped_paused += u64::from(peer.shared.core.is_paused());
            return;
        }
        context.tally.messages_in += 1;
        context.tally.bytes_in += datagram.len() as u64;
        let message = Message::lent(datagram);
        self.call("received", slot, context, |handler, link| {
            handler.received(link, message);
        });
    }

    /// Asks the application about a new peer, and delivers its first datagram. `evicted` has
    /// to make way for it, once the application wants it.
    fn admit(&mut self, datagram: &Datagram<'_>, evicted: Option<usize>, context: &mut Context) {
        let from = datagram.from;
        let accept = match &self.accept {
            Some(accept) if self.socket.is_open() => Arc::clone(accept),
            _ => {
                context.tally.dropped_not_admitted += 1;
                return;
            }
        };
        if !context.common.reserve() {
            context.tally.dropped_table_full += 1;
            warn_limited!(peer = %from, "datagram dropped: too many connections");
            return;
        }
        context.taken();
        // The handle that the application is shown must know its slot: a new one, or that of
        // the evicted, which is the first to be given out again.
        let Some(slot) = evicted.or_else(|| self.demux.insert(from, context.now)) else {
            return context.dropped();
        };
        let shared = self.shared(from, datagram.local, slot);
        let id = shared.core.id;
        let connection = Connection::new(&shared);
        let handler = guarded("accepted", id, &mut context.tally, || accept(&connection));
        let Some(handler) = handler.flatten() else {
            context.tally.refused += 1;
            context.tally.dropped_not_admitted += 1;
            if evicted.is_none() {
                self.demux.remove(slot);
            }
            context.dropped();
            return shared.locked(|_, out| out.sender.abort(CloseReason::Local));
        };
        if let Some(evicted) = evicted {
            self.fail(evicted, CloseReason::Overflow, context);
            self.demux.insert(from, context.now);
        }
        tracing::debug!(connection = %id, peer = %from, "accepted a datagram peer");
        context.tally.accepted += 1;
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        self.slots[slot] = Some(Peer { shared, handler });
        self.settle(slot, context);
        self.deliver(slot, datagram.bytes, context);
    }

    fn shared(&self, peer: SocketAddr, source: Option<IpAddr>, slot: usize) -> Arc<Shared> {
        let wire = Wire::Datagrams(Box::new(OnSocket {
            socket: Arc::clone(&self.socket),
            source,
        }));
        let sender = Sender::accepted(Transport::Udp);
        Shared::new(wire, peer, slot as u32, sender)
    }

    /// Somebody asked for the socket or one of its connections to be looked at.
    pub(crate) fn attend(&mut self, place: Place, id: ConnectionId, context: &mut Context) {
        self.flush(context);
        self.begin_output(context);
        for (place, id, exception) in self.socket.take_exceptions() {
            if self.is_at(place, id) {
                self.excepted(place.slot as usize, exception, context);
            }
        }
        if self.is_at(place, id) {
            self.settle(place.slot as usize, context);
        }
        self.end_output(context);
    }

    /// The connection in `slot`, if there is one. Callbacks may have emptied any slot.
    fn peer(&self, slot: usize) -> Option<&Peer> {
        self.slots.get(slot)?.as_ref()
    }

    fn is_at(&self, place: Place, id: ConnectionId) -> bool {
        let peer = self.peer(place.slot as usize);
        peer.is_some_and(|peer| peer.shared.core.id == id)
    }

    /// Sends what waits, and tells those who waited for room.
    pub(crate) fn flush(&mut self, context: &mut Context) {
        self.begin_output(context);
        for shared in self.socket.flush() {
            let Place { slot, .. } = shared.core.place();
            let queued = shared.core.queued();
            let writable = shared.locked(|core, out| {
                out.sender.handle_written(context.now, true, queued);
                let limits = &core.common().limits;
                out.sender.poll_writable(queued, limits)
            });
            if !self.is_at(shared.core.place(), shared.core.id) {
                continue;
            }
            if writable {
                self.call("writable", slot as usize, context, |handler, link| {
                    handler.writable(link);
                });
            } else {
                self.settle(slot as usize, context);
            }
        }
        self.end_output(context);
    }

    /// Closes whoever was silent too long. What the kernel has counts first: this thread may
    /// have been held up by somebody's callback.
    pub(crate) fn handle_timeout(&mut self, entry: usize, context: &mut Context) {
        self.read(entry, context);
        while let Some(slot) = self.demux.handle_timeout(context.now) {
            self.fail(slot, CloseReason::Timeout(Timeout::Idle), context);
        }
    }

    /// Asks every connection to close; `abort`: at once.
    pub(crate) fn stop(&mut self, abort: bool, context: &mut Context) {
        self.socket.close();
        for slot in 0..self.slots.len() {
            if let Some(peer) = self.peer(slot) {
                if abort {
                    peer.shared.abort();
                } else {
                    peer.shared.close();
                }
                self.settle(slot, context);
            }
        }
        if abort {
            self.socket.discard();
        }
    }

    /// The socket is done with: nobody may queue datagrams on it any more.
    pub(crate) fn finish(&self) {
        self.socket.finish();
    }

    fn excepted(&mut self, slot: usize, exception: Exception, context: &mut Context) {
        self.call("excepted", slot, context, |handler, link| {
            handler.excepted(link, exception);
        });
    }

    fn peer_closed(&mut self, slot: usize, context: &mut Context) {
        let now = context.now;
        if let Some(peer) = self.peer(slot) {
            peer.shared.locked(|core, out| {
                let queued = core.queued();
                out.sender.handle_end(now, CloseReason::Peer, queued);
            });
        }
        self.settle(slot, context);
    }

    fn fail(&mut self, slot: usize, reason: CloseReason, context: &mut Context) {
        if let Some(peer) = self.peer(slot) {
            peer.shared.locked(|_, out| out.sender.fail(reason));
        }
        self.settle(slot, context);
    }

    /// Runs a callback of the connection in `slot`, then sees whether that ended it.
    fn call(
        &mut self,
        what: &str,
        slot: usize,
        context: &mut Context,
        callback: impl FnOnce(&mut dyn Handler, &mut dyn Link),
    ) {
        let Some(peer) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        let Peer { shared, handler } = peer;
        let mut link = CallbackLink {
            shared,
            output: &context.output,
            now: context.now,
        };
        let done = guarded(what, shared.core.id, &mut context.tally, || {
            callback(&mut **handler, &mut link);
        });
        if done.is_none() {
            shared.locked(|_, out| out.sender.abort(CloseReason::Panicked));
        }
        self.settle(slot, context);
    }

    /// Removes the connection in `slot` if it has closed.
    fn settle(&mut self, slot: usize, context: &mut Context) {
        if let Some(Peer { shared, .. }) = self.peer(slot)
            && shared.core.state() == State::Draining
            && shared.core.queued() == 0
        {
            let now = context.now;
            shared.locked(|_, out| out.sender.handle_written(now, false, 0));
        }
        let peer = self.slots.get_mut(slot);
        let Some(peer) =
            peer.and_then(|peer| peer.take_if(|peer| peer.shared.core.state() == State::Closed))
        else {
            return;
        };
        self.demux.remove(slot);
        if self.demux.is_empty() {
            self.slots = Vec::new();
        }
        let Peer {
            shared,
            mut handler,
        } = peer;
        let reason = shared.locked(|_, out| out.sender.close_reason());
        let reason = reason.unwrap_or(CloseReason::Io);
        let id = shared.core.id;
        context.closed(&shared.core, reason);
        let mut link = CallbackLink {
            shared: &shared,
            output: &context.output,
            now: context.now,
        };
        guarded("closed", id, &mut context.tally, move || {
            handler.closed(&mut link, reason);
        });
    }
}
