//! The handle of a connection, for applications that keep it and for handlers that run on every
//! driver.

use crate::connection_id::ConnectionId;
use crate::frame::Frame;
use crate::layer::Identity;
use crate::send_error::SendError;
use crate::tcp_info::TcpInfo;
use crate::transport::Transport;
use alloc::sync::Arc;
use core::net::SocketAddr;

/// A handle of a connection, to keep, clone and use on any thread: what a driver's `Connection`
/// is. No call blocks. Drivers implement it; methods that are added later have default bodies.
///
/// A handle may outlive its connection. Then it is an inert value: [`is_closed`] is true and sends
/// fail with [`SendError::Closed`].
///
/// A handler that keeps handles is generic over this trait, and runs unchanged on every driver
/// that has handles:
///
/// ```
/// use cubenet_core::{Frame, Handle, Handler, Link, Message};
/// use std::sync::{Arc, Mutex};
///
/// /// Sends every message to all members of its lobby.
/// struct Member<C>(Arc<Mutex<Vec<C>>>);
///
/// impl<C: Handle> Handler for Member<C> {
///     fn received(&mut self, _link: &mut dyn Link, message: Message<'_>) {
///         let frame = Frame::new(&message).expect("a message that arrived fits a frame");
///         for member in &*self.0.lock().unwrap() {
///             let _ = member.send_frame(&frame);
///         }
///     }
/// }
/// ```
///
/// [`is_closed`]: Handle::is_closed
pub trait Handle: Clone + Send + Sync + 'static {
    /// Does `work`, and has what it sends on this thread leave together when it ends, where the
    /// driver can do better than to send each message by itself.
    fn batch<R>(work: impl FnOnce() -> R) -> R {
        work()
    }

    /// Sends `message`, all of it or nothing; see [`Link::send`](crate::Link::send).
    fn send(&self, message: &[u8]) -> Result<(), SendError>;

    /// Sends a message that was framed once, to go to many.
    fn send_frame(&self, frame: &Frame) -> Result<(), SendError>;

    /// Delivers what was sent, then closes. Nothing more is received.
    fn close(&self);

    /// Closes at once. What is queued is lost, and a stream's peer sees a reset.
    fn abort(&self);

    /// Whether it was closed from this side or has ended.
    fn is_closed(&self) -> bool;

    /// Stops delivering messages; see [`Link::pause`](crate::Link::pause).
    fn pause(&self);

    /// Delivers messages again.
    fn resume(&self);

    /// Bytes that were accepted and that the transport has not taken, headers included.
    fn queued(&self) -> usize;

    /// Its transport.
    fn transport(&self) -> Transport;

    /// The peer's address.
    fn peer_addr(&self) -> SocketAddr;

    /// The address of this end.
    fn local_addr(&self) -> SocketAddr;

    /// The connection's number.
    fn id(&self) -> ConnectionId;

    /// What the handshake of its layers has shown; `None` if it has no layers, or that is not
    /// complete.
    fn identity(&self) -> Option<Arc<Identity>> {
        None
    }

    /// What the system has measured of a stream: round trips, and what was sent again. `None` for
    /// datagrams, once the connection has ended, and where the system does not tell.
    fn tcp_info(&self) -> Option<TcpInfo> {
        None
    }
}

/// Implements [`Handle`] for a driver's connection, whose own methods of the same names do it.
/// For drivers: they have these as methods, so that an application need not import the trait. Methods
/// that have a default body there, for drivers that can do better, follow in braces.
#[macro_export]
macro_rules! impl_handle {
    ($connection:ty $(, { $($method:item)* })?) => {
        impl $crate::Handle for $connection {
            fn send(&self, message: &[u8]) -> Result<(), $crate::SendError> {
                <$connection>::send(self, message)
            }

            fn send_frame(&self, frame: &$crate::Frame) -> Result<(), $crate::SendError> {
                <$connection>::send_frame(self, frame)
            }

            fn close(&self) {
                <$connection>::close(self);
            }

            fn abort(&self) {
                <$connection>::abort(self);
            }

            fn is_closed(&self) -> bool {
                <$connection>::is_closed(self)
            }

            fn pause(&self) {
                <$connection>::pause(self);
            }

            fn resume(&self) {
                <$connection>::resume(self);
            }

            fn queued(&self) -> usize {
                <$connection>::queued(self)
            }

            fn transport(&self) -> $crate::Transport {
                <$connection>::transport(self)
            }

            fn peer_addr(&self) -> ::core::net::SocketAddr {
                <$connection>::peer_addr(self)
            }

            fn local_addr(&self) -> ::core::net::SocketAddr {
                <$connection>::local_addr(self)
            }

            fn id(&self) -> $crate::ConnectionId {
                <$connection>::id(self)
            }

            $($($method)*)?
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Handle;
    use std::sync::Mutex;
    use std::vec::Vec;

    /// A driver's connection that keeps which methods were called, in order.
    #[derive(Clone, Default)]
    struct Connection(Arc<Mutex<Vec<&'static str>>>);

    impl Connection {
        fn called<R>(&self, method: &'static str, answer: R) -> R {
            self.0.lock().unwrap().push(method);
            answer
        }

        fn send(&self, message: impl AsRef<[u8]>) -> Result<(), SendError> {
            self.called(
                "send",
                message
                    .as_ref()
                    .is_empty()
                    .then_some(())
                    .ok_or(SendError::Full),
            )
        }

        fn send_frame(&self, frame: &Frame) -> Result<(), SendError> {
            self.called(
                "send_frame",
                frame
                    .payload()
                    .is_empty()
                    .then_some(())
                    .ok_or(SendError::Full),
            )
        }

        fn close(&self) {
            self.called("close", ());
        }

        fn abort(&self) {
            self.called("abort", ());
        }

        fn is_closed(&self) -> bool {
            self.called("is_closed", true)
        }

        fn pause(&self) {
            self.called("pause", ());
        }

        fn resume(&self) {
            self.called("resume", ());
        }

        fn queued(&self) -> usize {
            self.called("queued", 5)
        }

        fn transport(&self) -> Transport {
            self.called("transport", Transport::Udp)
        }

        fn peer_addr(&self) -> SocketAddr {
            self.called("peer_addr", ([10, 0, 0, 1], 1).into())
        }

        fn local_addr(&self) -> SocketAddr {
            self.called("local_addr", ([10, 0, 0, 2], 2).into())
        }

        fn id(&self) -> ConnectionId {
            self.called("id", ConnectionId::from_u64(9))
        }

        fn identity(&self) -> Option<Arc<Identity>> {
            self.called("identity", None)
        }

        fn tcp_info(&self) -> Option<TcpInfo> {
            self.called("tcp_info", None)
        }
    }

    crate::impl_handle!(Connection, {
        fn identity(&self) -> Option<Arc<Identity>> {
            Connection::identity(self)
        }
        fn tcp_info(&self) -> Option<TcpInfo> {
            Connection::tcp_info(self)
        }
    });

    /// Calls every method through the trait.
    fn call_all(handle: &impl Handle) {
        assert_eq!(handle.send(b""), Ok(()));
        assert_eq!(
            handle.send_frame(&Frame::new(b"full").unwrap()),
            Err(SendError::Full)
        );
        handle.close();
        handle.abort();
        assert!(handle.is_closed());
        handle.pause();
        handle.resume();
        assert_eq!(handle.queued(), 5);
        assert_eq!(handle.transport(), Transport::Udp);
        assert_eq!(handle.peer_addr().port(), 1);
        assert_eq!(handle.local_addr().port(), 2);
        assert_eq!(handle.id().as_u64(), 9);
        assert_eq!(handle.identity(), None);
        assert_eq!(handle.tcp_info(), None);
    }

    #[test]
    fn each_method_of_a_handle_is_the_connection_s_own() {
        let methods = "send send_frame close abort is_closed pause resume queued transport \
                       peer_addr local_addr id identity tcp_info";
        let connection = Connection::default();
        call_all(&connection);
        assert_eq!(connection.0.lock().unwrap().join(" "), methods);
    }
}
