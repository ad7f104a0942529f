//! Input that a stream holds: what was read and not delivered, and parts of frames.

use super::Stream;
use crate::budget::Budget;
use crate::worker::Context;
use bytes::Bytes;
use cubenet_core::Reading;

/// What the worker's context keeps of a stream's input.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Holds {
    Nothing,
    /// The count of what has arrived of a frame.
    Partial,
    /// That, and what was read and not delivered.
    Parked,
}

impl Stream {
    /// Delivers what was parked. Returns whether there is nothing left of it, so that newer
    /// input may follow.
    pub(super) fn unpark(
        &mut self,
        entry: usize,
        budget: &mut Budget,
        context: &mut Context,
    ) -> bool {
        if self.shared.core.reading() == Reading::Hold {
            return false;
        }
        let held = context.held.get_mut(&entry);
        let parked = held.map(|held| std::mem::take(&mut held.parked));
        let parked = parked.unwrap_or_default();
        let undelivered = self.deliver(&parked, budget, context);
        let rest = parked.slice(parked.len() - undelivered..);
        self.hold(entry, rest, context);
        undelivered == 0
    }

    /// Keeps what was left undelivered, and counts what is held: that, and what there is of a
    /// frame.
    pub(super) fn hold(
        &mut self,
        entry: usize,
        rest: impl AsRef<[u8]> + Into<Parked>,
        context: &mut Context,
    ) {
        let partial = self.recv.footprint();
        let held = partial + rest.as_ref().len();
        if held == 0 {
            if std::mem::replace(&mut self.holds, Holds::Nothing) != Holds::Nothing {
                context.let_go(entry);
            }
            return;
        }
        // What is held now is not what was held before a message was whole.
        if std::mem::take(&mut self.progressed) && self.holds != Holds::Nothing {
            context.let_go(entry);
        }
        self.holds = if rest.as_ref().is_empty() {
            Holds::Partial
        } else {
            Holds::Parked
        };
        let Parked(parked) = rest.into();
        context.hold(entry, held, parked);
    }
}

/// Input that waits to be delivered.
pub(crate) struct Parked(Bytes);

impl From<&[u8]> for Parked {
    fn from(input: &[u8]) -> Self {
        Parked(Bytes::copy_from_slice(input))
    }
}

impl From<Bytes> for Parked {
    fn from(parked: Bytes) -> Self {
        Parked(parked)
    }
}
