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
    /// The socket inside, by the port outside, of each transport.
    inside: [BTreeMap<u16, SocketAddr>; 2],
    next: u16,
}

struct Mapping {
    port: u16,
    used: Instant,
    /// The addresses it has sent to. Only their packets are let in.
    peers: Vec<SocketAddr>,
}

impl Nat {
    fn new(outside: IpAddr, timeout: Duration) -> Self {
        Nat {
            outside,
            timeout,
            mappings: BTreeMap::new(),
            inside: Default::default(),
            next: FIRST_PORT,
        }
    }

    fn timeout(&self, transport: Transport) -> Duration {
        match transport {
            Transport::Tcp => STREAM_TIMEOUT,
            _ => self.timeout,
        }
    }

    /// The address at which `to` sees a packet that `from`, inside, sends it; `None` if the router has
    /// no port left, and drops it.
    fn outgoing(
        &mut self,
        transport: Transport,
        from: SocketAddr,
        to: SocketAddr,
        now: Instant,
    ) -> Option<SocketAddr> {
        let timeout = self.timeout(transport);
        let old = self.mappings.get(&(transport, from));
        if let Some(old) = old.filter(|mapping| mapping.used.after(timeout) < now) {
            self.inside[index(transport)].remove(&old.port);
            self.mappings.remove(&(transport, from));
        }
        if !self.mappings.contains_key(&(transport, from)) {
            let port = self.free_port(transport, now)?;
            self.inside[index(transport)].insert(port, from);
            let peers = Vec::new();
            let used = now;
            self.mappings
                .insert((transport, from), Mapping { port, used, peers });
        }
        let mapping = self.mappings.get_mut(&(transport, from))?;
        mapping.used = now;
        if !mapping.peers.contains(&to) {
            mapping.peers.push(to);
        }
        Some(SocketAddr::new(self.outside, mapping.port))
    }

    /// A port that no socket has; `None` if there is none, those included that are silent.
    fn free_port(&mut self, transport: Transport, now: Instant) -> Option<u16> {
        const PORTS: usize = (u16::MAX - FIRST_PORT) as usize + 1;
        let timeout = self.timeout(transport);
        let inside = &mut self.inside[index(transport)];
        if inside.len() >= PORTS {
            let is_used = |mapping: &Mapping| mapping.used.after(timeout) >= now;
            self.mappings
                .retain(|(of, _), mapping| *of != transport || is_used(mapping));
            inside.retain(|_, from| self.mappings.contains_key(&(transport, *from)));
        }
        if inside.len() >= PORTS {
            return None;
        }
        loop {
            let port = self.next;
            self.next = port.checked_add(1).unwrap_or(FIRST_PORT);
            if !inside.contains_key(&port) {
                return Some(port);
            }
        }
    }

    /// The socket inside that a packet from `from` to `port` is for; `None` if the router
    /// drops it.
    fn incoming(
        &mut self,
        transport: Transport,
        from: SocketAddr,
        port: u16,
        now: Instant,
    ) -> Option<SocketAddr> {
        let timeout = self.timeout(transport);
        let inside = *self.inside[index(transport)].get(&port)?;
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
        self.inside = Default::default();
    }
}

fn index(transport: Transport) -> usize {
    match transport {
        Transport::Tcp => 0,
        _ => 1,
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
    Unknown,
    /// The router has no mapping for it.
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
    /// Returns whether there is such a router, and no other at `to`.
    pub(crate) fn rebind(&mut self, outside: IpAddr, to: IpAddr) -> bool {
        if to != outside && self.nat_at.contains_key(&to) {
            return false;
        }
        let Some(id) = self.nat_at.remove(&outside) else {
            return false;
        };
        self.nat_at.insert(to, id);
        self.nats[id.0 as usize].rebind(to);
        true
    }

    /// The address at which `to` sees what `from`, on `host`, sends it. `None` if a router drops it.
    pub(super) fn seen_at(
        &mut self,
        host: HostId,
        transport: Transport,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Option<SocketAddr> {
        let now = self.now;
        let Some(id) = self.host(host).nat else {
            return Some(from);
        };
        let other = self.host_at(to.ip());
        if self.host(other).nat == Some(id) {
            // Behind the same router nothing is translated.
            return Some(from);
        }
        self.nats[id.0 as usize].outgoing(transport, from, to, now)
    }

    /// The address that a packet from `from`, on `host`, to `to` comes to: another, if a router is
    /// there. `None` if that drops it.
    pub(super) fn let_in(
        &mut self,
        host: HostId,
        transport: Transport,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Option<SocketAddr> {
        if self.nat_at.is_empty() {
            return Some(to);
        }
        let now = self.now;
        if let Some(id) = self.nat_at.get(&to.ip()) {
            return self.nats[id.0 as usize].incoming(transport, from, to.port(), now);
        }
        let other = self.host_at(to.ip());
        let nat = self.host(other).nat;
        // An address inside means nothing outside.
        (nat.is_none() || nat == self.host(host).nat).then_some(to)
    }

    /// What becomes of a packet that the peer of `to`, a stream, sends it.
    pub(super) fn passage_to(&mut self, to: Key) -> Passage {
        let Some(socket) = self.stream(to) else {
            return Passage::Through;
        };
        let (side, remote, sender) = (socket.nat, socket.remote, socket.remote_host);
        let host = socket.host;
        if side == Side::Open {
            return Passage::Through;
        }
        // A peer that is gone sends nothing but resets, through whatever there is.
        let by = socket.peer();
        let Some((by, seen)) = by.and_then(|by| self.ends(by)) else {
            return Passage::Through;
        };
        if side == Side::Inside {
            // The router may have another address by now, or none that leads here.
            let nat = self.host(host).nat;
            let is_there = nat == self.nat_at.get(&seen.ip()).copied();
            let let_in = self.let_in(sender, Transport::Tcp, remote, seen);
            return match let_in.filter(|_| is_there) {
                Some(_) => Passage::Through,
                None => Passage::Dropped,
            };
        }
        match self.seen_at(sender, Transport::Tcp, by, seen) {
            Some(from) if from == remote => Passage::Through,
            Some(_) => Passage::Unknown,
            None => Passage::Dropped,
        }
    }
}
