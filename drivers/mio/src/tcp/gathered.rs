//! Frames of a stream that a batch of the application's gathers, to leave in one write when the batch
//! ends.
//!
//! They lie with the connection, under its lock, and not with the thread: so they count in its
//! queue, what another thread sends afterwards leaves behind them, and a close delivers them.

use crate::conn::info::Conn;
use crate::tcp::batch::FLUSH_BYTES;
use crate::tcp::conn::StreamConn;
use crate::tcp::send_state::{Rare, SendState, WriteBuf};
use cubenet_core::{SendError, State};

/// Buffers that a thread keeps for its next batch, and the most bytes in all of them.
const MAX_SPARE: usize = 1 << 14;
const MAX_SPARE_BYTES: usize = 1 << 22;

/// Frames that leave when a batch ends.
#[derive(Default)]
pub(crate) struct Gathered {
    bytes: Vec<u8>,
    /// The batch that has this connection on its list, and that gathered last.
    batch: u64,
}

impl Gathered {
    /// Bytes that are gathered.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Forgets what is gathered.
    pub(super) fn discard(&mut self) {
        self.bytes = Vec::new();
    }
}

/// What connections need to gather, kept from one batch to the next.
#[derive(Default)]
pub(crate) struct Spare {
    /// Boxes, as connections hold them.
    #[expect(clippy::vec_box)]
    rares: Vec<Box<Rare>>,
    buffers: Vec<Vec<u8>>,
    /// The capacity of the buffers.
    bytes: usize,
}

impl Spare {
    /// Keeps what is empty.
    pub(super) fn keep(&mut self, mut rare: Box<Rare>) {
        if self.rares.len() < MAX_SPARE {
            // Its next use is by another connection.
            rare.gathered.batch = 0;
            self.rares.push(rare);
        }
    }

    fn keep_buffer(&mut self, mut buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        if self.buffers.len() < MAX_SPARE && self.bytes + capacity <= MAX_SPARE_BYTES {
            buffer.clear();
            self.bytes += capacity;
            self.buffers.push(buffer);
        }
    }

    fn buffer(&mut self) -> Vec<u8> {
        let buffer = self.buffers.pop().unwrap_or_default();
        self.bytes -= buffer.capacity();
        buffer
    }
}

/// What became of a message that was to be gathered.
pub(crate) struct Outcome {
    /// The batch does not have the connection on its list.
    pub(crate) is_new: bool,
    /// The worker must look at the connection.
    pub(crate) needs_worker: bool,
}

impl SendState {
    /// Gathers a message for this batch.
    pub(crate) fn gather(
        &mut self,
        conn: &StreamConn,
        payload: &[u8],
        batch: u64,
        spare: &mut Spare,
    ) -> Result<Outcome, SendError> {
        let mut needs_worker = false;
        let header = match self
            .half
            .admit(payload.len(), conn.backlog(), conn.limits())
        {
            Err(SendError::Full) if self.has_gathered() => {
                // Only what the system does not take is in the way.
                needs_worker = self.flush_gathered(conn, Some(spare));
                self.half
                    .admit(payload.len(), conn.backlog(), conn.limits())
            }
            admitted => admitted,
        };
        let header = match header {
            Ok(header) => header,
            Err(error) => {
                if needs_worker {
                    conn.wake();
                }
                return Err(error);
            }
        };
        let rare = self
            .rare
            .get_or_insert_with(|| spare.rares.pop().unwrap_or_default());
        let Gathered { bytes, batch: last } = &mut rare.gathered;
        if bytes.capacity() == 0 {
            *bytes = spare.buffer();
        }
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(payload);
        let is_new = std::mem::replace(last, batch) != batch;
        let is_long = bytes.len() >= FLUSH_BYTES;
        let total = conn.network().add_queued(header.len() + payload.len());
        conn.info().set_queued(self.queued());
        // A first message is admitted even where there is no room, so it must leave.
        if is_long || total > conn.limits().max_queued_total() {
            needs_worker |= self.flush_gathered(conn, Some(spare));
        }
        Ok(Outcome {
            is_new,
            needs_worker,
        })
    }

    fn has_gathered(&self) -> bool {
        let rare = self.rare.as_ref();
        rare.is_some_and(|rare| rare.gathered.len() > 0)
    }

    /// Hands what was gathered to the stream. Returns whether the worker must look at the
    /// connection: something waits that did not before, or it closes.
    pub(crate) fn flush_gathered(
        &mut self,
        conn: &StreamConn,
        mut spare: Option<&mut Spare>,
    ) -> bool {
        let Some(rare) = self.rare.as_deref_mut() else {
            return false;
        };
        if rare.gathered.len() == 0 {
            return false;
        }
        let bytes = std::mem::take(&mut rare.gathered.bytes);
        conn.network().sub_queued(bytes.len());
        let needs_worker = self.transmit(conn, WriteBuf::Gathered(&bytes));
        conn.info().set_queued(self.queued());
        if let Some(spare) = &mut spare {
            spare.keep_buffer(bytes);
        }
        self.trim(spare);
        // While they were gathered, it could not end in order.
        needs_worker || self.half.state() != State::Open
    }
}
