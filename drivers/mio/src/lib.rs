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
//! # Backpressure
//!
//! [`send`](Connection::send) never blocks. It takes a message whole and returns `Ok`, or takes
//! nothing and returns an error. What the system does not take at once is queued, up to
//! [`Limits::max_queued`] bytes (default 1 MiB) for a connection; beyond that the answer is
//! [`SendError::Full`], and [`Handler::writable`] is called once the queue is down to
//! [`Limits::low_watermark`]. In the other direction [`Link::pause`] stops delivery, and TCP holds
//! up the peer.
//!
//! # Closing and stopping
//!
//! [`close`](Connection::close) delivers what was sent, then closes; [`abort`](Connection::abort)
//! does not. Each connection's handler gets [`closed`](Handler::closed) once, with a
//! [`CloseReason`], and is then dropped; that of a connect that was never open gets
//! [`connect_failed`](Handler::connect_failed) instead. [`Network::stop`] closes everything, waits
//! for that, and ends the threads; what is not delivered by its deadline is lost. Dropping the last
//! clone of the [`Network`] stops it without waiting.
//!
//! # Layers
//!
//! [`ListenOptions::layer`] and [`ConnectOptions::layer`] put a layer such as TLS (`cubenet-tls`)
//! between the socket and the messages of a stream.
//!
//! # Limits
//!
//! Every connection, queue and timeout has a bound, with a default that suits a game server on the
//! open internet: [`Limits`] for the protocol, [`AddressLimits`] for what one peer address may have,
//! [`Budgets`] for how much a worker does at a time. A listener can have its own:
//! [`ListenOptions`].

#![deny(unsafe_code)]

mod address;
mod batch;
mod conn;
mod connection;
mod error;
#[cfg(all(unix, feature = "handover"))]
pub mod handover;
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
pub use cubenet_core::layer::{
    ConnectOptions, Ends, Identity, Layer, LayerError, LayerState, MakeLayer, Stack,
};
pub use cubenet_core::{
    Budgets, ByReason, CloseReason, ConnectError, ConnectionId, Frame, FrameError, FullPolicy,
    Handle, Handler, Histogram, Instant, LimitError, Limits, Link, Message, Metric, MetricKind,
    MetricValue, Metrics, Report, SendError, TcpInfo, Timeout, Transport, TransportError,
};
pub use error::Error;
pub use network::Network;
pub use network::builder::Builder;
pub use network::endpoint::{Endpoint, ToEndpoint};
pub use network::listen_options::ListenOptions;
pub use network::listen_sockets::ListenSockets;
pub use network::listener::Listener;
#[cfg(cubenet_faults)]
pub use sys::faults;

/// The code in the package's README is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
