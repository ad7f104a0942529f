//! The receiving half of a stream connection: what arrives, and how long it may take.
//!
//! [`Receiver`] is for drivers that read into a buffer and go on: it keeps what a partial
//! frame needs. [`RingReceiver`] is for drivers whose stream already lies in a ring, where a
//! partial frame can stay until it is whole. Both find the same messages, the same errors and
//! the same moments.

use crate::decode::Decoder;
use crate::frame::{self, FrameError, HEADER_LEN};
use crate::lifecycle::{CloseReason, Timeout};
use crate::limits::Limits;
use crate::message::Message;
use crate::storage::Storage;
use crate::time::Instant;
use core::time::Duration;

/// When the peer was last heard, and when the frame that is under way began.
#[derive(Debug)]
struct Clock {
    heard: Instant,
    /// Of no meaning between two frames.
    frame_began: Instant,
}

impl Clock {
    fn new(now: Instant) -> Self {
        Clock {
            heard: now,
            frame_began: Instant::NEVER,
        }
    }

    fn pause(&mut self) {
        *self = Clock::new(Instant::NEVER);
    }

    fn resume(&mut self, now: Instant) {
        self.heard = now;
        self.frame_began = now;
    }

    fn frame_deadline(&self, in_frame: bool, limits: &Limits) -> Instant {
        if in_frame {
            self.frame_began.after(limits.frame_timeout)
        } else {
            Instant::NEVER
        }
    }

    fn poll_timeout(&self, progress: Progress, limits: &Limits) -> Instant {
        let (_, idle) = progress.idle_timeout(limits);
        let idle = self.heard.after(idle);
        idle.min(self.frame_deadline(progress.in_frame, limits))
    }

    fn handle_timeout(&self, progress: Progress, now: Instant, limits: &Limits) -> Option<Timeout> {
        let (timeout, idle) = progress.idle_timeout(limits);
        if now >= self.frame_deadline(progress.in_frame, limits) {
            Some(Timeout::Frame)
        } else if now >= self.heard.after(idle) {
            Some(timeout)
        } else {
            None
        }
    }
}

/// How far the peer's input has come.
#[derive(Clone, Copy)]
struct Progress {
    /// A frame has begun and not ended.
    in_frame: bool,
    /// The peer connected to this side and has not sent a byte.
    is_silent: bool,
}

impl Progress {
    /// How long the peer may say nothing, and what it is called if it does.
    fn idle_timeout(self, limits: &Limits) -> (Timeout, Duration) {
        if self.is_silent && limits.first_message_timeout < limits.stream_idle_timeout {
            (Timeout::FirstMessage, limits.first_message_timeout)
        } else {
            (Timeout::Idle, limits.stream_idle_timeout)
        }
    }
}

/// What the end of the stream means for a connection that was, or was not, inside a frame.
fn end(in_frame: bool) -> CloseReason {
    if in_frame {
        CloseReason::Truncated
    } else {
        CloseReason::Peer
    }
}

/// Decodes a stream and knows when its peer has been silent, or busy with one frame, too
/// long. An idle one holds no memory beside itself.
#[derive(Debug)]
pub struct Receiver<S> {
    decoder: Decoder<S>,
    clock: Clock,
    /// See [`Progress::is_silent`].
    is_silent: bool,
}

impl<S: Storage> Receiver<S> {
    /// The receiving half of a connection to which this side connects, at `now`.
    pub fn connecting(storage: S, limits: &Limits, now: Instant) -> Self {
        Receiver {
            decoder: Decoder::new(storage, limits.max_message),
            clock: Clock::new(now),
            is_silent: false,
        }
    }

    /// The receiving half of a connection that was accepted at `now`: its peer is to begin its
    /// first message within [`Limits::first_message_timeout`].
    pub fn accepted(storage: S, limits: &Limits, now: Instant) -> Self {
        Receiver {
            is_silent: true,
            ..Receiver::connecting(storage, limits, now)
        }
    }

    fn progress(&self) -> Progress {
        Progress {
            in_frame: self.decoder.in_frame(),
            is_silent: self.is_silent,
        }
    }

    /// Takes the next message off the front of what arrived at `now`; see
    /// [`Decoder::decode`].
    #[inline]
    pub fn handle_input<'s, 'i: 's>(
        &'s mut self,
        input: &mut &'i [u8],
        now: Instant,
    ) -> Result<Option<Message<'s>>, FrameError> {
        self.clock.heard = now;
        self.is_silent = false;
        let was_in_frame = self.decoder.in_frame();
        let message = self.decoder.decode(input)?;
        if message.is_none() && !was_in_frame {
            self.clock.frame_began = now;
        }
        Ok(message)
    }

    /// The driver was busy with what arrived until `now`, for instance with slow callbacks:
    /// the peer's silence, which it may owe to that, is counted from here. Gives back the
    /// memory of the message before.
    pub fn handle_heard(&mut self, now: Instant) {
        self.clock.heard = now;
        self.decoder.release();
    }

    /// The peer ended its direction. Returns what that means for the connection.
    pub fn handle_end(&self) -> CloseReason {
        end(self.decoder.in_frame())
    }

    /// Stops the clocks: the application does not want to hear, so silence is not the
    /// peer's fault.
    pub fn pause(&mut self) {
        self.clock.pause();
    }

    /// Starts them anew.
    pub fn resume(&mut self, now: Instant) {
        self.clock.resume(now);
    }

    /// The first moment at which [`Receiver::handle_timeout`] would have something to say.
    pub fn poll_timeout(&self, limits: &Limits) -> Instant {
        self.clock.poll_timeout(self.progress(), limits)
    }

    /// What took too long by `now`, if anything did.
    pub fn handle_timeout(&self, now: Instant, limits: &Limits) -> Option<Timeout> {
        self.clock.handle_timeout(self.progress(), now, limits)
    }

    /// Bytes of memory held for a partial frame, besides the receiver itself.
    pub fn footprint(&self) -> usize {
        self.decoder.footprint()
    }
}

/// The receiving half of a stream that lies in a ring of the driver's. It holds no bytes: a
/// partial frame stays in the ring, which must have room for the longest frame.
///
/// ```
/// use cubenet_core::{Instant, Limits, RingReceiver};
/// let limits = Limits { max_message: 8, ..Limits::default() };
/// let now = Instant::ZERO;
/// let mut receiver = RingReceiver::connecting(now);
/// assert_eq!(receiver.handle_ring(b"\0\x03a", 3, &limits, now), Ok(None));
/// // The frame is whole: its payload follows the header, and the driver takes both out.
/// assert_eq!(receiver.handle_ring(b"\0\x03abc\0", 6, &limits, now), Ok(Some(3)));
/// assert_eq!(receiver.handle_ring(b"\0", 1, &limits, now), Ok(None));
/// ```
#[derive(Debug)]
pub struct RingReceiver {
    clock: Clock,
    /// Bytes that lay in the ring after the last look, and belong to a frame that has begun; or
    /// [`SILENT`]. One number for both costs nothing beside a message.
    partial: u32,
}

/// The peer connected to this side and has not sent a byte. More than a ring can hold.
const SILENT: u32 = u32::MAX;

impl RingReceiver {
    /// See [`Receiver::connecting`].
    pub fn connecting(now: Instant) -> Self {
        RingReceiver {
            clock: Clock::new(now),
            partial: 0,
        }
    }

    /// See [`Receiver::accepted`].
    pub fn accepted(now: Instant) -> Self {
        RingReceiver {
            partial: SILENT,
            ..RingReceiver::connecting(now)
        }
    }

    fn progress(&self) -> Progress {
        Progress {
            in_frame: self.in_frame(),
            is_silent: self.partial == SILENT,
        }
    }

    /// Looks at the ring at `now`. `front` is how it begins, two bytes or more if there are
    /// two; `len` is how many bytes lie in it.
    ///
    /// `Some(n)` says that it begins with a whole frame, whose payload is the `n` bytes after
    /// the header: take all of it out and ask again. `None` says that more must arrive.
    /// After an error nothing in the ring has a meaning.
    #[inline]
    pub fn handle_ring(
        &mut self,
        front: &[u8],
        len: usize,
        limits: &Limits,
        now: Instant,
    ) -> Result<Option<usize>, FrameError> {
        let partial = self.partial as usize;
        if len == partial {
            return Ok(None);
        }
        if let Some(declared) = frame::declared(front, limits.max_message)?
            && len >= HEADER_LEN + declared
        {
            self.clock.heard = now;
            self.partial = 0;
            return Ok(Some(declared));
        }
        if len == 0 {
            return Ok(None);
        }
        self.clock.heard = now;
        if !self.in_frame() {
            self.clock.frame_began = now;
        }
        self.partial = len as u32;
        Ok(None)
    }

    /// See [`Receiver::handle_end`].
    pub fn handle_end(&self) -> CloseReason {
        end(self.in_frame())
    }

    /// See [`Receiver::pause`].
    pub fn pause(&mut self) {
        self.clock.pause();
    }

    /// See [`Receiver::resume`].
    pub fn resume(&mut self, now: Instant) {
        self.clock.resume(now);
    }

    /// See [`Receiver::poll_timeout`].
    pub fn poll_timeout(&self, limits: &Limits) -> Instant {
        self.clock.poll_timeout(self.progress(), limits)
    }

    /// See [`Receiver::handle_timeout`].
    pub fn handle_timeout(&self, now: Instant, limits: &Limits) -> Option<Timeout> {
        self.clock.handle_timeout(self.progress(), now, limits)
    }

    fn in_frame(&self) -> bool {
        self.partial > 0 && self.partial != SILENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Fixed;

    fn second(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    fn limits() -> Limits {
        Limits {
            frame_timeout: Duration::from_secs(10),
            stream_idle_timeout: Duration::from_secs(60),
            ..Limits::default()
        }
    }

    fn feed(receiver: &mut Receiver<Fixed<64>>, mut input: &[u8], now: Instant) {
        while receiver.handle_input(&mut input, now).unwrap().is_some() {}
    }

    #[test]
    fn a_frame_is_timed_from_its_first_byte_however_slowly_it_drips() {
        let mut receiver = Receiver::connecting(Fixed::new(), &limits(), second(0));
        feed(&mut receiver, b"\0\x01a\0", second(1));
        feed(&mut receiver, b"\x05", second(6));
        feed(&mut receiver, b"x", second(10));
        assert_eq!(receiver.poll_timeout(&limits()), second(11));
        assert_eq!(receiver.handle_timeout(second(10), &limits()), None);
        let timeout = receiver.handle_timeout(second(11), &limits());
        assert_eq!(timeout, Some(Timeout::Frame));
    }

    #[test]
    fn a_frame_that_follows_another_has_a_time_of_its_own() {
        let mut receiver = Receiver::connecting(Fixed::new(), &limits(), second(0));
        feed(&mut receiver, b"\0\x02a", second(1));
        feed(&mut receiver, b"b\0\x02c", second(9));
        assert_eq!(receiver.poll_timeout(&limits()), second(19));
        feed(&mut receiver, b"d", second(12));
        assert_eq!(receiver.poll_timeout(&limits()), second(72));
    }

    #[test]
    fn silence_does_not_time_out_while_paused() {
        let mut receiver = Receiver::connecting(Fixed::new(), &limits(), second(0));
        feed(&mut receiver, b"\0\x02a", second(1));
        receiver.pause();
        assert_eq!(receiver.poll_timeout(&limits()), Instant::NEVER);
        receiver.resume(second(500));
        assert_eq!(receiver.poll_timeout(&limits()), second(510));
    }

    #[test]
    fn the_end_of_the_stream_means_truncated_only_inside_a_frame() {
        let mut receiver = Receiver::connecting(Fixed::new(), &limits(), second(0));
        assert_eq!(receiver.handle_end(), CloseReason::Peer);
        feed(&mut receiver, b"\0", second(1));
        assert_eq!(receiver.handle_end(), CloseReason::Truncated);
        feed(&mut receiver, b"\0", second(1));
        assert_eq!(receiver.handle_end(), CloseReason::Peer);
    }

    #[test]
    fn an_accepted_peer_is_to_begin_its_first_message_in_time() {
        let limits = Limits {
            first_message_timeout: Duration::from_secs(5),
            ..limits()
        };
        let mut receiver = Receiver::accepted(Fixed::<64>::new(), &limits, second(1));
        assert_eq!(receiver.poll_timeout(&limits), second(6));
        assert_eq!(receiver.handle_timeout(second(5), &limits), None);
        let timeout = receiver.handle_timeout(second(6), &limits);
        assert_eq!(timeout, Some(Timeout::FirstMessage));
        feed(&mut receiver, b"\0", second(5));
        assert_eq!(receiver.poll_timeout(&limits), second(15), "a frame's time");
        feed(&mut receiver, b"\0", second(6));
        assert_eq!(receiver.poll_timeout(&limits), second(66));
        let mut ring = RingReceiver::accepted(second(1));
        assert_eq!(look(&mut ring, b"", second(2)), Ok(None));
        assert_eq!(ring.poll_timeout(&limits), second(6));
        assert_eq!(look(&mut ring, b"\0", second(2)), Ok(None));
        assert_eq!(ring.poll_timeout(&limits), second(12));
        let connecting = Receiver::connecting(Fixed::<64>::new(), &limits, second(1));
        assert_eq!(connecting.poll_timeout(&limits), second(61));
    }

    #[test]
    fn an_idle_time_shorter_than_that_of_the_first_message_holds_for_it_too() {
        let limits = Limits {
            first_message_timeout: Duration::from_secs(90),
            ..limits()
        };
        let receiver = Receiver::accepted(Fixed::<64>::new(), &limits, second(0));
        let timeout = receiver.handle_timeout(second(60), &limits);
        assert_eq!(timeout, Some(Timeout::Idle));
    }

    /// What a ring that begins with `bytes` is found to begin with.
    fn look(
        receiver: &mut RingReceiver,
        bytes: &[u8],
        now: Instant,
    ) -> Result<Option<usize>, FrameError> {
        receiver.handle_ring(&bytes[..bytes.len().min(2)], bytes.len(), &limits(), now)
    }

    #[test]
    fn a_frame_stays_in_its_ring_until_it_is_whole() {
        let mut receiver = RingReceiver::connecting(second(0));
        for partial in [&b""[..], b"\0", b"\0\x02", b"\0\x02a"] {
            assert_eq!(look(&mut receiver, partial, second(1)), Ok(None));
        }
        assert_eq!(look(&mut receiver, b"\0\x02ab\0\0", second(2)), Ok(Some(2)));
        assert_eq!(look(&mut receiver, b"\0\0", second(2)), Ok(Some(0)));
        assert_eq!(receiver.handle_end(), CloseReason::Peer);
        assert_eq!(look(&mut receiver, b"\0", second(2)), Ok(None));
        assert_eq!(receiver.handle_end(), CloseReason::Truncated);
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_by_its_header() {
        let limits = Limits {
            max_message: 100,
            ..Limits::default()
        };
        let mut receiver = RingReceiver::connecting(second(0));
        let look = receiver.handle_ring(b"\0\x65", 2, &limits, second(1));
        let too_long = FrameError::TooLong {
            declared: 101,
            limit: 100,
        };
        assert_eq!(look, Err(too_long));
    }

    #[test]
    fn a_ring_in_which_nothing_new_lies_is_silence() {
        let mut receiver = RingReceiver::connecting(second(0));
        assert_eq!(look(&mut receiver, b"\0\x02a", second(1)), Ok(None));
        assert_eq!(look(&mut receiver, b"\0\x02a", second(9)), Ok(None));
        assert_eq!(receiver.poll_timeout(&limits()), second(11));
        assert_eq!(
            receiver.handle_timeout(second(11), &limits()),
            Some(Timeout::Frame)
        );
    }
}
