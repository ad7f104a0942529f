//! cubenet in a virtual network on a virtual clock.

mod conditions;
mod connection;
mod error;
mod kernel;
mod link;
mod metrics;
mod network;
mod owners;
mod peers;
mod random;
mod raw;
mod simulation;
mod stream;
mod timers;
mod trace;
mod world;

pub use conditions::{Conditions, FaultError, Faults};
pub use connection::Connection;
pub use cubenet_core::{
    CloseReason, ConnectionId, Exception, Frame, FrameError, FullPolicy, Handler, Instant,
    LimitError, Limits, Link, Message, SendError, Timeout, Transport,
};
pub use error::{ConnectError, Error, Refusal};
pub use kernel::Traffic;
pub use metrics::Metrics;
pub use network::{Builder as NetworkBuilder, IntoAddress, Listener, Network};
pub use raw::{RawDatagrams, RawEnd, RawListener, RawStream};
pub use simulation::{Builder, Census, Simulation};
