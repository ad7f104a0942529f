//! A connection over a stream that is in use: delivering, sending, timeouts, the peer's end.

use crate::id::Place;
use crate::network::shared::{Context, Shared};
use crate::tcp::conn::StreamConn;
use crate::tcp::link::{Held, Output, StreamLink};
use cubenet_core::frame::HEADER_LEN;
use cubenet_core::{Backlog, CloseReason, FrameError, Handler, Instant, Message, Reading, State};
use smoltcp::socket::tcp;

/// Bytes delivered from one stream before the others are served.
const READ_BUDGET: usize = 1 << 18;

/// A connection.
pub(crate) struct Live<H> {
    pub(super) handler: H,
    pub(crate) conn: StreamConn,
}

impl<H: Handler> Live<H> {
    /// Whether it connects, and the peer has not answered.
    pub(super) fn is_connecting(&self) -> bool {
        self.conn.is_connecting()
    }

    pub(super) fn poll(
        &mut self,
        slot: usize,
        socket: &mut tcp::Socket<'_>,
        shared: &mut Shared<'_>,
    ) {
        self.conn.set_needs_poll(false);
        if self.conn.connection.state() == State::Closed {
            return;
        }
        if self.is_connecting() {
            match socket.state() {
                tcp::State::SynSent | tcp::State::SynReceived => {
                    return self.expire(false, shared);
                }
                tcp::State::Closed => return self.conn.connection.abort(CloseReason::Refused),
                _ => self.connected(slot, socket, shared),
            }
        }
        self.written(slot, socket, shared);
        let more = self.read(slot, socket, shared);
        shared.poll_again |= more;
        if !more {
            self.ended(socket, shared.now);
        }
        self.expire(more, shared);
    }

    /// Whether nothing has happened since the last look, as it mostly has not.
    pub(super) fn is_at_rest(&self, socket: &tcp::Socket<'_>) -> bool {
        socket.state() == tcp::State::Established
            && !socket.can_recv()
            && socket.send_queue() == self.conn.queued as usize
            && !self.conn.needs_poll()
            && !self.is_connecting()
    }

    /// The peer has answered.
    fn connected(&mut self, slot: usize, socket: &mut tcp::Socket<'_>, shared: &mut Shared<'_>) {
        let conn = &mut self.conn;
        let is_open = conn.connection.handle_connected(shared.now);
        shared.counts.connected = shared.counts.connected.wrapping_add(1);
        let mut refused = 0;
        shared.pending_sends.take(slot, |frame| {
            refused += frame.len() - socket.send_slice(frame).unwrap_or(0);
        });
        debug_assert_eq!(refused, 0, "what waited was bounded by the ring");
        conn.handle_sent(socket.send_queue(), shared.now);
        if !is_open {
            return;
        }
        let mut link = StreamLink {
            conn,
            output: Output::Ring(socket),
            context: shared.context(Place::Stream(slot)),
            slot,
        };
        self.handler.connected(&mut link);
    }

    /// Sees what the peer has acknowledged.
    fn written(&mut self, slot: usize, socket: &mut tcp::Socket<'_>, shared: &mut Shared<'_>) {
        let queued = socket.send_queue();
        let before = self.conn.queued as usize;
        let send = &mut self.conn.connection.send;
        if queued != before {
            self.conn.queued = queued as u32;
            send.handle_written(queued < before, queued, shared.now);
        }
        let backlog = Backlog::fixed(queued, socket.send_capacity());
        if send.poll_writable(backlog, &shared.limits) {
            let mut link = StreamLink {
                conn: &mut self.conn,
                output: Output::Ring(socket),
                context: shared.context(Place::Stream(slot)),
                slot,
            };
            self.handler.writable(&mut link);
        }
    }

    /// Delivers the messages that lie whole in the receive ring, within the budget.
    /// Returns whether more of them may.
    fn read(&mut self, slot: usize, socket: &mut tcp::Socket<'_>, shared: &mut Shared<'_>) -> bool {
        let handler = &mut self.handler;
        let conn = &mut self.conn;
        let context = Context {
            limits: &shared.limits,
            now: shared.now,
            place: Place::Stream(slot),
        };
        let mut budget = READ_BUDGET;
        while socket.can_recv() && conn.connection.reading() == Reading::Deliver {
            let frame_len =
                match deliver_in_place(handler, conn, socket, shared.scratch, context, slot) {
                    Ok(Found::Delivered(frame_len)) => frame_len,
                    Ok(Found::Wrapped(frame_len)) => {
                        let frame = &mut shared.scratch[..frame_len];
                        let _ = socket.recv_slice(frame);
                        let mut link = StreamLink {
                            conn,
                            output: Output::Ring(socket),
                            context,
                            slot,
                        };
                        handler.received(&mut link, Message::lent(&frame[HEADER_LEN..]));
                        frame_len
                    }
                    Ok(Found::Nothing) | Err(_) => return false,
                };
            shared.counts.received = shared.counts.received.wrapping_add(1);
            budget = budget.saturating_sub(frame_len);
            if budget == 0 {
                return true;
            }
        }
        false
    }

    /// Sees whether the peer has sent FIN or RST.
    fn ended(&mut self, socket: &mut tcp::Socket<'_>, now: Instant) {
        use tcp::State::{CloseWait, Closed, Closing, LastAck, TimeWait};
        let connection = &mut self.conn.connection;
        match socket.state() {
            Closed => {
                // What the peer has acknowledged before this counts first.
                let _ = connection.poll_action(socket.send_queue());
                connection.abort(CloseReason::Reset);
            }
            // A FIN during a pause is handled after it.
            CloseWait | LastAck | Closing | TimeWait if connection.reading() != Reading::Hold => {
                connection.handle_fin(now);
            }
            _ => {}
        }
        if connection.reading() == Reading::Discard {
            discard(socket);
            // smoltcp sends the FIN behind what is queued: it need not wait for `Action::SendFin`.
            socket.close();
            connection.send.handle_fin_sent();
        }
    }

    /// Closes what took too long.
    fn expire(&mut self, has_unread: bool, shared: &Shared<'_>) {
        if shared.timeouts_due {
            let connection = &mut self.conn.connection;
            connection.handle_timeout(has_unread, shared.now, &shared.limits);
        }
    }
}

/// What a receive ring begins with.
enum Found {
    /// A frame of this length, which was delivered from where it lay.
    Delivered(usize),
    /// A frame of this length, which wraps around the ring's end.
    Wrapped(usize),
    /// No whole frame.
    Nothing,
}

/// Delivers the frame at the front of the receive ring from where it lies. What the handler sends
/// meanwhile is held in the scratch, and sent after it.
fn deliver_in_place<H: Handler>(
    handler: &mut H,
    conn: &mut StreamConn,
    socket: &mut tcp::Socket<'_>,
    scratch: &mut [u8],
    context: Context<'_>,
    slot: usize,
) -> Result<Found, FrameError> {
    let len = socket.recv_queue();
    let mut held = Held {
        frames: scratch,
        len: 0,
        queued: socket.send_queue(),
        capacity: socket.send_capacity(),
    };
    let Context { limits, now, .. } = context;
    let found = socket.recv(|ring| {
        if ring.len() < HEADER_LEN.min(len) {
            return (0, None);
        }
        let payload_len = match conn.connection.handle_ring(ring, len, limits, now) {
            Ok(Some(payload_len)) => payload_len,
            Ok(None) => return (0, Some(Ok(Found::Nothing))),
            Err(error) => return (0, Some(Err(error))),
        };
        let frame_len = HEADER_LEN + payload_len;
        let Some(payload) = ring.get(HEADER_LEN..frame_len) else {
            return (0, Some(Ok(Found::Wrapped(frame_len))));
        };
        let mut link = StreamLink {
            conn,
            output: Output::Held(&mut held),
            context,
            slot,
        };
        handler.received(&mut link, Message::lent(payload));
        (frame_len, Some(Ok(Found::Delivered(frame_len))))
    });
    if held.len > 0 {
        let _ = socket.send_slice(&held.frames[..held.len]);
    }
    if let Some(found) = found.unwrap_or_default() {
        return found;
    }
    // The ring's end is inside the header.
    let mut header = [0; HEADER_LEN];
    let _ = socket.peek_slice(&mut header);
    let payload_len = conn.connection.handle_ring(&header, len, limits, now)?;
    Ok(payload_len.map_or(Found::Nothing, |len| Found::Wrapped(HEADER_LEN + len)))
}

/// Throws away what arrived.
pub(super) fn discard(socket: &mut tcp::Socket<'_>) {
    while socket.can_recv() && socket.recv(|ring| (ring.len(), ())).is_ok() {}
}
