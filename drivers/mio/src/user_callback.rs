//! Running a callback of a connection: a panic in it is counted, reported, and ends there.

use crate::log::error_limited;
use crate::metrics::Counts;
use crate::user::{PanicPayload, catch_panic};
use cubenet_core::ConnectionId;

/// Runs a callback of a connection. A panic in it is counted and reported, and ends there:
/// `None`.
pub(crate) fn run_callback<R>(
    what: &str,
    id: ConnectionId,
    counts: &Counts,
    callback: impl FnOnce() -> R,
) -> Option<R> {
    match catch_panic(callback) {
        Ok(answer) => Some(answer),
        Err(panic) => {
            panicked(what, id, counts, &panic);
            None
        }
    }
}

#[cold]
#[inline(never)]
fn panicked(what: &str, id: ConnectionId, counts: &Counts, panic: &PanicPayload) {
    counts.panics.count();
    let text = panic.text();
    error_limited!(connection = %id, panic = text, "`{what}` panicked; its connection is closed");
}
