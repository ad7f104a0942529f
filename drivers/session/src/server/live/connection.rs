//! A session's connection: what comes by it, what is sent on it, and what happens without one.

use super::{Event, Greeted, Live, State};
use crate::client::{MAX_DOUBLINGS, RETRANSMIT_AFTER};
use crate::server::carrier::Carrier;
use crate::server::{Node, OVERHEAD, RETRY};
use crate::wire::{self, End, Numbered, Refusal};
use bytes::Bytes;
use cubenet_core::{ConnectionId, Link, SendError};
use std::sync::Arc;
use std::time::Duration;

/// What messages may count that wait for the handler, while another of its callbacks runs.
const MAX_WAITING: usize = 256 * 1_024;
/// How long a session that would expire waits for a resume that is under way.
const GRACE: Duration = Duration::from_secs(1);

/// What comes by the connection. Returns whether it keeps to the rules.
impl Live {
    /// A message has come.
    pub(in crate::server) fn received(
        self: &Arc<Self>,
        node: &Arc<Node>,
        link: &mut dyn Link,
        message: Numbered<'_>,
    ) -> bool {
        if !self.owns(node) {
            return true;
        }
        let payload = Bytes::copy_from_slice(message.payload);
        let mut state = self.state();
        if !state.has_connection(link.id()) {
            return true;
        }
        state.confirm();
        let next = state.incoming.accepted + 1;
        if message.number != next {
            // It has come before, or, of a transport that loses, is behind a gap.
            let is_fine = message.number < next || !link.transport().is_reliable();
            // It did not hear of it.
            state.incoming.acknowledged = 0;
            drop(state);
            self.kick(node);
            self.pump_soon(node);
            return is_fine;
        }
        let waiting = state.waiting + payload.len() + OVERHEAD;
        if waiting > MAX_WAITING && state.running {
            // The client sends it again, when it comes back.
            return false;
        }
        state.waiting = waiting;
        state.incoming.accepted = next;
        state.events.push_back(Event::Message(next, payload));
        drop(state);
        self.run(node);
        true
    }

    /// Messages have arrived at the client.
    pub(in crate::server) fn acknowledged(
        self: &Arc<Self>,
        node: &Arc<Node>,
        connection: ConnectionId,
        number: u64,
    ) -> bool {
        let mut state = self.state();
        if !state.has_connection(connection) {
            return true;
        }
        state.confirm();
        let before = state.outbox.acknowledged();
        if !state.outbox.acknowledge(number) {
            return false;
        }
        if state.outbox.acknowledged() > before {
            state.repeats = 0;
        }
        if state.outbox.take_room(node.limits.max_unacknowledged()) {
            state.events.push_back(Event::Writable);
        }
        let asks = state.outbox.asks();
        drop(state);
        self.run(node);
        self.kick(node);
        if asks {
            self.pump_soon(node);
        }
        true
    }

    /// The client ends the session, behind the messages that have come.
    pub(in crate::server) fn left(self: &Arc<Self>, node: &Arc<Node>, link: &dyn Link) -> bool {
        let mut state = self.state();
        if !state.has_connection(link.id()) {
            return true;
        }
        if std::mem::replace(&mut state.has_left, true) {
            // Once is enough; a transport that repeats may have done so.
            return !link.transport().is_reliable();
        }
        state.events.push_back(Event::Left);
        drop(state);
        self.run(node);
        true
    }
}

/// Connections come and go.
impl Live {
    /// The client has come by this connection, and is to be greeted first. Not, if a later resume was
    /// faster.
    pub(in crate::server) fn attach(
        self: &Arc<Self>,
        node: &Arc<Node>,
        connection: &Arc<dyn Carrier>,
        greeted: Greeted,
    ) {
        let mut state = self.state();
        let refusal = match state.over {
            // It is somewhere, and the client may try again.
            Some(End::TakenOver) => Some(wire::refused(Refusal::Busy, RETRY).to_vec()),
            Some(reason) => Some(wire::ended(reason).to_vec()),
            None if state.fence != greeted.fence => {
                Some(wire::refused(Refusal::Busy, RETRY).to_vec())
            }
            None => None,
        };
        if let Some(refusal) = refusal {
            drop(state);
            let _ = connection.send(&refusal);
            return connection.close();
        }
        let before = state.connection.replace(Arc::clone(connection));
        state.changes += 1;
        state.has_token = false;
        state.repeats = 0;
        // The greeting says what has arrived.
        state.incoming.acknowledged = state.incoming.stored;
        state.outbox.rewind(greeted.greeting.into());
        if std::mem::take(&mut state.is_away) {
            state.events.push_back(Event::Resumed);
        }
        drop(state);
        if let Some(before) = before {
            let _ = before.send(&wire::ended(End::TakenOver));
            before.close();
        }
        self.run(node);
        self.pump(node);
    }

    /// A connection is over, which may be this session's.
    pub(in crate::server) fn detach(self: &Arc<Self>, node: &Arc<Node>, connection: ConnectionId) {
        let mut state = self.state();
        if !state.has_connection(connection) {
            return;
        }
        state.connection = None;
        if state.ending {
            return self.finish_locked(node, End::Application, state);
        }
        let changes = state.suspend();
        drop(state);
        self.suspended(node, changes);
    }

    /// The connection of the resume with this fence was over before it was attached.
    pub(in crate::server) fn never_came(self: &Arc<Self>, node: &Arc<Node>, fence: u64) {
        let mut state = self.state();
        if state.over.is_some() || state.fence != fence || state.connection.is_some() {
            return;
        }
        let changes = state.suspend();
        drop(state);
        self.suspended(node, changes);
    }

    /// The client is away. Waits for it to come back, and no longer than the limit.
    fn suspended(self: &Arc<Self>, node: &Arc<Node>, changes: u64) {
        self.run(node);
        self.kick(node);
        self.expire_after(node.limits.wait(), node, changes);
    }

    fn expire_after(self: &Arc<Self>, wait: Duration, node: &Arc<Node>, changes: u64) {
        let (live, weak) = (Arc::clone(self), Arc::downgrade(node));
        let expire = Box::new(move || {
            if let Some(node) = weak.upgrade() {
                live.expire(&node, changes);
            }
        });
        node.environment.run_after(wait, expire);
    }

    /// The wait is over, unless the client has come back since, or is about to.
    fn expire(self: &Arc<Self>, node: &Arc<Node>, changes: u64) {
        let state = self.state();
        if state.changes != changes {
            return;
        }
        if state.resuming || !state.resumes.is_empty() {
            drop(state);
            return self.expire_after(GRACE, node, changes);
        }
        self.finish_locked(node, End::Expired, state);
    }

    /// Whether this node may still act for the session: the store would have forgotten it otherwise.
    pub(super) fn owns(self: &Arc<Self>, node: &Arc<Node>) -> bool {
        let since = node.environment.now().since(self.state().updated);
        let owns = since < node.limits.expires_in();
        if !owns {
            self.finish(node, End::LeaseLost);
        }
        owns
    }
}

/// What is sent.
impl Live {
    /// Has a job [pump](Self::pump).
    pub(in crate::server) fn pump_soon(self: &Arc<Self>, node: &Arc<Node>) {
        // A client that provokes it gets one, however often.
        if std::mem::replace(&mut self.state().pump_is_due, true) {
            return;
        }
        let (live, node_of_job) = (Arc::clone(self), Arc::clone(node));
        let pump = Box::new(move || {
            live.state().pump_is_due = false;
            live.pump(&node_of_job);
        });
        node.environment.run(pump);
    }

    /// Sends the client what it has to know and does not. One thread does at a time, in order, and never
    /// the connection's own: what that sends leaves when its callbacks have returned, perhaps behind
    /// what another has sent meanwhile.
    pub(super) fn pump(self: &Arc<Self>, node: &Arc<Node>) {
        loop {
            let mut state = self.state();
            let connection = match &state.connection {
                Some(connection) if state.over.is_none() => Arc::clone(connection),
                _ => return,
            };
            if std::mem::replace(&mut state.pumping, true) {
                state.pump_again = true;
                return;
            }
            state.pump_again = false;
            let (changes, stored) = (state.changes, state.incoming.stored);
            let greeting = state.outbox.greeting();
            let ack = (state.incoming.acknowledged < stored).then(|| wire::ack(stored));
            let (before, messages) = state.outbox.to_send();
            let ask = state.outbox.asks().then(wire::ask);
            drop(state);
            let first = greeting.iter().map(|greeting| &greeting[..]);
            let second = ack.iter().map(|ack| &ack[..]);
            let rest = messages.iter().map(|message| &message[..]);
            let last = ask.iter().map(|ask| &ask[..]);
            let packets: Vec<&[u8]> = first.chain(second).chain(rest).chain(last).collect();
            let (mut sent, outcome) = connection.send_all(&packets);
            let (is_progress, was_all) = (sent > 0, sent == packets.len());
            let mut state = self.state();
            state.pumping = false;
            if !connection.is_reliable() {
                self.repeat_later(node, &mut state);
            }
            if state.changes == changes {
                if greeting.is_some() && sent > 0 {
                    state.outbox.greeted();
                    sent -= 1;
                }
                if ack.is_some() && sent > 0 {
                    state.incoming.acknowledged = stored;
                    sent -= 1;
                }
                if ask.is_some() && was_all {
                    state.outbox.asked();
                }
                let messages = sent.min(messages.len());
                state.outbox.sent_to(before + messages as u64);
            }
            if state.ending && state.outbox.is_sent() {
                return self.finish_locked(node, End::Application, state);
            }
            let goes_on = match outcome {
                Ok(()) => is_progress,
                // `writable` goes on, or another connection.
                Err(SendError::Full | SendError::Closed) => false,
                // `SessionLimits::max_message` does not fit the driver's: it would never leave.
                Err(_) => return self.finish_locked(node, End::Application, state),
            };
            if !state.pump_again && !goes_on {
                return;
            }
        }
    }
}

/// What a transport loses.
impl Live {
    /// Has a job look later whether the client has answered.
    fn repeat_later(self: &Arc<Self>, node: &Arc<Node>, state: &mut State) {
        if std::mem::replace(&mut state.repeat_is_due, true) {
            return;
        }
        let seen = (state.changes, state.outbox.acknowledged());
        let doublings = state.repeats.min(MAX_DOUBLINGS);
        let (live, weak) = (Arc::clone(self), Arc::downgrade(node));
        let repeat = Box::new(move || {
            if let Some(node) = weak.upgrade() {
                live.repeat(&node, seen);
            }
        });
        let delay = RETRANSMIT_AFTER * (1 << doublings);
        node.environment.run_after(delay, repeat);
    }

    /// If the client has answered nothing since, sends again what it has not acknowledged.
    fn repeat(self: &Arc<Self>, node: &Arc<Node>, seen: (u64, u64)) {
        let mut state = self.state();
        state.repeat_is_due = false;
        if state.over.is_some() || state.connection.is_none() || !state.outbox.is_owed() {
            return;
        }
        if seen == (state.changes, state.outbox.acknowledged()) {
            state.repeats = state.repeats.saturating_add(1);
            state.outbox.repeat();
            drop(state);
            return self.pump(node);
        }
        self.repeat_later(node, &mut state);
    }
}

impl State {
    /// The client is away, as the handler is told. Returns what says whether it has come back.
    fn suspend(&mut self) -> u64 {
        self.changes += 1;
        // The store keeps it from now on.
        self.dirty = true;
        if !std::mem::replace(&mut self.is_away, true) {
            self.events.push_back(Event::Suspended);
        }
        self.changes
    }
}
