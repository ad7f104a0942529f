//! The ports of one transport on one host: those that are listened on, and those that connecting
//! sockets get.

use crate::error::Refusal;
use cubenet_core::Instant;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

/// The ports for sockets that do not ask for one (as Linux's
/// `net.ipv4.ip_local_port_range`).
pub(crate) const EPHEMERAL: RangeInclusive<u16> = 32_768..=60_999;
/// How long the port of a stream that was closed from this end first stays taken towards its peer
/// (Linux's `TIME_WAIT`).
const TIME_WAIT: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Ports {
    /// The sockets that are bound to a port of all addresses.
    all: BTreeMap<u16, u32>,
    /// The sockets that are bound to a port of one address.
    own: BTreeMap<(u16, IpAddr), u32>,
    /// The ports of connecting sockets, by the address that each connected to: two may share one if they
    /// connected
    /// different peers.
    connected: BTreeMap<SocketAddr, PortSet>,
    /// Ports that stay taken until then (`TIME_WAIT`), the first first.
    waiting: VecDeque<(Instant, SocketAddr, u16)>,
    next: u16,
}

impl Ports {
    /// All are free again. The next to be given out is another than those before, so that what is
    /// under way to them is dropped.
    pub(super) fn clear(&mut self) {
        *self = Ports {
            next: self.next,
            ..Ports::default()
        };
    }

    /// Binds `socket` to `port` of `address`, of any if that is `None`; to any port for 0.
    pub(super) fn bind(
        &mut self,
        (port, address): (u16, Option<IpAddr>),
        ephemeral: &RangeInclusive<u16>,
    ) -> Result<u16, Refusal> {
        let port = match port {
            0 => self.next_free(ephemeral, |ports, port| !ports.is_bound(port))?,
            port => port,
        };
        let is_in_use = match address {
            Some(address) => {
                self.own.contains_key(&(port, address)) || self.all.contains_key(&port)
            }
            None => self.is_bound(port),
        };
        if is_in_use {
            return Err(Refusal::InUse);
        }
        Ok(port)
    }

    /// Sets the socket that is bound there, once it is known.
    pub(super) fn set_bound(&mut self, port: u16, address: Option<IpAddr>, socket: u32) {
        match address {
            Some(address) => self.own.insert((port, address), socket),
            None => self.all.insert(port, socket),
        };
    }

    pub(super) fn unbind(&mut self, port: u16, address: Option<IpAddr>) {
        match address {
            Some(address) => self.own.remove(&(port, address)),
            None => self.all.remove(&port),
        };
    }

    /// The socket that receives what is sent to `port` of `address`.
    pub(super) fn bound(&self, port: u16, address: IpAddr) -> Option<u32> {
        if !self.own.is_empty()
            && let Some(socket) = self.own.get(&(port, address))
        {
            return Some(*socket);
        }
        self.all.get(&port).copied()
    }

    /// A port to connect to `to` from.
    pub(super) fn take(
        &mut self,
        to: SocketAddr,
        ephemeral: &RangeInclusive<u16>,
        now: Instant,
    ) -> Result<u16, Refusal> {
        while let Some((until, of, port)) = self.waiting.front().copied()
            && until <= now
        {
            self.waiting.pop_front();
            self.forget(of, port);
        }
        let is_free = |ports: &Ports, port| {
            let taken = ports.connected.get(&to).is_some_and(|set| set.has(port));
            !taken && !ports.is_bound(port)
        };
        let port = self.next_free(ephemeral, is_free)?;
        self.connected.entry(to).or_default().insert(port);
        Ok(port)
    }

    /// A connection to `to` is over; `waits` if its port stays taken for a while.
    pub(super) fn release(&mut self, to: SocketAddr, port: u16, waits: bool, now: Instant) {
        if waits {
            self.waiting.push_back((now.after(TIME_WAIT), to, port));
        } else {
            self.forget(to, port);
        }
    }

    fn forget(&mut self, to: SocketAddr, port: u16) {
        if let Some(set) = self.connected.get_mut(&to) {
            set.remove(port);
            if set.pages.is_empty() {
                self.connected.remove(&to);
            }
        }
    }

    fn is_bound(&self, port: u16) -> bool {
        let mut own = self.own.range((port, Ipv4Addr::UNSPECIFIED.into())..);
        self.all.contains_key(&port) || own.next().is_some_and(|((at, _), _)| *at == port)
    }

    fn next_free(
        &mut self,
        ephemeral: &RangeInclusive<u16>,
        is_free: impl Fn(&Ports, u16) -> bool,
    ) -> Result<u16, Refusal> {
        let (first, last) = (*ephemeral.start(), *ephemeral.end());
        for _ in ephemeral.clone() {
            let port = self.next.clamp(first, last);
            self.next = if port == last { first } else { port + 1 };
            if is_free(self, port) {
                return Ok(port);
            }
        }
        Err(Refusal::NoPort)
    }
}

/// A set of ports, in pages of 1,024; those that hold none are not there.
#[derive(Default)]
struct PortSet {
    pages: BTreeMap<u16, Page>,
}

#[derive(Default)]
struct Page {
    len: u16,
    bits: Box<[u64; 16]>,
}

impl PortSet {
    fn place(port: u16) -> (u16, usize, u64) {
        (port >> 10, usize::from(port >> 6 & 15), 1 << (port & 63))
    }

    fn has(&self, port: u16) -> bool {
        let (page, word, bit) = PortSet::place(port);
        let page = self.pages.get(&page);
        page.is_some_and(|page| page.bits[word] & bit != 0)
    }

    fn insert(&mut self, port: u16) {
        let (page, word, bit) = PortSet::place(port);
        let page = self.pages.entry(page).or_default();
        page.len += u16::from(page.bits[word] & bit == 0);
        page.bits[word] |= bit;
    }

    fn remove(&mut self, port: u16) {
        let (number, word, bit) = PortSet::place(port);
        let Some(page) = self.pages.get_mut(&number) else {
            return;
        };
        page.len -= u16::from(page.bits[word] & bit != 0);
        page.bits[word] &= !bit;
        if page.len == 0 {
            self.pages.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> SocketAddr {
        (Ipv4Addr::new(10, 0, 0, last), 7_000).into()
    }

    #[test]
    fn ports_run_out_towards_one_peer_and_come_back_after_a_while() {
        let mut ports = Ports::default();
        let (few, now) = (40_000..=40_002, Instant::ZERO);
        let taken: Vec<_> = (0..3)
            .map(|_| ports.take(peer(1), &few, now).unwrap())
            .collect();
        assert_eq!(taken, [40_000, 40_001, 40_002]);
        assert_eq!(ports.take(peer(1), &few, now), Err(Refusal::NoPort));
        assert!(ports.take(peer(2), &few, now).is_ok(), "towards another");
        ports.release(peer(1), 40_001, false, now);
        assert_eq!(ports.take(peer(1), &few, now), Ok(40_001));
        ports.release(peer(1), 40_002, true, now);
        let later = now.after(Duration::from_secs(59));
        assert_eq!(ports.take(peer(1), &few, later), Err(Refusal::NoPort));
        let later = now.after(Duration::from_secs(60));
        assert_eq!(ports.take(peer(1), &few, later), Ok(40_002));
    }

    #[test]
    fn a_port_is_bound_once_for_each_address() {
        let mut ports = Ports::default();
        let [one, other] = [1, 2].map(|last| Some(peer(last).ip()));
        let mut bind = |address, socket| {
            let port = ports.bind((7_000, address), &EPHEMERAL)?;
            ports.set_bound(port, address, socket);
            Ok(port)
        };
        assert_eq!(bind(one, 1), Ok(7_000));
        assert_eq!(bind(one, 2), Err(Refusal::InUse));
        assert_eq!(bind(None, 3), Err(Refusal::InUse));
        assert_eq!(bind(other, 4), Ok(7_000));
        assert_eq!(ports.bound(7_000, peer(1).ip()), Some(1));
        assert_eq!(ports.bound(7_000, peer(2).ip()), Some(4));
        assert_eq!(ports.bound(7_000, peer(3).ip()), None);
        ports.unbind(7_000, one);
        ports.unbind(7_000, other);
        let mut bind = |address| ports.bind((7_000, address), &EPHEMERAL);
        assert_eq!(bind(None), Ok(7_000));
    }
}
