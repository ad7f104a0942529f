//! Datagram sockets: what is sent arrives once, twice, late, changed or not at all.

use super::host::{HostId, specified};
use super::path::Carried;
use super::{Event, Kernel, Key, Notice, Socket};
use crate::error::Refusal;
use crate::trace::Record;
use bytes::Bytes;
use cubenet_core::{Instant, Transport};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

pub(crate) struct DatagramSocket {
    pub(crate) host: HostId,
    port: u16,
    /// `None` for all of the host's.
    address: Option<IpAddr>,
    /// The only peer that it receives from, if it is connected.
    remote: Option<SocketAddr>,
    arrived: VecDeque<Arrived>,
    /// Bytes of the receive buffer in use.
    unread: usize,
    /// Errors that have not been read.
    errors: usize,
}

/// A datagram that has arrived.
pub(crate) struct Arrived {
    pub(crate) from: SocketAddr,
    /// The address that it was sent to.
    pub(crate) to: IpAddr,
    pub(crate) bytes: Bytes,
}

/// What a receive gave.
pub(crate) enum Received {
    Datagram(Arrived),
    Nothing,
    /// No socket was bound where an earlier datagram went.
    Unreachable,
}

/// Bytes of memory that Linux counts for a datagram of `len` bytes: a descriptor, and a block of one
/// of the allocator's sizes for the headers, the data and what describes them. Measured on Linux
/// 6.18 over loopback, from how many datagrams of a length a buffer held.
fn memory(len: usize) -> usize {
    const DESCRIPTOR: usize = 256;
    const HEADERS: usize = 60;
    const SHARED: usize = 320;
    const PAGE: usize = 4_096;
    let block = len + HEADERS + SHARED;
    DESCRIPTOR
        + match block {
            0..=576 => 576,
            577..=16_384 => block.next_power_of_two().max(1_024),
            _ => block.next_multiple_of(PAGE),
        }
}

impl Kernel {
    fn datagrams(&mut self, key: Key) -> Option<&mut DatagramSocket> {
        match self.socket(key)? {
            Socket::Datagrams(socket) => Some(socket),
            _ => None,
        }
    }

    /// A socket at this address, at any port for 0, that receives from every address, or from `remote`
    /// alone.
    pub(crate) fn bind_datagrams(
        &mut self,
        host: HostId,
        at: SocketAddr,
        remote: Option<SocketAddr>,
    ) -> Result<(Key, SocketAddr), Refusal> {
        let local = self.host_mut(host).take_bound(Transport::Udp, at)?;
        let (port, address) = (local.port(), specified(at.ip()));
        let key = self.insert(Socket::Datagrams(Box::new(DatagramSocket {
            host,
            port,
            address,
            remote,
            arrived: VecDeque::new(),
            unread: 0,
            errors: 0,
        })));
        let host = self.host_mut(host);
        host.set_bound(Transport::Udp, port, address, key.slot);
        Ok((key, local))
    }

    pub(crate) fn close_datagrams(&mut self, key: Key) {
        if let Some(Socket::Datagrams(socket)) = self.remove(key) {
            let host = self.host_mut(socket.host);
            host.release_bound(Transport::Udp, socket.port, socket.address);
        }
    }

    /// Sends a datagram from one of the host's addresses. Returns whether the socket took it; if it
    /// did not, its owner gets a notice when it takes some again.
    pub(crate) fn send_to(
        &mut self,
        key: Key,
        local: IpAddr,
        to: SocketAddr,
        datagram: &[u8],
    ) -> bool {
        let Some(host) = self.host_of(key) else {
            return true;
        };
        let rate = self.host(host).faults.full_buffer();
        if self.random.chance(rate) {
            self.traffic.held_up += 1;
            let at = self.now.after(Duration::from_millis(1));
            self.notify_at(at, key, Notice::Writable);
            return false;
        }
        let Some(socket) = self.datagrams(key) else {
            return true;
        };
        let from = SocketAddr::new(local, socket.port);
        self.charge_datagram(key, host, datagram.len());
        let seen = self.seen_at(host, Transport::Udp, from, to);
        let through = seen.and_then(|from| {
            let to = self.let_in(host, Transport::Udp, from, to)?;
            Some((from, to))
        });
        let Some((from, to)) = through else {
            self.traffic.packets += 1;
            self.traffic.lost += 1;
            return true;
        };
        let remote = self.host_at(to.ip());
        let bytes = Bytes::copy_from_slice(datagram);
        self.put_on_the_way(host, remote, from, to, key, bytes);
        true
    }

    /// Datagrams of the socket that is served go many at a time.
    fn charge_datagram(&mut self, key: Key, host: HostId, len: usize) {
        const AT_A_TIME: u32 = 64;
        if self.host(host).costs.is_none() {
            return;
        }
        let is_own = self.iteration.socket == Some(key);
        let calls = !is_own || self.iteration.datagrams.is_multiple_of(AT_A_TIME);
        self.iteration.datagrams += u32::from(is_own);
        self.charge(host, calls, len);
    }

    fn put_on_the_way(
        &mut self,
        host: HostId,
        remote: HostId,
        from: SocketAddr,
        to: SocketAddr,
        sender: Key,
        mut bytes: Bytes,
    ) {
        let conditions = self.paths.conditions(host, remote);
        let (duplicate, undetected) = (conditions.duplicate(), conditions.undetected());
        let (reorder, spoof) = (conditions.reorder(), conditions.spoof());
        let (latency, mtu) = (conditions.latency(), conditions.mtu());
        self.traffic.packets += 1;
        let sent = self.departure();
        let is_ipv4 = to.is_ipv4();
        let carried = self.carry_fragments((host, remote), sent, bytes.len(), mtu, is_ipv4);
        self.capture_datagram(sent, (from, to), &bytes, carried);
        let mut at = match carried {
            Carried::Arrives(at) => at,
            Carried::Damaged(at) if !bytes.is_empty() && self.random.chance(undetected) => {
                self.traffic.corrupted += 1;
                bytes = self.corrupted(&bytes);
                at
            }
            dropped => {
                self.traffic.corrupted += u64::from(dropped != Carried::Lost);
                self.traffic.lost += 1;
                return self.record(Record::Lost, sender, &[]);
            }
        };
        if self.random.chance(reorder) {
            self.traffic.reordered += 1;
            at = at.after(self.random.duration(latency * 4));
        }
        if self.random.chance(spoof) {
            self.traffic.spoofed += 1;
            let forged = self.forged(from, &bytes);
            self.capture_datagram(sent, (forged.0, to), &forged.1, Carried::Arrives(at));
            self.events.push(
                at,
                Event::Datagram {
                    at: remote,
                    from: forged.0,
                    to,
                    sender,
                    bytes: forged.1,
                },
            );
        }
        if self.random.chance(duplicate) {
            self.traffic.duplicated += 1;
            let later = at.after(self.random.duration(latency));
            let bytes = bytes.clone();
            self.capture_datagram(sent, (from, to), &bytes, Carried::Arrives(later));
            self.events.push(
                later,
                Event::Datagram {
                    at: remote,
                    from,
                    to,
                    sender,
                    bytes,
                },
            );
        }
        self.events.push(
            at,
            Event::Datagram {
                at: remote,
                from,
                to,
                sender,
                bytes,
            },
        );
    }

    /// Carries a datagram of `len` bytes, in fragments if the path's packets are smaller. It arrives
    /// with the last of them, if all do.
    fn carry_fragments(
        &mut self,
        (from, to): (HostId, HostId),
        now: Instant,
        len: usize,
        mtu: usize,
        is_ipv4: bool,
    ) -> Carried {
        const UDP: usize = 8;
        let (ip, extension) = if is_ipv4 { (20, 0) } else { (40, 8) };
        if ip + UDP + len <= mtu {
            let len = ip + UDP + len;
            return self.paths.carry(from, to, len, now, &mut self.random);
        }
        let header = ip + extension;
        let most = (mtu - header) & !7;
        let mut left = UDP + len;
        let mut whole = Carried::Arrives(now);
        while left > 0 {
            let part = left.min(most);
            left -= part;
            self.traffic.fragments += 1;
            let random = &mut self.random;
            let carried = self.paths.carry(from, to, header + part, now, random);
            whole = whole.and(carried);
        }
        whole
    }

    /// A byte changed, or some cut off the end; never all of them, since a datagram of no
    /// bytes means something else and no line makes one of another.
    fn corrupted(&mut self, bytes: &Bytes) -> Bytes {
        let mut changed = bytes.to_vec();
        let at = self.random.below(changed.len() as u64) as usize;
        if at > 0 && self.random.chance(0.5) {
            changed.truncate(at);
        } else {
            changed[at] ^= 1 << self.random.below(8);
        }
        changed.into()
    }

    /// A forgery after a datagram from `from`: with its address or one that no host has, and other
    /// bytes, perhaps none.
    fn forged(&mut self, from: SocketAddr, bytes: &Bytes) -> (SocketAddr, Bytes) {
        let from = if self.random.chance(0.5) {
            from
        } else {
            // 198.18.0.0/15 is set aside for tests (RFC 2544), so no host is there.
            let low = self.random.next() as u32 & 0x1_ffff;
            let address = Ipv4Addr::from(0xc612_0000 | low);
            SocketAddr::new(IpAddr::V4(address), 1_024 + (low as u16 >> 1))
        };
        let len = self.random.below(bytes.len() as u64 + 1) as usize;
        let forged: Vec<u8> = (0..len).map(|_| self.random.next() as u8).collect();
        (from, forged.into())
    }

    pub(crate) fn datagram_arrived(
        &mut self,
        host: HostId,
        (from, to): (SocketAddr, SocketAddr),
        sender: Key,
        bytes: Bytes,
    ) {
        self.record(Record::Datagram, sender, &bytes);
        if !self.host(host).alive {
            self.traffic.lost += 1;
            return;
        }
        let buffer = self.host(host).datagram_buffer;
        let key = self.listener(host, Transport::Udp, to);
        let receives =
            |socket: &&mut DatagramSocket| socket.remote.is_none_or(|remote| remote == from);
        let socket = key.and_then(|key| Some((key, self.datagrams(key).filter(receives)?)));
        let Some((key, socket)) = socket else {
            // The ICMP message goes to the real sender, whatever the source address says.
            if let Some(back) = self.host_of(sender) {
                let at = self.carry_control(host, back);
                self.capture_unreachable((from, to), &bytes, at.is_some());
                if let Some(at) = at {
                    self.events.push(at, Event::Unreachable(sender));
                }
            }
            return;
        };
        if socket.unread + memory(bytes.len()) > buffer {
            self.traffic.overflowed += 1;
            return;
        }
        socket.unread += memory(bytes.len());
        let to = to.ip();
        socket.arrived.push_back(Arrived { from, to, bytes });
        self.notify(key, Notice::Readable);
    }

    /// A connected socket gets the notice that no socket is bound at its peer's address.
    pub(crate) fn unreachable(&mut self, key: Key) {
        if let Some(socket) = self.datagrams(key)
            && socket.remote.is_some()
        {
            socket.errors += 1;
            self.record(Record::Refusal, key, &[]);
            self.notify(key, Notice::Readable);
        }
    }

    pub(crate) fn receive_from(&mut self, key: Key) -> Received {
        let Some(socket) = self.datagrams(key) else {
            return Received::Nothing;
        };
        if socket.errors > 0 {
            socket.errors -= 1;
            return Received::Unreachable;
        }
        if let Some(arrived) = socket.arrived.pop_front() {
            socket.unread -= memory(arrived.bytes.len());
            let host = socket.host;
            self.charge_datagram(key, host, arrived.bytes.len());
            Received::Datagram(arrived)
        } else {
            socket.arrived = VecDeque::new();
            Received::Nothing
        }
    }
}
