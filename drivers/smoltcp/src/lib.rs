//! cubenet for embedded devices: handlers of [`cubenet_core`] over [smoltcp], without
//! an allocator and in memory that the caller gives.
//!
//! A [`Network`] owns a smoltcp interface, its device and its sockets. It does nothing by
//! itself: call [`Network::poll`] when a frame has arrived or the moment has come that
//! [`Network::poll_at`] names, and sleep otherwise. All callbacks come from inside `poll`.
//!
//! ```
//! use smoltcp::iface::{Config, Interface, SocketStorage};
//! use smoltcp::phy::{Loopback, Medium};
//! use smoltcp::wire::{HardwareAddress, IpCidr};
//! use cubenet_smoltcp::{
//!     Bytes, Handler, Instant, Limits, Link, Memory, Message, Network, PortMemory, StreamMemory,
//!     Transport,
//! };
//!
//! struct Echo;
//! impl Handler for Echo {
//!     fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
//!         let _ = link.send(&message);
//!     }
//! }
//!
//! # fn main() -> Result<(), cubenet_smoltcp::Error> {
//! let mut device = Loopback::new(Medium::Ip);
//! let config = Config::new(HardwareAddress::Ip);
//! let mut interface = Interface::new(config, &mut device, smoltcp::time::Instant::ZERO);
//! interface.update_ip_addrs(|addresses| {
//!     let _ = addresses.push("127.0.0.1/8".parse::<IpCidr>().unwrap());
//! });
//!
//! // Four streams with rings of 2 KiB; one port with up to 8 peers, 4 datagrams, 2 KiB.
//! let mut streams = StreamMemory::<Echo, 4>::new();
//! let (mut receive, mut transmit) = (Bytes::<8192>::new(), Bytes::<8192>::new());
//! let mut datagrams = PortMemory::<Echo, 8, 4>::new();
//! let (mut incoming, mut outgoing) = (Bytes::<2048>::new(), Bytes::<2048>::new());
//! let mut scratch = Bytes::<2048>::new();
//! let mut sockets = [SocketStorage::EMPTY; 5];
//! let streams = streams.lend(receive.lend(), transmit.lend());
//! let hosts = 8; // On the link, at once.
//! let mut ports = [const { None }; 1];
//! let memory = Memory::new(&mut sockets, streams, scratch.lend(), hosts).with_ports(&mut ports);
//! let limits = Limits::new().with_max_message(2046).with_max_datagram(1472);
//! let key = (0x1234, 0x5678); // From a source of randomness.
//! let mut network = Network::new(interface, device, memory, limits, key)?;
//! network.add_port(datagrams.lend(incoming.lend(), outgoing.lend()))?;
//! network.listen(Transport::Tcp, ([0, 0, 0, 0], 7).into(), &|_link| Some(Echo))?;
//! network.listen(Transport::Udp, ([0, 0, 0, 0], 7).into(), &|_link| Some(Echo))?;
//! let now = Instant::from_micros(1_000);
//! network.poll(now);
//! assert_eq!(network.poll_at(now), Instant::NEVER, "nothing to do until a frame arrives");
//! # Ok(())
//! # }
//! ```
//!
//! # Threads
//!
//! There is one: the one that calls [`Network::poll`]. A poll takes frames from the device, runs the
//! callbacks, and hands frames to the device; its work is bounded by the rings. A callback that
//! takes long holds up the device.
//!
//! # Backpressure
//!
//! [`Link::send`] takes a message whole and returns `Ok`, or takes nothing and returns
//! [`SendError::Full`]: the transmit ring is the queue. [`Handler::writable`] is called once at
//! most half of the ring, and at most [`Limits::low_watermark`] bytes, are queued. A message that cannot fit the ring is [`SendError::TooLong`].
//! [`Link::pause`] stops delivery; the receive ring fills, and TCP holds up the peer.
//!
//! # Closing and stopping
//!
//! [`Link::close`] delivers what was sent, then closes; [`Link::abort`] does not. Each connection's
//! handler gets [`closed`](Handler::closed) once, with a [`CloseReason`], and is then dropped; that
//! of a connect that was never open gets [`connect_failed`](Handler::connect_failed) instead.
//! [`Network::stop`] closes everything; poll on until [`Network::is_stopped`].
//!
//! # Limits
//!
//! The memory that is lent bounds connections, peers and queued bytes. [`Limits`] has the timeouts
//! and the longest message; [`Network::new`] checks that they fit the memory.
//!
//! # The way of a message
//!
//! smoltcp keeps a stream in two rings. A message that lies whole and unbroken in the receive
//! ring is lent to [`Handler::received`] where it is; one that goes over the ring's end is
//! first copied to the `scratch` of [`Memory`]. What a handler sends goes straight into the
//! transmit ring, header and payload, all of it or nothing; only inside `received` it waits
//! in the `scratch` until the message has been given back, since smoltcp lends a socket's one
//! ring only together with the other. A received datagram is copied to the `scratch`, and a
//! sent one goes straight into its ring.
//!
//! | to learn about | read |
//! | --- | --- |
//! | what is given to a network | [`Memory`], [`StreamMemory`], [`PortMemory`] |
//! | what an application implements and is handed | [`cubenet_core::handler`] |
//! | the bounds | [`Limits`] and [`Network::new`] |

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

#[cfg(not(any(feature = "ipv4", feature = "ipv6")))]
compile_error!("cubenet-smoltcp needs one of its features `ipv4` and `ipv6`, or both");

mod error;
mod id;
mod memory;
mod network;
mod stack;
mod tcp;
mod udp;

pub use cubenet_core::{
    CloseReason, ConnectError, ConnectionId, FullPolicy, Handler, Instant, Limits, Link, Message,
    Report, SendError, Timeout, Transport, TransportError,
};
pub use error::Error;
pub use memory::{Bytes, Memory, PortMemory, StreamMemory, StreamParts};
pub use network::shared::{Accepted, Counts};
pub use network::{Listener, Network};
pub use smoltcp;
pub use stack::Stack;
pub use tcp::listeners::Listening;
pub use tcp::stream::Stream;
pub use udp::memory::{DatagramRing, PortParts};
pub use udp::peer::{Peer, Remote};
pub use udp::port::Port;
