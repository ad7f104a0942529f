//! Where the driver meets the operating system: every call on a socket that can fail goes
//! through here (`calls`), and so does everything that differs between systems.
//!
//! Datagrams in batches: one system call for many where the system has such a call
//! (`linux`), one for each otherwise (`portable`). Both have the same functions and one type.

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
mod alarm;
mod calls;
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
mod epoll;
#[cfg(cubenet_faults)]
pub mod faults;
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
mod linux;
#[cfg(not(target_os = "linux"))]
mod portable;
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
mod tcp_info;

#[cfg(target_os = "linux")]
use linux as system;
#[cfg(not(target_os = "linux"))]
use portable as alarm;
#[cfg(not(target_os = "linux"))]
use portable as epoll;
#[cfg(not(target_os = "linux"))]
use portable as system;
#[cfg(not(target_os = "linux"))]
use portable as tcp_info;

pub(crate) use alarm::Alarm;
pub(crate) use calls::{
    Pollable, accept, bind, connect, listen, peer_addr, read, receive, register, register_listener,
    send_runs, set_nodelay, shutdown, step_back, take_error, watch_room, write,
};
pub(crate) use epoll::{clock_micros, has_waiting};
pub(crate) use system::{
    ReceiveBatch, STREAM_INTEREST, cannot_segment, is_urgent, offload, tell_destination, too_large,
    unacknowledged,
};
pub(crate) use tcp_info::tcp_info;

use crate::address::CompactAddr;
use mio::Interest;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

/// Whether a read that did not fill its buffer has emptied the socket. It has under epoll,
/// unless the read stopped at urgent data, of which an event tells ([`is_urgent`]). Elsewhere it
/// need not have: other systems tell of no urgent data, and on Windows mio arms a socket again
/// only after `WouldBlock`.
pub(crate) const SHORT_READ_DRAINS: bool = cfg!(target_os = "linux");

/// Whether a listener may be watched by several threads, of which the system wakes one that waits.
/// Elsewhere one thread accepts.
pub(crate) const WAKES_ONE: bool = cfg!(target_os = "linux");

/// Whether several datagram sockets may share an address, so that the system shares out what arrives
/// there: all datagrams of one peer to the same socket.
pub(crate) const SHARES_OUT: bool = cfg!(target_os = "linux");

/// Whether a stream that is accepted takes `TCP_NODELAY` over from its listener.
pub(crate) const INHERITS_NODELAY: bool = cfg!(target_os = "linux");

/// Lets a socket share its address with others of this user that are let, too.
pub(crate) fn share_address(socket: &socket2::Socket) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    return socket.set_reuse_port(true);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = socket;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// What a datagram socket is watched for at first. On Unix it is watched for room to send only while
/// something waits ([`watch_room`]): epoll would tell of it after every datagram that has left.
/// Elsewhere the system tells only after it refused one.
pub(crate) const DATAGRAM_INTEREST: Interest = if cfg!(unix) {
    Interest::READABLE
} else {
    Interest::READABLE.add(Interest::WRITABLE)
};

/// Whether a listener may bind an address that still has connections in `TIME_WAIT`. On
/// Windows the same option would let two sockets share an address.
pub(crate) const REUSE_ADDRESS: bool = cfg!(unix);

/// The largest piece of a run, in bytes: what fits an Ethernet frame over IPv6.
pub(crate) const MAX_SEGMENT: u16 = 1452;
/// The most pieces of a run, and the most bytes; what Linux takes at once.
const MAX_SEGMENTS: usize = 64;
const MAX_RUN: usize = 65_000;

/// A datagram that was received.
pub(crate) struct Datagram<'a> {
    pub(crate) from: CompactAddr,
    /// Which of the [senders](ReceiveBatch::senders) that is.
    pub(crate) sender: usize,
    /// To which of this machine's addresses it was sent, if the socket has that option.
    pub(crate) local: Option<Source>,
    pub(crate) bytes: &'a [u8],
}

/// One of this machine's addresses, from which an answer is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) ip: IpAddr,
    /// The interface, if the address is one that several interfaces may have.
    pub(crate) scope: u32,
}

impl Source {
    /// One that a datagram can be sent from; `None` for what only receives: a multicast or a
    /// broadcast address.
    #[cfg(any(test, target_os = "linux"))]
    pub(crate) fn new(ip: IpAddr, interface: u32) -> Option<Self> {
        // A dual-stack socket shows an IPv4 address as IPv6.
        let (unicast, scope) = match ip.to_canonical() {
            IpAddr::V4(ip) => {
                let unicast = !(ip.is_multicast() || ip.is_broadcast() || ip.is_unspecified());
                (unicast, 0)
            }
            IpAddr::V6(ip) => {
                let unicast = !(ip.is_multicast() || ip.is_unspecified());
                let local = ip.is_unicast_link_local();
                (unicast, if local { interface } else { 0 })
            }
        };
        unicast.then_some(Source { ip, scope })
    }

    pub(crate) fn with_port(self, port: u16) -> SocketAddr {
        match self.ip {
            IpAddr::V4(_) => SocketAddr::new(self.ip, port),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, self.scope).into(),
        }
    }
}

/// Between which addresses a datagram goes; the system chooses the source, if it is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) to: CompactAddr,
    pub(crate) source: Option<Source>,
}

/// Datagrams to one peer that lie one behind another and go out together: all of `segment`
/// bytes but the last, which may be shorter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) route: Route,
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) segment: usize,
    pub(crate) count: usize,
}

impl Run {
    /// A run of one datagram.
    pub(crate) fn single(route: Route, start: usize, len: usize) -> Self {
        Run {
            route,
            start,
            len,
            segment: len,
            count: 1,
        }
    }

    /// Adds a datagram to the same peer, of `len` bytes at `start`, if it can take one: the datagrams
    /// of a run are `max_segment` bytes long at most.
    pub(crate) fn extend(&mut self, start: usize, len: usize, max_segment: usize) -> bool {
        let fits = self.start + self.len == start
            && len > 0
            && len <= self.segment
            && self.segment <= max_segment
            && self.len == self.segment * self.count
            && self.count < MAX_SEGMENTS
            && self.len + len <= MAX_RUN;
        if fits {
            self.len += len;
            self.count += 1;
        }
        fits
    }

    /// Its datagrams, one a run.
    pub(crate) fn split(self) -> impl Iterator<Item = Run> {
        (0..self.count).map(move |nth| {
            let offset = nth * self.segment;
            let len = self.segment.min(self.len - offset);
            Run::single(self.route, self.start + offset, len)
        })
    }
}

/// Whether an error of a socket is about descriptors or memory of the whole process or
/// system, so that it may pass.
pub(crate) fn out_of_resources(error: &io::Error) -> bool {
    // EMFILE, ENFILE, ENOBUFS and ENOMEM have no stable names in std. 24, 23 and 12 are the
    // same on every Unix; ENOBUFS is 105 on Linux and 55 on the BSDs. On Windows they are
    // WSAEMFILE and WSAENOBUFS.
    const CODES: &[i32] = if cfg!(windows) {
        &[10_024, 10_055]
    } else if cfg!(target_os = "linux") {
        &[24, 23, 12, 105]
    } else {
        &[24, 23, 12, 55]
    };
    error
        .raw_os_error()
        .is_some_and(|code| CODES.contains(&code))
}

/// Bounds what the system keeps of a stream beyond what is under way to its peer, where it can.
pub(crate) fn limit_unsent(socket: &socket2::Socket, bytes: u32) {
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    let _ = socket.set_tcp_notsent_lowat(bytes);
    #[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
    let _ = (socket, bytes);
}

/// Whether a non-blocking `connect` has begun rather than failed.
pub(crate) fn under_way(error: &io::Error) -> bool {
    // EINPROGRESS has no stable name in std: 115 on Linux, 36 on the BSDs. Windows says
    // `WouldBlock`.
    let in_progress = if cfg!(target_os = "linux") { 115 } else { 36 };
    error.kind() == io::ErrorKind::WouldBlock
        || (cfg!(unix) && error.raw_os_error() == Some(in_progress))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_comes_from_an_address_that_one_can_be_sent_from() {
        let source = |ip: &str| Source::new(ip.parse().unwrap(), 3);
        for none in [
            "224.0.0.1",
            "255.255.255.255",
            "0.0.0.0",
            "ff02::1",
            "::",
            "::ffff:224.0.0.1",
        ] {
            assert_eq!(source(none), None, "{none}");
        }
        for (ip, address) in [
            ("192.0.2.1", "192.0.2.1:7"),
            ("2001:db8::1", "[2001:db8::1]:7"),
            ("fe80::1", "[fe80::1%3]:7"),
        ] {
            let with_port = source(ip).unwrap().with_port(7);
            assert_eq!(with_port, address.parse().unwrap());
        }
    }

    fn route(to: &str) -> Route {
        Route {
            to: to.parse::<SocketAddr>().unwrap().into(),
            source: None,
        }
    }

    #[test]
    fn a_run_takes_equal_datagrams_and_ends_with_a_shorter_one() {
        let to = route("127.0.0.1:7");
        let mut run = Run::single(to, 10, 100);
        let mut extend = |start, len| run.extend(start, len, MAX_SEGMENT.into());
        assert!(!extend(111, 100), "something lies between");
        assert!(!extend(110, 101));
        assert!(
            !extend(110, 0),
            "an empty datagram has a meaning of its own"
        );
        assert!(extend(110, 100));
        assert!(extend(210, 1));
        assert!(!extend(211, 100), "the shorter one was the last");
        assert!(!Run::single(to, 0, 100).extend(100, 100, 99));
        let pieces: Vec<_> = run.split().map(|piece| (piece.start, piece.len)).collect();
        assert_eq!(pieces, [(10, 100), (110, 100), (210, 1)]);
    }
}
