//! Stream connections: what binds the two halves of the core to a virtual socket.

mod advance;
mod io;
pub(crate) mod layers;
mod open;
pub(crate) mod state;
