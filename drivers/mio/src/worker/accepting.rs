//! A worker accepts: streams off a listener, or those that another has accepted for it.

use crate::conn::info::Conn;
use crate::log::debug;
use crate::tcp::stream::Stream;
use crate::worker::Worker;
use crate::worker::accept::accept;
use crate::worker::listener::NextAccept;
use crate::worker::mailbox::{Accepted, Command};
use crate::worker::source::Source;

impl Worker {
    /// Accepts streams on a listener, within the budget of an iteration.
    pub(super) fn accept_streams(&mut self, token: usize) {
        let budgets = &self.resources.network.budgets;
        // The connections that are there wait meanwhile, and come first.
        let until = self.resources.now.after(budgets.time() / 4);
        let mut progress = false;
        for _ in 0..budgets.accepts() {
            let source = self.sources.get_mut(token).and_then(Option::as_mut);
            let Some(Source::Listener(listener)) = source else {
                return;
            };
            let next = listener.accept(&self.resources.network, self.resources.now);
            progress |= !matches!(next, NextAccept::Failed);
            match next {
                NextAccept::Adopt(accepted) => self.accept(accepted),
                NextAccept::PassOn(accepted, mailbox) => {
                    // A worker that has ended closes it.
                    let _ = mailbox.post(Command::Accept(accepted));
                }
                NextAccept::Refused | NextAccept::Failed => {}
                NextAccept::Wait => {
                    self.step_back(token, progress);
                    return;
                }
            }
            self.resources.tick();
            if self.resources.now >= until {
                break;
            }
        }
        self.step_back(token, progress);
        match self.sources.get_mut(token).and_then(Option::as_mut) {
            Some(Source::Listener(listener)) if progress => {
                let scheduled = &mut listener.scheduled;
                self.resources.schedule(token, scheduled);
            }
            // Nothing but errors is no reason to spin.
            Some(Source::Listener(listener)) => listener.pause(self.resources.now),
            _ => {}
        }
    }

    /// A worker that has accepted lets the others be first next time.
    fn step_back(&mut self, token: usize, has_accepted: bool) {
        if has_accepted && let Some(Some(Source::Listener(listener))) = self.sources.get_mut(token)
        {
            listener.step_back(self.resources.now);
        }
    }

    /// A stream that was accepted: the application decides whether it becomes a connection, once
    /// the handshake of its layers is complete, if it has any.
    pub(super) fn accept(&mut self, accepted: Accepted) {
        let (peer, home) = (accepted.peer, std::sync::Arc::clone(&accepted.home));
        let resources = &mut self.resources;
        let (shared, listening) = match accepted.adopt(resources) {
            Ok(adopted) => adopted,
            Err(error) => {
                // Most often the peer is gone already.
                home.counts.accept_failed.count();
                debug!(%peer, %error, "cannot take over a connection");
                return;
            }
        };
        let token = shared.key().token;
        let now = resources.now;
        let stream = if listening.has_layer() {
            resources.unasked.insert(token as usize, listening);
            let mut stream = Stream::handshaking(shared, now);
            stream.begin_layers(token as usize, resources);
            stream
        } else if let Some(handler) = accept(&shared, &listening, resources) {
            Stream::accepted(shared, handler, resources.now)
        } else {
            // A handle that is used right now may keep the socket open a moment longer.
            drop(shared);
            return resources.handle.release_token(token);
        };
        self.adopt(token, Source::Stream(stream));
    }
}
