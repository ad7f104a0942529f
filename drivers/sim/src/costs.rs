//! What the work of a simulated worker thread costs, in virtual time.

use crate::conditions::{FaultError, check_durations};
use cubenet_core::settings;
use std::time::Duration;

settings! {
    /// What work costs a worker thread of a network, in virtual time. The default is nothing: a
    /// worker is then never busy.
    ///
    /// System calls are counted as the driver over real sockets makes them. In one iteration of its
    /// worker a connection is read with one call, and what it sends is written with one call;
    /// datagrams go 64 at a time; a message to another connection is a write of its own.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Costs;

    /// Of each callback, without what [`Network::spend`](crate::Network::spend) adds. Default zero.
    callback, with_callback: Duration = Duration::ZERO;

    /// Of each byte that is read or written. Default zero.
    byte, with_byte: Duration = Duration::ZERO;

    /// Of each system call. Default zero.
    system_call, with_system_call: Duration = Duration::ZERO;
}

impl Costs {
    /// Whether the times make sense. [`NetworkBuilder::start`](crate::NetworkBuilder::start) asks.
    pub fn validate(&self) -> Result<(), FaultError> {
        check_durations([
            ("callback", self.callback),
            ("byte", self.byte),
            ("system_call", self.system_call),
        ])
    }
}
