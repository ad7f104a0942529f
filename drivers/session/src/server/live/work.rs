//! What a session asks of the store: one operation at a time, on the environment's threads.

use super::{Event, Greeted, Live, PendingResume, Refused, State};
use crate::server::{Node, RETRY};
use crate::store::{Store, StoreError, Update};
use crate::wire::{self, End, Refusal};
use cubenet_core::Instant;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

/// Resumes of a session that wait for the store.
const MAX_RESUMES: usize = 8;
/// When an update is tried again that the store could not be reached for.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// An update under way.
struct Begun {
    update: Update,
    fence: u64,
    at: Instant,
}

impl Live {
    /// Has a job look at the session, if there is something to store, or a resume waits.
    pub(in crate::server) fn kick(self: &Arc<Self>, node: &Arc<Node>) {
        let mut state = self.state();
        if state.busy || !state.has_work() {
            return;
        }
        state.busy = true;
        drop(state);
        let (live, node_of_job) = (Arc::clone(self), Arc::clone(node));
        let work = Box::new(move || live.work(&node_of_job));
        node.environment.run(work);
    }

    /// Stores what there is, and looks after a resume, until there is nothing more to do.
    fn work(self: &Arc<Self>, node: &Arc<Node>) {
        loop {
            let mut state = self.state();
            if !state.has_work() {
                state.busy = false;
                return;
            }
            // A client that waits comes first: there may always be something to store.
            if let Some(resume) = state.resumes.pop_front() {
                state.resuming = true;
                drop(state);
                self.resume_here(node, resume);
                self.state().resuming = false;
                continue;
            }
            let begun = state.begin_update(node);
            drop(state);
            let update = |store: &dyn Store| store.update(self.id, begun.fence, &begun.update);
            let outcome = node.store.ask(&*node.environment, update);
            if !self.end_update(node, begun, &outcome) {
                return;
            }
        }
    }

    /// An update has been kept, or not. Returns whether there may be more to do now.
    fn end_update(
        self: &Arc<Self>,
        node: &Arc<Node>,
        begun: Begun,
        outcome: &Result<(), StoreError>,
    ) -> bool {
        let Begun { update, at, .. } = begun;
        match outcome {
            Ok(()) => {
                let mut state = self.state();
                state.updated = at;
                state.last_kept = update.number;
                state.incoming.stored = update.received;
                state.outbox.keep(update.messages.len());
                drop(state);
                self.pump(node);
                true
            }
            Err(StoreError::Away(_)) => {
                let mut state = self.state();
                state.dirty = true;
                state.confirms |= update.confirmed;
                if state.data.is_none() {
                    state.data = update.data;
                }
                let refused = std::mem::take(&mut state.resumes);
                drop(state);
                for resume in refused {
                    (resume.reply)(Err((Refusal::StoreAway, RETRY)));
                }
                if !self.owns(node) {
                    return true;
                }
                let (live, weak) = (Arc::clone(self), Arc::downgrade(node));
                let again = Box::new(move || {
                    if let Some(node) = weak.upgrade() {
                        live.work(&node);
                    }
                });
                node.environment.run_after(TRY_AGAIN, again);
                false
            }
            Err(StoreError::Unknown) => {
                self.finish(node, End::Expired);
                true
            }
            // The store has lost what it had kept.
            Err(StoreError::Invalid) => {
                self.finish(node, End::LeaseLost);
                true
            }
            Err(_) => {
                self.finish(node, End::TakenOver);
                true
            }
        }
    }

    /// The client goes on with a session that is on this node.
    pub(in crate::server) fn resume(self: &Arc<Self>, node: &Arc<Node>, resume: PendingResume) {
        let mut state = self.state();
        // Each is looked at, also a wrong one: no attempt takes the place of another.
        if state.over.is_some() || state.resumes.len() >= MAX_RESUMES {
            drop(state);
            return (resume.reply)(Err((Refusal::Busy, RETRY)));
        }
        state.resumes.push_back(resume);
        drop(state);
        self.kick(node);
    }

    fn resume_here(self: &Arc<Self>, node: &Arc<Node>, resume: PendingResume) {
        let PendingResume {
            coming,
            from,
            reply,
        } = resume;
        let at = node.environment.now();
        match node.take_over(&coming) {
            Ok((next, stored)) => {
                let mut state = self.state();
                if let Some(reason) = state.over {
                    drop(state);
                    return reply(Err(refused_by(reason)));
                }
                if stored.fence != state.fence + 1 {
                    // Another node has had it meanwhile: what is known of it here is old.
                    drop(state);
                    return reply(Ok(node.replace(self, at, &next, &stored)));
                }
                state.fence = stored.fence;
                (state.last_begun, state.last_kept) = (0, 0);
                state.updated = at;
                state.outbox.acknowledge(coming.received);
                // What its connection says from now on is no word of the new token.
                (state.has_token, state.confirms) = (true, false);
                let greeting = wire::resumed(&next, state.incoming.stored).to_vec();
                drop(state);
                reply(Ok(Greeted {
                    live: Arc::clone(self),
                    fence: stored.fence,
                    greeting,
                }));
            }
            Err(error) => {
                reply(Err(node.refusal(&error, from)));
                if matches!(error, StoreError::Unknown) {
                    self.finish(node, End::Expired);
                }
            }
        }
    }

    /// Sees that the store does not forget the session while it has a client. Returns whether it is to be
    /// seen to again.
    pub(in crate::server) fn renew(self: &Arc<Self>, node: &Arc<Node>) -> bool {
        if !self.owns(node) {
            return false;
        }
        let mut state = self.state();
        if state.over.is_some() {
            return false;
        }
        if state.connection.is_some() {
            state.dirty = true;
        }
        drop(state);
        self.kick(node);
        true
    }

    /// The session is over on this node.
    pub(in crate::server) fn finish(self: &Arc<Self>, node: &Arc<Node>, reason: End) {
        self.finish_locked(node, reason, self.state());
    }

    /// The same in one step with what was found out under the lock.
    pub(super) fn finish_locked(
        self: &Arc<Self>,
        node: &Arc<Node>,
        reason: End,
        mut state: MutexGuard<'_, State>,
    ) {
        if state.over.is_some() {
            return;
        }
        state.over = Some(reason);
        state.outbox.discard();
        state.dirty = false;
        state.events.push_back(Event::Ended(reason));
        let fence = state.fence;
        let connection = state.connection.take();
        let resumes = std::mem::take(&mut state.resumes);
        drop(state);
        node.forget(self);
        if let Some(connection) = connection {
            let _ = connection.send(&wire::ended(reason));
            connection.close();
        }
        for resume in resumes {
            (resume.reply)(Err(refused_by(reason)));
        }
        if !matches!(reason, End::TakenOver | End::LeaseLost) {
            let (live, node_of_job) = (Arc::clone(self), Arc::clone(node));
            // If the store is away, it forgets the session by itself.
            let end = Box::new(move || {
                let end = |store: &dyn Store| store.end(live.id, fence);
                let _ = node_of_job.store.ask(&*node_of_job.environment, end);
            });
            node.environment.run(end);
        }
        self.run(node);
    }
}

/// What a client is told that comes when the session is over here.
fn refused_by(reason: End) -> Refused {
    match reason {
        // It is somewhere: the next attempt looks for it.
        End::TakenOver => (Refusal::Busy, RETRY),
        _ => (Refusal::UnknownSession, Duration::ZERO),
    }
}

impl State {
    /// Whether there is something to ask of the store. Not while a callback runs: what it does is stored
    /// together.
    fn has_work(&self) -> bool {
        let wanted = self.dirty || !self.resumes.is_empty();
        wanted && !self.running && self.over.is_none()
    }

    /// Takes what is to be stored.
    fn begin_update(&mut self, node: &Node) -> Begun {
        self.dirty = false;
        self.last_begun += 1;
        let (first, messages) = self.outbox.to_keep();
        let update = Update {
            number: self.last_begun,
            last_kept: self.last_kept,
            received: self.incoming.received,
            acknowledged: self.outbox.acknowledged(),
            first,
            messages,
            data: self.data.take(),
            confirmed: std::mem::take(&mut self.confirms),
            expires_in: node.limits.expires_in(),
        };
        Begun {
            update,
            fence: self.fence,
            at: node.environment.now(),
        }
    }
}
