//! What threads share is built of these: the standard library's own, or, to try every order
//! in which threads can run (`interleavings`), shuttle's.

#[cfg(not(cubenet_shuttle))]
pub(crate) use std::{
    sync::{Mutex, MutexGuard, atomic},
    thread_local,
};

#[cfg(cubenet_shuttle)]
pub(crate) use shuttle::{
    sync::{Mutex, MutexGuard, atomic},
    thread_local,
};
