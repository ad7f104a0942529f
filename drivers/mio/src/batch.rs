//! Batches: what a thread of the application sends within one is gathered, and leaves when it ends.
//!
//! Messages of a stream gather with their connection (`tcp::gathered`), datagrams here, since those of
//! all connections of a socket leave together. What callbacks send on their own connection is another
//! matter: `write_batch`.

use crate::conn::info::Conn;
use crate::metrics::Counts;
use crate::tcp::send_state::SpareRares;
use crate::tcp::shared::StreamShared;
use crate::udp::batch::DatagramBatch;
use crate::udp::socket::{DatagramSocket, PeerShared};
use cubenet_core::SendError;
use std::cell::{Cell, RefCell};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

/// Sockets whose buffers are kept from one batch to the next.
const MAX_SPARE: usize = 16;

crate::sync::thread_local! {
    /// How many batches this thread is in, one inside another.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static BATCH: RefCell<Batch> = RefCell::new(Batch::default());
}

/// The number of the next batch. None is 0.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// What a thread has gathered, borrowed for the length of a call in which no code of the
/// application's runs.
#[derive(Default)]
struct Batch {
    /// The number of the outermost batch that this thread is in.
    number: u64,
    /// Connections that have gathered something.
    streams: Vec<Arc<StreamShared>>,
    /// Sockets, and what has gathered on each.
    sockets: Vec<(Arc<DatagramSocket>, DatagramBatch)>,
    sent: Sent,
    // Memory, kept for the next batch.
    spare: SpareRares,
    spare_datagrams: Vec<DatagramBatch>,
}

/// Messages that were accepted and are not counted.
#[derive(Default)]
struct Sent {
    counts: Option<Arc<Counts>>,
    messages: u64,
    bytes: u64,
}

impl Sent {
    fn count(&mut self, counts: &Arc<Counts>, len: usize) {
        let is_same = self
            .counts
            .as_ref()
            .is_some_and(|one| Arc::ptr_eq(one, counts));
        if !is_same {
            self.publish();
            self.counts = Some(Arc::clone(counts));
        }
        self.messages += 1;
        self.bytes += len as u64;
    }

    fn publish(&mut self) {
        let Sent {
            counts,
            messages,
            bytes,
        } = std::mem::take(self);
        if let Some(counts) = counts {
            counts.sent(messages, bytes);
        }
    }
}

/// Does `work`. What it sends on this thread leaves when it ends, however it does.
pub(crate) fn batch<R>(work: impl FnOnce() -> R) -> R {
    let _batch = Entered::new();
    work()
}

/// A batch that this thread is in.
pub(crate) struct Entered(());

impl Entered {
    pub(crate) fn new() -> Self {
        // In the destructor of a thread-local of the application's there may be none any more: then
        // nothing is gathered.
        let _ = DEPTH.try_with(|depth| {
            if depth.get() == 0 {
                let number = NEXT.fetch_add(1, Relaxed);
                let _ = BATCH.try_with(|batch| batch.borrow_mut().number = number);
            }
            depth.set(depth.get() + 1);
        });
        Entered(())
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let left = DEPTH.try_with(|depth| {
            depth.set(depth.get().saturating_sub(1));
            depth.get()
        });
        if left == Ok(0) {
            flush();
        }
    }
}

/// Whether what this thread sends is gathered.
pub(crate) fn is_gathering() -> bool {
    DEPTH.try_with(Cell::get).is_ok_and(|depth| depth > 0)
}

/// Hands everything that this thread has gathered to the system.
///
/// Nothing is borrowed meanwhile: a subscriber may be told of errors, and may send.
pub(crate) fn flush() {
    let Ok(mut batch) = BATCH.try_with(RefCell::take) else {
        return;
    };
    batch.sent.publish();
    for stream in batch.streams.drain(..) {
        stream.flush_gathered(&mut batch.spare);
    }
    for (socket, mut datagrams) in batch.sockets.drain(..) {
        flush_datagrams(&socket, &mut datagrams);
        if batch.spare_datagrams.len() < MAX_SPARE {
            batch.spare_datagrams.push(datagrams);
        }
    }
    let _ = BATCH.try_with(|place| *place.borrow_mut() = batch);
}

/// Hands datagrams to their socket.
fn flush_datagrams(socket: &DatagramSocket, datagrams: &mut DatagramBatch) {
    // A peer that has closed would take one for a new connection.
    for (peer, count) in datagrams.take_closed() {
        peer.ungather(count);
    }
    datagrams.transmit(socket);
    for (peer, count) in datagrams.counts() {
        peer.ungather(count);
    }
    datagrams.clear();
}

/// Gathers a message of a stream.
pub(crate) fn send(stream: &Weak<StreamShared>, payload: &[u8]) -> Result<(), SendError> {
    // Dropped without a borrow: it may be the last, and has a layer of the application's.
    let mut kept = None;
    let gathered = BATCH.try_with(|batch| {
        let Batch {
            number,
            streams,
            sent,
            spare,
            ..
        } = &mut *batch.borrow_mut();
        // Often it is the one of the message before.
        let last = streams.last();
        if let Some(last) = last.filter(|last| ptr::eq(Arc::as_ptr(last), stream.as_ptr())) {
            let is_new = last.gather(payload, *number, spare)?;
            sent.count(&last.home().counts, payload.len());
            if is_new {
                streams.push(Arc::clone(last));
            }
            return Ok(());
        }
        let stream = kept.insert(stream.upgrade().ok_or(SendError::Closed)?);
        let is_new = stream.gather(payload, *number, spare)?;
        sent.count(&stream.home().counts, payload.len());
        if is_new {
            streams.extend(kept.take());
        }
        Ok(())
    });
    gathered.unwrap_or_else(|_| {
        let stream = stream.upgrade().ok_or(SendError::Closed)?;
        stream.send(payload)
    })
}

/// Gathers a datagram.
pub(crate) fn send_datagram(peer: Arc<PeerShared>, datagram: &[u8]) -> Result<(), SendError> {
    if BATCH.try_with(|_| ()).is_err() {
        return peer.send(datagram);
    }
    peer.admit_gathered(datagram.len())?;
    let full = BATCH.with(|batch| {
        let batch = &mut *batch.borrow_mut();
        batch.sent.count(&peer.home().counts, datagram.len());
        let (socket, datagrams) = batch.datagrams(&peer.socket);
        datagrams.push_owned(peer, datagram);
        let full = datagrams.is_full().then(|| std::mem::take(datagrams));
        full.map(|datagrams| (Arc::clone(socket), datagrams))
    });
    if let Some((socket, mut datagrams)) = full {
        // Unborrowed, as in `flush`.
        flush_datagrams(&socket, &mut datagrams);
        BATCH.with(|batch| batch.borrow_mut().datagrams(&socket).1 = datagrams);
    }
    Ok(())
}

/// Forgets the datagrams gathered on a connection that was aborted.
pub(crate) fn discard_datagrams(peer: &PeerShared) {
    let _ = BATCH.try_with(|batch| {
        let batch = &mut *batch.borrow_mut();
        for (_, datagrams) in &mut batch.sockets {
            let discarded = datagrams.discard_all(peer.info().id);
            if discarded > 0 {
                peer.ungather(discarded);
            }
        }
    });
}

/// Bytes of datagrams that this thread has gathered for a peer.
pub(crate) fn gathered_to(peer: &PeerShared) -> usize {
    let gathered = BATCH.try_with(|batch| {
        let batch = batch.borrow();
        let mut of_socket = batch.sockets.iter();
        let found = of_socket.find(|(socket, _)| Arc::ptr_eq(socket, &peer.socket));
        found.map_or(0, |(_, datagrams)| datagrams.bytes_to(peer.route()))
    });
    gathered.unwrap_or(0)
}

impl Batch {
    /// What has gathered on a socket.
    fn datagrams(
        &mut self,
        socket: &Arc<DatagramSocket>,
    ) -> &mut (Arc<DatagramSocket>, DatagramBatch) {
        let is_it = |(one, _): &(Arc<DatagramSocket>, _)| Arc::ptr_eq(one, socket);
        let found = self.sockets.iter().position(is_it);
        let nth = found.unwrap_or_else(|| {
            let datagrams = self.spare_datagrams.pop().unwrap_or_default();
            self.sockets.push((Arc::clone(socket), datagrams));
            self.sockets.len() - 1
        });
        &mut self.sockets[nth]
    }
}
