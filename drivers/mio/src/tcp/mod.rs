//! Connections over TCP.
//!
//! A layer between socket and messages, such as TLS or a PROXY header, has three seams, through
//! which every byte passes once. No layer is built yet.
//!
//! - Before the decoder: `Stream::handle_bytes`, in [`read`]. Bytes are mutable there, to be
//!   decrypted in place.
//! - After the encoder: `SendState::transmit`, in [`send_state`]. A [`WriteBuf`](send_state::WriteBuf)
//!   holds whole frames; records would be made of them here, so that a queue holds what goes on the
//!   wire.
//! - Below the queue: `write_some` and `SendState::flush`, in [`send_state`], which hand bytes to the
//!   system which says how many it took.

pub(crate) mod conn;
pub(crate) mod held;
pub(crate) mod link;
pub(crate) mod listener;
pub(crate) mod read;
pub(crate) mod send_state;
pub(crate) mod shared;
pub(crate) mod stream;
