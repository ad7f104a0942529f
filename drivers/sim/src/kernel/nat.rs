//! Routers that translate addresses: those behind one are seen at its address, each of their
//! sockets at a port of its own.

use super::{HostId, Kernel, Key};
use cubenet_core::{Instant, Transport};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The first port that is given to a socket behind it.
const FIRST_PORT: u16 = 1_024;
/// How long a stream's mapping lasts without a packet (RFC 5382).
const STREAM_TIMEOUT: Duration = Duration::from_secs(2 * 60 * 60 + 4 * 60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NatId(u32);

pub(crate) struct Nat {
    outside: IpAddr,
    /// How long a datagram socket's mapping lasts without a packet.
    timeout: Duration,
    /// By the socket inside.
    mappings: BTreeMap<(Transport, SocketAddr), Mapping>,
    /// The socket inside, by the port outside.
    inside: BTreeMap<(Transport, u16), SocketAddr>,
    next: u16,
}

struct Mapping {
    port: u16,
    used: Instant,
    /// Whom it has sent to: nobody else's packets are let in.
    peers: Vec<SocketAddr>,
}

impl Nat {
    fn new(outside: IpAddr, timeout: Duration) -> Self {
        Nat {
            outside,
            timeout,
            mappings: BTreeMap::new(),
            inside: BTreeMap::new(),
            next: FIRST_PORT,
        }
    }

    fn timeout(&self, transport: Transport) -> Duration {
        match transport {
            Transport::Tcp => STREAM_TIMEOUT,
            Transport::Udp => self.timeout,
        }
    }

    /// The address at which `to` sees a packet that `from`, inside, sends it.
    fn outgoing(
        &mut self,
        transport: Transport,
        from: SocketAddr,
        to: SocketAddr,
        now: Instant,
    ) -> SocketAddr {
        let timeout = self.timeout(transport);
        let old = self.mappings.get(&(transport, from));
        if let Some(old) = old.filter(|mapping| mapping.used.after(timeout) < now) {
            self.inside.remove(&(transport, old.port));
            self.mappings.remove(&(transport, from));
        }
        let (inside, next) = (&mut self.inside, &mut self.next);
        let mapping = self.mappings.entry((transport, from)).or_insert_with(|| {
            while inside.contains_key(&(transport, *next)) {
                *next = next.checked_add(1).unwrap_or(FIRST_PORT);
            }
            let port = *next;
            *next = next.checked_add(1).unwrap_or(FIRST_PORT);
            inside.insert((transport, port), from);
            Mapping {
                port,
                used: now,
                peers: Vec::new(),
            }
        });
        mapping.used = now;
        if !mapping.peers.contains(&to) {
            mapping.peers.push(to);
        }
        SocketAddr::new(self.outside, mapping.port)
    }

    /// The socket inside that a packet from `from` to `port` is for; `None` if it is let in to
    /// nobody.
    fn incoming(
        &mut self,
        transport: Transport,
        from: SocketAddr,
        port: u16,
        now: Instant,
    ) -> Option<SocketAddr> {
        let timeout = self.timeout(transport);
        let inside = *self.inside.get(&(transport, port))?;
        let mapping = self.mappings.get_mut(&(transport, inside))?;
        if mapping.used.after(timeout) < now || !mapping.peers.contains(&from) {
            return None;
        }
        mapping.used = now;
        Some(inside)
    }

    /// Forgets every mapping, as a router does that was switched off and on. The ports that follow
    /// are others.
    fn rebind(&mut self, outside: IpAddr) {
        self.outside = outside;
        self.mappings.clear();
        self.inside.clear();
    }
}

/// Which end of a stream is behind a router, if one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Neither.
    Open,
    /// This one.
    Inside,
    /// The peer.
    Outside,
}

/// What becomes of a stream's packet on its way through a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    Through,
    /// It leaves from an address that the peer does not know.
    Stranger,
    /// The router knows nobody whom it could be for.
    Dropped,
}

impl Kernel {
    /// Puts hosts behind a router at `outside`.
    pub(crate) fn add_nat(&mut self, outside: IpAddr, inside: &[IpAddr], timeout: Duration) {
        let id = NatId(self.nats.len() as u32);
        self.nats.push(Nat::new(outside, timeout));
        self.nat_at.insert(outside, id);
        for address in inside {
            let host = self.host_at(*address);
            self.host_mut(host).nat = Some(id);
        }
    }

    /// The router at `outside` forgets its mappings, and has another address if `to` is one.
    /// Returns whether there is such a router.
    pub(crate) fn rebind(&mut self, outside: IpAddr, to: IpAddr) -> bool {
        let Some(id) = self.nat_at.remove(&outside) else {
            return false;
        };
        self.nat_at.insert(to, id);
        self.nats[id.0 as usize].rebind(to);
        true
    }

    /// The address at which `to` sees what `from`, on `host`, sends it.
    pub(super) fn seen_at(
        &mut self,
        host: HostId,
        transport: Transport,
        from: SocketAddr,
        to: SocketAddr,
    ) -> SocketAddr {
        let (now, nat) = (self.now, self.host(host).nat);
        nat.map_or(from, |id| {
            self.nats[id.0 as usize].outgoing(transport, from, to, now)
        })
    }

    /// The address that a packet from `from` to `to` comes to: another, if a router is there. `None`
    /// if that lets it in to nobody.
    pub(super) fn let_in(
        &mut self,
        transport: Transport,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Option<SocketAddr> {
        if self.nat_at.is_empty() {
            return Some(to);
        }
        let now = self.now;
        match self.nat_at.get(&to.ip()) {
            Some(id) => self.nats[id.0 as usize].incoming(transport, from, to.port(), now),
            None => Some(to),
        }
    }

    /// What becomes of a packet that the peer of `to`, a stream, sends it.
    pub(super) fn passage_to(&mut self, to: Key) -> Passage {
        let Some(socket) = self.stream(to) else {
            return Passage::Through;
        };
        let (side, remote, sender) = (socket.nat, socket.remote, socket.remote_host);
        if side == Side::Open {
            return Passage::Through;
        }
        // A peer that is gone sends nothing but resets, through whatever there is.
        let by = socket.peer();
        let Some((by, seen)) = by.and_then(|by| self.ends(by)) else {
            return Passage::Through;
        };
        if side == Side::Inside {
            return match self.let_in(Transport::Tcp, remote, seen) {
                Some(_) => Passage::Through,
                None => Passage::Dropped,
            };
        }
        if self.seen_at(sender, Transport::Tcp, by, seen) == remote {
            Passage::Through
        } else {
            Passage::Stranger
        }
    }
}
