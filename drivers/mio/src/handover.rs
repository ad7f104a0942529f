//! Handing a server's sockets to the process that is to replace it, so that no client notices (feature
//! `handover`, on Unix).
//!
//! The process that serves has an [`Offer`] at a path. The process that is to replace it [takes](take) the
//! sockets from there, listens on them, and says that it is [ready](Taken::ready). Only then does the first one
//! [leave](crate::Listener::leave) its listeners, and serves the connections that it has to their end. If the new one
//! fails before it is ready, the old one goes on as though nothing had been.
//!
//! ```no_run
//! use cubenet_mio::{Connection, Handler, Link, ListenOptions, Message, Network, Transport, handover};
//! use std::time::Duration;
//!
//! # struct Echo;
//! # impl Handler for Echo {
//! #     fn received(&mut self, _: &mut dyn Link, _: Message<'_>) {}
//! # }
//! let path = "/run/echo/handover";
//! let network = Network::builder().start()?;
//! let accepted = |_: &Connection| Some(Echo);
//! let listener = match handover::take(path)? {
//!     // There is none to replace.
//!     None => network.listen(Transport::Tcp, "0.0.0.0:7000", accepted)?,
//!     Some(mut taken) => {
//!         let sockets = taken.sockets().pop().ok_or("the other process has no listener")?;
//!         let listener = network.listen_on(ListenOptions::new(), sockets, accepted)?;
//!         taken.ready()?;
//!         listener
//!     }
//! };
//! // Until another process is to replace this one.
//! handover::Offer::new(path)?.wait(&[&listener])?;
//! listener.leave();
//! while network.metrics().open > 0 {
//!     std::thread::sleep(Duration::from_millis(100));
//! }
//! network.stop(Duration::ZERO);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::log::warn_limited;
use crate::network::listen_sockets::ListenSockets;
use crate::network::listener::Listener;
use crate::sys;
use cubenet_core::Transport;
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::fs;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Descriptors that a kernel takes in one message.
const MAX_DESCRIPTORS: usize = 253;
/// How long the process that replaces another may take until it is ready, or until it says anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// When it is tried again what failed for lack of descriptors.
const AGAIN: Duration = Duration::from_millis(20);

// What messages begin with. Descriptors come with the first two.
const TCP: u8 = b't';
const UDP: u8 = b'u';
/// More of the same.
const MORE: u8 = b'+';
const END: u8 = b'.';
// What the two say behind them.
const READY: u8 = b'!';
const LEAVES: u8 = b'-';

/// Where a process that is to replace this one finds it.
#[derive(Debug)]
pub struct Offer {
    listener: UnixListener,
    path: PathBuf,
}

impl Offer {
    /// Waits at this path, in place of a process that did so before. No other user can connect there.
    ///
    /// # Errors
    ///
    /// There is something else at the path, or it cannot be written to.
    pub fn new(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().to_owned();
        match fs::symlink_metadata(&path) {
            Ok(found) if !found.file_type().is_socket() => {
                let problem = format!("{} is there and is no socket", path.display());
                return Err(io::Error::new(ErrorKind::AlreadyExists, problem));
            }
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Beside it at first: at the path there is always a socket to which others cannot connect.
        let mut beside = path.clone().into_os_string();
        beside.push(format!(".{}", std::process::id()));
        let beside = PathBuf::from(beside);
        let _ = fs::remove_file(&beside);
        let listener = UnixListener::bind(&beside)?;
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))?;
        fs::rename(&beside, &path)?;
        Ok(Offer { listener, path })
    }

    /// Blocks until another process has taken the sockets of these listeners and is ready. Then have the
    /// listeners [leave](Listener::leave). One that takes them and ends, or is not ready within a minute, is
    /// forgotten.
    ///
    /// # Errors
    ///
    /// One of the listeners is closed.
    pub fn wait(&self, listeners: &[&Listener]) -> io::Result<()> {
        loop {
            let successor = match self.listener.accept() {
                Ok((successor, _)) => successor,
                // For now.
                Err(error) if sys::out_of_resources(&error) => {
                    warn_limited!(%error, "cannot hand sockets over; trying again");
                    thread::sleep(AGAIN);
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            match hand_over(&successor, listeners) {
                Ok(()) => return Ok(()),
                // A listener of this process is closed.
                Err(error) if error.kind() == ErrorKind::NotConnected => return Err(error),
                Err(error) => {
                    let path = self.path.display();
                    warn_limited!(%path, %error, "a process took the sockets and is not ready");
                }
            }
        }
    }
}

fn hand_over(mut successor: &UnixStream, listeners: &[&Listener]) -> io::Result<()> {
    is_own_user(successor)?;
    successor.set_read_timeout(Some(PATIENCE))?;
    successor.set_write_timeout(Some(PATIENCE))?;
    for listener in listeners {
        let sockets = listener.sockets()?;
        let descriptors: Vec<BorrowedFd<'_>> = sockets.descriptors().collect();
        let mut kind = if sockets.transport() == Transport::Tcp {
            TCP
        } else {
            UDP
        };
        for descriptors in descriptors.chunks(MAX_DESCRIPTORS) {
            send(successor, kind, descriptors)?;
            kind = MORE;
        }
    }
    send(successor, END, &[])?;
    let mut answer = [0];
    successor.read_exact(&mut answer)?;
    match answer[0] {
        // It waits to hear that it was not too late.
        READY => successor.write_all(&[LEAVES]),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

/// That the process at the other end is this user's, or root's.
#[cfg(target_os = "linux")]
fn is_own_user(peer: &UnixStream) -> io::Result<()> {
    let user = rustix::net::sockopt::socket_peercred(peer)?.uid;
    if user != rustix::process::geteuid() && !user.is_root() {
        let problem = "the process at the other end is another user's";
        return Err(io::Error::new(ErrorKind::PermissionDenied, problem));
    }
    Ok(())
}

/// The mode of the path says who may connect.
#[cfg(not(target_os = "linux"))]
fn is_own_user(_peer: &UnixStream) -> io::Result<()> {
    Ok(())
}

fn send(stream: &UnixStream, kind: u8, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    // A successor that has ended is no reason to end, too.
    #[cfg(target_os = "linux")]
    let flags = SendFlags::NOSIGNAL;
    #[cfg(not(target_os = "linux"))]
    let flags = SendFlags::empty();
    let kind = [kind];
    let kind = [IoSlice::new(&kind)];
    retry_on_intr(|| sendmsg(stream, &kind, &mut control, flags))?;
    Ok(())
}

/// What a process has taken over from the one that it replaces.
#[derive(Debug)]
pub struct Taken {
    sockets: Vec<ListenSockets>,
    predecessor: UnixStream,
}

/// Takes the sockets of the process that waits at this path. `None` if there is none: then this process is
/// the first, or the one before has not got to its [`Offer`] yet. From here on there is a minute to be
/// [ready](Taken::ready).
///
/// The path must be in a folder to which no other user can write. Blocks for a minute at most.
///
/// # Errors
///
/// The other process has failed, is another user's, or hands its sockets to another just now. This process
/// cannot have so many descriptors.
pub fn take(path: impl AsRef<Path>) -> io::Result<Option<Taken>> {
    let connected = loop {
        match UnixStream::connect(&path) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            connected => break connected,
        }
    };
    let predecessor = match connected {
        Ok(predecessor) => predecessor,
        // Nothing there; or a process was, and has ended.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    is_own_user(&predecessor)?;
    predecessor.set_read_timeout(Some(PATIENCE))?;
    let mut sockets: Vec<(Transport, Vec<OwnedFd>)> = Vec::new();
    loop {
        let (kind, descriptors) = receive(&predecessor)?;
        match kind {
            TCP => sockets.push((Transport::Tcp, descriptors)),
            UDP => sockets.push((Transport::Udp, descriptors)),
            MORE if !sockets.is_empty() => {
                if let Some((_, before)) = sockets.last_mut() {
                    before.extend(descriptors);
                }
            }
            END => break,
            _ => {
                let problem = "what waits at the path is no process that hands sockets over";
                return Err(io::Error::new(ErrorKind::InvalidData, problem));
            }
        }
    }
    let sockets = sockets.into_iter();
    let sockets = sockets
        .map(|(transport, descriptors)| ListenSockets::of_descriptors(transport, descriptors));
    Ok(Some(Taken {
        sockets: sockets.collect(),
        predecessor,
    }))
}

fn receive(stream: &UnixStream) -> io::Result<(u8, Vec<OwnedFd>)> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut kind = [0];
    // Not for programs that this one starts.
    #[cfg(target_os = "linux")]
    let flags = RecvFlags::CMSG_CLOEXEC;
    #[cfg(not(target_os = "linux"))]
    let flags = RecvFlags::empty();
    let received = retry_on_intr(|| {
        let mut kind = [IoSliceMut::new(&mut kind)];
        recvmsg(stream, &mut kind, &mut control, flags)
    });
    let received = received.map_err(|error| busy(error.into()))?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    #[cfg(not(target_os = "linux"))]
    for descriptor in &descriptors {
        rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::CLOEXEC)?;
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        let problem = "not all descriptors of the sockets came: raise the limit of open files";
        return Err(io::Error::other(problem));
    }
    if received.bytes == 0 {
        let problem = "the process that is to be replaced has ended";
        return Err(io::Error::new(ErrorKind::UnexpectedEof, problem));
    }
    Ok((kind[0], descriptors))
}

/// A timeout says nothing of what it was waited for.
fn busy(error: io::Error) -> io::Error {
    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) {
        let problem =
            "the process that is to be replaced does not answer; perhaps another replaces it";
        return io::Error::new(ErrorKind::TimedOut, problem);
    }
    error
}

impl Taken {
    /// The sockets of each listener, in the order in which the other process has named them; once.
    pub fn sockets(&mut self) -> Vec<ListenSockets> {
        std::mem::take(&mut self.sockets)
    }

    /// This process listens on all of them: the other one is to leave. Waits until it has heard.
    ///
    /// # Errors
    ///
    /// The other process has ended; or a minute has passed since the sockets were taken, and it goes on to
    /// serve: then this process must not.
    pub fn ready(mut self) -> io::Result<()> {
        self.predecessor.write_all(&[READY])?;
        let mut answer = [0];
        let answered = self.predecessor.read_exact(&mut answer);
        answered.map_err(busy)
    }
}
