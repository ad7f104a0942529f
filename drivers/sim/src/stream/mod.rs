//! Stream connections: what binds the two halves of the core to a virtual socket.

mod advance;
mod io;
mod layered;
pub(crate) mod layers;
mod open;
pub(crate) mod state;
