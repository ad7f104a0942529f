//! Connections over TCP.

pub(crate) mod conn;
pub(crate) mod held;
pub(crate) mod link;
pub(crate) mod listener;
pub(crate) mod read;
pub(crate) mod send_state;
pub(crate) mod shared;
pub(crate) mod stream;
