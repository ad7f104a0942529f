//! What there is in a simulation, counted one by one, and compared with what its networks count.

use crate::owner::Owner;
use crate::simulation::Simulation;
use cubenet_core::Transport;

/// What there is in a simulation at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Census {
    /// Sockets, those included that no application owns any more and that only send what is left.
    pub sockets: usize,
    /// Connections of all networks.
    pub connections: usize,
    /// Bytes accepted by `send` that wait, on all of them.
    pub queued_bytes: usize,
    /// Bytes of memory held for partial frames.
    pub partial_bytes: usize,
    /// Packets and other events under way.
    pub pending: usize,
    /// Timers that are armed, those included that will find nothing to do.
    pub timers: usize,
}

impl Simulation {
    /// What there is.
    pub fn census(&self) -> Census {
        let world = self.shared.lock();
        let mut census = Census {
            sockets: world.kernel.len(),
            connections: 0,
            queued_bytes: 0,
            partial_bytes: 0,
            pending: world.kernel.pending(),
            timers: world.timers.len() + self.scheduled(),
        };
        for owner in world.owners.iter() {
            match owner {
                Owner::Stream(stream) => {
                    census.connections += 1;
                    census.queued_bytes += stream.queued();
                    census.partial_bytes += stream.footprint();
                }
                Owner::Peers(peers) => {
                    census.connections += peers.counted();
                    census.queued_bytes += peers.queued();
                }
                _ => {}
            }
        }
        census
    }

    /// Checks what must hold at every moment: that what the networks count is what there
    /// is, and that no connection holds more than the limits allow. Costs time in proportion to
    /// the connections.
    pub fn audit(&self) -> Result<(), String> {
        let census = self.census();
        let world = self.shared.lock();
        let counted: usize = world
            .networks
            .iter()
            .map(|network| network.open.total())
            .sum();
        if counted != census.connections {
            let there = census.connections;
            return Err(format!(
                "{counted} connections are counted, {there} are there"
            ));
        }
        let networks = world.networks.iter();
        let queued: usize = networks.map(|network| network.queued_bytes).sum();
        if queued != census.queued_bytes {
            let there = census.queued_bytes;
            return Err(format!(
                "{queued} queued bytes are counted, {there} are there"
            ));
        }
        for (number, network) in world.networks.iter().enumerate() {
            let streams = world.owners.iter().filter_map(|owner| match owner {
                Owner::Stream(stream) if stream.network.0 as usize == number => Some(stream),
                _ => None,
            });
            let there: usize = streams.map(|stream| stream.held.bytes()).sum();
            if there != network.held_bytes {
                let held = network.held_bytes;
                return Err(format!(
                    "{held} bytes of held input are counted, {there} are there"
                ));
            }
            let streams = world.owners.iter().filter_map(|owner| match owner {
                Owner::Stream(stream) if stream.network.0 as usize == number => Some(stream),
                _ => None,
            });
            let there = streams.filter(|stream| stream.is_handshaking()).count();
            if there != network.handshaking {
                let counted = network.handshaking;
                return Err(format!(
                    "{counted} handshakes are counted, {there} are there"
                ));
            }
            let limits = &network.limits;
            for transport in [Transport::Tcp, Transport::Udp] {
                let open = network.open.of(transport);
                if open > limits.max_connections() {
                    return Err(format!("{open} {transport} connections are over the limit"));
                }
            }
            if network.held_bytes > limits.max_held_total() {
                let held = network.held_bytes;
                return Err(format!(
                    "{held} bytes of held input are over the limit in all"
                ));
            }
            // What layers add comes after the limit was looked at.
            let added: usize = (world.owners.iter())
                .map(|owner| match owner {
                    Owner::Stream(stream) => stream.added_by_layers(limits.max_queued()),
                    _ => 0,
                })
                .sum();
            if network.queued_bytes > limits.max_queued_total() + added {
                let queued = network.queued_bytes;
                return Err(format!("{queued} queued bytes are over the limit in all"));
            }
        }
        for owner in world.owners.iter() {
            if let Owner::Stream(stream) = owner {
                let limit = world.networks[stream.network.0 as usize]
                    .limits
                    .max_queued();
                if stream.queued() > limit + stream.added_by_layers(limit) {
                    let (id, queued) = (stream.id, stream.queued());
                    return Err(format!("{queued} bytes on {id} are over the limit"));
                }
            }
        }
        Ok(())
    }
}
