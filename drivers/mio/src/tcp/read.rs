//! Reading a stream: bytes from the socket, messages out of them, and each message to the handler.

use crate::conn::info::Conn;
use crate::log::debug;
use crate::sys;
use crate::tcp::link::StreamLink;
use crate::tcp::shared::StreamShared;
use crate::tcp::stream::{Holds, Marks, Stream};
use crate::user_callback::run_callback;
use crate::worker::budget::Budget;
use crate::worker::resources::WorkerResources;
use bytes::Bytes;
use cubenet_core::{Decoder, FrameError, Growing, Handler, Reading, RecvHalf, State, connection};
use std::io;
use std::ops::ControlFlow;

/// What a round of deliveries has done, as far as it came.
#[derive(Default)]
struct Delivery {
    bytes: u64,
    /// The last message was delivered, and is not taken off the budget.
    owes_last: bool,
}

impl Delivery {
    /// Hands each message to the handler, within the budget. Returns how many bytes are left.
    ///
    /// This is the loop that every message passes: it asks only what may have changed since the
    /// message before.
    fn run(
        &mut self,
        mut input: &[u8],
        recv: &mut RecvHalf<Decoder<Growing>>,
        handler: &mut dyn Handler,
        link: &mut StreamLink<'_>,
        budget: &mut Budget,
    ) -> Result<usize, FrameError> {
        if !budget.is_left() {
            return Ok(input.len());
        }
        let (info, network, now) = (link.shared.info(), link.shared.network(), link.now);
        recv.handle_inputs(&mut input, now, |message, is_last| {
            self.bytes += message.len() as u64;
            handler.received(link, message);
            if is_last {
                self.owes_last = true;
            } else if budget.spend() {
                budget.look(network);
                link.now = budget.now();
                if !budget.is_left() {
                    return ControlFlow::Break(());
                }
            }
            if info.delivers() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        Ok(input.len())
    }
}

impl Stream {
    /// Delivers what was read before, then reads and delivers, within the budget.
    pub(super) fn read(&mut self, token: usize, resources: &mut WorkerResources) {
        let budgets = &resources.network.budgets;
        let mut left = budgets.read_bytes();
        let mut budget = Budget::new(
            budgets,
            budgets.messages(),
            resources.now,
            self.marks.has(Marks::QUICK),
        );
        if self.holds == Holds::Undelivered && !self.deliver_held(token, &mut budget, resources) {
            return;
        }
        let mut input = std::mem::take(&mut resources.input);
        while !self.recv.is_paused() {
            if self.is_layered && self.state().is_handshaking() && resources.handshakes == 0 {
                // Those of the others come first, and the messages of all.
                resources.schedule(token, &mut self.scheduled);
                break;
            }
            if left == 0 || !budget.is_left() {
                resources.schedule(token, &mut self.scheduled);
                break;
            }
            let most = input.len().min(left);
            match sys::read(&self.shared.stream, &mut input[..most]) {
                Ok(0) => {
                    self.handle_fin(resources);
                    break;
                }
                Ok(read) => {
                    left -= read;
                    let bytes = &mut input[..read];
                    let undelivered = self.handle_bytes(token, bytes, &mut budget, resources);
                    // It goes on in the run queue: see `follow_pause`.
                    if undelivered > 0 || self.state() == State::Closed {
                        break;
                    }
                    let is_short = read < most && !self.peer_ending && !self.urgent;
                    if is_short && sys::SHORT_READ_DRAINS {
                        break;
                    }
                    // Where a short read does not say that there is no more, the others come
                    // first: a peer that asks again meanwhile could be served alone.
                    if is_short {
                        resources.schedule(token, &mut self.scheduled);
                        break;
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => {
                        self.peer_ending = false;
                        self.urgent = false;
                        break;
                    }
                    io::ErrorKind::Interrupted => {}
                    _ => {
                        debug!(connection = %self.id(), %error, "read failed");
                        self.fail(error);
                        break;
                    }
                },
            }
        }
        resources.input = input;
        self.marks.set_to(Marks::QUICK, budget.was_quick());
    }

    /// The peer's FIN was read.
    fn handle_fin(&mut self, resources: &WorkerResources) {
        let (recv, now) = (&self.recv, resources.now);
        StreamShared::with(&mut self.shared, |conn, send| {
            let layered = send.change_layers(conn, |layered, half, _| {
                layered.handle_fin(recv, half, now);
            });
            if layered.is_none() {
                connection::handle_fin(recv, &mut send.half, now);
            }
        });
    }

    /// The seam before the decoder: what the socket gave passes here once, and through the layers,
    /// if there are any. Returns how many bytes of the stream are left undelivered.
    #[inline]
    fn handle_bytes(
        &mut self,
        token: usize,
        bytes: &mut [u8],
        budget: &mut Budget,
        resources: &mut WorkerResources,
    ) -> usize {
        if self.is_layered {
            return self.handle_layered(token, bytes, budget, resources);
        }
        let undelivered = self.deliver(bytes, budget, resources);
        if undelivered > 0 || self.holds != Holds::Nothing || self.recv.footprint() > 0 {
            let rest = Bytes::copy_from_slice(&bytes[bytes.len() - undelivered..]);
            self.hold(token, rest, resources);
        }
        undelivered
    }

    /// The same for bytes of a stream that has layers.
    fn handle_layered(
        &mut self,
        token: usize,
        bytes: &mut [u8],
        budget: &mut Budget,
        resources: &mut WorkerResources,
    ) -> usize {
        let now = resources.now;
        let mut stream = std::mem::take(&mut resources.stream);
        stream.clear();
        if self.state().is_handshaking() {
            resources.handshakes = resources.handshakes.saturating_sub(1);
        }
        self.change_handshake(token, resources, |layered, recv, half, wire| {
            layered.handle_input(bytes, &mut stream, wire);
            layered.poll_established(recv, half, now, wire)
        });
        // None of the stream is no sign of life: an empty record counts no more than half of one.
        let undelivered = match stream.len() {
            0 => 0,
            _ => self.deliver(&stream, budget, resources),
        };
        let rest = Bytes::copy_from_slice(&stream[stream.len() - undelivered..]);
        resources.keep_stream(stream);
        self.hold(token, rest, resources);
        if undelivered == 0 {
            self.layers_delivered(resources);
        }
        undelivered
    }

    /// Everything that the layers have given was delivered: if they end or fail behind it, that is
    /// due now.
    pub(super) fn layers_delivered(&mut self, resources: &WorkerResources) {
        let (recv, now) = (&self.recv, resources.now);
        StreamShared::with(&mut self.shared, |conn, send| {
            send.change_layers(conn, |layered, half, _| {
                layered.handle_delivered(recv, half, now);
            });
        });
    }

    /// Decodes bytes and hands each message to the handler, then lets the replies
    /// go. Returns how many bytes are left because the connection was paused, or the budget
    /// used up. What arrives after a close is dropped.
    pub(super) fn deliver(
        &mut self,
        input: &[u8],
        budget: &mut Budget,
        resources: &mut WorkerResources,
    ) -> usize {
        let info = self.shared.info();
        match info.reading() {
            Reading::Deliver => {}
            Reading::Discard => return 0,
            Reading::Hold | Reading::Handshake => return input.len(),
        }
        resources.tick();
        let began = resources.now;
        resources.batch.borrow_mut().begin(info.id.as_u64());
        let mut link = StreamLink {
            shared: &self.shared,
            batch: &resources.batch,
            now: began,
        };
        let (handler, recv) = (&mut *self.handler, &mut self.recv);
        let left = budget.messages_left();
        let mut delivery = Delivery::default();
        let counts = &self.shared.home().counts;
        let done = run_callback("received", info.id, counts, || {
            delivery.run(input, recv, handler, &mut link, budget)
        });
        let Delivery { bytes, owes_last } = delivery;
        // One that panicked was delivered, too.
        let unspent = owes_last || done.is_none();
        let messages = (left - budget.messages_left()) as u64 + u64::from(unspent);
        if messages > 0 {
            self.marks.set(Marks::RECEIVED);
        }
        self.after_callbacks(began, done.is_some(), resources);
        // Who sees the count sees what they have done.
        self.counts().own_messages_in.add(messages);
        self.counts().own_bytes_in.add(bytes);
        match done {
            Some(Ok(rest)) => {
                if owes_last {
                    budget.spend_last(resources.now);
                }
                self.progressed |= messages > 0;
                if self.shared.info().reading() == Reading::Discard {
                    return 0;
                }
                // While the callbacks ran, the socket was not read: the peer's idle time begins now.
                self.recv.handle_delivered(resources.now);
                rest
            }
            Some(Err(error)) => {
                let now = resources.now;
                self.with_half(|half| half.handle_violation(error, now));
                0
            }
            None => 0,
        }
    }

    /// A connection that closes reads on, if it was paused, only to find the peer's FIN.
    pub(super) fn stop_delivery(&mut self, token: usize, resources: &mut WorkerResources) {
        let was_held = self.holds == Holds::Undelivered;
        if was_held {
            self.hold(token, Bytes::new(), resources);
            self.layers_delivered(resources);
        }
        if self.recv.end_pause() || was_held {
            resources.schedule(token, &mut self.scheduled);
        }
    }

    /// Does what the application asked for by `pause` and `resume`.
    pub(super) fn follow_pause(&mut self, token: usize, resources: &mut WorkerResources) {
        let paused = self.shared.info().is_paused();
        let changed = self.recv.set_paused(paused, resources.now);
        if !paused && (changed || self.holds == Holds::Undelivered) {
            resources.schedule(token, &mut self.scheduled);
        }
    }
}
