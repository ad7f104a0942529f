//! The part of a connection that all threads read without its lock.

use crate::address::{CompactAddr, canonical};
use crate::conn::home::Home;
use crate::conn::key::ConnKey;
use crate::network::shared::{NetworkShared, next_id};
use crate::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32,
    Ordering::{Acquire, Relaxed, Release},
};
use crate::worker::wake::Wake;
use cubenet_core::{Backlog, ConnectionId, Limits, Reading, State, Transport, connection::reading};
use std::net::SocketAddr;

/// What every connection has.
pub(crate) struct ConnInfo {
    pub(crate) id: ConnectionId,
    peer: CompactAddr,
    /// The token of a stream; the slot of a datagram connection in its socket.
    pub(crate) number: u32,
    /// A copy of the state, written under the lock.
    state: AtomicU8,
    paused: AtomicBool,
    /// What its permit stands for; see the module `permit`.
    pub(super) permit: AtomicU8,
    /// Whether its worker has it, or finds it before anything that is left for it from now on.
    is_handed_over: AtomicBool,
    /// Whether its worker has been asked to look at it.
    pub(crate) wake: Wake,
    /// Bytes that wait to be sent. A copy for a stream, the count itself for datagrams.
    /// `Limits::max_queued` is checked to fit.
    queued: AtomicU32,
}

impl ConnInfo {
    pub(crate) fn new(peer: CompactAddr, number: u32, state: State) -> Self {
        ConnInfo {
            id: next_id(),
            peer,
            number,
            state: AtomicU8::new(state as u8),
            paused: AtomicBool::new(false),
            permit: AtomicU8::new(0),
            is_handed_over: AtomicBool::new(true),
            wake: Wake::new(),
            queued: AtomicU32::new(0),
        }
    }

    /// The peer's address as the socket knows it.
    pub(crate) fn raw_peer(&self) -> CompactAddr {
        self.peer
    }

    /// The peer's address as people write it: an IPv4 peer of a dual-stack socket has an
    /// IPv4 address.
    pub(crate) fn peer_addr(&self) -> SocketAddr {
        canonical(self.peer.into())
    }

    pub(crate) fn state(&self) -> State {
        State::from_u8(self.state.load(Acquire))
    }

    /// Makes the state known. Released, so that a thread that reads it reads no older `queued`.
    pub(crate) fn set_state(&self, state: State) {
        self.state.store(state as u8, Release);
    }

    /// Whether messages may be sent.
    pub(crate) fn is_open(&self) -> bool {
        self.state().accepts_messages()
    }

    /// What is done with the peer's bytes.
    pub(crate) fn reading(&self) -> Reading {
        reading(self.state(), self.is_paused())
    }

    /// Whether messages are delivered: what [`reading`](Self::reading) says of most connections.
    #[inline]
    pub(crate) fn delivers(&self) -> bool {
        self.is_state(State::Open) && !self.is_paused()
    }

    /// Whether it is in this state.
    #[inline]
    pub(crate) fn is_state(&self, state: State) -> bool {
        self.state.load(Acquire) == state as u8
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Relaxed)
    }

    /// Returns whether that is new; then the worker must look at it next.
    pub(crate) fn set_paused(&self, paused: bool) -> bool {
        self.paused.swap(paused, Relaxed) != paused
    }

    pub(crate) fn is_handed_over(&self) -> bool {
        self.is_handed_over.load(Acquire)
    }

    /// A connect has begun whose connection is not with its worker; or it is now.
    pub(crate) fn set_handed_over(&self, is_handed_over: bool) {
        self.is_handed_over.store(is_handed_over, Release);
    }

    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Relaxed) as usize
    }

    pub(crate) fn set_queued(&self, bytes: usize) {
        self.queued.store(bytes as u32, Relaxed);
    }

    pub(crate) fn add_queued(&self, bytes: usize) {
        self.queued.fetch_add(bytes as u32, Relaxed);
    }

    pub(crate) fn sub_queued(&self, bytes: usize) {
        let before = self.queued.fetch_sub(bytes as u32, Relaxed);
        debug_assert!(before as usize >= bytes, "bytes left a queue twice");
    }
}

/// A connection, whatever carries it.
pub(crate) trait Conn {
    const TRANSPORT: Transport;

    fn info(&self) -> &ConnInfo;

    /// Its worker, and its limits.
    fn home(&self) -> &Home;

    /// Where its worker finds it.
    fn key(&self) -> ConnKey;

    /// Its limits: those of its listener, if that has any of its own.
    fn limits(&self) -> &Limits {
        &self.home().limits
    }

    /// What all threads of the network share.
    fn network(&self) -> &NetworkShared {
        self.home().network()
    }

    /// What waits, on it and on all connections.
    fn backlog(&self) -> Backlog {
        Backlog::growing(self.info().queued(), self.network().queued_total())
    }

    /// Asks the worker to look at the connection.
    fn wake(&self) {
        if self.info().wake.ask() {
            self.home().worker.wake(self.key(), self.info().id);
        }
    }
}
