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
//! # The path of a message
//!
//! A worker reads a socket into its one large buffer (`tcp::read`, `udp::peers`), decodes it with
//! the core's `RecvHalf` or `Demux`, and calls [`Handler::received`] with a message that is
//! borrowed from that buffer. What the callbacks send on their own connection gathers in the
//! worker's `write_batch` and leaves in one system call when the callbacks of that
//! connection have returned (`tcp::send_state`, `udp::socket`). Only what the kernel refuses is
//! kept, by the connection. An idle connection owns no buffer.
//!
//! A handle used on another thread writes to the socket itself, under the connection's lock, and
//! wakes the worker only if something has to wait (`tcp::shared`, `udp::socket`).
//!
//! # Where things are
//!
//! | | |
//! |-|-|
//! | `network` | What the application calls: listen, connect, stop; and the options of both. |
//! | `connection`, `conn` | The handle; and what every connection has: its state as all threads read it, its worker, its place among the limits. |
//! | `tcp` | A stream connection: reading, sending, its callbacks. |
//! | `udp` | A datagram socket and the connections that share it. |
//! | `worker` | The threads: a worker's loop, timers and budget; what other threads hand over to it; the acceptor. |
//! | `write_batch` | What callbacks send, gathered. |
//! | `user`, `user_callback` | Code and values of the application's, run and dropped so that a panic harms nothing else. |
//! | `sys` | The system calls that mio does not make. |

#![deny(unsafe_code)]

mod address;
mod conn;
mod connection;
mod error;
#[cfg(all(test, cubenet_shuttle))]
mod interleavings;
mod log;
mod metrics;
mod network;
mod sync;
mod sys;
mod tcp;
mod udp;
mod user;
mod user_callback;
mod worker;
mod write_batch;

pub use connection::Connection;
pub use cubenet_core::address::{AddressLimits, Prefix, PrefixError};
pub use cubenet_core::demux::Admission;
pub use cubenet_core::{
    Budgets, ByReason, CloseReason, ConnectError, ConnectionId, Frame, FrameError, FullPolicy,
    Handle, Handler, Instant, LimitError, Limits, Link, Message, Metrics, Report, SendError,
    Timeout, Transport, TransportError,
};
pub use error::Error;
pub use network::Network;
pub use network::builder::Builder;
pub use network::endpoint::{Endpoint, ToEndpoint};
pub use network::listen_options::ListenOptions;
pub use network::listener::Listener;
#[cfg(cubenet_faults)]
pub use sys::faults;

/// The code in the README is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
