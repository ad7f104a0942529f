//! TLS for cubenet: a [layer](cubenet_core::layer) between the sockets and the messages of a driver,
//! on [rustls](https://docs.rs/rustls).
//!
//! A listener or a connect is given a [`Server`] or a [`Client`], and everything else stays as it
//! was: the same handlers, the same callbacks. `accepted` and `connected` come once the handshake is
//! complete, and [`Identity`](cubenet_core::Identity) says what it has shown: the name that the client
//! asked for, the protocol, the certificates.
//!
//! ```no_run
//! use cubenet_mio::{CloseReason, Handler, Link, ListenOptions, Message, Network, Transport};
//! use cubenet_tls::{CertificateFiles, Server};
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
//! let files = CertificateFiles::load("server.pem", "server.key")?;
//! let options = ListenOptions::new().layer(Server::with_source(files.clone()));
//! network.listen_with(options, Transport::Tcp, "0.0.0.0:7000", |_| Some(Echo))?;
//! // Later, when the certificate was renewed: new connections get the new one.
//! files.reload()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A client:
//!
//! ```no_run
//! use cubenet_mio::{ConnectOptions, Handler, Link, Message, Network, Transport};
//! use cubenet_tls::{Client, client_config};
//! # struct Ignore;
//! # impl Handler for Ignore {
//! #     fn received(&mut self, _: &mut dyn Link, _: Message<'_>) {}
//! # }
//! let network = Network::builder().start()?;
//! let options = ConnectOptions::new().layer(Client::new(client_config()?, "example.com")?);
//! network.connect_with(&options, Transport::Tcp, "example.com:7000", |_| Ignore)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Configurations
//!
//! What rustls can be configured to, a [`ServerConfig`] or [`ClientConfig`] says: versions, cipher
//! suites, client certificates, session tickets, ALPN. They are the only types of rustls in this
//! interface, with [`CryptoProvider`]. The functions here make the common ones. What the application
//! puts into one, such as a verifier of certificates, runs under a lock of the connection: it must
//! neither block nor use that connection.
//!
//! A [`ConfigSource`] is asked for the configuration of each connection, with the server name (SNI)
//! and the protocols (ALPN) that the client asks for. So one listener can serve several names, and a
//! certificate can be renewed without a restart.
//!
//! # Session tickets
//!
//! A client that comes back can show a ticket and save the exchange of certificates. Without more a
//! process remembers the sessions of its own 256 last clients. [`TicketKeys`] seals sessions into the
//! tickets instead, under keys of the application's, so that they are good at every process that has
//! the keys, and after a restart. What is saved is small beside the key exchange, which stays.
//!
//! # What ends a connection
//!
//! - `close` sends `close_notify` behind everything that was sent. A peer that ends its stream without
//!   one has not said that this was all: [`CloseReason::Truncated`](cubenet_core::CloseReason::Truncated).
//! - A handshake that fails closes with [`Handshake`](cubenet_core::CloseReason::Handshake); what is
//!   wrong is in the source of [`ConnectError`](cubenet_core::ConnectError), and in the log of a
//!   server. One that takes longer than
//!   [`Limits::handshake_timeout`](cubenet_core::Limits::handshake_timeout) closes with
//!   `Timeout(Handshake)`.
//! - A damaged record closes with [`Layer`](cubenet_core::CloseReason::Layer).
//!
//! # Early data
//!
//! Data of TLS 1.3's first flight can be replayed by an attacker, so none is accepted: a configuration
//! that allows it fails the handshake of a client that sends some.
//!
//! # Features
//!
//! `ring` (default): the provider of cryptography that is used where the application has not
//! [installed](CryptoProvider::install_default) another. `platform` (default): [`client_config`], which
//! trusts the authorities that the platform trusts.

mod client;
mod error;
mod files;
mod layer;
mod provider;
mod server;
mod tickets;

#[cfg(feature = "platform")]
pub use client::client_config;
pub use client::{Client, client_config_with_ca, client_config_with_certificate};
pub use error::Error;
pub use files::{CertificateFiles, CertificateFilesBuilder, server_config};
pub use rustls::crypto::CryptoProvider;
pub use rustls::{ClientConfig, ServerConfig};
pub use server::{ClientHello, ConfigSource, Server};
pub use tickets::TicketKeys;

/// The code in the README is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The same for the page of the book.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/src/layers.md")]
struct Page;
