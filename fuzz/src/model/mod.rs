//! The core said again in the plainest way, to be compared with.

pub mod demux;
pub mod lifecycle;
