//! Sessions over TCP.

mod behaviour;
mod failures;
mod python;
mod redis;
mod stores;
mod support;
mod threads;
mod turns;
