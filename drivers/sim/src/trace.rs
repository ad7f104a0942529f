//! What happened, as one number: two runs with the same number were the same run.

use cubenet_core::Instant;
use siphasher::sip::SipHasher13;
use std::hash::Hasher;

/// What is recorded. The numbers are part of the hash and stay as they are.
#[derive(Clone, Copy)]
pub(crate) enum Record {
    Segment = 1,
    Datagram = 2,
    Syn = 3,
    SynAck = 4,
    Refusal = 5,
    Reset = 6,
    Lost = 7,
    Timer = 8,
    Accepted = 16,
    Connected = 17,
    Received = 18,
    Writable = 19,
    Error = 20,
    Closed = 21,
}

pub(crate) struct Trace {
    hasher: SipHasher13,
    records: u64,
}

impl Trace {
    pub(crate) fn new() -> Self {
        Trace {
            hasher: SipHasher13::new_with_keys(0, 0),
            records: 0,
        }
    }

    /// Something happened at `now` to the socket or connection with number `subject`.
    pub(crate) fn record(&mut self, now: Instant, record: Record, subject: u64, bytes: &[u8]) {
        self.records += 1;
        let mut head = [0; 24];
        head[..8].copy_from_slice(&now.as_micros().to_le_bytes());
        head[8..16].copy_from_slice(&subject.to_le_bytes());
        head[16..].copy_from_slice(&(((bytes.len() as u64) << 8) | record as u64).to_le_bytes());
        self.hasher.write(&head);
        self.hasher.write(bytes);
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    pub(crate) fn records(&self) -> u64 {
        self.records
    }
}
