//! A listener that several threads watch, of which the kernel wakes one.

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
    check(deleted)?;
    watch_listener(registry, socket, token)
}

/// The error of a call that has failed.
fn check(result: c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
