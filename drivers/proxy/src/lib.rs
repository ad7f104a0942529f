//! The PROXY protocol for cubenet: how a load balancer tells a server who the client is.
//!
//! A proxy that passes on a TCP stream begins it with a header: the addresses of the client and of the
//! server, as the client sees them, and what else it knows. [`AcceptProxy`] is the
//! [layer](cubenet_core::layer) of a listener that reads such headers, of both versions, and puts what
//! they say into the [`Identity`](cubenet_core::Identity) of the connection. [`SendProxy`] is the layer
//! of a connect that sends one. The protocol is
//! [described by HAProxy](https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt).
//!
//! ```no_run
//! use cubenet_mio::{Connection, Handler, Link, ListenOptions, Message, Network, Transport};
//! use cubenet_proxy::AcceptProxy;
//!
//! struct Echo;
//!
//! impl Handler for Echo {
//!     fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
//!         let _ = link.send(&message);
//!     }
//! }
//!
//! let network = Network::builder().start()?;
//! let proxies = AcceptProxy::new(["10.0.0.0/8".parse()?]);
//! let options = ListenOptions::new().layer(proxies);
//! network.listen_with(options, Transport::Tcp, "0.0.0.0:7000", |connection: &Connection| {
//!     let client = connection.identity()?.client_addr();
//!     println!("{client:?} by way of {}", connection.peer_addr());
//!     Some(Echo)
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The header comes first, before TLS: `AcceptProxy::new(prefixes).then(server)`, with
//! [`MakeLayer::then`](cubenet_core::MakeLayer::then).
//!
//! # Which proxies are trusted
//!
//! Any peer that reaches the listener can claim to be any client. So headers are only accepted from the
//! prefixes that the application names; a connection from elsewhere is reset before anything of it is
//! read, and [counted](AcceptProxy::untrusted). A proxy must send the header on every connection; one
//! without it is closed with [`Handshake`](cubenet_core::CloseReason::Handshake).

mod accept;
mod header;
mod send;

pub use accept::AcceptProxy;
pub use send::{FieldError, SendProxy};

/// The code in the README is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
