//! Connections over UDP: many peers on one socket.

pub(crate) mod admission;
pub(crate) mod batch;
mod ending;
mod flush;
pub(crate) mod group;
pub(crate) mod link;
pub(crate) mod peers;
pub(crate) mod queue;
pub(crate) mod senders;
pub(crate) mod socket;
mod sources;
