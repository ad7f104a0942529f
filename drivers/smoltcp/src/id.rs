//! What a connection is called, and where it is found.

use core::sync::atomic::{AtomicU32, Ordering};
use cubenet_core::ConnectionId;

/// Where a connection is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A stream, by its slot.
    Stream(usize),
    /// A datagram peer, by its port and its slot there.
    Peer { port: usize, slot: usize },
}

/// The most streams that an id can name.
pub(crate) const MAX_STREAMS: usize = 1 << 15;
/// The most ports that an id can name.
pub(crate) const MAX_PORTS: usize = 1 << 4;
/// The most peers of a port that an id can name.
pub(crate) const MAX_PEERS: usize = 1 << 11;

impl Place {
    /// In 16 bits: which kind, then where.
    fn encode(self) -> u16 {
        match self {
            Place::Stream(slot) => slot as u16,
            Place::Peer { port, slot } => 1 << 15 | (port as u16) << 11 | slot as u16,
        }
    }

    /// Where the connection of this id is, if it still is.
    pub(crate) fn of(id: ConnectionId) -> Place {
        let place = usize::from(id.as_u64() as u16);
        if place < MAX_STREAMS {
            return Place::Stream(place);
        }
        Place::Peer {
            port: place >> 11 & (MAX_PORTS - 1),
            slot: place & (MAX_PEERS - 1),
        }
    }
}

/// The number of a connection, in 48 bits, since every datagram peer keeps one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Serial([u16; 3]);

impl Serial {
    pub(crate) const NONE: Serial = Serial([0; 3]);

    pub(crate) fn id(self, place: Place) -> ConnectionId {
        let [high, middle, low] = self.0.map(u64::from);
        let place = u64::from(place.encode());
        ConnectionId::from_u64(high << 48 | middle << 32 | low << 16 | place)
    }
}

/// Gives every connection of a network its number.
#[derive(Debug)]
pub(crate) struct Serials(u64);

impl Serials {
    /// Those of a new network: the networks of a process, up to 256, each have 2⁴⁰ of their
    /// own.
    pub(crate) fn new() -> Self {
        static NETWORKS: AtomicU32 = AtomicU32::new(0);
        #[cfg(target_has_atomic = "32")]
        let network = NETWORKS.fetch_add(1, Ordering::Relaxed);
        // A processor that cannot add in one step has one core, and networks are not made in
        // interrupts.
        #[cfg(not(target_has_atomic = "32"))]
        let network = NETWORKS.load(Ordering::Relaxed);
        #[cfg(not(target_has_atomic = "32"))]
        NETWORKS.store(network.wrapping_add(1), Ordering::Relaxed);
        Serials(u64::from(network as u8) << 40)
    }

    /// The number of the network, which other networks of the process do not have.
    pub(crate) fn network(&self) -> u8 {
        (self.0 >> 40) as u8
    }

    pub(crate) fn next(&mut self) -> Serial {
        let serial = self.0;
        self.0 += 1;
        Serial([(serial >> 32) as u16, (serial >> 16) as u16, serial as u16])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_where_its_connection_is() {
        let places = [
            Place::Stream(0),
            Place::Stream(MAX_STREAMS - 1),
            Place::Peer { port: 0, slot: 0 },
            Place::Peer {
                port: MAX_PORTS - 1,
                slot: MAX_PEERS - 1,
            },
        ];
        let mut serials = Serials(u64::from(u32::MAX));
        for place in places {
            assert_eq!(Place::of(serials.next().id(place)), place);
        }
    }

    #[test]
    fn no_two_connections_of_a_process_have_the_same_id() {
        let (mut first, mut second) = (Serials::new(), Serials::new());
        let place = Place::Stream(3);
        let ids = [&mut first, &mut second].map(|serials| {
            let ids = [serials.next(), serials.next()];
            ids.map(|serial| serial.id(place))
        });
        let mut ids = ids.concat();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 4);
    }
}
