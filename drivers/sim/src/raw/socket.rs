//! What a socket without a protocol keeps, and what it does.

use crate::kernel::{Kernel, Key, Read, Received};
use cubenet_core::CloseReason;
use std::net::SocketAddr;

/// What a raw socket keeps.
#[derive(Default)]
pub(crate) struct Raw {
    pub(super) connected: bool,
    /// Bytes that the socket would not take yet.
    pub(super) unwritten: Vec<u8>,
    /// A FIN is to follow them.
    pub(super) fin_asked: bool,
    pub(super) stopped: bool,
    pub(super) received: Vec<u8>,
    pub(super) end: Option<RawEnd>,
    pub(super) accepted: Vec<Key>,
    pub(super) datagrams: Vec<(SocketAddr, Vec<u8>)>,
}

/// How a stream ended, as a raw peer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RawEnd {
    /// In order: the other side ended its direction.
    Orderly,
    /// It failed: reset, refused, or not answered.
    Failed(CloseReason),
}

impl Raw {
    pub(super) fn stream(connected: bool) -> Self {
        Raw {
            connected,
            ..Raw::default()
        }
    }

    pub(crate) fn connected(&mut self, key: Key, kernel: &mut Kernel) {
        self.connected = true;
        self.advance(key, kernel);
    }

    /// Does what has become possible.
    pub(crate) fn advance(&mut self, key: Key, kernel: &mut Kernel) {
        while self.connected && !self.unwritten.is_empty() {
            match kernel.write(key, &[&self.unwritten]) {
                Ok(0) | Err(_) => break,
                Ok(written) => drop(self.unwritten.drain(..written)),
            }
        }
        if self.connected && self.fin_asked && self.unwritten.is_empty() {
            self.fin_asked = false;
            kernel.shutdown(key);
        }
        self.read(key, kernel);
    }

    fn read(&mut self, key: Key, kernel: &mut Kernel) {
        while !self.stopped && self.end.is_none() {
            match kernel.read(key) {
                Read::Bytes(bytes) => self.received.extend_from_slice(&bytes),
                Read::Nothing => break,
                Read::End => self.end = Some(RawEnd::Orderly),
                Read::Failed(reason) => self.end = Some(RawEnd::Failed(reason)),
            }
        }
        while let Received::Datagram(arrived) = kernel.receive_from(key) {
            self.datagrams.push((arrived.from, arrived.bytes.to_vec()));
        }
    }

    /// The stream failed: what had arrived before comes first, unless it is not read.
    pub(crate) fn failed(&mut self, key: Key, kernel: &mut Kernel) {
        self.read(key, kernel);
        if self.stopped && self.end.is_none() {
            self.end = kernel.failure(key).map(RawEnd::Failed);
        }
    }
}
