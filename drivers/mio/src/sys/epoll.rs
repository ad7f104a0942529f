//! What a worker asks of the kernel besides its poll: a listener that several threads watch, of which it
//! wakes one; and the time.

use libc::c_int;
use mio::{Registry, Token};
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

/// Has a listener watched, beside other polls: the kernel wakes one that waits, the first of those that
/// do. mio has no name for that.
pub(crate) fn watch_listener(
    registry: &Registry,
    socket: &impl AsRawFd,
    token: Token,
) -> io::Result<()> {
    let mut event = libc::epoll_event {
        events: (libc::EPOLLIN | libc::EPOLLET | libc::EPOLLEXCLUSIVE).cast_unsigned(),
        u64: token.0 as u64,
    };
    let (poll, socket) = (registry.as_raw_fd(), socket.as_raw_fd());
    // SAFETY: both descriptors are open, as their owners are borrowed; the kernel reads the event
    // during the call. mio takes the number in it for a token, as one of its own.
    let added = unsafe { libc::epoll_ctl(poll, libc::EPOLL_CTL_ADD, socket, &raw mut event) };
    check(added)
}

/// The same anew, behind the others. Tells of connections that wait already.
pub(crate) fn watch_listener_again(
    registry: &Registry,
    socket: &impl AsRawFd,
    token: Token,
) -> io::Result<()> {
    let (poll, raw) = (registry.as_raw_fd(), socket.as_raw_fd());
    // SAFETY: as above; this operation has no event.
    let deleted = unsafe { libc::epoll_ctl(poll, libc::EPOLL_CTL_DEL, raw, ptr::null_mut()) };
    match check(deleted) {
        // It was not watched, since that failed before.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        deleted => deleted?,
    }
    watch_listener(registry, socket, token)
}

/// Whether a connection waits on a listener.
pub(crate) fn has_waiting(socket: &impl AsRawFd) -> bool {
    let mut asked = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: the kernel reads and writes one `pollfd`, which `asked` is, and does not wait.
    unsafe { libc::poll(&raw mut asked, 1, 0) == 1 }
}

/// The time by a clock that only goes forward, in microseconds. The same clock as that of
/// `std::time::Instant`, at a third of its cost: it is read at every wake.
#[allow(clippy::useless_conversion)] // where its fields are shorter
pub(crate) fn clock_micros() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one `timespec`, which `time` is. This clock is on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let (seconds, nanos) = (i64::from(time.tv_sec), i64::from(time.tv_nsec));
    (seconds * 1_000_000 + nanos / 1_000).cast_unsigned()
}

/// The error of a call that has failed.
pub(super) fn check(result: c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
