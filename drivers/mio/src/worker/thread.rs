//! Which threads are a network's own.

use std::cell::Cell;

std::thread_local! {
    /// Whether this thread is a network's, so that it must not wait for one.
    static IS_A_NETWORKS: Cell<bool> = const { Cell::new(false) };
}

/// This thread is a network's from now on.
pub(crate) fn enter_network_thread() {
    IS_A_NETWORKS.set(true);
}

/// Whether this thread is a network's.
pub(crate) fn is_network_thread() -> bool {
    IS_A_NETWORKS.get()
}
