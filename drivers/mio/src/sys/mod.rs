//! What differs between operating systems, and nothing else.
//!
//! Datagrams in batches: one system call for many where the system has such a call
//! (`linux`), one for each otherwise (`portable`). Both have the same functions and one type.

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
mod linux;
#[cfg(not(target_os = "linux"))]
mod portable;

#[cfg(target_os = "linux")]
pub(crate) use linux::{ReceiveBatch, offload, segments_refused, send_runs, tell_destination};
#[cfg(not(target_os = "linux"))]
pub(crate) use portable::{ReceiveBatch, offload, segments_refused, send_runs, tell_destination};

use std::io;
use std::net::{IpAddr, SocketAddr};

/// Whether a read that did not fill its buffer has emptied the socket. It has under epoll
/// and kqueue; on Windows mio arms a socket again only after `WouldBlock`.
pub(crate) const SHORT_READ_DRAINS: bool = cfg!(unix);

/// Whether a listener may bind an address that still has connections in `TIME_WAIT`. On
/// Windows the same option would let two sockets share an address.
pub(crate) const REUSE_ADDRESS: bool = cfg!(unix);

/// The largest piece of a run, in bytes: what fits an Ethernet frame over IPv6.
pub(crate) const MAX_SEGMENT: usize = 1452;
/// The most pieces of a run, and the most bytes; what Linux takes at once.
const MAX_SEGMENTS: usize = 64;
const MAX_RUN: usize = 65_000;

/// A datagram that was received.
pub(crate) struct Datagram<'a> {
    pub(crate) from: SocketAddr,
    /// To which of this machine's addresses it was sent, if the socket was told to tell.
    pub(crate) local: Option<IpAddr>,
    pub(crate) bytes: &'a [u8],
}

/// Between which addresses a datagram goes; the system chooses the source, if it is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) to: SocketAddr,
    pub(crate) source: Option<IpAddr>,
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

    /// Adds a datagram of `len` bytes that lies behind it, if it can take one.
    pub(crate) fn extend(&mut self, route: Route, len: usize) -> bool {
        let fits = self.route == route
            && len > 0
            && len <= self.segment
            && self.segment <= MAX_SEGMENT
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

    fn route(to: &str) -> Route {
        Route {
            to: to.parse().unwrap(),
            source: None,
        }
    }

    #[test]
    fn a_run_takes_equal_datagrams_and_ends_with_a_shorter_one() {
        let to = route("127.0.0.1:7");
        let other = route("127.0.0.1:8");
        let mut run = Run::single(to, 10, 100);
        assert!(!run.extend(other, 100));
        assert!(!run.extend(to, 101));
        assert!(
            !run.extend(to, 0),
            "an empty datagram has a meaning of its own"
        );
        assert!(run.extend(to, 100));
        assert!(run.extend(to, 1));
        assert!(!run.extend(to, 100), "the shorter one was the last");
        let pieces: Vec<_> = run.split().map(|piece| (piece.start, piece.len)).collect();
        assert_eq!(pieces, [(10, 100), (110, 100), (210, 1)]);
    }
}
