//! Many datagrams in one system call: `recvmmsg` and `sendmmsg`, with segmentation offload
//! (GSO) for runs to one peer and receive offload (GRO).
//!
//! Most of the driver's `unsafe` code is here; the rest is in `epoll`. Its proof, in general: every pointer handed
//! to the kernel is taken, in the function that makes the call, from a live array or slice
//! that outlives the call; its length field is that array's length; and nothing keeps a
//! pointer after the call. Each block says what is particular to it.

use super::{Datagram, Run, Source};
use crate::address::CompactAddr;
use libc::{c_int, c_void, iovec, mmsghdr, msghdr, sockaddr_in, sockaddr_in6, sockaddr_storage};
use mio::Interest;
use mio::event::Event;
use mio::net::{TcpStream, UdpSocket};
use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::ptr;

/// The most datagrams (or runs) in one call.
const MAX_BATCH: usize = 64;
/// The fewest to ask for: an idle socket's next wake-up seldom brings more.
const MIN_BATCH: usize = 8;
/// Room for one datagram of any size, or for what GRO has merged.
const BUFFER: usize = 65_536;
/// Buffers begin a page and a cache line more than their size apart, so that the beginnings
/// of small datagrams do not all fall into the same cache set.
const STRIDE: usize = BUFFER + 4096 + 64;
/// Room for the control messages of a datagram, aligned as the kernel wants them: a segment
/// size takes 24 bytes at most, an IPv6 address 40.
const CONTROL: usize = 64;

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// Buffers for datagrams, and what was received into them.
pub(crate) struct ReceiveBatch {
    buffers: Box<[u8]>,
    received: Vec<Received>,
    /// How many datagrams to ask for next.
    ask: usize,
}

struct Received {
    /// Which buffer it lies in.
    nth: usize,
    from: CompactAddr,
    local: Option<Source>,
    len: usize,
    /// The size of the datagrams in the buffer, if the kernel merged several.
    segment: usize,
}

impl ReceiveBatch {
    /// Takes 4.4 MB of address space; memory only for what arrives.
    pub(crate) fn new() -> Self {
        ReceiveBatch {
            buffers: vec![0; MAX_BATCH * STRIDE].into_boxed_slice(),
            received: Vec::with_capacity(MAX_BATCH),
            ask: MIN_BATCH,
        }
    }

    /// Receives what is there, up to some number. Returns whether there may be more.
    pub(crate) fn receive(&mut self, socket: &UdpSocket) -> io::Result<bool> {
        self.received.clear();
        let ask = self.ask;
        let mut names = [const { MaybeUninit::<sockaddr_storage>::uninit() }; MAX_BATCH];
        let mut controls = [const { MaybeUninit::<Control>::uninit() }; MAX_BATCH];
        let mut pieces = [const { MaybeUninit::<iovec>::uninit() }; MAX_BATCH];
        let mut headers = [const { MaybeUninit::<mmsghdr>::uninit() }; MAX_BATCH];
        for (nth, buffer) in self.buffers.chunks_exact_mut(STRIDE).take(ask).enumerate() {
            let piece = pieces[nth].write(iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: BUFFER,
            });
            headers[nth].write(mmsghdr {
                msg_hdr: message(
                    names[nth].as_mut_ptr().cast(),
                    size_of::<sockaddr_storage>(),
                    piece,
                    controls[nth].as_mut_ptr().cast(),
                    CONTROL,
                ),
                msg_len: 0,
            });
        }
        let received = socket.try_io(|| {
            // SAFETY: the first `ask` headers were written above, and what they point to
            // (names, pieces, buffers, controls) lives to the end of this function.
            check(unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    headers.as_mut_ptr().cast(),
                    ask as u32,
                    libc::MSG_DONTWAIT as _, // unsigned with musl
                    ptr::null_mut(),
                )
            })
        })?;
        for nth in 0..received {
            // SAFETY: `received` is at most `ask`, so the header was written; the kernel
            // has since written the name, of the length the header now tells, and the
            // control messages, which lie in `controls`.
            let (header, from) = unsafe {
                let header = headers[nth].assume_init_ref();
                (
                    header,
                    read_address(&names[nth], header.msg_hdr.msg_namelen),
                )
            };
            let len = header.msg_len as usize;
            // SAFETY: as above: the control buffer is alive and the kernel set its length.
            let (segment, local) = unsafe { read_controls(&header.msg_hdr) };
            // A datagram without a sender cannot be answered or assigned to a connection: there is none.
            if let Some(from) = from {
                self.received.push(Received {
                    nth,
                    from,
                    local,
                    len,
                    segment,
                });
            }
        }
        let filled = received == ask;
        self.ask = if filled {
            MAX_BATCH.min(2 * ask)
        } else {
            MIN_BATCH.max(received)
        };
        Ok(filled)
    }

    /// Who has sent what was received: of each buffer, in which the kernel may have merged several
    /// datagrams.
    pub(crate) fn senders(&self) -> impl Iterator<Item = &CompactAddr> + Clone {
        self.received.iter().map(|received| &received.from)
    }

    /// The datagrams received, in order.
    pub(crate) fn datagrams(&self) -> Datagrams<'_> {
        Datagrams {
            buffers: &self.buffers,
            received: self.received.iter(),
            taken: 0,
            of: None,
            rest: &[],
        }
    }
}

/// The datagrams of a batch.
pub(crate) struct Datagrams<'a> {
    buffers: &'a [u8],
    received: std::slice::Iter<'a, Received>,
    /// How many buffers have been begun.
    taken: usize,
    /// The buffer that comes next, and what is left of it. The kernel may have merged several.
    of: Option<&'a Received>,
    rest: &'a [u8],
}

impl<'a> Iterator for Datagrams<'a> {
    type Item = Datagram<'a>;

    #[inline]
    fn next(&mut self) -> Option<Datagram<'a>> {
        let of = if let Some(of) = self.of {
            of
        } else {
            let of = self.received.next()?;
            self.taken += 1;
            let start = of.nth * STRIDE;
            self.rest = &self.buffers[start..start + of.len.min(BUFFER)];
            of
        };
        let bytes = match self.rest.split_at_checked(of.segment) {
            Some((bytes, rest)) if of.segment > 0 && !rest.is_empty() => {
                self.of = Some(of);
                self.rest = rest;
                bytes
            }
            _ => {
                self.of = None;
                self.rest
            }
        };
        Some(Datagram {
            from: of.from,
            sender: self.taken - 1,
            local: of.local,
            bytes,
        })
    }
}

/// Sends runs from the front of `runs`, whose bytes lie in `bytes`; without addresses if the
/// socket is connected. Returns how many went out, at least one, or the error of the first.
pub(crate) fn send_runs(
    socket: &UdpSocket,
    bytes: &[u8],
    runs: &[Run],
    connected: bool,
) -> io::Result<usize> {
    let mut names = [const { MaybeUninit::<sockaddr_storage>::uninit() }; MAX_BATCH];
    let mut controls = [const { MaybeUninit::<Control>::uninit() }; MAX_BATCH];
    let mut pieces = [const { MaybeUninit::<iovec>::uninit() }; MAX_BATCH];
    let mut headers = [const { MaybeUninit::<mmsghdr>::uninit() }; MAX_BATCH];
    let count = runs.len().min(MAX_BATCH);
    for (nth, run) in runs.iter().take(count).enumerate() {
        let (name, name_len) = if connected {
            (ptr::null_mut(), 0)
        } else {
            let len = write_address(&mut names[nth], run.route.to);
            (names[nth].as_mut_ptr().cast(), len)
        };
        let (control, control_len) = if run.count > 1 || run.route.source.is_some() {
            let control = controls[nth].write(Control([0; CONTROL]));
            let control_len = write_controls(control, run);
            (ptr::from_mut(control).cast::<c_void>(), control_len)
        } else {
            (ptr::null_mut(), 0)
        };
        let data = &bytes[run.start..run.start + run.len];
        let piece = pieces[nth].write(iovec {
            iov_base: data.as_ptr().cast_mut().cast(),
            iov_len: data.len(),
        });
        headers[nth].write(mmsghdr {
            msg_hdr: message(name, name_len, piece, control, control_len),
            msg_len: 0,
        });
    }
    socket.try_io(|| {
        // SAFETY: the first `count` headers were written above, and what they point to
        // lives to the end of this function. The kernel only reads the pieces.
        check(unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr().cast(),
                count as u32,
                (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
            )
        })
    })
}

/// Turns receive offload on, if the kernel has it, and says whether it can segment what is
/// sent.
pub(crate) fn offload(socket: &UdpSocket) -> bool {
    let on: c_int = 1;
    let mut segment: c_int = 0;
    let mut len = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: both options are a `c_int`, and so are the variables they are read from and
    // written to; a kernel that does not know them answers with an error.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_GRO,
            ptr::from_ref(&on).cast(),
            len,
        );
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            ptr::from_mut(&mut segment).cast(),
            &raw mut len,
        ) == 0
    }
}

/// Whether a send failed because the device on the way to the peer, or the kind of its address,
/// takes no segmented runs.
pub(crate) fn cannot_segment(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::EOPNOTSUPP)
    )
}

/// Whether a send failed because the way to the peer carries no segments of that size.
pub(crate) fn too_large(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMSGSIZE)
}

/// What a stream is watched for. Urgent data is an event of its own, since a read stops there.
pub(crate) const STREAM_INTEREST: Interest = Interest::READABLE
    .add(Interest::WRITABLE)
    .add(Interest::PRIORITY);

/// Whether an event tells of urgent data.
pub(crate) fn is_urgent(event: &Event) -> bool {
    event.is_priority()
}

/// Bytes that the peer has not acknowledged, the end of the stream being one; `None` if the
/// system does not say.
pub(crate) fn unacknowledged(stream: &TcpStream) -> Option<usize> {
    let mut bytes: c_int = 0;
    // SAFETY: TIOCOUTQ, which is SIOCOUTQ, writes one `c_int`, and that is what it is given.
    let result = unsafe {
        libc::ioctl(
            stream.as_raw_fd(),
            libc::TIOCOUTQ,
            ptr::from_mut(&mut bytes),
        )
    };
    if result == 0 {
        usize::try_from(bytes).ok()
    } else {
        None
    }
}

fn check(result: c_int) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// A message of one piece.
fn message(
    name: *mut c_void,
    name_len: usize,
    piece: *mut iovec,
    control: *mut c_void,
    control_len: usize,
) -> msghdr {
    // SAFETY: a `msghdr` is plain numbers and pointers, for which zero is a value. It is
    // made this way because it has private padding on some systems.
    let mut message: msghdr = unsafe { zeroed() };
    message.msg_name = name;
    message.msg_namelen = name_len as libc::socklen_t;
    message.msg_iov = piece;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = control_len as _;
    message
}

/// Writes the control messages of a run: its segments and its source. Returns their length.
fn write_controls(control: &mut Control, run: &Run) -> usize {
    let mut len = 0;
    if run.count > 1 {
        let segment = run.segment as u16;
        len = write_control(control, len, libc::SOL_UDP, libc::UDP_SEGMENT, segment);
    }
    match run.route.source {
        None => len,
        Some(Source {
            ip: IpAddr::V4(source),
            ..
        }) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from_ne_bytes(source.octets()),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            write_control(control, len, libc::IPPROTO_IP, libc::IP_PKTINFO, info)
        }
        Some(Source {
            ip: IpAddr::V6(source),
            scope,
        }) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: source.octets(),
                },
                ipi6_ifindex: scope,
            };
            write_control(control, len, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info)
        }
    }
}

/// Writes one control message behind the first `at` bytes. Returns where it ends.
fn write_control<T: Copy>(
    control: &mut Control,
    at: usize,
    level: c_int,
    kind: c_int,
    datum: T,
) -> usize {
    let size = size_of::<T>() as u32;
    // SAFETY: these two only calculate.
    let (len, space) = unsafe { (libc::CMSG_LEN(size), libc::CMSG_SPACE(size) as usize) };
    assert!(
        at + space <= CONTROL,
        "`CONTROL` has room for all there are"
    );
    // SAFETY: there is room for the message with its datum, as was just asserted. `Control`
    // is aligned like a `cmsghdr` and `at` is a sum of spaces, which keep that alignment; the
    // datum may lie unaligned.
    unsafe {
        let start = ptr::from_mut(control).cast::<libc::cmsghdr>().byte_add(at);
        start.write(libc::cmsghdr {
            cmsg_len: len as _,
            cmsg_level: level,
            cmsg_type: kind,
        });
        libc::CMSG_DATA(start).cast::<T>().write_unaligned(datum);
    }
    at + space
}

/// What the kernel says of a message: the size of the datagrams it merged, 0 if it did not,
/// and to which of our addresses it was sent, if it was asked to tell.
///
/// # Safety
/// `message` must have been filled by a receiving call, and its control buffer be alive.
unsafe fn read_controls(message: &msghdr) -> (usize, Option<Source>) {
    let (mut segment, mut local) = (0, None);
    // SAFETY: by the caller, the control buffer holds `msg_controllen` bytes of messages
    // that the kernel wrote, which is what these macros walk over. Each datum is of the type
    // that the kernel documents for its kind.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(message);
        while let Some(header) = at.as_ref() {
            let datum = libc::CMSG_DATA(at);
            match (header.cmsg_level, header.cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let merged = datum.cast::<c_int>().read_unaligned();
                    segment = usize::try_from(merged).unwrap_or(0);
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = datum.cast::<libc::in_pktinfo>().read_unaligned();
                    let octets = info.ipi_spec_dst.s_addr.to_ne_bytes();
                    local = Source::new(IpAddr::from(octets), 0);
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = datum.cast::<libc::in6_pktinfo>().read_unaligned();
                    let ip = IpAddr::from(info.ipi6_addr.s6_addr);
                    local = Source::new(ip, info.ipi6_ifindex);
                }
                _ => {}
            }
            at = libc::CMSG_NXTHDR(message, at);
        }
    }
    (segment, local)
}

/// Asks the kernel to tell with each datagram to which of our addresses it was sent: the
/// socket is bound to all of them.
pub(crate) fn tell_destination(socket: &UdpSocket, local: SocketAddr) {
    let on: c_int = 1;
    let (level, option) = match local {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTINFO),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    };
    // SAFETY: both options are a `c_int`, and so is the variable. Every Linux has them.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            ptr::from_ref(&on).cast(),
            size_of::<c_int>() as libc::socklen_t,
        );
    }
}

/// Writes `address` as the kernel wants it. Returns its length.
fn write_address(name: &mut MaybeUninit<sockaddr_storage>, address: CompactAddr) -> usize {
    // SAFETY: a `sockaddr_storage` is large enough and aligned for every kind of address;
    // the structures are plain numbers, for which zero is a value.
    unsafe {
        if let Some((ip, port)) = address.as_v4() {
            let mut raw: sockaddr_in = zeroed();
            raw.sin_family = libc::AF_INET as libc::sa_family_t;
            raw.sin_port = port.to_be();
            raw.sin_addr.s_addr = u32::from_ne_bytes(ip.octets());
            name.as_mut_ptr().cast::<sockaddr_in>().write(raw);
            size_of::<sockaddr_in>()
        } else {
            let (ip, port, scope) = address.to_v6();
            let mut raw: sockaddr_in6 = zeroed();
            raw.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            raw.sin6_port = port.to_be();
            raw.sin6_addr.s6_addr = ip.octets();
            raw.sin6_scope_id = scope;
            name.as_mut_ptr().cast::<sockaddr_in6>().write(raw);
            size_of::<sockaddr_in6>()
        }
    }
}

/// Reads an address of `len` bytes that the kernel wrote; `None` if it is of no kind we know.
///
/// # Safety
/// The kernel must have written `len` bytes of an address to `name`.
unsafe fn read_address(
    name: &MaybeUninit<sockaddr_storage>,
    len: libc::socklen_t,
) -> Option<CompactAddr> {
    let len = len as usize;
    let start = name.as_ptr();
    if len < size_of::<libc::sa_family_t>() {
        return None;
    }
    // SAFETY: by the caller, `len` bytes were written; each structure is read only if it is
    // no longer than that, and `sockaddr_storage` is aligned for all of them.
    unsafe {
        match c_int::from(start.cast::<libc::sa_family_t>().read()) {
            libc::AF_INET if len >= size_of::<sockaddr_in>() => {
                let raw = start.cast::<sockaddr_in>().read();
                let ip = Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes());
                let port = u16::from_be(raw.sin_port);
                Some(CompactAddr::v4(ip, port))
            }
            libc::AF_INET6 if len >= size_of::<sockaddr_in6>() => {
                let raw = start.cast::<sockaddr_in6>().read();
                let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
                let port = u16::from_be(raw.sin6_port);
                Some(CompactAddr::v6(ip, port, raw.sin6_scope_id))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Route;
    use super::*;

    #[test]
    fn an_address_survives_the_way_to_the_kernel_and_back() {
        for text in ["127.0.0.1:7", "[::1]:65535", "[fe80::1%3]:9"] {
            let address = CompactAddr::from(text.parse::<SocketAddr>().unwrap());
            let mut name = MaybeUninit::uninit();
            let len = write_address(&mut name, address);
            // SAFETY: `write_address` wrote `len` bytes of an address.
            let read = unsafe { read_address(&name, len as libc::socklen_t) };
            assert_eq!(read, Some(address));
        }
    }

    #[test]
    fn a_batch_goes_out_in_runs_and_comes_in_as_datagrams() {
        let sender = UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let receiver = UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let to = Route {
            to: receiver.local_addr().unwrap().into(),
            source: None,
        };
        let segmented = offload(&sender) && offload(&receiver);
        let bytes: Vec<u8> = (0..=255).cycle().take(1_050).collect();
        let mut run = Run::single(to, 0, 100);
        let mut expected: Vec<&[u8]> = bytes.chunks(100).collect();
        let runs: Vec<Run> = if segmented {
            for datagram in &expected[1..] {
                let start = run.start + run.len;
                assert!(run.extend(start, datagram.len(), 100));
            }
            vec![run]
        } else {
            expected.truncate(1);
            vec![run]
        };
        let mut batch = ReceiveBatch::new();
        for end in [Run::single(to, 7, 0), Run::single(to, 0, 1_050)] {
            let sent: Vec<Run> = runs.iter().copied().chain([end]).collect();
            assert_eq!(
                send_runs(&sender, &bytes, &sent, false).unwrap(),
                sent.len()
            );
            let mut received: Vec<Vec<u8>> = Vec::new();
            while received.len() < expected.len() + 1 {
                batch.receive(&receiver).unwrap();
                for datagram in batch.datagrams() {
                    assert_eq!(datagram.from, sender.local_addr().unwrap().into());
                    received.push(datagram.bytes.to_vec());
                }
            }
            let last = received.pop().unwrap();
            assert_eq!(received, expected);
            assert_eq!(last.len(), end.len);
        }
        let error = batch.receive(&receiver).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
