//! Sessions over TCP.

mod behaviour;
mod failures;
mod redis;
mod stores;
mod support;
