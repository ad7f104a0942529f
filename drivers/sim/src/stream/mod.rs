//! A stream connection: what binds the two halves of the core to a virtual socket.

mod ending;
mod opening;

use ending::finish;
pub(crate) use opening::{accepted, connected, give_handler};

use crate::kernel::{Kernel, Key, Notice, Read};
use crate::link::CallbackLink;
use crate::trace::Record;
use crate::world::{BoxedHandler, Guard, NetworkId, NetworkState, Place, Shared};
use bytes::Bytes;
use cubenet_core::{
    Action, CloseReason, ConnectionId, Decoder, Frame, Growing, Instant, Limits, Reading, RecvHalf,
    SendError, SendHalf, SendQueue, State, connection,
};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Between which addresses a socket that is gone goes.
const NOWHERE: (SocketAddr, SocketAddr) = {
    let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    (nowhere, nowhere)
};

pub(crate) struct Stream {
    pub(crate) id: ConnectionId,
    pub(crate) network: NetworkId,
    pub(crate) send: SendHalf,
    /// What the socket would not take yet. Allocated while there is something.
    queue: Option<Box<SendQueue>>,
    /// What the application wishes.
    pub(crate) to_pause: bool,
    /// The peer has not answered our call.
    calling: bool,
    /// What has arrived waits for the next turn.
    pub(crate) in_line: bool,
    /// The application is making its handler, or deciding whether it wants the connection.
    accepting: bool,
    /// The peer has answered meanwhile.
    answered: bool,
    /// The handler has been told that the connection is there.
    is_told: bool,
    /// What was read before a pause and not delivered.
    parked: Option<Box<Bytes>>,
    /// Bytes of input held, as they were counted last, and since when.
    held: usize,
    pub(crate) held_since: Instant,
    armed: Instant,
    /// `None` while a callback runs.
    inside: Option<Inside>,
}

/// What callbacks need, and take along.
struct Inside {
    recv: RecvHalf<Decoder<Growing>>,
    handler: Option<BoxedHandler>,
}

impl Stream {
    fn new(
        id: ConnectionId,
        network: NetworkId,
        send: SendHalf,
        recv: RecvHalf<Decoder<Growing>>,
    ) -> Self {
        Stream {
            id,
            network,
            calling: send.state() == State::Connecting,
            send,
            queue: None,
            to_pause: false,
            in_line: false,
            accepting: true,
            answered: false,
            is_told: false,
            parked: None,
            held: 0,
            held_since: Instant::NEVER,
            armed: Instant::NEVER,
            inside: Some(Inside {
                recv,
                handler: None,
            }),
        }
    }

    pub(crate) fn accepted(
        id: ConnectionId,
        network: NetworkId,
        limits: &Limits,
        now: Instant,
    ) -> Self {
        let decoder = Decoder::new(Growing::new(), limits.max_message());
        let recv = RecvHalf::accepted(decoder, now);
        Stream {
            is_told: true,
            ..Stream::new(id, network, SendHalf::accepted(), recv)
        }
    }

    pub(crate) fn calling(
        id: ConnectionId,
        network: NetworkId,
        limits: &Limits,
        now: Instant,
    ) -> Self {
        let decoder = Decoder::new(Growing::new(), limits.max_message());
        let recv = RecvHalf::connecting(decoder, now);
        Stream::new(id, network, SendHalf::connecting(now), recv)
    }

    pub(crate) fn queued(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.len())
    }

    /// Bytes of memory held for a partial frame; `None` while a callback runs.
    pub(crate) fn footprint(&self) -> Option<usize> {
        Some(self.inside.as_ref()?.recv.footprint())
    }

    /// What is done with the peer's bytes.
    pub(crate) fn reading(&self) -> Reading {
        connection::reading(self.send.state(), self.to_pause)
    }

    /// Sends a message; what the socket does not take is queued.
    pub(crate) fn send_message(
        &mut self,
        key: Key,
        message: &[u8],
        frame: Option<&Frame>,
        kernel: &mut Kernel,
        network: &mut NetworkState,
    ) -> Result<(), SendError> {
        let len = message.len();
        let backlog = network.backlog(self.queued());
        let limits = &network.limits;
        let header = self.send.admit(len, backlog, limits)?;
        network.metrics.messages_out += 1;
        network.metrics.bytes_out += len as u64;
        let size = header.len() + len;
        let waited = self.queue.is_some();
        let mut sent = 0;
        if !waited && self.send.state() != State::Connecting {
            match kernel.write(key, &[&header, message]) {
                Ok(written) if written == size => return Ok(()),
                Ok(written) => sent = written,
                Err(reason) => {
                    self.send.abort(reason);
                    kernel.notify(key, Notice::Writable);
                    return Ok(());
                }
            }
        }
        let queue = self.queue.get_or_insert_default();
        if let Some(frame) = frame {
            queue.push_frame(frame, sent);
        } else {
            queue.push(&header[sent.min(header.len())..]);
            queue.push(&message[sent.saturating_sub(header.len())..]);
        }
        network.queued_bytes += size - sent;
        let queued = queue.len();
        let backlog = network.backlog(queued);
        self.send
            .handle_queued(sent > 0, backlog, kernel.now, &network.limits);
        // The clock of the queue has to be set.
        kernel.notify(key, Notice::Writable);
        Ok(())
    }

    pub(crate) fn close(&mut self, now: Instant) {
        self.send.close(now);
    }

    /// Writes what waits, as far as the socket takes it.
    fn flush(&mut self, key: Key, kernel: &mut Kernel, network: &mut NetworkState) {
        let Some(queue) = &mut self.queue else {
            return;
        };
        let mut progress = 0;
        let outcome = loop {
            let Some(chunk) = queue.chunks().next() else {
                break Ok(());
            };
            let len = chunk.len();
            match kernel.write(key, &[chunk]) {
                Ok(written) => {
                    queue.advance(written);
                    progress += written;
                    if written < len {
                        break Ok(());
                    }
                }
                Err(reason) => break Err(reason),
            }
        };
        let queued = queue.len();
        if queued == 0 {
            self.queue = None;
        }
        network.queued_bytes -= progress;
        match outcome {
            Ok(()) => self.send.handle_written(progress > 0, queued, kernel.now),
            Err(reason) => self.send.abort(reason),
        }
    }

    fn poll_timeout(&self, limits: &Limits) -> Instant {
        match &self.inside {
            Some(inside) => {
                connection::poll_timeout(&inside.recv, &self.send, self.in_line, limits)
            }
            None => self.send.poll_timeout(limits),
        }
    }
}

impl Place {
    /// Where a stream is.
    pub(crate) fn of_stream(key: Key) -> Self {
        Place { key, slot: 0 }
    }
}

fn link<'a>(
    shared: &'a Shared,
    world: &mut Guard<'a>,
    key: Key,
    id: ConnectionId,
) -> CallbackLink<'a> {
    let (local, peer) = world.kernel.ends(key).unwrap_or(NOWHERE);
    CallbackLink {
        shared,
        place: Place::of_stream(key),
        id,
        local,
        peer,
        now: world.now(),
    }
}

/// Sends what waits, and tells a handler that waited for room.
pub(crate) fn flush<'a>(shared: &'a Shared, mut world: Guard<'a>, key: Key) -> Guard<'a> {
    let Some((stream, kernel, network, _)) = world.stream(key) else {
        return world;
    };
    if !stream.calling {
        stream.flush(key, kernel, network);
    }
    let backlog = network.backlog(stream.queued());
    // There is no handler yet that could be told.
    if !stream.accepting && stream.send.poll_writable(backlog, &network.limits) {
        world = writable(shared, world, key);
    }
    settle(shared, world, key)
}

fn writable<'a>(shared: &'a Shared, mut world: Guard<'a>, key: Key) -> Guard<'a> {
    let Some((stream, ..)) = world.stream(key) else {
        return world;
    };
    let (id, network) = (stream.id, stream.network);
    let Some(mut inside) = stream.inside.take() else {
        return world;
    };
    let Some(handler) = &mut inside.handler else {
        stream.inside = Some(inside);
        return world;
    };
    let mut link = link(shared, &mut world, key, id);
    let what = (Record::Writable, id);
    let (done, mut world) = shared.callback(world, network, what, || handler.writable(&mut link));
    let Some((stream, ..)) = world.stream(key) else {
        world.bury(inside);
        return world;
    };
    stream.inside = Some(inside);
    if done.is_none() {
        stream.send.abort(CloseReason::Panicked);
    }
    world
}

/// The socket failed. What had arrived before is delivered first, unless the stream is paused.
pub(crate) fn failed<'a>(shared: &'a Shared, mut world: Guard<'a>, key: Key) -> Guard<'a> {
    let Some((stream, kernel, ..)) = world.stream(key) else {
        return world;
    };
    if !stream.calling && !stream.to_pause {
        return read(shared, world, key);
    }
    if let Some(reason) = kernel.failure(key) {
        stream.send.abort(reason);
    }
    settle(shared, world, key)
}

/// Reads and delivers what has arrived.
pub(crate) fn read<'a>(shared: &'a Shared, mut world: Guard<'a>, key: Key) -> Guard<'a> {
    loop {
        let Some((stream, kernel, ..)) = world.stream(key) else {
            return world;
        };
        stream.in_line = false;
        let state = stream.send.state();
        let is_busy = stream.accepting || stream.inside.is_none();
        let is_paused = state == State::Open && stream.reading() == Reading::Hold;
        let held_up = is_paused || state == State::Open && is_busy;
        if is_paused
            && !is_busy
            && let Some(reason) = kernel.failure(key)
        {
            // One that is not read can still be told.
            stream.send.abort(reason);
            break;
        }
        if stream.calling || held_up || state == State::Closed {
            break;
        }
        stream.in_line = !kernel.turn.goes_on();
        if stream.in_line {
            break;
        }
        let bytes = match stream.parked.take() {
            Some(parked) => *parked,
            None => match kernel.read(key) {
                Read::Bytes(bytes) => {
                    kernel.turn.bytes = kernel.turn.bytes.saturating_sub(bytes.len());
                    bytes
                }
                Read::Nothing => break,
                Read::End => {
                    stream.peer_ended(kernel.now);
                    break;
                }
                Read::Failed(reason) => {
                    stream.send.abort(reason);
                    break;
                }
            },
        };
        if state == State::Open {
            world = deliver(shared, world, key, &bytes);
            world = hold(shared, world, key);
            // A reply may have closed it, or the whole world have changed.
            world = settle(shared, world, key);
        }
    }
    settle(shared, world, key)
}

/// Counts what a stream holds of its input, and closes the one that has held some longest while
/// the sum of its network is over the bound.
fn hold<'a>(shared: &'a Shared, mut world: Guard<'a>, key: Key) -> Guard<'a> {
    let now = world.now();
    let Some((stream, _, network, _)) = world.stream(key) else {
        return world;
    };
    let parked = stream.parked.as_ref().map_or(0, |parked| parked.len());
    let partial = stream.footprint().unwrap_or(0);
    let before = std::mem::replace(&mut stream.held, parked + partial);
    if stream.held == 0 {
        stream.held_since = Instant::NEVER;
    } else if before == 0 {
        stream.held_since = now;
    }
    network.held_bytes = network.held_bytes + stream.held - before;
    let id = stream.network;
    loop {
        let network = world.network(id);
        if network.held_bytes <= network.limits.max_held_total() {
            return world;
        }
        let Some(oldest) = world.owners.longest_held(id) else {
            return world;
        };
        let Some((stream, _, network, _)) = world.stream(oldest) else {
            return world;
        };
        stream.send.abort(CloseReason::Overflow);
        // A callback of it may run, so that it closes only later.
        network.held_bytes -= std::mem::take(&mut stream.held);
        stream.held_since = Instant::NEVER;
        world = settle(shared, world, oldest);
    }
}

/// Decodes what was read and hands each message to the handler.
fn deliver<'a>(shared: &'a Shared, mut world: Guard<'a>, key: Key, bytes: &Bytes) -> Guard<'a> {
    let now = world.now();
    let Some((stream, ..)) = world.stream(key) else {
        return world;
    };
    let (id, network) = (stream.id, stream.network);
    let Some(mut inside) = stream.inside.take() else {
        return world;
    };
    let Inside { recv, handler } = &mut inside;
    let Some(handler) = handler else {
        stream.inside = Some(inside);
        return world;
    };
    let mut link = link(shared, &mut world, key, id);
    let mut rest = &bytes[..];
    let (mut messages, mut volume) = (0, 0);
    let budget = world.kernel.turn.messages as u64;
    let what = (Record::Received, id);
    let (done, mut world) = shared.callback(world, network, what, || {
        // It is heard when this begins; each message may change that, but where nothing is left
        // the receiver only lets go of what it has lent.
        let is_heard = |messages, link: &CallbackLink<'_>, rest: &[u8]| {
            messages == 0 || rest.is_empty() || link.is_heard()
        };
        while messages < budget && is_heard(messages, &link, rest) {
            let Some(message) = recv.handle_input(&mut rest, now)? else {
                break;
            };
            messages += 1;
            volume += message.len() as u64;
            handler.received(&mut link, message);
        }
        Ok(())
    });
    let metrics = &mut world.network(network).metrics;
    metrics.messages_in += messages;
    metrics.bytes_in += volume;
    let turn = &mut world.kernel.turn;
    turn.messages -= messages as usize;
    let undelivered = bytes.slice(bytes.len() - rest.len()..);
    let Some((stream, ..)) = world.stream(key) else {
        world.bury(inside);
        return world;
    };
    if messages == budget {
        // What was lent is given back, though nothing more is decoded now.
        inside.recv.handle_delivered(now);
    }
    stream.inside = Some(inside);
    match done {
        Some(Ok(())) if !undelivered.is_empty() => {
            stream.in_line = messages == budget;
            stream.parked = Some(Box::new(undelivered));
        }
        Some(Ok(())) => {}
        Some(Err(error)) => {
            stream.send.handle_violation(error, now);
        }
        None => stream.send.abort(CloseReason::Panicked),
    }
    world
}

/// Closes a stream that took too long over something.
pub(crate) fn handle_timeout<'a>(shared: &'a Shared, mut world: Guard<'a>, key: Key) -> Guard<'a> {
    let stalled_until = world.kernel.stalled_until(key);
    let now = world.now();
    if stalled_until > now {
        // What its reader has not seen yet counts first.
        world.timers.again(key, stalled_until);
        return world;
    }
    let Some((stream, ..)) = world.stream(key) else {
        return world;
    };
    if stream.armed <= now {
        stream.armed = Instant::NEVER;
    }
    // This worker may have been busy: what has arrived counts first.
    world = read(shared, world, key);
    if let Some((stream, _, network, _)) = world.stream(key) {
        let (limits, send) = (&network.limits, &mut stream.send);
        match &stream.inside {
            Some(inside) => {
                connection::handle_timeout(&inside.recv, send, stream.in_line, now, limits);
            }
            None => send.handle_timeout(now, limits),
        }
    }
    settle(shared, world, key)
}

/// Brings the socket, the clocks and the reading into line with the state, after anything
/// happened.
fn settle<'a>(shared: &'a Shared, mut world: Guard<'a>, key: Key) -> Guard<'a> {
    let now = world.now();
    let Some((stream, kernel, network, timers)) = world.stream(key) else {
        return world;
    };
    match stream.reading() {
        Reading::Discard if !stream.calling => stream.stop_delivery(key, kernel),
        Reading::Discard => {}
        Reading::Deliver | Reading::Hold => stream.follow_pause(key, kernel),
    }
    match stream.send.poll_action(stream.queued()) {
        Action::Wait => {}
        Action::SendFin => {
            kernel.shutdown(key);
            stream.send.handle_fin_sent();
            kernel.notify(key, Notice::Readable);
        }
        // A callback that runs must come back first; the loop that runs it looks at the connection again.
        Action::Close(_) | Action::Reset(_) if stream.inside.is_none() || stream.accepting => {
            return world;
        }
        Action::Close(reason) => return finish(shared, world, key, reason, false),
        Action::Reset(reason) => return finish(shared, world, key, reason, true),
    }
    let deadline = stream.poll_timeout(&network.limits).max(now);
    timers.arm(key, &mut stream.armed, deadline);
    world
}

impl Stream {
    fn peer_ended(&mut self, now: Instant) {
        let Some(inside) = &self.inside else {
            return;
        };
        connection::handle_fin(&inside.recv, &mut self.send, now);
    }

    /// It closes: what is still to be read is dropped.
    fn stop_delivery(&mut self, key: Key, kernel: &mut Kernel) {
        let parked = self.parked.take().is_some();
        if std::mem::take(&mut self.to_pause) || parked {
            kernel.notify(key, Notice::Readable);
        }
    }

    /// Does what the application wished by `pause` and `resume`.
    fn follow_pause(&mut self, key: Key, kernel: &mut Kernel) {
        let Some(inside) = &mut self.inside else {
            return;
        };
        let changed = inside.recv.set_paused(self.to_pause, kernel.now);
        let goes_on = changed || self.parked.is_some() && !self.in_line;
        if !self.to_pause && goes_on {
            kernel.notify(key, Notice::Readable);
        }
    }
}
