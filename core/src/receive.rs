//! The receiving half of a stream connection: what arrives, and how long it may take.

use crate::decode::Decoder;
use crate::frame::FrameError;
use crate::lifecycle::{CloseReason, Timeout};
use crate::limits::Limits;
use crate::message::Message;
use crate::storage::Storage;
use crate::time::Instant;

/// Decodes a stream and knows when its peer has been silent, or busy with one frame, too
/// long. An idle one holds no memory beside itself.
#[derive(Debug)]
pub struct Receiver<S> {
    decoder: Decoder<S>,
    /// When the peer was last heard.
    heard: Instant,
    /// When the frame that is under way began; of no meaning between two frames.
    frame_began: Instant,
}

impl<S: Storage> Receiver<S> {
    /// The receiving half of a connection that opened at `now`.
    pub fn new(storage: S, limits: &Limits, now: Instant) -> Self {
        Receiver {
            decoder: Decoder::new(storage, limits.max_message),
            heard: now,
            frame_began: Instant::NEVER,
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
        self.heard = now;
        let was_in_frame = self.decoder.in_frame();
        let message = self.decoder.decode(input)?;
        if message.is_none() && !was_in_frame {
            self.frame_began = now;
        }
        Ok(message)
    }

    /// The peer ended its direction. Returns what that means for the connection.
    pub fn handle_end(&self) -> CloseReason {
        if self.decoder.in_frame() {
            CloseReason::Truncated
        } else {
            CloseReason::Peer
        }
    }

    /// Stops the clocks: the application does not want to hear, so silence is not the
    /// peer's fault.
    pub fn pause(&mut self) {
        self.heard = Instant::NEVER;
        self.frame_began = Instant::NEVER;
    }

    /// Starts them anew.
    pub fn resume(&mut self, now: Instant) {
        self.heard = now;
        self.frame_began = now;
    }

    /// The first moment at which [`Receiver::handle_timeout`] would have something to say.
    pub fn poll_timeout(&self, limits: &Limits) -> Instant {
        let idle = self.heard.after(limits.stream_idle_timeout);
        idle.min(self.frame_deadline(limits))
    }

    /// What took too long by `now`, if anything did.
    pub fn handle_timeout(&self, now: Instant, limits: &Limits) -> Option<Timeout> {
        if now >= self.frame_deadline(limits) {
            Some(Timeout::Frame)
        } else if now >= self.heard.after(limits.stream_idle_timeout) {
            Some(Timeout::Idle)
        } else {
            None
        }
    }

    fn frame_deadline(&self, limits: &Limits) -> Instant {
        if self.decoder.in_frame() {
            self.frame_began.after(limits.frame_timeout)
        } else {
            Instant::NEVER
        }
    }

    /// Bytes of memory held for a partial frame, besides the receiver itself.
    pub fn footprint(&self) -> usize {
        self.decoder.footprint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Fixed;
    use core::time::Duration;

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
        let mut receiver = Receiver::new(Fixed::new(), &limits(), second(0));
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
        let mut receiver = Receiver::new(Fixed::new(), &limits(), second(0));
        feed(&mut receiver, b"\0\x02a", second(1));
        feed(&mut receiver, b"b\0\x02c", second(9));
        assert_eq!(receiver.poll_timeout(&limits()), second(19));
        feed(&mut receiver, b"d", second(12));
        assert_eq!(receiver.poll_timeout(&limits()), second(72));
    }

    #[test]
    fn silence_does_not_time_out_while_paused() {
        let mut receiver = Receiver::new(Fixed::new(), &limits(), second(0));
        feed(&mut receiver, b"\0\x02a", second(1));
        receiver.pause();
        assert_eq!(receiver.poll_timeout(&limits()), Instant::NEVER);
        receiver.resume(second(500));
        assert_eq!(receiver.poll_timeout(&limits()), second(510));
    }

    #[test]
    fn the_end_of_the_stream_means_truncated_only_inside_a_frame() {
        let mut receiver = Receiver::new(Fixed::new(), &limits(), second(0));
        assert_eq!(receiver.handle_end(), CloseReason::Peer);
        feed(&mut receiver, b"\0", second(1));
        assert_eq!(receiver.handle_end(), CloseReason::Truncated);
        feed(&mut receiver, b"\0", second(1));
        assert_eq!(receiver.handle_end(), CloseReason::Peer);
    }
}
