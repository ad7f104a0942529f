//! A datagram socket as its worker keeps it, with its peers: receiving, demultiplexing,
//! delivering, and seeing each connection to its end.

use crate::address::CompactAddr;
use crate::conn::info::Conn;
use crate::conn::key::ConnKey;
use crate::conn::permit::Owned;
use crate::log::{debug, warn_limited};
use crate::metrics::Counts;
use crate::network::listening::Listening;
use crate::sys::{self, Datagram, ReceiveBatch};
use crate::udp::link::PeerLink;
use crate::udp::senders::Senders;
use crate::udp::socket::{DatagramSocket, PeerShared};
use crate::user_callback::run_callback;
use crate::worker::budget::Budget;
use crate::worker::mailbox::BoxedHandler;
use crate::worker::resources::{WorkerResources, count_closed};
use cubenet_core::connection::datagram::reports_errors;
use cubenet_core::demux::{Fingerprint, GrowingTable, Hint};
use cubenet_core::{
    Action, Arrival, CloseReason, ConnectionId, DatagramHalf, Demux, Handler, Instant, Link,
    Message, State, Timeout, Transport, TransportError,
};
use std::io;
use std::sync::Arc;

/// The most errors in a row a socket is read past before the others are served.
const MAX_ERRORS: usize = 64;

/// A datagram socket and its connections, as their worker keeps them.
pub(crate) struct Peers {
    pub(super) socket: Arc<DatagramSocket>,
    /// By fingerprints of their addresses, which their connections have.
    pub(super) demux: Demux<Fingerprint, GrowingTable<Fingerprint>>,
    /// The connections, by their slot in the demultiplexer.
    pub(super) slots: Vec<Option<Peer>>,
    /// `None` if it was connected to its only peer.
    pub(super) listening: Option<Arc<Listening>>,
    /// Datagrams received and not delivered, since the budget was used up.
    pub(super) rest: Option<Rest>,
    /// When its timer is set to.
    pub(crate) armed: Instant,
    /// It is in the run queue.
    pub(crate) scheduled: bool,
    /// Its callbacks took little time when they ran last.
    was_quick: bool,
    /// The socket is watched for room to send, since something waits.
    pub(super) watches_room: bool,
    /// It is left to another process.
    pub(super) has_left: bool,
    /// When the callbacks began that run in a row; and whether any has run.
    began: Instant,
    has_called: bool,
    /// Messages that they were given, and the bytes of those.
    delivered: (u64, u64),
}

/// A batch of datagrams of which the first `done` have been delivered.
pub(super) struct Rest {
    batch: Box<ReceiveBatch>,
    done: usize,
}

pub(super) struct Peer {
    pub(super) shared: Owned<PeerShared>,
    handler: BoxedHandler,
}

impl Peer {
    pub(super) fn new(shared: Owned<PeerShared>, handler: BoxedHandler) -> Self {
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
        shared: Owned<PeerShared>,
        handler: BoxedHandler,
        resources: &mut WorkerResources,
    ) -> Self {
        let mut peers = Peers::new(Arc::clone(&shared.socket), None, Some(1));
        let peer = peers.fingerprint(&shared.info().raw_peer());
        peers.demux.insert(peer, resources.now);
        peers.socket.group.add_peer(1);
        peers.slots.push(Some(Peer::new(shared, handler)));
        peers.begin_batch(resources);
        peers.counts().connected.count();
        peers.call("connected", 0, resources, |handler, link| {
            handler.connected(link);
        });
        resources.tick();
        peers.end_batch(resources);
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
        let hash_key = socket.home.network().hash_key;
        Peers {
            demux: Demux::new(GrowingTable::new(), hash_key, &limits),
            slots: Vec::new(),
            listening,
            rest: None,
            socket,
            armed: Instant::NEVER,
            scheduled: false,
            was_quick: false,
            watches_room: false,
            has_left: false,
            began: Instant::ZERO,
            has_called: false,
            delivered: (0, 0),
        }
    }

    /// Whether nothing is left to do, on any socket of its listener: no peers, none to come, nothing
    /// to send.
    pub(crate) fn is_done(&self) -> bool {
        !self.socket.is_open() && !self.socket.has_waiting() && self.socket.group.peers() == 0
    }

    /// Numbers of its listener's connections, or of those that the network has opened.
    pub(crate) fn counts(&self) -> &Counts {
        &self.socket.home.counts
    }

    pub(crate) fn poll_timeout(&mut self) -> Instant {
        self.demux.set_backlog(self.scheduled);
        self.demux.poll_timeout()
    }

    /// Its token has come up in the run queue.
    pub(crate) fn resume(&mut self, token: usize, resources: &mut WorkerResources) {
        self.scheduled = false;
        self.flush(token, resources);
        self.read(token, resources);
    }

    /// Receives and delivers, within the budget of an iteration.
    pub(crate) fn read(&mut self, token: usize, resources: &mut WorkerResources) {
        if self.socket.is_to_leave() {
            return self.leave(token, resources);
        }
        let budgets = &resources.network.budgets;
        let mut budget = Budget::new(budgets, budgets.datagrams(), resources.now, self.was_quick);
        self.begin_batch(resources);
        if let Some(rest) = self.rest.take()
            && !self.deliver_batch(rest, token, &mut budget, resources)
        {
            return self.end_batch(resources);
        }
        let mut errors = 0;
        loop {
            let batch = resources.datagrams_in.take();
            let mut batch = batch.unwrap_or_else(|| Box::new(ReceiveBatch::new()));
            let received = sys::receive(&mut batch, &self.socket.socket);
            match received {
                Ok(more) => {
                    let rest = Rest { batch, done: 0 };
                    if !self.deliver_batch(rest, token, &mut budget, resources) || !more {
                        break;
                    }
                }
                Err(error) => {
                    resources.datagrams_in = Some(batch);
                    match error.kind() {
                        io::ErrorKind::WouldBlock => break,
                        io::ErrorKind::Interrupted => {}
                        kind => {
                            errors += 1;
                            self.receive_failed(kind, &error, resources);
                        }
                    }
                }
            }
            // Until `WouldBlock`, since some systems tell of nothing new before.
            if !budget.is_left() || errors == MAX_ERRORS {
                resources.schedule(token, &mut self.scheduled);
                break;
            }
        }
        self.was_quick = budget.was_quick();
        self.end_batch(resources);
    }

    /// Delivers a batch, and sends what that gave rise to. Returns whether all of it was
    /// delivered; if the budget did not allow that, the rest waits for another iteration.
    pub(super) fn deliver_batch(
        &mut self,
        rest: Rest,
        token: usize,
        budget: &mut Budget,
        resources: &mut WorkerResources,
    ) -> bool {
        let Rest { batch, mut done } = rest;
        let (mut all, mut slow) = (true, false);
        let mut senders = std::mem::take(&mut resources.senders);
        self.look_ahead(&batch, &mut senders);
        for datagram in batch.datagrams().skip(done) {
            if !budget.is_left() {
                all = false;
                break;
            }
            self.datagram(&datagram, senders.get(datagram.sender), resources);
            done += 1;
            if budget.spend() {
                slow |= budget.look(&resources.network);
                resources.now = budget.now();
            }
        }
        resources.senders = senders;
        resources.batch.borrow_mut().flush_datagrams(&self.socket);
        if slow | budget.look(&resources.network) {
            // While the callbacks ran, the socket was not read and no peer was answered: the idle time of
            // peers that wait for an answer begins now.
            resources.now = budget.now();
            for datagram in batch.datagrams().take(done) {
                let peer = self.fingerprint(&datagram.from);
                self.demux.handle_delivered(&peer, resources.now);
            }
        }
        if all {
            resources.datagrams_in = Some(batch);
        } else {
            self.rest = Some(Rest { batch, done });
            resources.schedule(token, &mut self.scheduled);
        }
        all
    }

    /// Looks for the senders of a batch, whose connections are then at hand: with many peers each lies
    /// in memory that is far, and here their ways from there overlap.
    fn look_ahead(&self, batch: &ReceiveBatch, senders: &mut Senders) {
        let peers = batch.senders().map(|sender| self.fingerprint(sender));
        let (peers, hints) = senders.fill(peers);
        self.demux.look_ahead(peers.iter(), hints);
        let found = hints.iter().filter_map(|hint| self.peer(hint.slot()?));
        let states = found.map(|peer| peer.shared.info().state() as u8);
        std::hint::black_box(states.fold(0, u8::wrapping_add));
    }

    pub(super) fn fingerprint(&self, address: &CompactAddr) -> Fingerprint {
        Fingerprint::of(address, self.socket.home.network().hash_key)
    }

    /// From here on, what the connections of this socket send is gathered.
    pub(super) fn begin_batch(&mut self, resources: &mut WorkerResources) {
        resources.tick();
        self.began = resources.now;
        resources.batch.borrow_mut().begin(self.socket.id);
    }

    /// Hands what was gathered to the socket.
    pub(super) fn end_batch(&mut self, resources: &mut WorkerResources) {
        let mut batch = resources.batch.borrow_mut();
        batch.flush_datagrams(&self.socket);
        batch.end();
        drop(batch);
        if std::mem::take(&mut self.has_called) {
            // Who sees the count sees what they have done.
            let (messages, bytes) = std::mem::take(&mut self.delivered);
            self.counts().own_messages_in.add(messages);
            self.counts().own_bytes_in.add(bytes);
            resources.tick();
            let times = &self.counts().handler_time;
            times.record(self.began, resources.now);
        }
    }

    /// An error of a receive is about a datagram that was sent, or about nothing that lasts.
    fn receive_failed(
        &mut self,
        kind: io::ErrorKind,
        error: &io::Error,
        resources: &mut WorkerResources,
    ) {
        use io::ErrorKind::{ConnectionRefused, ConnectionReset};
        if !matches!(kind, ConnectionRefused | ConnectionReset) {
            warn_limited!(local = %self.socket.local, %error, "datagram not received");
        }
        if self.listening.is_none() && !self.slots.is_empty() {
            self.tell_error(0, TransportError::Unreachable, resources);
        }
    }

    /// A datagram arrived.
    fn datagram(
        &mut self,
        datagram: &Datagram<'_>,
        (peer, hint): (Fingerprint, Hint),
        resources: &mut WorkerResources,
    ) {
        let from = datagram.from;
        let len = datagram.bytes.len();
        let (network, socket) = (&resources.network, &self.socket);
        let has_room = || socket.has_room(false) && network.has_room(Transport::Udp);
        let now = resources.now;
        let arrival = self
            .demux
            .handle_datagram_at(hint, &peer, len, has_room, now);
        if let Arrival::Deliver(slot) | Arrival::Close(slot) | Arrival::TooLong(Some(slot)) =
            arrival
            && !self.is_peer(slot, &from)
        {
            // Two addresses with one fingerprint: the later one has no place.
            self.counts().dropped_table_full.count();
            return;
        }
        match arrival {
            Arrival::Deliver(slot) => self.deliver(slot, datagram.bytes, resources),
            Arrival::Close(slot) => self.peer_closed(slot, resources),
            arrival @ (Arrival::Admit | Arrival::Evict(_) | Arrival::Refuse) => {
                self.newcomer(datagram, arrival, resources);
            }
            Arrival::TooLong(slot) => {
                self.counts().dropped_too_long.count();
                if let Some(slot) = slot {
                    let limit = self.socket.home.limits.max_datagram();
                    self.tell_error(
                        slot,
                        TransportError::DatagramTooLong { len, limit },
                        resources,
                    );
                }
            }
            _ => self.counts().dropped_empty.count(),
        }
    }

    pub(super) fn deliver(
        &mut self,
        slot: usize,
        datagram: &[u8],
        resources: &mut WorkerResources,
    ) {
        let Some(peer) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        if !peer.shared.info().delivers() {
            if peer.shared.info().is_paused() {
                self.counts().dropped_paused.count();
            }
            return;
        }
        let message = Message::lent(datagram);
        self.call("received", slot, resources, |handler, link| {
            handler.received(link, message);
        });
        self.delivered.0 += 1;
        self.delivered.1 += datagram.len() as u64;
    }

    /// Another thread asked for the socket, or one of its connections, to be looked at.
    pub(crate) fn wake(&mut self, key: ConnKey, id: ConnectionId, resources: &mut WorkerResources) {
        self.socket.wake.answered();
        if self.socket.is_to_leave() {
            self.leave(key.token as usize, resources);
        }
        if self.is_at(key, id)
            && let Some(peer) = self.peer(key.slot as usize)
        {
            peer.shared.info().wake.answered();
        }
        self.flush(key.token as usize, resources);
        self.begin_batch(resources);
        for failure in self.socket.take_errors() {
            let (peer, error) = (failure.peer, &failure.error);
            match failure.reported {
                TransportError::NotSent { len } => {
                    warn_limited!(%peer, len, %error, "datagram not sent");
                }
                _ => {
                    debug!(%peer, %error, "datagrams were lost");
                }
            }
            if self.is_at(failure.key, failure.id) {
                self.tell_error(failure.key.slot as usize, failure.reported, resources);
            }
        }
        if self.is_at(key, id) {
            self.after_io(key.slot as usize, resources);
        }
        self.end_batch(resources);
    }

    /// Whether the connection in `slot` is with the peer of this address.
    fn is_peer(&self, slot: usize, address: &CompactAddr) -> bool {
        let peer = self.peer(slot);
        peer.is_some_and(|peer| peer.shared.info().raw_peer() == *address)
    }

    /// The connection in `slot`, if there is one. Callbacks may have emptied any slot.
    pub(super) fn peer(&self, slot: usize) -> Option<&Peer> {
        self.slots.get(slot)?.as_ref()
    }

    /// A task of the application's has run on a connection, and perhaps panicked.
    pub(crate) fn after_task(
        &mut self,
        key: ConnKey,
        panicked: bool,
        resources: &mut WorkerResources,
    ) {
        if let Some(peer) = self.peer(key.slot as usize).filter(|_| panicked) {
            peer.shared.abort(CloseReason::Panicked);
        }
        self.begin_batch(resources);
        self.after_io(key.slot as usize, resources);
        self.end_batch(resources);
    }

    /// Whether it has this connection, and that has not closed.
    pub(crate) fn is_open_at(&self, key: ConnKey, id: ConnectionId) -> bool {
        let peer = self.peer(key.slot as usize);
        peer.is_some_and(|peer| {
            let info = peer.shared.info();
            info.id == id && info.state() != State::Closed
        })
    }

    pub(super) fn is_at(&self, key: ConnKey, id: ConnectionId) -> bool {
        let peer = self.peer(key.slot as usize);
        peer.is_some_and(|peer| peer.shared.info().id == id)
    }

    /// Closes the peers that were idle too long. What the kernel has counts first: this thread may
    /// have been held up by a callback.
    pub(crate) fn handle_timeout(&mut self, token: usize, resources: &mut WorkerResources) {
        if !self.scheduled {
            self.read(token, resources);
        }
        let budgets = &resources.network.budgets;
        let mut budget = Budget::new(budgets, budgets.datagrams(), resources.now, false);
        self.demux.set_backlog(self.scheduled);
        while budget.is_left()
            && let Some(slot) = self.demux.handle_timeout(resources.now)
        {
            self.fail(slot, CloseReason::Timeout(Timeout::Idle), resources);
            if budget.spend() {
                budget.look(&resources.network);
            }
        }
        resources.now = resources.now.max(budget.now());
    }

    fn tell_error(&mut self, slot: usize, error: TransportError, resources: &mut WorkerResources) {
        let peer = self.slots.get(slot).and_then(Option::as_ref);
        if peer.is_some_and(|peer| reports_errors(peer.shared.info().state())) {
            self.call("error", slot, resources, |handler, link| {
                handler.error(link, error);
            });
        }
    }

    fn peer_closed(&mut self, slot: usize, resources: &mut WorkerResources) {
        if let Some(peer) = self.peer(slot) {
            peer.shared.locked(DatagramHalf::handle_close_datagram);
        }
        self.after_io(slot, resources);
    }

    fn fail(&mut self, slot: usize, reason: CloseReason, resources: &mut WorkerResources) {
        if let Some(peer) = self.peer(slot) {
            peer.shared.abort(reason);
        }
        self.after_io(slot, resources);
    }

    /// Runs a callback of the connection in `slot`, then sees whether that ended it.
    pub(super) fn call(
        &mut self,
        what: &str,
        slot: usize,
        resources: &mut WorkerResources,
        callback: impl FnOnce(&mut dyn Handler, &mut dyn Link),
    ) {
        let Some(peer) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        let Peer { shared, handler } = peer;
        self.has_called = true;
        resources.batch.borrow_mut().begin_callback();
        let mut link = PeerLink {
            shared,
            batch: &resources.batch,
            now: resources.now,
        };
        let done = run_callback(what, shared.info().id, &shared.home().counts, || {
            callback(&mut **handler, &mut link);
        });
        if done.is_none() {
            resources.batch.borrow_mut().discard_datagrams(shared);
            shared.abort(CloseReason::Panicked);
        }
        if !shared.info().is_state(State::Open) {
            self.after_io(slot, resources);
        }
    }

    /// Does what the connection in `slot` has to do next, and removes it if it has closed.
    pub(super) fn after_io(&mut self, slot: usize, resources: &mut WorkerResources) {
        let Some(peer) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        let shared = &peer.shared;
        if shared.info().is_open() {
            return;
        }
        if shared.info().state() == State::Draining {
            // So that what was sent counts as queued if the system does not take it.
            resources.batch.borrow_mut().flush_datagrams(&self.socket);
        }
        let mut action = shared.locked(|half| half.poll_action(shared.info().queued()));
        if action == Action::SendFin {
            if shared.has_gathered() {
                // The batch that has gathered it asks for another look.
                return;
            }
            let mut batch = resources.batch.borrow_mut();
            batch.push_datagram(shared, &[]);
            batch.flush_datagrams(&self.socket);
            drop(batch);
            action = shared.locked(|half| {
                half.handle_fin_sent();
                half.poll_action(shared.info().queued())
            });
        }
        if let Action::Wait | Action::SendFin = action {
            return;
        }
        let Some(peer) = self.slots[slot].take() else {
            return;
        };
        self.demux.remove(slot);
        self.socket.remove_peer();
        if self.demux.is_empty() {
            self.slots = Vec::new();
        }
        self.finish_peer(peer, resources);
    }

    /// A connection has closed and left its slot: tells the application and counts it.
    pub(super) fn finish_peer(&mut self, peer: Peer, resources: &mut WorkerResources) {
        self.has_called = true;
        let Peer {
            shared,
            mut handler,
        } = peer;
        let action = shared.locked(|half| half.poll_action(shared.info().queued()));
        let reason = match action {
            Action::Close(reason) => reason,
            Action::Reset(reason) => {
                self.socket.forget(&shared);
                reason
            }
            Action::Wait | Action::SendFin => CloseReason::Io,
        };
        let id = shared.info().id;
        shared.release();
        count_closed(shared.info(), self.counts(), reason, None);
        let mut link = PeerLink {
            shared: &shared,
            batch: &resources.batch,
            now: resources.now,
        };
        run_callback("closed", id, self.counts(), || {
            handler.closed(&mut link, reason);
        });
        // By itself: a destructor that panics while another panic unwinds would abort.
        run_callback("drop", id, self.counts(), || drop(handler));
    }
}
