//! Connections over UDP.

pub(crate) mod link;
pub(crate) mod memory;
pub(crate) mod peer;
pub(crate) mod peers;
pub(crate) mod port;
