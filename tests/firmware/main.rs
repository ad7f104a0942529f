//! Firmware on boards that QEMU has, against clients and servers of this machine.
//!
//! Tools that are absent are said to be, and the tests pass; with `CUBENET_REQUIRE_TOOLS` set
//! they fail.

#![cfg(target_os = "linux")]

mod board;
mod cost;
mod echo;
mod sensor;
mod tap;
mod wire;
