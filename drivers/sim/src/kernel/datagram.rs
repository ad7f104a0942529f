//! Datagram sockets: what is sent arrives once, twice, late, changed or not at all.

use super::host::HostId;
use super::{Event, Kernel, Key, Notice, Socket};
use crate::error::Refusal;
use crate::trace::Record;
use bytes::Bytes;
use cubenet_core::Transport;
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

pub(crate) struct DatagramSocket {
    pub(crate) host: HostId,
    port: u16,
    /// The only one it hears from, if it called.
    remote: Option<SocketAddr>,
    arrived: VecDeque<(SocketAddr, Bytes)>,
    unread: usize,
    /// Errors that have not been read.
    errors: usize,
}

/// What a receive gave.
pub(crate) enum Received {
    Datagram(SocketAddr, Bytes),
    Nothing,
    /// Nobody listened where an earlier datagram went.
    Unreachable,
}

impl Kernel {
    fn datagrams(&mut self, key: Key) -> Option<&mut DatagramSocket> {
        match self.socket(key)? {
            Socket::Datagrams(socket) => Some(socket),
            _ => None,
        }
    }

    /// A socket at `port`, or any for 0, that hears from everybody, or from `remote` alone.
    pub(crate) fn bind_datagrams(
        &mut self,
        host: HostId,
        port: u16,
        remote: Option<SocketAddr>,
    ) -> Result<(Key, SocketAddr), Refusal> {
        let port = self.host_mut(host).take_port(Transport::Udp, port)?;
        let key = self.insert(Socket::Datagrams(Box::new(DatagramSocket {
            host,
            port,
            remote,
            arrived: VecDeque::new(),
            unread: 0,
            errors: 0,
        })));
        self.host_mut(host).bind(Transport::Udp, port, key.slot);
        Ok((key, self.host(host).at(port)))
    }

    pub(crate) fn close_datagrams(&mut self, key: Key) {
        if let Some(Socket::Datagrams(socket)) = self.remove(key) {
            let host = self.host_mut(socket.host);
            host.release_port(Transport::Udp, socket.port);
        }
    }

    /// Sends a datagram. Returns whether the socket took it; if it did not, its owner is
    /// told when it takes some again.
    pub(crate) fn send_to(&mut self, key: Key, to: SocketAddr, datagram: &[u8]) -> bool {
        let Some(host) = self.host_of(key) else {
            return true;
        };
        let rate = self.host(host).faults.full_buffer;
        if self.random.chance(rate) {
            self.traffic.held_up += 1;
            let at = self.now.after(Duration::from_millis(1));
            self.notify_at(at, key, Notice::Writable);
            return false;
        }
        let Some(socket) = self.datagrams(key) else {
            return true;
        };
        let port = socket.port;
        let from = self.host(host).at(port);
        let remote = self.host_at(to.ip());
        let bytes = Bytes::copy_from_slice(datagram);
        self.put_on_the_way(host, remote, from, to, key, bytes);
        true
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
        let (duplicate, corrupt) = (conditions.duplicate, conditions.corrupt);
        let (reorder, spoof) = (conditions.reorder, conditions.spoof);
        let latency = conditions.latency;
        self.traffic.packets += 1;
        let now = self.now;
        let carried = self
            .paths
            .carry(host, remote, bytes.len() + 28, now, &mut self.random);
        let Some(mut at) = carried else {
            self.traffic.lost += 1;
            return self.record(Record::Lost, sender, &[]);
        };
        if !bytes.is_empty() && self.random.chance(corrupt) {
            self.traffic.corrupted += 1;
            bytes = self.corrupted(&bytes);
        }
        if self.random.chance(reorder) {
            self.traffic.reordered += 1;
            at = at.after(self.random.duration(latency * 4));
        }
        if self.random.chance(spoof) {
            self.traffic.spoofed += 1;
            let forged = self.forged(from, &bytes);
            self.events.push(
                at,
                Event::Datagram {
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
            self.events.push(
                later,
                Event::Datagram {
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
                from,
                to,
                sender,
                bytes,
            },
        );
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

    /// What somebody forges who knows of a datagram from `from`: its address or one of
    /// nobody's, and other bytes, perhaps none.
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
        from: SocketAddr,
        to: SocketAddr,
        sender: Key,
        bytes: Bytes,
    ) {
        self.record(Record::Datagram, sender, &bytes);
        let host = self.host_at(to.ip());
        if !self.host(host).alive {
            self.traffic.lost += 1;
            return;
        }
        let buffer = self.host(host).datagram_buffer;
        let key = self.listener(Transport::Udp, to);
        let heard =
            |socket: &&mut DatagramSocket| socket.remote.is_none_or(|remote| remote == from);
        let socket = key.and_then(|key| Some((key, self.datagrams(key).filter(heard)?)));
        let Some((key, socket)) = socket else {
            let back = self.host_at(from.ip());
            if let Some(at) = self.carry_control(host, back) {
                self.events.push(at, Event::Unreachable(sender));
            }
            return;
        };
        if socket.unread + bytes.len() > buffer {
            self.traffic.overflowed += 1;
            return;
        }
        socket.unread += bytes.len();
        socket.arrived.push_back((from, bytes));
        self.notify(key, Notice::Readable);
    }

    /// A socket that called somebody is told that nobody listens there.
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
        if let Some((from, bytes)) = socket.arrived.pop_front() {
            socket.unread -= bytes.len();
            Received::Datagram(from, bytes)
        } else {
            socket.arrived = VecDeque::new();
            Received::Nothing
        }
    }
}
