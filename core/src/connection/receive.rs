//! The receiving half of a stream connection: what arrives, and how long it may take.
//!
//! [`RecvHalf`] adds the clocks of a peer to a decoder: [`Decoder`] for a driver that reads into
//! a buffer, [`RingDecoder`] for a driver whose stream already lies in a ring. Both find the same
//! messages, the same errors and the same moments.

use super::close_reason::{CloseReason, Timeout};
use crate::decode::Decoder;
use crate::frame::{FrameError, looks_like};
use crate::limits::Limits;
use crate::message::Message;
use crate::ring::{RingDecoder, RingFront};
use crate::storage::Storage;
use crate::time::Instant;
use core::ops::ControlFlow;
use core::time::Duration;

/// A decoder that knows whether a frame has begun: [`Decoder`] or [`RingDecoder`].
pub trait Framing: private::Sealed {
    /// Whether a frame has begun and not ended.
    fn in_frame(&self) -> bool;
}

mod private {
    pub trait Sealed {}
    impl<S: crate::storage::Storage> Sealed for super::Decoder<S> {}
    impl Sealed for super::RingDecoder {}
}

impl<S: Storage> Framing for Decoder<S> {
    #[inline]
    fn in_frame(&self) -> bool {
        Decoder::in_frame(self)
    }
}

impl Framing for RingDecoder {
    #[inline]
    fn in_frame(&self) -> bool {
        RingDecoder::in_frame(self)
    }
}

/// Decodes a stream and knows when its peer has been idle, or has taken for one frame, too
/// long. It holds no memory beside itself between two frames.
#[derive(Debug)]
pub struct RecvHalf<D> {
    decoder: D,
    /// When bytes arrived last; [`Instant::NEVER`] while paused.
    last_input: Instant,
    /// When the frame in progress began. Of no meaning between two frames.
    frame_began: Instant,
    /// The peer connected to this side and has not sent a byte.
    is_silent: bool,
    is_paused: bool,
}

impl<D: Framing> RecvHalf<D> {
    /// The receiving half of a connection to which this side connects, at `now`.
    pub const fn connecting(decoder: D, now: Instant) -> Self {
        RecvHalf {
            decoder,
            last_input: now,
            frame_began: Instant::NEVER,
            is_silent: false,
            is_paused: false,
        }
    }

    /// The receiving half of a connection that was accepted at `now`: its peer is to begin its
    /// first message within [`Limits::first_message_timeout`].
    pub const fn accepted(decoder: D, now: Instant) -> Self {
        RecvHalf {
            decoder,
            last_input: now,
            frame_began: Instant::NEVER,
            is_silent: true,
            is_paused: false,
        }
    }

    /// Bytes arrived at `now`.
    #[inline]
    fn handle_bytes(&mut self, now: Instant) {
        self.last_input = now;
        self.is_silent = false;
    }

    /// The peer's FIN came. Returns what that means for the connection: inside a frame, the
    /// peer has left it unfinished.
    pub fn handle_fin(&self) -> CloseReason {
        if self.decoder.in_frame() {
            CloseReason::Truncated
        } else {
            CloseReason::Peer
        }
    }

    /// Whether the application has paused delivery.
    #[inline]
    pub const fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// The application pauses or resumes delivery. A paused connection has no clocks, since
    /// that the peer seems idle is not its fault; when it is resumed they start anew. Returns whether
    /// that changed anything.
    pub fn set_paused(&mut self, paused: bool, now: Instant) -> bool {
        let changed = paused != self.is_paused;
        if changed {
            self.is_paused = paused;
            self.restart(if paused { Instant::NEVER } else { now });
        }
        changed
    }

    /// The connection closes: nothing more is delivered, so a pause has no meaning any more.
    /// Returns whether there was one, so that the driver reads on.
    pub fn end_pause(&mut self) -> bool {
        core::mem::replace(&mut self.is_paused, false)
    }

    /// Starts the clocks anew.
    pub(super) fn restart(&mut self, now: Instant) {
        self.last_input = now;
        self.frame_began = now;
    }

    /// How long the peer may be idle, and which timeout that is.
    fn idle_limit(&self, limits: &Limits) -> (Timeout, Duration) {
        if self.is_silent && limits.first_message_timeout() < limits.stream_idle_timeout() {
            (Timeout::FirstMessage, limits.first_message_timeout())
        } else {
            (Timeout::Idle, limits.stream_idle_timeout())
        }
    }

    fn frame_deadline(&self, limits: &Limits) -> Instant {
        if self.decoder.in_frame() {
            self.frame_began.after(limits.frame_timeout())
        } else {
            Instant::NEVER
        }
    }

    /// The first moment at which [`RecvHalf::handle_timeout`] would answer.
    pub fn poll_timeout(&self, limits: &Limits) -> Instant {
        let (_, allowed) = self.idle_limit(limits);
        let idle = self.last_input.after(allowed);
        idle.min(self.frame_deadline(limits))
    }

    /// What took too long by `now`, if anything did.
    pub fn handle_timeout(&self, now: Instant, limits: &Limits) -> Option<Timeout> {
        let (timeout, allowed) = self.idle_limit(limits);
        if now >= self.frame_deadline(limits) {
            Some(Timeout::Frame)
        } else if now >= self.last_input.after(allowed) {
            Some(timeout)
        } else {
            None
        }
    }
}

impl<S: Storage> RecvHalf<Decoder<S>> {
    /// Takes the next message off the front of what arrived at `now`; see
    /// [`Decoder::decode`].
    #[inline]
    pub fn handle_input<'s, 'i: 's>(
        &'s mut self,
        input: &mut &'i [u8],
        now: Instant,
    ) -> Result<Option<Message<'s>>, FrameError> {
        self.handle_bytes(now);
        let was_in_frame = self.decoder.in_frame();
        let message = self.decoder.decode(input)?;
        if message.is_none() && !was_in_frame {
            self.frame_began = now;
        }
        Ok(message)
    }

    /// Takes all messages off the front of what arrived at `now` and gives each to `deliver`, with
    /// whether it is the last, until `deliver` breaks off or more is needed. The same as
    /// [`RecvHalf::handle_input`] again and again, at a lower cost for each message.
    ///
    /// ```
    /// use core::ops::ControlFlow;
    /// use cubenet_core::{Decoder, Fixed, Instant, RecvHalf};
    /// let decoder = Decoder::new(Fixed::<16>::new(), 16);
    /// let mut half = RecvHalf::connecting(decoder, Instant::ZERO);
    /// let mut input = &b"\0\x01a\0\x01b\0\x05c"[..];
    /// let mut messages = Vec::new();
    /// half.handle_inputs(&mut input, Instant::ZERO, |message, _is_last| {
    ///     messages.push(message.to_vec());
    ///     ControlFlow::Continue(())
    /// })?;
    /// assert_eq!(messages, [b"a", b"b"]);
    /// assert!(input.is_empty(), "what there is of the third is kept");
    /// # Ok::<(), cubenet_core::FrameError>(())
    /// ```
    #[inline]
    pub fn handle_inputs(
        &mut self,
        input: &mut &[u8],
        now: Instant,
        mut deliver: impl FnMut(Message<'_>, bool) -> ControlFlow<()>,
    ) -> Result<(), FrameError> {
        self.handle_bytes(now);
        loop {
            let flow = self.decoder.decode_whole(input, |payload, rest| {
                deliver(Message::lent(payload), rest.is_empty())
            });
            if flow.is_break() || input.is_empty() && self.decoder.is_between() {
                return Ok(());
            }
            let Some(message) = self.handle_input(input, now)? else {
                return Ok(());
            };
            if deliver(message, input.is_empty()).is_break() {
                return Ok(());
            }
        }
    }

    /// The driver was busy until `now` with what it had read, for instance with slow callbacks:
    /// its idle time, which may be due to that, begins here. Gives back the
    /// memory of the message before.
    pub fn handle_delivered(&mut self, now: Instant) {
        self.last_input = now;
        self.decoder.release();
    }

    /// What the peer seems to speak instead, if the frame that has begun did so as another protocol does
    /// and the connection closed for this reason in the middle of it: for a log, about a connection of
    /// which no message has come.
    pub const fn looks_like(&self, reason: CloseReason) -> Option<&'static str> {
        let declared = match reason {
            CloseReason::Protocol(FrameError::TooLong { declared, .. }) => Some(declared as usize),
            CloseReason::Truncated | CloseReason::Reset | CloseReason::Timeout(_) => {
                self.decoder.declared()
            }
            _ => None,
        };
        match declared {
            Some(declared) => looks_like(declared),
            None => None,
        }
    }

    /// Bytes of memory held for a partial frame, besides the half itself.
    pub fn footprint(&self) -> usize {
        self.decoder.footprint()
    }
}

impl RecvHalf<RingDecoder> {
    /// Looks at the ring at `now`; see [`RingDecoder::decode`].
    ///
    /// `Some(n)` says that the ring begins with a whole frame, whose payload is the `n` bytes
    /// after the header: take all of it out and ask again. `None` says that more must arrive.
    /// After an error nothing in the ring has a meaning.
    ///
    /// ```
    /// use cubenet_core::{Instant, Limits, RecvHalf, RingDecoder};
    /// let limits = Limits::new().with_max_message(8);
    /// let now = Instant::ZERO;
    /// let mut half = RecvHalf::connecting(RingDecoder::new(), now);
    /// assert_eq!(half.handle_ring(b"\0\x03a", 3, &limits, now), Ok(None));
    /// // The frame is whole: its payload follows the header, and the driver takes both out.
    /// assert_eq!(half.handle_ring(b"\0\x03abc\0", 6, &limits, now), Ok(Some(3)));
    /// assert_eq!(half.handle_ring(b"\0", 1, &limits, now), Ok(None));
    /// ```
    #[inline]
    pub fn handle_ring(
        &mut self,
        front: &[u8],
        len: usize,
        limits: &Limits,
        now: Instant,
    ) -> Result<Option<usize>, FrameError> {
        let was_in_frame = self.decoder.in_frame();
        match self.decoder.decode(front, len, limits.max_message())? {
            RingFront::Unchanged => Ok(None),
            RingFront::Partial => {
                self.handle_bytes(now);
                if !was_in_frame {
                    self.frame_began = now;
                }
                Ok(None)
            }
            RingFront::Frame(payload_len) => {
                self.handle_bytes(now);
                Ok(Some(payload_len))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Fixed;
    use std::vec::Vec;

    type Buffered = RecvHalf<Decoder<Fixed<64>>>;

    fn decoder() -> Decoder<Fixed<64>> {
        Decoder::new(Fixed::new(), limits().max_message())
    }

    fn second(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    fn limits() -> Limits {
        Limits::new()
            .with_frame_timeout(Duration::from_secs(10))
            .with_stream_idle_timeout(Duration::from_secs(60))
    }

    fn feed(half: &mut Buffered, mut input: &[u8], now: Instant) {
        while half.handle_input(&mut input, now).unwrap().is_some() {}
    }

    /// The deadline behind a piece, and whether the framing was broken there.
    type Moment = (Instant, Result<(), FrameError>);

    /// What a half gives for `input` in pieces of this length, and what its clocks say after each.
    fn delivered(
        piece: usize,
        input: &[u8],
        take: impl Fn(&mut Buffered, &mut &[u8], Instant, &mut Vec<Vec<u8>>) -> Result<(), FrameError>,
    ) -> (Vec<Vec<u8>>, Vec<Moment>) {
        let mut half = RecvHalf::accepted(decoder(), second(0));
        let mut messages = Vec::new();
        let moments = input.chunks(piece).zip(1..).map(|(mut piece, at)| {
            let outcome = take(&mut half, &mut piece, second(at), &mut messages);
            assert!(piece.is_empty() || outcome.is_err());
            (half.poll_timeout(&limits()), outcome)
        });
        let moments = moments.collect();
        (messages, moments)
    }

    #[test]
    fn all_messages_at_once_are_those_that_come_one_by_one() {
        let good: &[u8] = b"\0\0\0\x03abc\0\x01d\0\0\0\x05efghi\0\x02j";
        let bad = [good, b"k\x01\0"].concat();
        for input in [good, &bad] {
            for piece in 1..=input.len() {
                let one_by_one = delivered(piece, input, |half, input, now, messages| {
                    while let Some(message) = half.handle_input(input, now)? {
                        messages.push(message.to_vec());
                    }
                    Ok(())
                });
                let at_once = delivered(piece, input, |half, input, now, messages| {
                    half.handle_inputs(input, now, |message, _| {
                        messages.push(message.to_vec());
                        ControlFlow::Continue(())
                    })
                });
                let broken_off = delivered(piece, input, |half, input, now, messages| {
                    while !input.is_empty() {
                        half.handle_inputs(input, now, |message, is_last| {
                            messages.push(message.to_vec());
                            if is_last {
                                ControlFlow::Continue(())
                            } else {
                                ControlFlow::Break(())
                            }
                        })?;
                    }
                    Ok(())
                });
                assert_eq!(at_once, one_by_one, "pieces of {piece} bytes");
                assert_eq!(broken_off, one_by_one, "pieces of {piece} bytes");
            }
        }
    }

    #[test]
    fn a_peer_is_not_idle_while_its_messages_are_delivered() {
        let mut half = RecvHalf::connecting(decoder(), second(0));
        feed(&mut half, b"\0\x01a", second(1));
        assert_eq!(half.poll_timeout(&limits()), second(61));
        half.handle_delivered(second(20));
        assert_eq!(half.poll_timeout(&limits()), second(80));
        feed(&mut half, b"\0\x05abc", second(21));
        assert_eq!(half.footprint(), 64, "its fixed buffer");
    }

    #[test]
    fn a_frame_is_timed_from_its_first_byte_however_slowly_it_drips() {
        let mut half = RecvHalf::connecting(decoder(), second(0));
        feed(&mut half, b"\0\x01a\0", second(1));
        feed(&mut half, b"\x05", second(6));
        feed(&mut half, b"x", second(10));
        assert_eq!(half.poll_timeout(&limits()), second(11));
        assert_eq!(half.handle_timeout(second(10), &limits()), None);
        let timeout = half.handle_timeout(second(11), &limits());
        assert_eq!(timeout, Some(Timeout::Frame));
    }

    #[test]
    fn a_frame_that_follows_another_has_a_time_of_its_own() {
        let mut half = RecvHalf::connecting(decoder(), second(0));
        feed(&mut half, b"\0\x02a", second(1));
        feed(&mut half, b"b\0\x02c", second(9));
        assert_eq!(half.poll_timeout(&limits()), second(19));
        feed(&mut half, b"d", second(12));
        assert_eq!(half.poll_timeout(&limits()), second(72));
    }

    #[test]
    fn an_idle_peer_does_not_time_out_while_paused() {
        let mut half = RecvHalf::connecting(decoder(), second(0));
        feed(&mut half, b"\0\x02a", second(1));
        half.set_paused(true, second(2));
        assert_eq!(half.poll_timeout(&limits()), Instant::NEVER);
        half.set_paused(false, second(500));
        assert_eq!(half.poll_timeout(&limits()), second(510));
    }

    #[test]
    fn the_end_of_the_stream_means_truncated_only_inside_a_frame() {
        let mut half = RecvHalf::connecting(decoder(), second(0));
        assert_eq!(half.handle_fin(), CloseReason::Peer);
        feed(&mut half, b"\0", second(1));
        assert_eq!(half.handle_fin(), CloseReason::Truncated);
        feed(&mut half, b"\0", second(1));
        assert_eq!(half.handle_fin(), CloseReason::Peer);
    }

    #[test]
    fn an_accepted_peer_is_to_begin_its_first_message_in_time() {
        let limits = limits().with_first_message_timeout(Duration::from_secs(5));
        let mut half = RecvHalf::accepted(decoder(), second(1));
        assert_eq!(half.poll_timeout(&limits), second(6));
        assert_eq!(half.handle_timeout(second(5), &limits), None);
        let timeout = half.handle_timeout(second(6), &limits);
        assert_eq!(timeout, Some(Timeout::FirstMessage));
        feed(&mut half, b"\0", second(5));
        assert_eq!(half.poll_timeout(&limits), second(15), "a frame's time");
        feed(&mut half, b"\0", second(6));
        assert_eq!(half.poll_timeout(&limits), second(66));
        let mut ring = RecvHalf::accepted(RingDecoder::new(), second(1));
        assert_eq!(look(&mut ring, b"", second(2)), Ok(None));
        assert_eq!(ring.poll_timeout(&limits), second(6));
        assert_eq!(look(&mut ring, b"\0", second(2)), Ok(None));
        assert_eq!(ring.poll_timeout(&limits), second(12));
        let connecting = RecvHalf::connecting(decoder(), second(1));
        assert_eq!(connecting.poll_timeout(&limits), second(61));
    }

    #[test]
    fn an_idle_time_shorter_than_that_of_the_first_message_holds_for_it_too() {
        let limits = limits().with_first_message_timeout(Duration::from_secs(90));
        let half = RecvHalf::accepted(decoder(), second(0));
        let timeout = half.handle_timeout(second(60), &limits);
        assert_eq!(timeout, Some(Timeout::Idle));
    }

    /// What a ring that begins with `bytes` is found to begin with.
    fn look(
        half: &mut RecvHalf<RingDecoder>,
        bytes: &[u8],
        now: Instant,
    ) -> Result<Option<usize>, FrameError> {
        half.handle_ring(&bytes[..bytes.len().min(2)], bytes.len(), &limits(), now)
    }

    #[test]
    fn a_frame_stays_in_its_ring_until_it_is_whole() {
        let mut half = RecvHalf::connecting(RingDecoder::new(), second(0));
        for partial in [&b""[..], b"\0", b"\0\x02", b"\0\x02a"] {
            assert_eq!(look(&mut half, partial, second(1)), Ok(None));
        }
        assert_eq!(look(&mut half, b"\0\x02ab\0\0", second(2)), Ok(Some(2)));
        assert_eq!(look(&mut half, b"\0\0", second(2)), Ok(Some(0)));
        assert_eq!(half.handle_fin(), CloseReason::Peer);
        assert_eq!(look(&mut half, b"\0", second(2)), Ok(None));
        assert_eq!(half.handle_fin(), CloseReason::Truncated);
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_by_its_header() {
        let limits = Limits::new().with_max_message(100);
        let mut half = RecvHalf::connecting(RingDecoder::new(), second(0));
        let look = half.handle_ring(b"\0\x65", 2, &limits, second(1));
        let too_long = FrameError::TooLong {
            declared: 101,
            limit: 100,
        };
        assert_eq!(look, Err(too_long));
    }

    #[test]
    fn a_peer_is_idle_while_nothing_new_lies_in_the_ring() {
        let mut half = RecvHalf::connecting(RingDecoder::new(), second(0));
        assert_eq!(look(&mut half, b"\0\x02a", second(1)), Ok(None));
        assert_eq!(look(&mut half, b"\0\x02a", second(9)), Ok(None));
        assert_eq!(half.poll_timeout(&limits()), second(11));
        assert_eq!(
            half.handle_timeout(second(11), &limits()),
            Some(Timeout::Frame)
        );
    }
}
