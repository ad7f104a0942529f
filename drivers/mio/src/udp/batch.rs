//! Datagrams that the callbacks of one socket send, gathered to leave in few system calls.

use crate::conn::info::Conn;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sys::{self, Route, Run};
use crate::udp::socket::{DatagramSocket, PeerShared};
use cubenet_core::{ConnectionId, State};
use std::io;
use std::sync::Arc;

/// Gathered bytes that are handed to the system before the batch ends.
const FLUSH_BYTES: usize = 1 << 16;
/// The same for runs: as many as go out in one call.
const FLUSH_RUNS: usize = 64;

/// Datagrams in the order they were sent, in runs: datagrams of one length to one peer, which the
/// system may send in one call.
#[derive(Default)]
pub(crate) struct DatagramBatch {
    bytes: Vec<u8>,
    runs: Vec<Run>,
    /// Whose run it is, by position.
    senders: Vec<Arc<PeerShared>>,
    /// How much there was when the callback that runs now began.
    mark: Mark,
}

/// A position among gathered datagrams.
#[derive(Clone, Copy, Default)]
struct Mark {
    /// Runs before it, and how much was in the last of them, which may have grown since: bytes, and
    /// datagrams.
    runs: usize,
    last_len: usize,
    last_count: usize,
}

impl DatagramBatch {
    /// A callback begins, whose datagrams are dropped if it does not end well.
    pub(crate) fn begin_callback(&mut self) {
        self.mark.runs = self.runs.len();
        if let Some(last) = self.runs.last() {
            (self.mark.last_len, self.mark.last_count) = (last.len, last.count);
        }
    }

    pub(crate) fn push(&mut self, peer: &Arc<PeerShared>, datagram: &[u8]) {
        if !self.push_to_last(peer, datagram) {
            self.senders.push(Arc::clone(peer));
        }
    }

    /// The same for a sender that is not needed any more.
    pub(crate) fn push_owned(&mut self, peer: Arc<PeerShared>, datagram: &[u8]) {
        if !self.push_to_last(&peer, datagram) {
            self.senders.push(peer);
        }
    }

    /// Gathers a datagram in the last run, or in one of its own, whose sender is still to be told.
    fn push_to_last(&mut self, peer: &Arc<PeerShared>, datagram: &[u8]) -> bool {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(datagram);
        let last = self.runs.last_mut().zip(self.senders.last());
        let joined = last.is_some_and(|(run, sender)| {
            let max_segment = usize::from(peer.max_segment.load(Relaxed));
            Arc::ptr_eq(sender, peer) && run.extend(start, datagram.len(), max_segment)
        });
        if !joined {
            let route = peer.route();
            self.runs.push(Run::single(route, start, datagram.len()));
        }
        joined
    }

    /// Whether as much is gathered as goes out in one call.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() >= FLUSH_BYTES || self.runs.len() >= FLUSH_RUNS
    }

    /// Bytes gathered for this peer.
    pub(crate) fn bytes_to(&self, route: Route) -> usize {
        let to_peer = self.runs.iter().filter(|run| run.route == route);
        to_peer.map(|run| run.len).sum()
    }

    /// Drops what this connection has gathered since the callback began. Its bytes stay, and
    /// nothing refers to them.
    pub(crate) fn discard(&mut self, id: ConnectionId) {
        let Mark {
            runs,
            last_len,
            last_count,
        } = self.mark;
        self.discard_from(runs, id);
        if let Some(nth) = runs.checked_sub(1)
            && self.senders[nth].info().id == id
        {
            let last = &mut self.runs[nth];
            (last.len, last.count) = (last_len, last_count);
        }
    }

    /// Datagrams gathered, and whose, in runs.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&Arc<PeerShared>, usize)> {
        let counts = self.runs.iter().map(|run| run.count);
        self.senders.iter().zip(counts)
    }

    /// Drops everything that this connection has gathered. Returns how many datagrams that was.
    pub(crate) fn discard_all(&mut self, id: ConnectionId) -> usize {
        self.discard_from(0, id)
    }

    /// Takes out what is gathered on connections that have closed: whose, and how many datagrams.
    pub(crate) fn take_closed(&mut self) -> Vec<(Arc<PeerShared>, usize)> {
        let has_closed = |peer: &Arc<PeerShared>| peer.info().state() == State::Closed;
        let mut taken = Vec::new();
        while let Some(at) = self.senders.iter().position(has_closed) {
            taken.push((self.senders.remove(at), self.runs.remove(at).count));
        }
        taken
    }

    fn discard_from(&mut self, mut at: usize, id: ConnectionId) -> usize {
        let mut datagrams = 0;
        while at < self.runs.len() {
            if self.senders[at].info().id == id {
                datagrams += self.runs.remove(at).count;
                self.senders.remove(at);
            } else {
                at += 1;
            }
        }
        datagrams
    }

    /// Hands everything to the socket, which queues what the system does not take. Forgets nothing
    /// yet; see [`clear`](Self::clear).
    pub(crate) fn transmit(&self, socket: &DatagramSocket) {
        let mut next = 0;
        while next < self.runs.len() {
            match socket.send_runs(&self.bytes, &self.runs[next..]) {
                Ok(sent) => next += sent,
                Err(error) => {
                    let (run, peer) = (self.runs[next], &self.senders[next]);
                    if run.count > 1 {
                        limit_segments(peer, run, &error);
                    }
                    // One by one: that tells apart what waits, what failed and what was
                    // an error of an earlier datagram.
                    for piece in run.split() {
                        let datagram = &self.bytes[piece.start..piece.start + piece.len];
                        socket.send(peer, datagram);
                    }
                    next += 1;
                }
            }
        }
    }

    /// Hands everything to the socket.
    pub(crate) fn flush(&mut self, socket: &DatagramSocket) {
        if !self.runs.is_empty() {
            self.transmit(socket);
            self.clear();
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.runs.clear();
        self.senders.clear();
        self.mark = Mark::default();
    }
}

/// The system refused a run to this peer: from here on its datagrams go out in smaller runs, or
/// singly. Others are not concerned, since the path to them is another.
fn limit_segments(peer: &PeerShared, run: Run, error: &io::Error) {
    if sys::cannot_segment(error) {
        peer.max_segment.store(0, Relaxed);
    } else if sys::too_large(error) {
        // What fits one piece is found at the first smaller datagrams.
        let smaller = run.segment.saturating_sub(1);
        peer.max_segment
            .fetch_min(u16::try_from(smaller).unwrap_or(u16::MAX), Relaxed);
    }
}
