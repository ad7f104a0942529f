//! Who has sent a batch of datagrams.

use cubenet_core::demux::{Fingerprint, Hint};

/// Who has sent a batch of datagrams, and where their connections are.
#[derive(Default)]
pub(crate) struct Senders {
    peers: Vec<Fingerprint>,
    hints: Vec<Hint>,
}

impl Senders {
    /// Takes the senders of another batch, whose connections are to be looked for.
    pub(super) fn fill(
        &mut self,
        peers: impl Iterator<Item = Fingerprint>,
    ) -> (&[Fingerprint], &mut [Hint]) {
        self.peers.clear();
        self.peers.extend(peers);
        self.hints.clear();
        self.hints.resize(self.peers.len(), Hint::NONE);
        (&self.peers, &mut self.hints)
    }

    /// The nth of them.
    pub(super) fn get(&self, nth: usize) -> (Fingerprint, Hint) {
        (self.peers[nth], self.hints[nth])
    }
}
