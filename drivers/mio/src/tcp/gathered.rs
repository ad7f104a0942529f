//! Frames of a stream that a batch of the application's gathers, to leave in one write when the batch
//! ends.
//!
//! They lie with the connection, under its lock, and not with the thread: so they count in its
//! queue, what another thread sends afterwards leaves behind them, and a close delivers them.

/// What a thread keeps for its next batch: boxes and buffers at most, and bytes in all buffers.
const MAX_SPARE: usize = 1 << 14;
const MAX_SPARE_BYTES: usize = 1 << 22;

/// Frames that leave when a batch ends.
#[derive(Default)]
pub(super) struct Gathered {
    bytes: Vec<u8>,
    /// The batch that has this connection on its list, and that gathered last.
    batch: u64,
}

impl Gathered {
    /// Bytes that are gathered.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Gathers a frame for a batch. Returns whether that must remember the connection.
    pub(super) fn push<R>(
        &mut self,
        header: [u8; 2],
        payload: &[u8],
        batch: u64,
        spare: &mut Spare<R>,
    ) -> bool {
        if self.bytes.capacity() == 0 {
            self.bytes = spare.buffer();
        }
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(payload);
        std::mem::replace(&mut self.batch, batch) != batch
    }

    /// Takes out what is gathered.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// Forgets which batch remembers the connection: this is another's from here on.
    pub(super) fn forget_batch(&mut self) {
        self.batch = 0;
    }
}

/// What connections need while they gather, kept from one batch to the next: boxes of a kind, and
/// buffers.
pub(crate) struct Spare<R> {
    /// Boxes, as connections hold them.
    boxes: Vec<Box<R>>,
    buffers: Vec<Vec<u8>>,
    /// The capacity of the buffers.
    bytes: usize,
}

impl<R> Default for Spare<R> {
    fn default() -> Self {
        Spare {
            boxes: Vec::new(),
            buffers: Vec::new(),
            bytes: 0,
        }
    }
}

impl<R: Default> Spare<R> {
    /// A box, which is empty.
    #[expect(clippy::unnecessary_box_returns)]
    pub(super) fn take(&mut self) -> Box<R> {
        self.boxes.pop().unwrap_or_default()
    }
}

impl<R> Spare<R> {
    /// Keeps a box, which is empty.
    pub(super) fn keep(&mut self, empty: Box<R>) {
        if self.boxes.len() < MAX_SPARE {
            self.boxes.push(empty);
        }
    }

    /// Keeps a buffer.
    pub(super) fn keep_buffer(&mut self, mut buffer: Vec<u8>) {
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
