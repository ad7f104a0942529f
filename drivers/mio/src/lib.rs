//! cubenet for servers: connections over TCP and UDP behind one interface, served by a pool
//! of worker threads on epoll, kqueue or IOCP.
//!
//! ```no_run
//! use cubenet_mio::{Handler, Link, Message, Network, Transport};
//!
//! struct Echo;
//! impl Handler for Echo {
//!     fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
//!         let _ = link.send(&message);
//!     }
//! }
//!
//! fn main() -> Result<(), cubenet_mio::Error> {
//!     let network = Network::builder().workers(4).start()?;
//!     network.listen(Transport::Tcp, "0.0.0.0:7000", |_connection| Some(Echo))?;
//!     network.listen(Transport::Udp, "0.0.0.0:7000", |_connection| Some(Echo))?;
//!     network.join();
//!     Ok(())
//! }
//! ```
//!
//! # Threads
//!
//! Callbacks run on the workers. Those of one connection come from one worker, in order;
//! those of different connections run in parallel. A callback that blocks holds up every
//! connection of its worker, so work that takes long is handed to threads of the
//! application's own, with a clone of the [`Connection`] to answer on.
//!
//! # The way of a message
//!
//! A worker reads a socket into its one large buffer (`stream`, `peers`), decodes it
//! (`cubenet_core::Receiver`, `Demux`), and calls [`Handler::received`] with a message that
//! is lent out of that buffer. What the callbacks send on their own connection gathers in
//! the worker's one output buffer (`output`) and leaves in one system call when the batch
//! ends (`shared`). Only what the kernel refuses is kept, by the connection. An idle
//! connection owns no buffer.
//!
//! A handle used on another thread writes to the socket itself, under the connection's
//! lock, and wakes the worker only if something has to wait.

#![deny(unsafe_code)]

mod acceptor;
mod address;
mod budget;
mod callback;
mod common;
mod connection;
mod datagram;
mod error;
#[cfg(all(test, cubenet_shuttle))]
mod interleavings;
mod link;
mod listen_options;
mod listening;
mod log;
mod mailbox;
mod metrics;
mod network;
mod output;
mod peers;
mod seat;
mod shared;
mod socket;
mod stream;
mod sync;
mod sys;
mod timers;
mod user;
mod wake;
mod worker;

pub use connection::Connection;
pub use cubenet_core::address::{AddressLimits, Prefix, PrefixError};
pub use cubenet_core::demux::Admission;
pub use cubenet_core::{
    Budgets, ByReason, CloseReason, ConnectError, ConnectionId, Frame, FrameError, FullPolicy,
    Handle, Handler, Instant, LimitError, Limits, Link, Message, Metrics, SendError, Timeout,
    Transport, TransportError,
};
pub use error::Error;
pub use listen_options::ListenOptions;
pub use network::{Builder, Listener, Network};
#[cfg(cubenet_faults)]
pub use sys::faults;

/// The code in the README is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
