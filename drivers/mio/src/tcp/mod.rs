//! Connections over TCP.
//!
//! A stream may have layers between its socket and its messages, such as TLS ([`layers`]). Every byte
//! passes three seams, each once:
//!
//! - Before the decoder: `Stream::handle_bytes`, in [`read`], gives what was read to the layers.
//! - After the encoder: `SendState::transmit`, in [`send_state`], gives them whole frames, as many as
//!   were gathered. What they make of it is queued, so a queue holds what goes on the wire.
//! - Below the queue: `write_some` and `SendState::flush`, in [`send_state`], hand bytes to the system,
//!   which says how many it took.

pub(crate) mod batch;
pub(crate) mod conn;
pub(crate) mod gathered;
pub(crate) mod held;
pub(crate) mod layers;
pub(crate) mod link;
pub(crate) mod listener;
pub(crate) mod read;
pub(crate) mod send_state;
pub(crate) mod shared;
pub(crate) mod stream;
