//! What an application implements ([`Handler`]) and what it is handed ([`Link`]).

use crate::connect_error::ConnectError;
use crate::connection::CloseReason;
use crate::connection_id::ConnectionId;
#[cfg(feature = "alloc")]
use crate::frame::Frame;
#[cfg(feature = "alloc")]
use crate::layer::Identity;
use crate::message::Message;
use crate::send_error::SendError;
use crate::time::Instant;
use crate::transport::Transport;
#[cfg(feature = "alloc")]
use alloc::{boxed::Box, sync::Arc};
use core::fmt;
use core::net::SocketAddr;

/// The application's side of one connection.
///
/// The callbacks of one connection come from one thread at a time and in order, so
/// `&mut self` needs no lock. Callbacks of different connections run in parallel where the
/// driver has threads. A callback that blocks holds up every connection of its thread.
///
/// The handler of an accepted connection is made by the listener's `accepted`. The handler of a
/// connect is given to `connect`: either `connected` is called first and the other callbacks may
/// follow, or `connect_failed` is called and nothing follows. `closed` is the last call for every
/// connection that opened. After `closed` or `connect_failed` the handler is dropped.
pub trait Handler {
    /// This side's connect is complete: the peer has answered. Comes before any message. Over
    /// UDP there is nothing to wait for, and an absent peer shows in [`Handler::error`] at the
    /// earliest.
    fn connected(&mut self, link: &mut dyn Link) {
        let _ = link;
    }

    /// This side's connect failed, or was closed before it was complete.
    fn connect_failed(&mut self, error: ConnectError) {
        let _ = error;
    }

    /// A message arrived. It is lent for the length of the call.
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>);

    /// After a `send` answered [`SendError::Full`]: there is room again.
    fn writable(&mut self, link: &mut dyn Link) {
        let _ = link;
    }

    /// Something went wrong that does not end the connection.
    fn error(&mut self, link: &mut dyn Link, error: TransportError) {
        let _ = (link, error);
    }

    /// A connection that was open is over. Called exactly once, last. The link still has the peer's
    /// address; sends on it fail with [`SendError::Closed`].
    fn closed(&mut self, link: &mut dyn Link, reason: CloseReason) {
        let _ = (link, reason);
    }
}

#[cfg(feature = "alloc")]
impl<H: Handler + ?Sized> Handler for Box<H> {
    fn connected(&mut self, link: &mut dyn Link) {
        (**self).connected(link);
    }

    fn connect_failed(&mut self, error: ConnectError) {
        (**self).connect_failed(error);
    }

    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        (**self).received(link, message);
    }

    fn writable(&mut self, link: &mut dyn Link) {
        (**self).writable(link);
    }

    fn error(&mut self, link: &mut dyn Link, error: TransportError) {
        (**self).error(link, error);
    }

    fn closed(&mut self, link: &mut dyn Link, reason: CloseReason) {
        (**self).closed(link, reason);
    }
}

/// A connection, seen from inside one of its callbacks. None of its calls blocks.
///
/// Drivers implement it. Methods that are added later have default bodies.
pub trait Link {
    /// Queues `message` to be sent. Either all of it is accepted or nothing.
    ///
    /// What was accepted is delivered before a `close` takes effect, unless the peer can
    /// no longer be reached. A datagram is sent once and may be lost.
    fn send(&mut self, message: &[u8]) -> Result<(), SendError>;

    /// Like [`Link::send`], for a message that goes to many: it was framed once, and a
    /// driver that has to keep it shares its bytes.
    #[cfg(feature = "alloc")]
    fn send_frame(&mut self, frame: &Frame) -> Result<(), SendError> {
        self.send(frame.payload())
    }

    /// Delivers what was sent, then closes. Nothing more is received.
    fn close(&mut self);

    /// Closes at once; what is queued is lost, and a stream's peer sees a reset.
    fn abort(&mut self);

    /// Whether `close` or `abort` was called or the connection has ended.
    fn is_closed(&self) -> bool;

    /// Its transport.
    fn transport(&self) -> Transport;

    /// The peer's address.
    fn peer_addr(&self) -> SocketAddr;

    /// The address of this end.
    fn local_addr(&self) -> SocketAddr;

    /// The connection's number.
    fn id(&self) -> ConnectionId;

    /// What the handshake of its layers has shown; `None` if it has no layers.
    #[cfg(feature = "alloc")]
    fn identity(&self) -> Option<Arc<Identity>> {
        None
    }

    /// Bytes accepted by `send` that have not gone out yet, headers included.
    fn queued(&self) -> usize;

    /// Stops delivering messages. TCP holds up a stream's peer, and its idle timeout does not
    /// run. Datagrams that arrive meanwhile are dropped; a datagram peer that is idle times out
    /// all the same.
    fn pause(&mut self);

    /// Delivers messages again.
    fn resume(&mut self);

    /// The time of this callback, in microseconds since an origin that the driver chooses.
    fn now(&self) -> Instant;
}

/// Something that went wrong without ending the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TransportError {
    /// A datagram arrived that is longer than the limit, and was dropped.
    DatagramTooLong {
        /// Its length in bytes.
        len: usize,
        /// Bytes that are allowed.
        limit: usize,
    },
    /// The network reported that no socket listens at the peer's address (ICMP). Datagrams sent
    /// before were lost; later ones may not be.
    Unreachable,
    /// A datagram that had been accepted could not be sent, and was dropped.
    NotSent {
        /// Its length in bytes.
        len: usize,
    },
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TransportError::DatagramTooLong { len, limit } => {
                write!(f, "dropped a datagram of {len} bytes, the limit is {limit}")
            }
            TransportError::Unreachable => f.write_str("no socket listens at the peer's address"),
            TransportError::NotSent { len } => write!(f, "a datagram of {len} bytes was not sent"),
        }
    }
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use super::*;
    use std::string::ToString;
    use std::vec::Vec;

    /// A link that keeps what is sent.
    #[derive(Default)]
    struct Kept(Vec<Vec<u8>>);

    impl Link for Kept {
        fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
            self.0.push(message.to_vec());
            Ok(())
        }

        fn close(&mut self) {}

        fn abort(&mut self) {}

        fn is_closed(&self) -> bool {
            false
        }

        fn transport(&self) -> Transport {
            Transport::Tcp
        }

        fn peer_addr(&self) -> SocketAddr {
            ([127, 0, 0, 1], 1).into()
        }

        fn local_addr(&self) -> SocketAddr {
            ([127, 0, 0, 1], 2).into()
        }

        fn id(&self) -> ConnectionId {
            ConnectionId::from_u64(7)
        }

        fn queued(&self) -> usize {
            0
        }

        fn pause(&mut self) {}

        fn resume(&mut self) {}

        fn now(&self) -> Instant {
            Instant::ZERO
        }
    }

    /// Says on its link what it was called for.
    struct Says;

    impl Handler for Says {
        fn connected(&mut self, link: &mut dyn Link) {
            link.send(b"connected").unwrap();
        }

        fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
            link.send(&message).unwrap();
        }

        fn writable(&mut self, link: &mut dyn Link) {
            link.send(b"writable").unwrap();
        }

        fn error(&mut self, link: &mut dyn Link, error: TransportError) {
            link.send(error.to_string().as_bytes()).unwrap();
        }

        fn closed(&mut self, link: &mut dyn Link, reason: CloseReason) {
            link.send(reason.to_string().as_bytes()).unwrap();
        }
    }

    struct Silent;

    impl Handler for Silent {
        fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {}
    }

    fn call_everything(handler: &mut impl Handler, link: &mut dyn Link) {
        handler.connected(link);
        handler.received(link, Message::lent(b"message"));
        handler.writable(link);
        handler.error(link, TransportError::NotSent { len: 3 });
        handler.closed(link, CloseReason::Peer);
    }

    #[test]
    fn a_boxed_handler_is_the_handler() {
        let mut link = Kept::default();
        let mut boxed: Box<dyn Handler> = Box::new(Says);
        call_everything(&mut boxed, &mut link);
        let mut directly = Kept::default();
        call_everything(&mut Says, &mut directly);
        assert_eq!(link.0, directly.0);
        assert_eq!(link.0.len(), 5);
    }

    #[test]
    fn a_boxed_handler_gets_a_failed_connect() {
        struct Failed(bool);
        impl Handler for Failed {
            fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {}

            fn connect_failed(&mut self, error: ConnectError) {
                self.0 = error.reason() == CloseReason::Refused;
            }
        }
        let peer = ([10, 0, 0, 1], 7).into();
        let id = ConnectionId::from_u64(7);
        let refused = || ConnectError::new(id, crate::Transport::Tcp, peer, CloseReason::Refused);
        let mut boxed = Box::new(Failed(false));
        Handler::connect_failed(&mut boxed, refused());
        assert!(boxed.0);
        Silent.connect_failed(refused());
    }

    #[test]
    fn all_but_received_may_be_left_out() {
        let mut link = Kept::default();
        call_everything(&mut Silent, &mut link);
        assert!(link.0.is_empty());
    }

    #[test]
    fn a_link_that_shares_nothing_sends_a_frame_as_its_message() {
        let mut link = Kept::default();
        link.send_frame(&Frame::new(b"framed").unwrap()).unwrap();
        assert_eq!(link.0, [b"framed"]);
    }

    #[test]
    fn every_error_says_what_went_wrong_and_what_to_do() {
        let errors = [
            (SendError::Closed, "the connection is closed"),
            (SendError::Full, "wait for `writable`"),
            (
                SendError::TooLong { len: 9, limit: 8 },
                "9 bytes is over the limit of 8",
            ),
            (SendError::Empty, "call `close` for that"),
        ];
        for (error, says) in errors {
            assert!(error.to_string().contains(says), "{error}");
        }
        let too_long = TransportError::DatagramTooLong { len: 9, limit: 8 };
        let errors = [
            (too_long, "9 bytes, the limit is 8"),
            (TransportError::Unreachable, "no socket listens"),
            (TransportError::NotSent { len: 9 }, "9 bytes was not sent"),
        ];
        for (error, says) in errors {
            assert!(error.to_string().contains(says), "{error}");
        }
        assert_eq!(ConnectionId::from_u64(7).to_string(), "#7");
    }
}
