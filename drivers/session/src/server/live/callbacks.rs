//! The callbacks of a session: one at a time, in order, and without a lock.

use super::{Event, Live, Session, Task};
use crate::server::{Node, OVERHEAD, SessionHandler};
use crate::wire::End;
use cubenet_core::SendError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// The tasks of the application that may wait for their turn.
const MAX_TASKS: usize = 1_024;

impl Live {
    /// The handler is called from now on.
    pub(in crate::server) fn begin(self: &Arc<Self>, node: &Arc<Node>) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.begun, true) {
            state.running = false;
            drop(state);
            self.run(node);
        }
    }

    /// Calls the handler for what has happened. If another thread is in one of its callbacks, that does
    /// so.
    pub(super) fn run(self: &Arc<Self>, node: &Arc<Node>) {
        let mut state = self.state();
        if state.running || state.events.is_empty() {
            return;
        }
        state.running = true;
        let handler = state.handler.take();
        drop(state);
        let Some(mut handler) = handler else {
            return;
        };
        loop {
            match catch_unwind(AssertUnwindSafe(|| self.call_all(node, handler.as_mut()))) {
                Ok(true) => {
                    let mut state = self.state();
                    // Something may have happened since the last look.
                    if state.events.is_empty() {
                        state.handler = Some(handler);
                        state.running = false;
                        break;
                    }
                }
                // It was the end.
                Ok(false) => return,
                Err(_panic) => {
                    self.finish(node, End::Application);
                    // No callback comes any more, and tasks hold the session.
                    let events = std::mem::take(&mut self.state().events);
                    return drop(events);
                }
            }
        }
        self.kick(node);
    }

    /// Calls the handler for all that has happened. Returns whether there may be more.
    fn call_all(self: &Arc<Self>, node: &Arc<Node>, handler: &mut dyn SessionHandler) -> bool {
        let session = Session::new(self);
        while let Some(event) = self.next_event() {
            match event {
                Event::Opened => handler.opened(&session),
                Event::Resumed => handler.resumed(&session),
                Event::Suspended => handler.suspended(&session),
                Event::Writable => handler.writable(&session),
                Event::Message(number, payload) => {
                    handler.received(&session, &payload);
                    let mut state = self.state();
                    state.incoming.received = number;
                    state.dirty = true;
                }
                Event::Task(task) => task(&session),
                Event::Left => self.finish(node, End::Client),
                Event::Ended(reason) => {
                    handler.ended(&session, reason);
                    return false;
                }
            }
        }
        true
    }

    /// What the handler is to be called for next. Nothing happens to a session that is over, but its end;
    /// and one that the application has ended receives nothing.
    fn next_event(&self) -> Option<Event> {
        let mut state = self.state();
        if state.over.is_some() {
            let events = std::mem::take(&mut state.events);
            // Tasks hold what the application gave them, which is dropped without the lock.
            drop(state);
            let mut ends = events.into_iter();
            return ends.find(|event| matches!(event, Event::Ended(_)));
        }
        loop {
            let event = state.events.pop_front()?;
            match &event {
                Event::Message(_, payload) => {
                    state.waiting -= payload.len() + OVERHEAD;
                    if state.ending {
                        continue;
                    }
                }
                Event::Task(_) => state.tasks -= 1,
                _ => {}
            }
            return Some(event);
        }
    }

    /// Has the application's task done in its turn.
    pub(super) fn run_task(
        self: &Arc<Self>,
        node: &Arc<Node>,
        task: Task,
    ) -> Result<(), SendError> {
        let mut state = self.state();
        if state.over.is_some() {
            return Err(SendError::Closed);
        }
        if state.tasks >= MAX_TASKS {
            return Err(SendError::Full);
        }
        state.tasks += 1;
        state.events.push_back(Event::Task(task));
        drop(state);
        self.run(node);
        Ok(())
    }
}
