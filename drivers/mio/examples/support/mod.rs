//! What the examples share: an echo handler, a load, signals and limits of the system.

// No example uses all of it, and none is a library.
#![allow(dead_code, unreachable_pub)]

#[macro_use]
pub mod print;

pub mod echo;
pub mod kept;
pub mod load;
pub mod openmetrics;
pub mod report;
pub mod restart;
pub mod system;
pub mod tls;
pub mod web;
