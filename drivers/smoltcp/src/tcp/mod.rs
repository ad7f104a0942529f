//! Connections over TCP.

pub(crate) mod conn;
pub(crate) mod link;
pub(crate) mod listeners;
pub(crate) mod live;
pub(crate) mod pending_sends;
pub(crate) mod pool;
pub(crate) mod stream;
