//! What callbacks send, gathered to leave in few system calls.
//!
//! A worker has one [`WriteBatch`]. While it runs callbacks, that belongs to one stream, or to one
//! datagram socket and all its connections. What the callbacks send on these connections in that
//! time is put here, without a lock and without an allocation; no matter whether they use their
//! link or a handle, so that the order of their calls is the order on the wire.
//!
//! It is borrowed for the length of a call, in which no code of the application's runs.

use crate::conn::info::Conn;
use crate::metrics::Counts;
use crate::network::shared::NetworkShared;
use crate::tcp::batch::{FLUSH_BYTES, FrameBatch};
use crate::tcp::conn::StreamConn;
use crate::tcp::send_state::{SendState, WriteBuf};
use crate::tcp::shared::StreamShared;
use crate::udp::batch::DatagramBatch;
use crate::udp::socket::{DatagramSocket, PeerShared};
use cubenet_core::connection::{datagram, send};
use cubenet_core::queue::SHARE_FROM;
use cubenet_core::{Backlog, Frame, SendError, State};
use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

crate::sync::thread_local! {
    static OF_THIS_THREAD: OnceCell<Rc<RefCell<WriteBatch>>> = const { OnceCell::new() };
}

pub(crate) struct WriteBatch {
    network: Arc<NetworkShared>,
    /// The number of the stream's connection, or of the datagram socket, that is gathering.
    owner: u64,
    /// Frames of the stream that is gathering.
    frames: FrameBatch,
    /// Datagrams of the socket that is gathering.
    datagrams: DatagramBatch,
}

impl WriteBatch {
    /// The batch of this thread, which is a worker's from now on.
    pub(crate) fn of_worker(network: Arc<NetworkShared>) -> Rc<RefCell<WriteBatch>> {
        let batch = WriteBatch {
            network,
            owner: 0,
            frames: FrameBatch::new(),
            datagrams: DatagramBatch::default(),
        };
        let batch = Rc::new(RefCell::new(batch));
        OF_THIS_THREAD.with(|of_this_thread| Rc::clone(of_this_thread.get_or_init(|| batch)))
    }

    /// The batch that gathers for this owner, if this thread is in one of its callbacks.
    pub(crate) fn gathering_for(owner: u64) -> Option<Rc<RefCell<WriteBatch>>> {
        // In the destructor of a thread-local of the application's there may be none any more.
        let of_this_thread = OF_THIS_THREAD.try_with(|batch| {
            let batch = batch.get()?;
            (batch.borrow().owner == owner).then(|| Rc::clone(batch))
        });
        of_this_thread.ok().flatten()
    }

    /// Begins to gather for a stream's connection, or for a datagram socket.
    pub(crate) fn begin(&mut self, owner: u64) {
        self.owner = owner;
    }

    /// Gathers no more.
    pub(crate) fn end(&mut self) {
        self.owner = 0;
    }

    // For a stream.

    /// Accepts a message of the stream that is gathering.
    pub(crate) fn send(&mut self, stream: &StreamShared, payload: &[u8]) -> Result<(), SendError> {
        if stream.info().is_state(State::Open) && self.frames.try_push(payload) {
            return Ok(());
        }
        self.send_asking(stream, payload)
    }

    /// The same for the first message, and for one that may be over a limit.
    #[inline(never)]
    fn send_asking(&mut self, stream: &StreamShared, payload: &[u8]) -> Result<(), SendError> {
        let (len, info) = (payload.len(), stream.info());
        let mut backlog = self.backlog(stream);
        match send::admit(info.state(), len, backlog, stream.limits()) {
            Err(SendError::Full) => {
                self.flush_frames(stream);
                stream.admit(len)?;
                backlog = self.backlog(stream);
            }
            admitted => drop(admitted?),
        }
        self.frames.push(payload, backlog, stream.limits());
        if self.frames.len() >= FLUSH_BYTES {
            self.flush_frames(stream);
        }
        Ok(())
    }

    /// What waits, and is gathered, of the stream that is gathering.
    fn backlog(&self, stream: &StreamShared) -> Backlog {
        let own = stream.info().queued() + self.frames.len();
        Backlog::growing(own, self.network.queued_total())
    }

    /// The same for a shared frame.
    pub(crate) fn send_frame(
        &mut self,
        stream: &StreamShared,
        frame: &Frame,
    ) -> Result<(), SendError> {
        if frame.as_bytes().len() < SHARE_FROM {
            return self.send(stream, frame.payload());
        }
        // Too long to be worth gathering: it goes out by itself, behind what was gathered.
        self.flush_frames(stream);
        stream.send_frame(frame)
    }

    /// Closes the stream that is gathering, behind what was gathered.
    pub(crate) fn close(&mut self, stream: &StreamShared) {
        if stream.info().is_open() {
            self.flush_frames(stream);
            stream.close();
        }
    }

    /// Drops the frames of a stream that was aborted or turned away, or whose callback panicked.
    pub(crate) fn discard_frames(&mut self, stream: &StreamShared) {
        self.count_frames(&stream.home().counts);
    }

    /// Empties the frames, and counts what was in them.
    fn count_frames(&mut self, counts: &Counts) {
        let (messages, bytes) = self.frames.clear();
        counts.own_messages_out.add(messages);
        counts.own_bytes_out.add(bytes);
    }

    /// Bytes that the stream has sent in this batch.
    pub(crate) fn gathered(&self) -> usize {
        self.frames.len()
    }

    /// Hands the gathered frames to their stream, by a thread that may not own it alone.
    pub(crate) fn flush_frames(&mut self, stream: &StreamShared) {
        if self.frames.len() > 0 {
            stream.locked(|conn, send| self.transmit(conn, send));
        }
    }

    /// Hands the gathered frames to their stream.
    pub(crate) fn transmit(&mut self, conn: &StreamConn, send: &mut SendState) {
        send.transmit(conn, WriteBuf::Gathered(self.frames.as_bytes()));
        self.count_frames(&conn.home().counts);
    }

    // For a datagram socket.

    /// Accepts a datagram of a connection of the socket that is gathering.
    pub(crate) fn send_datagram(
        &mut self,
        peer: &Arc<PeerShared>,
        datagram: &[u8],
    ) -> Result<(), SendError> {
        let (len, info) = (datagram.len(), peer.info());
        let backlog = Backlog::growing(info.queued(), self.network.queued_total());
        match datagram::admit(info.state(), len, backlog, peer.limits()) {
            Err(SendError::Full) => peer.admit(len)?,
            admitted => admitted?,
        }
        self.push_datagram(peer, datagram);
        let counts = &peer.home().counts;
        counts.own_messages_out.add(1);
        counts.own_bytes_out.add(len as u64);
        Ok(())
    }

    /// Gathers a datagram; an empty one closes the connection at the peer.
    pub(crate) fn push_datagram(&mut self, peer: &Arc<PeerShared>, datagram: &[u8]) {
        self.datagrams.push(peer, datagram);
        if self.datagrams.is_full() {
            self.datagrams.flush(&peer.socket);
        }
    }

    /// A callback of a datagram connection begins.
    pub(crate) fn begin_callback(&mut self) {
        self.datagrams.begin_callback();
    }

    /// Drops the datagrams that the callback has sent on a connection that was aborted or turned
    /// away, or whose callback panicked.
    pub(crate) fn discard_datagrams(&mut self, peer: &PeerShared) {
        self.datagrams.discard(peer.info().id);
    }

    /// Bytes gathered for a peer.
    pub(crate) fn gathered_to(&self, peer: &PeerShared) -> usize {
        self.datagrams.bytes_to(peer.route())
    }

    /// Hands the gathered datagrams to their socket.
    pub(crate) fn flush_datagrams(&mut self, socket: &DatagramSocket) {
        self.datagrams.flush(socket);
    }
}
