//! Datagram sockets and their peers: what binds the demultiplexer of the core to a virtual socket.

mod advance;
mod receive;
pub(crate) mod state;
