//! Sessions above connections: a client that loses its connection, its address or its server goes on
//! where it was. Every message of a session arrives once and in order, both ways, as long as the
//! session lives.
//!
//! The client's half ([`Client`]) needs neither `std` nor an allocator. The server's ([`Sessions`], feature
//! `server`) keeps sessions in a [`Store`], so that a node of a service may die. What both sides say to
//! each other is in [`wire`].

#![cfg_attr(not(any(test, feature = "server")), no_std)]

mod client;
#[cfg(feature = "server")]
mod environment;
mod ring;
#[cfg(feature = "server")]
mod server;
#[cfg(feature = "server")]
pub mod store;
mod token;
pub mod wire;

pub use client::{Client, Event};
#[cfg(feature = "server")]
pub use environment::{Environment, Job, Threads};
pub use ring::MAX_PAYLOAD;
#[cfg(feature = "server")]
pub use server::{Application, Gate, Session, SessionHandler, SessionLimits, Sessions};
#[cfg(feature = "redis")]
pub use store::Redis;
#[cfg(feature = "server")]
pub use store::{Memory, Store};
pub use token::{SessionId, Token};

/// The code in the book's chapter is compiled with the tests.
#[cfg(all(doctest, feature = "redis"))]
#[doc = include_str!("../../../docs/src/sessions.md")]
struct Book;
