//! System calls that fail and fall short as a seed says, in a build with
//! `--cfg cubenet_faults` (Linux only). `tests/chaos` uses it.
//!
//! A fault must be one that the kernel could have produced. `EAGAIN` and a short read promise
//! that an event follows once there is something to do, so after a made-up one the socket is
//! registered anew, which makes epoll tell of its state again.

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

static SEED: AtomicU64 = AtomicU64::new(0);
/// One call in this many fails, and one falls short; none if it is 0.
static ONE_IN: AtomicU64 = AtomicU64::new(0);
/// Calls so far.
static CALLS: AtomicU64 = AtomicU64::new(0);
/// Faults so far.
static FAULTS: AtomicU64 = AtomicU64::new(0);
static REGISTERED: Mutex<Option<HashMap<RawFd, Registered>>> = Mutex::new(None);

/// The polls that watch each listener.
type Listeners = HashMap<RawFd, Vec<(Registry, Token)>>;

static LISTENERS: Mutex<Option<Listeners>> = Mutex::new(None);

struct Registered {
    registry: Registry,
    token: Token,
    interest: Interest,
}

/// From now on one call in `one_in` fails and one falls short, as `seed` says; none if it is 0.
pub fn set(seed: u64, one_in: u64) {
    SEED.store(seed, Relaxed);
    CALLS.store(0, Relaxed);
    FAULTS.store(0, Relaxed);
    ONE_IN.store(one_in, Relaxed);
}

/// How many faults there have been since they were set.
pub fn count() -> u64 {
    FAULTS.load(Relaxed)
}

/// A call that can fail.
#[derive(Clone, Copy)]
pub(crate) enum Call {
    Accept,
    Connect,
    Read,
    Write,
    TakeError,
    Shutdown,
    SetOption,
    Register,
    Bind,
    Listen,
    Receive,
    Send,
}

impl Call {
    fn errors(self) -> &'static [i32] {
        match self {
            Call::Accept => &[
                libc::EINTR,
                libc::EAGAIN,
                libc::ECONNABORTED,
                libc::EMFILE,
                libc::ENOBUFS,
            ],
            Call::Connect => &[libc::ENETUNREACH, libc::EADDRNOTAVAIL],
            Call::Read => &[libc::EINTR, libc::EAGAIN, libc::ECONNRESET, libc::ETIMEDOUT],
            Call::Write => &[
                libc::EINTR,
                libc::EAGAIN,
                libc::ECONNRESET,
                libc::EPIPE,
                libc::ENOBUFS,
            ],
            Call::TakeError => &[libc::ENOBUFS],
            Call::Shutdown => &[libc::ENOTCONN],
            // That of a peer that has reset the connection, on some systems.
            Call::SetOption => &[libc::EINVAL],
            Call::Register => &[libc::ENOMEM, libc::ENOSPC],
            Call::Bind | Call::Listen => &[libc::EADDRINUSE],
            Call::Receive => &[libc::EINTR, libc::EAGAIN, libc::ECONNREFUSED, libc::ENOMEM],
            Call::Send => &[
                libc::EINTR,
                libc::EAGAIN,
                libc::ECONNREFUSED,
                libc::ENOBUFS,
                libc::EMSGSIZE,
                libc::EINVAL,
                libc::EHOSTUNREACH,
            ],
        }
    }
}

/// A number drawn for this call.
fn draw() -> u64 {
    let nth = CALLS.fetch_add(1, Relaxed);
    let mut mixed = SEED.load(Relaxed) ^ nth.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Whether the call at hand is one of those that go wrong, and a number to choose how.
fn chosen() -> Option<usize> {
    let one_in = ONE_IN.load(Relaxed);
    if one_in == 0 {
        return None;
    }
    let drawn = draw();
    drawn.is_multiple_of(one_in).then(|| {
        FAULTS.fetch_add(1, Relaxed);
        (drawn / one_in) as usize
    })
}

/// What `call` fails with, if it does.
pub(crate) fn fail(call: Call, socket: &impl AsRawFd) -> Option<io::Error> {
    let errors = call.errors();
    let error = errors[chosen()? % errors.len()];
    if error == libc::EAGAIN && matches!(call, Call::Accept) {
        tell_all_again(socket.as_raw_fd());
    } else if error == libc::EAGAIN {
        tell_again(socket.as_raw_fd());
    }
    Some(io::Error::from_raw_os_error(error))
}

/// How much of `len` a call takes; all of it mostly, and always some if there is any.
pub(crate) fn shorten(len: usize) -> usize {
    match chosen() {
        Some(drawn) if len > 0 => 1 + drawn % len,
        _ => len,
    }
}

/// The same for a read, after which an event must tell of the rest.
pub(crate) fn shorten_read(len: usize, socket: &impl AsRawFd) -> usize {
    let shortened = shorten(len);
    if shortened < len {
        tell_again(socket.as_raw_fd());
    }
    shortened
}

/// A socket is registered.
pub(crate) fn registered(socket: RawFd, registry: &Registry, token: Token, interest: Interest) {
    if let Ok(registry) = registry.try_clone() {
        let mut all = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
        let registered = Registered {
            registry,
            token,
            interest,
        };
        all.get_or_insert_default().insert(socket, registered);
    }
}

/// A listener is watched by one poll more.
pub(crate) fn registered_listener(socket: RawFd, registry: &Registry, token: Token) {
    if let Ok(registry) = registry.try_clone() {
        let mut all = LISTENERS.lock().unwrap_or_else(PoisonError::into_inner);
        let polls = all.get_or_insert_default().entry(socket).or_default();
        // Those of a listener that had this descriptor before.
        polls.retain(|(_, known)| *known != token);
        polls.push((registry, token));
    }
}

/// Makes every epoll tell of a listener's state again.
fn tell_all_again(listener: RawFd) {
    let all = LISTENERS.lock().unwrap_or_else(PoisonError::into_inner);
    let polls = all.as_ref().and_then(|all| all.get(&listener));
    for (registry, token) in polls.into_iter().flatten() {
        // One that no longer watches it, under another's descriptor, refuses.
        let _ = super::epoll::watch_listener_again(registry, &listener, *token);
    }
}

/// Makes epoll tell of a socket's state again.
fn tell_again(socket: RawFd) {
    let all = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(registered) = all.as_ref().and_then(|all| all.get(&socket)) else {
        return;
    };
    let Registered {
        registry,
        token,
        interest,
    } = registered;
    let _ = registry.reregister(&mut SourceFd(&socket), *token, *interest);
}

/// Forgets all sockets: what is registered from here on is of other networks.
pub fn forget() {
    let mut all = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    *all = None;
    let mut listeners = LISTENERS.lock().unwrap_or_else(PoisonError::into_inner);
    *listeners = None;
}
