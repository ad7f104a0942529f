//! A datagram socket as its worker keeps it, with its peers: receiving, demultiplexing,
//! delivering, and seeing each connection to its end.

mod admission;

use crate::budget::Budget;
use crate::callback::guarded;
use crate::datagram::DatagramSocket;
use crate::link::CallbackLink;
use crate::listening::Listening;
use crate::log::{debug, warn_limited};
use crate::mailbox::BoxedHandler;
use crate::seat::Seat;
use crate::shared::Place;
use crate::sys::{self, Datagram, ReceiveBatch};
use crate::worker::Context;
use cubenet_core::demux::{Admission, GrowingTable};
use cubenet_core::{
    Action, Arrival, CloseReason, ConnectionId, Demux, Handler, Instant, Link, Message, Reading,
    Timeout, TransportError,
};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

/// The most errors in a row a socket is read past before the others get their turn.
const MAX_ERRORS: usize = 64;

/// A datagram socket and its connections, as their worker keeps them.
pub(crate) struct Peers {
    socket: Arc<DatagramSocket>,
    demux: Demux<SocketAddr, GrowingTable<SocketAddr>>,
    /// The connections, by their slot in the demultiplexer.
    slots: Vec<Option<Peer>>,
    /// `None` if it was connected to its only peer.
    listening: Option<Arc<Listening>>,
    /// What was received and not delivered, since the turn was over.
    rest: Option<Rest>,
    pub(crate) armed: Instant,
    pub(crate) in_line: bool,
}

/// A batch of datagrams of which the first `done` have been delivered.
struct Rest {
    batch: Box<ReceiveBatch>,
    done: usize,
}

struct Peer {
    shared: Seat,
    handler: Box<dyn Handler + Send>,
}

impl Peer {
    fn new(shared: Seat, handler: Box<dyn Handler + Send>) -> Self {
        Peer { shared, handler }
    }
}

impl Peers {
    pub(crate) fn listening(socket: Arc<DatagramSocket>, listening: Arc<Listening>) -> Self {
        Peers::new(socket, Some(listening), None)
    }

    /// A socket that was connected: one peer, which is there from the beginning. Tells the
    /// application so.
    pub(crate) fn connected(
        socket: Arc<DatagramSocket>,
        shared: Seat,
        handler: BoxedHandler,
        context: &mut Context,
    ) -> Self {
        let mut peers = Peers::new(socket, None, Some(1));
        peers.demux.insert(shared.core.raw_peer(), context.now);
        peers.slots.push(Some(Peer::new(shared, handler)));
        peers.begin_output(context);
        context.tally.connected += 1;
        peers.call("connected", 0, context, |handler, link| {
            handler.connected(link);
        });
        context.tick();
        peers.end_output(context);
        peers
    }

    fn new(
        socket: Arc<DatagramSocket>,
        listening: Option<Arc<Listening>>,
        max_peers: Option<usize>,
    ) -> Self {
        let mut limits = (*socket.home.limits).clone();
        if let Some(max_peers) = max_peers {
            limits = limits.with_max_peers(max_peers).with_reserved_peers(0);
        }
        let hash_key = socket.home.worker.common.hash_key;
        Peers {
            demux: Demux::new(GrowingTable::new(), hash_key, &limits),
            slots: Vec::new(),
            listening,
            rest: None,
            socket,
            armed: Instant::NEVER,
            in_line: false,
        }
    }

    /// Whether nothing is left to do: no peers, none to come, nothing to send.
    pub(crate) fn is_done(&self) -> bool {
        self.demux.is_empty() && !self.socket.is_open() && !self.socket.has_waiting()
    }

    pub(crate) fn poll_timeout(&mut self) -> Instant {
        self.demux.set_backlog(self.in_line);
        self.demux.poll_timeout()
    }

    /// Its turn has come again.
    pub(crate) fn resume(&mut self, entry: usize, context: &mut Context) {
        self.in_line = false;
        if self.socket.has_waiting() {
            self.flush(entry, context);
        }
        self.read(entry, context);
    }

    /// Receives and delivers, within the budget of a turn.
    pub(crate) fn read(&mut self, entry: usize, context: &mut Context) {
        let budgets = &context.common.budgets;
        let mut budget = Budget::new(budgets, budgets.datagrams(), context.now);
        self.begin_output(context);
        if let Some(rest) = self.rest.take()
            && !self.deliver_batch(rest, entry, &mut budget, context)
        {
            return self.end_output(context);
        }
        let mut errors = 0;
        loop {
            let batch = context.datagrams_in.take();
            let mut batch = batch.unwrap_or_else(|| Box::new(ReceiveBatch::new()));
            let received = sys::receive(&mut batch, &self.socket.socket);
            match received {
                Ok(more) => {
                    let rest = Rest { batch, done: 0 };
                    if !self.deliver_batch(rest, entry, &mut budget, context) || !more {
                        break;
                    }
                }
                Err(error) => {
                    context.datagrams_in = Some(batch);
                    match error.kind() {
                        io::ErrorKind::WouldBlock => break,
                        io::ErrorKind::Interrupted => {}
                        kind => {
                            errors += 1;
                            self.receive_failed(kind, &error, context);
                        }
                    }
                }
            }
            // Until `WouldBlock`, since some systems tell of nothing new before.
            if !budget.is_left() || errors == MAX_ERRORS {
                context.line_up(entry, &mut self.in_line);
                break;
            }
        }
        self.end_output(context);
    }

    /// Delivers a batch, and sends what that gave rise to. Returns whether all of it was
    /// delivered; if the budget did not allow that, the rest waits for another turn.
    fn deliver_batch(
        &mut self,
        rest: Rest,
        entry: usize,
        budget: &mut Budget,
        context: &mut Context,
    ) -> bool {
        let Rest { batch, mut done } = rest;
        let (mut all, mut slow) = (true, false);
        for datagram in batch.datagrams().skip(done) {
            if !budget.is_left() {
                all = false;
                break;
            }
            self.datagram(&datagram, context);
            done += 1;
            slow |= budget.spend(&context.common);
            context.now = budget.now();
        }
        context.output.borrow_mut().flush_datagrams(&self.socket);
        if slow | budget.look(&context.common) {
            // While the callbacks ran nobody listened, and nobody was answered: the silence of
            // those who wait for an answer begins now.
            context.now = budget.now();
            for datagram in batch.datagrams().take(done) {
                self.demux.handle_delivered(&datagram.from, context.now);
            }
        }
        if all {
            context.datagrams_in = Some(batch);
        } else {
            self.rest = Some(Rest { batch, done });
            context.line_up(entry, &mut self.in_line);
        }
        all
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
        if self.listening.is_none() && !self.slots.is_empty() {
            self.tell_error(0, TransportError::Unreachable, context);
        }
    }

    /// A datagram arrived.
    fn datagram(&mut self, datagram: &Datagram<'_>, context: &mut Context) {
        let from = datagram.from;
        let len = datagram.bytes.len();
        let mut arrival = self.demux.handle_datagram(&from, len, context.now);
        let mut recognised = false;
        if let Arrival::Admit | Arrival::Evict(_) | Arrival::Refuse = arrival
            && let Some(listening) = self.listening.as_ref().filter(|one| one.has_hook())
        {
            match admission::ask_hook(listening, datagram, context) {
                Admission::Admit => {}
                Admission::Recognise => {
                    recognised = true;
                    arrival = self.demux.newcomer(true, context.now);
                }
                _ => {
                    context.tally.dropped_not_admitted += 1;
                    return;
                }
            }
        }
        match arrival {
            Arrival::Deliver(slot) => self.deliver(slot, datagram.bytes, context),
            Arrival::Close(slot) => self.peer_closed(slot, context),
            Arrival::Admit => self.admit(datagram, recognised, None, context),
            Arrival::Evict(slot) => self.admit(datagram, recognised, Some(slot), context),
            Arrival::Refuse => {
                context.tally.dropped_table_full += 1;
                warn_limited!(peer = %from, "datagram dropped: the table of peers is full");
            }
            Arrival::TooLong(slot) => {
                context.tally.dropped_too_long += 1;
                if let Some(slot) = slot {
                    let limit = self.socket.home.limits.max_datagram();
                    self.tell_error(
                        slot,
                        TransportError::DatagramTooLong { len, limit },
                        context,
                    );
                }
            }
            _ => context.tally.dropped_empty += 1,
        }
    }

    fn deliver(&mut self, slot: usize, datagram: &[u8], context: &mut Context) {
        let Some(peer) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        if peer.shared.core.reading() != Reading::Deliver {
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

    /// Somebody asked for the socket or one of its connections to be looked at.
    pub(crate) fn attend(&mut self, place: Place, id: ConnectionId, context: &mut Context) {
        self.socket.wake.answered();
        if self.is_at(place, id)
            && let Some(peer) = self.peer(place.slot as usize)
        {
            peer.shared.core.wake.answered();
        }
        self.flush(place.entry as usize, context);
        self.begin_output(context);
        for failure in self.socket.take_errors() {
            let (peer, error) = (failure.peer, &failure.error);
            match failure.told {
                TransportError::NotSent { len } => {
                    warn_limited!(%peer, len, %error, "datagram not sent");
                }
                _ => {
                    debug!(%peer, %error, "datagrams were lost");
                }
            }
            if self.is_at(failure.place, failure.id) {
                self.tell_error(failure.place.slot as usize, failure.told, context);
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
    pub(crate) fn flush(&mut self, entry: usize, context: &mut Context) {
        if !self.socket.has_waiting() {
            return;
        }
        self.begin_output(context);
        let flushed = self.socket.flush(context.common.budgets.datagrams());
        if flushed.more {
            context.line_up(entry, &mut self.in_line);
        }
        let mut senders = flushed.senders;
        senders.dedup_by(|one, other| Arc::ptr_eq(one, other));
        for shared in senders {
            let Place { slot, .. } = shared.core.place();
            let writable =
                shared.locked(|core, out| out.half.poll_writable(core.backlog(), core.limits()));
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
        if !self.in_line {
            self.read(entry, context);
        }
        let budgets = &context.common.budgets;
        let mut budget = Budget::new(budgets, budgets.datagrams(), context.now);
        self.demux.set_backlog(self.in_line);
        while budget.is_left()
            && let Some(slot) = self.demux.handle_timeout(context.now)
        {
            self.fail(slot, CloseReason::Timeout(Timeout::Idle), context);
            budget.spend(&context.common);
        }
        context.now = context.now.max(budget.now());
    }

    /// Asks every connection to close; `abort`: at once.
    pub(crate) fn stop(&mut self, abort: bool, context: &mut Context) {
        self.socket.close();
        self.begin_output(context);
        for slot in 0..self.slots.len() {
            if let Some(peer) = self.peer(slot) {
                if abort {
                    peer.shared.abort(CloseReason::Local);
                } else {
                    peer.shared.close();
                }
                self.settle(slot, context);
            }
        }
        self.end_output(context);
        if abort {
            self.socket.discard();
        }
    }

    /// The socket is done with: nobody may queue datagrams on it any more.
    pub(crate) fn finish(&self) {
        self.socket.finish();
    }

    fn tell_error(&mut self, slot: usize, error: TransportError, context: &mut Context) {
        self.call("error", slot, context, |handler, link| {
            handler.error(link, error);
        });
    }

    fn peer_closed(&mut self, slot: usize, context: &mut Context) {
        if let Some(peer) = self.peer(slot) {
            peer.shared.locked(|_, out| {
                if let Some(half) = out.half.datagrams() {
                    half.handle_close_datagram();
                }
            });
        }
        self.settle(slot, context);
    }

    fn fail(&mut self, slot: usize, reason: CloseReason, context: &mut Context) {
        if let Some(peer) = self.peer(slot) {
            peer.shared.abort(reason);
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
        context.output.borrow_mut().begin_callback();
        let mut link = CallbackLink {
            shared,
            output: &context.output,
            now: context.now,
        };
        let done = guarded(what, shared.core.id, &mut context.tally, || {
            callback(&mut **handler, &mut link);
        });
        if done.is_none() {
            context.output.borrow_mut().discard(shared);
            shared.abort(CloseReason::Panicked);
        }
        self.settle(slot, context);
    }

    /// Does what the connection in `slot` has to do next, and removes it if it has closed.
    fn settle(&mut self, slot: usize, context: &mut Context) {
        let Some(peer) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        let shared = &peer.shared;
        if shared.core.is_open() {
            return;
        }
        let mut action = shared.locked(|core, out| out.poll_action(core));
        if action == Action::SendFin {
            let mut output = context.output.borrow_mut();
            output.push_datagram(&self.socket, shared, &[]);
            drop(output);
            action = shared.locked(|core, out| {
                out.half.handle_fin_sent();
                out.poll_action(core)
            });
        }
        if let Action::Wait | Action::SendFin = action {
            return;
        }
        let Some(peer) = self.slots[slot].take() else {
            return;
        };
        self.demux.remove(slot);
        if self.demux.is_empty() {
            self.slots = Vec::new();
        }
        self.finish_peer(peer, context);
    }

    /// A connection has closed and left its slot: tells the application and counts it.
    fn finish_peer(&self, peer: Peer, context: &mut Context) {
        let Peer {
            shared,
            mut handler,
        } = peer;
        let action = shared.locked(|core, out| out.poll_action(core));
        let reason = match action {
            Action::Close(reason) => reason,
            Action::Reset(reason) => {
                self.socket.forget(&shared);
                reason
            }
            Action::Wait | Action::SendFin => CloseReason::Io,
        };
        let id = shared.core.id;
        shared.leave();
        context.closed(&shared.core, reason, None);
        let mut link = CallbackLink {
            shared: &shared,
            output: &context.output,
            now: context.now,
        };
        guarded("closed", id, &mut context.tally, || {
            handler.closed(&mut link, reason);
        });
        // By itself: a destructor that panics while another panic unwinds would abort.
        guarded("drop", id, &mut context.tally, || drop(handler));
    }
}
