//! How a network is configured and started.

use super::Network;
use crate::costs::Costs;
use crate::error::Error;
use crate::kernel::{EPHEMERAL, HostId, StreamBuffers};
use crate::network_state::{NetworkId, NetworkState};
use crate::shared::Shared;
use crate::worker::Worker;
use cubenet_core::{Budgets, Limits, Metrics, OpenConnections};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// The most worker threads of a network.
const MAX_THREADS: usize = 1_024;

/// How a network is to be; [`Builder::start`] makes it.
#[derive(Clone)]
pub struct Builder {
    shared: Weak<Shared>,
    host: HostId,
    limits: Limits,
    budgets: Budgets,
    backlog: usize,
    stream_buffer: Option<usize>,
    stream_unsent: Option<u32>,
    datagram_buffer: usize,
    descriptors: usize,
    addresses: Vec<IpAddr>,
    ephemeral_ports: RangeInclusive<u16>,
    threads: usize,
    costs: Costs,
}

impl Builder {
    pub(crate) fn new(shared: &Arc<Shared>, host: HostId) -> Self {
        Builder {
            shared: Arc::downgrade(shared),
            host,
            limits: Limits::default(),
            budgets: Budgets::new(),
            backlog: 4_096,
            stream_buffer: None,
            stream_unsent: None,
            datagram_buffer: 4 << 20,
            descriptors: usize::MAX,
            addresses: Vec::new(),
            ephemeral_ports: EPHEMERAL,
            threads: 1,
            costs: Costs::default(),
        }
    }

    /// The bounds on memory, time and work. Default: [`Limits::default`].
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Connections that may wait to be accepted. Default 4,096.
    #[must_use]
    pub fn backlog(mut self, connections: usize) -> Self {
        self.backlog = connections;
        self
    }

    /// Bytes that are asked of the system for the send and for the receive buffer of each stream.
    /// As on Linux (`SO_SNDBUF`, `SO_RCVBUF`) each then holds twice as many of the stream's.
    /// Default: the system's own choice, which is 4 MiB to send, and to receive 128 KiB that grow
    /// to 3 MiB if the reader keeps up.
    #[must_use]
    pub fn stream_buffer(mut self, bytes: usize) -> Self {
        self.stream_buffer = Some(bytes);
        self
    }

    /// Bytes that a stream's send buffer may hold beyond what is under way to the peer
    /// (`TCP_NOTSENT_LOWAT`). Default 128 KiB.
    #[must_use]
    pub fn stream_unsent(mut self, bytes: u32) -> Self {
        self.stream_unsent = Some(bytes.max(1));
        self
    }

    /// Bytes that are asked of the system for the receive buffer of each datagram socket. As on
    /// Linux (`SO_RCVBUF`) it then holds twice as many, and a datagram costs more than its length:
    /// 832 bytes if it has up to 196, 2,304 if it has 1,400. Default 4 MiB.
    #[must_use]
    pub fn datagram_buffer(mut self, bytes: usize) -> Self {
        self.datagram_buffer = bytes;
        self
    }

    /// Sockets the host may have open; further connections wait in the backlog. Default:
    /// no bound.
    #[must_use]
    pub fn descriptors(mut self, descriptors: usize) -> Self {
        self.descriptors = descriptors;
        self
    }

    /// Another address of the host, beside the one it was made with. Listeners may be on one of
    /// them or, at an unspecified address, on all; connects are made from the first of the
    /// same kind.
    #[must_use]
    pub fn address(mut self, address: IpAddr) -> Self {
        self.addresses.push(address);
        self
    }

    /// The ports that connecting sockets get, at least one. Two streams may have the same if
    /// they connect to different addresses; the port of a stream that was closed from this side first
    /// stays taken towards its peer for a minute. Default 32768 to 60999, as on Linux.
    #[must_use]
    pub fn ephemeral_ports(mut self, ports: RangeInclusive<u16>) -> Self {
        self.ephemeral_ports = ports;
        self
    }

    /// Worker threads, 1 to 1,024: each connection belongs to one. They matter if work
    /// [costs](Builder::costs) time or callbacks are
    /// [interleaved](crate::Builder::interleave). Default 1.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.clamp(1, MAX_THREADS);
        self
    }

    /// How much work one connection may cause before the others are served. Default:
    /// [`Budgets::new`].
    #[must_use]
    pub fn budgets(mut self, budgets: Budgets) -> Self {
        self.budgets = budgets;
        self
    }

    /// What work costs a worker thread. Default: nothing.
    #[must_use]
    pub fn costs(mut self, costs: Costs) -> Self {
        self.costs = costs;
        self
    }

    /// Starts it.
    pub fn start(self) -> Result<Network, Error> {
        self.limits.validate().map_err(Error::Limits)?;
        self.budgets.validate().map_err(Error::Limits)?;
        let shared = self.shared.upgrade().ok_or(Error::Stopped)?;
        let mut world = shared.lock();
        let in_use = world
            .networks
            .iter()
            .any(|network| network.host == self.host && !network.is_stopped());
        if in_use {
            let address = world.kernel.host(self.host).address();
            return Err(Error::HostInUse { host: address });
        }
        if self.ephemeral_ports.is_empty() || *self.ephemeral_ports.start() == 0 {
            return Err(Error::NoPorts);
        }
        self.costs.validate().map_err(Error::Faults)?;
        for address in &self.addresses {
            if !world.kernel.may_add_address(self.host, *address) {
                return Err(Error::HostInUse { host: *address });
            }
        }
        for address in self.addresses {
            world.kernel.add_address(self.host, address);
        }
        let host = world.kernel.host_mut(self.host);
        host.alive = true;
        host.ephemeral = self.ephemeral_ports;
        host.costs = Some(self.costs).filter(|costs| *costs != Costs::default());
        host.stream_buffers = self
            .stream_buffer
            .map_or(StreamBuffers::ADAPTIVE, StreamBuffers::fixed);
        if let Some(unsent) = self.stream_unsent {
            host.stream_buffers.max_unsent = unsent;
        }
        host.datagram_buffer = self.datagram_buffer.saturating_mul(2);
        host.max_descriptors = self.descriptors;
        let address = host.address();
        let hash_key = (world.kernel.random.next(), world.kernel.random.next());
        let id = NetworkId(world.networks.len() as u32);
        world.networks.push(NetworkState {
            host: self.host,
            limits: Arc::new(self.limits),
            budgets: self.budgets,
            metrics: Metrics::default(),
            open: OpenConnections::default(),
            handshaking: 0,
            queued_bytes: 0,
            held_bytes: 0,
            busy: Duration::ZERO,
            hash_key,
            is_stopping: false,
            crashed: false,
            backlog: self.backlog,
            costs: self.costs,
            workers: (0..self.threads).map(|_| Worker::new()).collect(),
        });
        Ok(Network {
            shared: self.shared.clone(),
            id,
            address,
        })
    }
}
