//! What a stream reads and writes.

use crate::job::{Call, Callback, Input, Job, Task};
use crate::kernel::{Key, Notice, Read};
use crate::network_state::NetworkId;
use crate::world::World;
use bytes::Bytes;
use cubenet_core::connection::HeldInput;
use cubenet_core::connection::held::holds_too_much;
use cubenet_core::{CloseReason, Instant, Reading, State};

impl World {
    /// Does what a notice of the kernel makes possible.
    pub(crate) fn handle_stream_notice(
        &mut self,
        socket: Key,
        notice: Notice,
        job: &mut Job,
    ) -> Option<Box<Call>> {
        match notice {
            Notice::Connected => self.stream_connected(socket, job),
            Notice::Readable | Notice::RunAgain => self.read_stream(socket, job),
            Notice::Failed => self.stream_failed(socket, job),
            Notice::Timeout => self.stream_timer(socket, job),
            Notice::Writable | Notice::Acceptable => self.flush_stream(socket, job),
        }
    }

    /// Writes what is queued, and tells a handler that waited for room.
    pub(crate) fn flush_stream(&mut self, socket: Key, job: &mut Job) -> Option<Box<Call>> {
        let (stream, kernel, network, _) = self.stream(socket)?;
        job.push(Task::AdvanceStream(socket));
        if stream.send.state().is_connected() {
            stream.flush(socket, kernel, network);
        }
        let backlog = network.backlog(stream.queued());
        // Without a handler there is no callback.
        let is_writable =
            stream.handler.is_some() && stream.send.poll_writable(backlog, &network.limits);
        is_writable.then(|| self.call_stream(socket, Callback::Writable))?
    }

    /// The socket failed. What had arrived before is delivered first, unless the stream is paused.
    fn stream_failed(&mut self, socket: Key, job: &mut Job) -> Option<Box<Call>> {
        let (stream, kernel, ..) = self.stream(socket)?;
        if !stream.send.state().is_connecting() && stream.reading() != Reading::Hold {
            return self.read_stream(socket, job);
        }
        if let Some(reason) = kernel.failure(socket) {
            stream.send.abort(reason);
        }
        job.push(Task::AdvanceStream(socket));
        None
    }

    /// Reads once, and delivers.
    pub(crate) fn read_stream(&mut self, socket: Key, job: &mut Job) -> Option<Box<Call>> {
        let Some(bytes) = self.take_input(socket) else {
            job.push(Task::AdvanceStream(socket));
            return None;
        };
        job.push(Task::Read(socket));
        if let Some(call) = self.established(socket, &bytes, job) {
            return Some(call);
        }
        let (stream, kernel, network, _) = self.stream(socket)?;
        if stream.send.state() == State::Open && !bytes.is_empty() {
            return self.deliver(socket, bytes);
        }
        stream.layers_delivered(socket, kernel, network);
        self.count_held(socket, false);
        None
    }

    /// Input of a stream: what was read before, or what the kernel has, as the layers make it; none,
    /// if these keep it. `None` if there is none, or it may not be read now.
    fn take_input(&mut self, socket: Key) -> Option<Bytes> {
        let (stream, kernel, network, _) = self.stream(socket)?;
        stream.has_unread = false;
        let state = stream.send.state();
        let has_handler = stream.handler.is_some();
        if state == State::Open && (stream.reading() == Reading::Hold || !has_handler) {
            // A paused stream is not read, but can still see a reset.
            if let Some(reason) = kernel.failure(socket).filter(|_| has_handler) {
                stream.send.abort(reason);
            }
            return None;
        }
        if !state.is_connected() {
            return None;
        }
        stream.has_unread = !kernel.iteration.goes_on();
        if stream.has_unread {
            return None;
        }
        if let Some(undelivered) = stream.undelivered.take() {
            return Some(*undelivered);
        }
        match kernel.read(socket) {
            Read::Bytes(bytes) => {
                let left = &mut kernel.iteration.bytes;
                *left = left.saturating_sub(bytes.len());
                return Some(stream.read_layered(socket, bytes, kernel, network));
            }
            Read::Nothing => {}
            Read::End => stream.handle_fin(socket, kernel, network),
            Read::Failed(reason) => stream.send.abort(reason),
        }
        None
    }

    /// Decodes what was read and hands each message to the handler.
    fn deliver(&mut self, socket: Key, bytes: Bytes) -> Option<Box<Call>> {
        let budget = self.kernel.iteration.messages as u64;
        let stream = self.owners.stream(socket)?;
        debug_assert!(
            stream.handler.is_some(),
            "a stream without a handler is held"
        );
        let input = Input {
            recv: stream.recv.take()?,
            bytes,
            budget,
            messages: 0,
            volume: 0,
            violation: None,
        };
        self.call_stream(socket, Callback::ReceivedBytes(Some(input)))
    }

    /// Messages were delivered.
    pub(super) fn delivered(&mut self, socket: Key, id: NetworkId, input: Input, job: &mut Job) {
        let now = self.kernel.now;
        let metrics = &mut self.networks[id.0 as usize].metrics;
        metrics.messages_in += input.messages;
        metrics.bytes_in += input.volume;
        self.kernel.iteration.messages -= input.messages as usize;
        let Some((stream, kernel, network, _)) = self.stream(socket) else {
            return;
        };
        if let Some(error) = input.violation {
            stream.send.handle_violation(error, now);
        }
        let recv = stream.recv.insert(input.recv);
        if stream.send.state() == State::Open {
            // While the callbacks ran, the socket was not read: the peer's idle time begins now.
            recv.handle_delivered(now);
            if !input.bytes.is_empty() {
                stream.has_unread = input.messages == input.budget;
                stream.undelivered = Some(Box::new(input.bytes));
            }
        }
        if stream.undelivered.is_none() {
            stream.layers_delivered(socket, kernel, network);
        }
        // A reply may have closed it.
        job.push(Task::AdvanceStream(socket));
        self.count_held(socket, input.messages > 0);
    }

    /// Counts what a stream holds of its input, and closes streams of its network while that is
    /// over the bound.
    pub(super) fn count_held(&mut self, socket: Key, progressed: bool) {
        let Some((stream, kernel, network, _)) = self.stream(socket) else {
            return;
        };
        let undelivered = stream.undelivered.as_ref().map_or(0, |bytes| bytes.len());
        let before = stream.held.bytes();
        let held = undelivered + stream.footprint();
        stream.held.update(held, progressed, kernel.now);
        network.held_bytes = network.held_bytes + held - before;
        let id = stream.network;
        while let network = self.network(id)
            && holds_too_much(network.held_bytes, &network.limits)
            && let Some(oldest) = self.owners.longest_held(id)
            && let Some((stream, _, network, _)) = self.stream(oldest)
        {
            stream.send.abort(CloseReason::Overflow);
            // Its own worker closes it, once no callback of it runs.
            network.held_bytes -= stream.held.bytes();
            stream.held = HeldInput::NONE;
            self.kernel.notify(oldest, Notice::Writable);
        }
    }

    /// The timer of a stream has fired.
    fn stream_timer(&mut self, socket: Key, job: &mut Job) -> Option<Box<Call>> {
        let (stream, kernel, _, timers) = self.stream(socket)?;
        let stalled_until = kernel.stalled_until(socket);
        if stalled_until > kernel.now {
            // What its reader has not seen yet counts first.
            timers.fire_at(socket, stalled_until);
            return None;
        }
        if stream.armed <= kernel.now {
            stream.armed = Instant::NEVER;
        }
        job.push(Task::Expire(socket));
        // This worker may have been busy: what has arrived counts first.
        self.read_stream(socket, job)
    }

    /// Closes a stream that has taken too long over something.
    pub(crate) fn expire_stream(&mut self, socket: Key, job: &mut Job) {
        if let Some((stream, kernel, network, _)) = self.stream(socket) {
            stream.handle_timeout(socket, kernel, network);
            job.push(Task::AdvanceStream(socket));
        }
    }
}
