//! The protocol of cubenet: framing, connection lifecycle, UDP demultiplexing and limits, without
//! I/O. Applications use a driver (`cubenet-mio`, `cubenet-smoltcp`, `cubenet-sim`); this crate is
//! for writing one. Features: `alloc` (default), `std`.
//!
//! This crate turns bytes into messages and calls into transitions. It opens no socket,
//! reads no clock, starts no thread, draws no random number and, without the `alloc`
//! feature, allocates nothing: the same inputs give the same outputs on a server, on a
//! microcontroller and in a simulator. It contains no `unsafe` and panics on no input.
//!
//! A *driver* binds it to the world. It reads sockets and feeds what arrived to a
//! [`RecvHalf`], asks a [`SendHalf`] whether a message may go out and what is to be done next,
//! and passes the current [`Instant`] with every call that needs one. The two halves can be
//! owned apart, so that one thread reads while another sends, or together as a [`Connection`].
//!
//! ```text
//!  socket ──► RecvHalf ──► Handler::received ──► Link::send ──► SendHalf::admit ──► socket
//!             (Decoder)                                         (Lifecycle)
//!             Demux, for datagrams                              DatagramHalf, for datagrams
//! ```
//!
//! Verbs follow one rule: `handle_*` takes input, `poll_*` asks for output,
//! `poll_timeout` and `handle_timeout` are the clock.
//!
//! | to learn about | read |
//! | --- | --- |
//! | what an application implements and is handed | [`handler`] |
//! | the wire format of a stream | [`frame`], [`decode`], [`ring`] |
//! | what a driver does with a connection, and in which order | [`connection`] |
//! | how a stream connection opens and closes, and why | [`connection::lifecycle`], [`connection::close_reason`] |
//! | its sending and its receiving half | [`connection::send`], [`connection::receive`] |
//! | input held in memory, and when a connection is closed for it | [`connection::held`] |
//! | the life of a datagram connection | [`connection::datagram`] |
//! | many peers on one datagram socket | [`demux`] |
//! | how many connections are open | [`open_connections`] |
//! | layers between transport and framing, such as TLS | `layer` |
//! | every bound, with its default | [`limits`], [`budgets`] |
//! | bounds on one peer address | `address` |

#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(any(test, feature = "std"))]
extern crate std;

#[cfg(feature = "alloc")]
pub mod address;
pub mod budgets;
mod connect_error;
pub mod connection;
mod connection_id;
pub mod decode;
pub mod demux;
pub mod frame;
#[cfg(feature = "alloc")]
mod handle;
pub mod handler;
#[cfg(feature = "alloc")]
pub mod layer;
pub mod limits;
pub mod message;
mod metrics;
pub mod open_connections;
#[cfg(feature = "alloc")]
pub mod queue;
mod report;
pub mod ring;
mod send_error;
mod settings;
pub mod storage;
mod tcp_info;
pub mod time;
pub mod transport;

#[cfg(feature = "alloc")]
pub use address::{AddressLimits, AddressRefusal, AddressTable, Prefix};
pub use budgets::Budgets;
pub use connect_error::ConnectError;
pub use connection::{
    Action, Backlog, ByReason, CloseReason, Connection, DatagramHalf, Lifecycle, Reading, RecvHalf,
    SendHalf, State, Timeout,
};
pub use connection_id::ConnectionId;
pub use decode::Decoder;
pub use demux::{Arrival, Demux};
#[cfg(feature = "alloc")]
pub use frame::Frame;
pub use frame::FrameError;
#[cfg(feature = "alloc")]
pub use handle::Handle;
pub use handler::{Handler, Link, TransportError};
#[cfg(feature = "alloc")]
pub use layer::{Ends, Identity, Layer, LayerError, LayerState, Layered, MakeLayer, Stack};
pub use limits::{FullPolicy, LimitError, Limits};
pub use message::Message;
pub use metrics::{Histogram, Metric, MetricKind, MetricValue, Metrics};
pub use open_connections::OpenConnections;
#[cfg(feature = "alloc")]
pub use queue::SendQueue;
pub use report::Report;
pub use ring::RingDecoder;
pub use send_error::SendError;
#[cfg(feature = "alloc")]
pub use storage::Growing;
pub use storage::{Fixed, Storage};
pub use tcp_info::TcpInfo;
pub use time::Instant;
pub use transport::Transport;

/// The code in the package's README is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
