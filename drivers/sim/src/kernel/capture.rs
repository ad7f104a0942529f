//! A capture of what is sent, in a file that Wireshark reads: each packet once, when it leaves its
//! host, with a comment if it does not arrive as it is.

use super::nat::Side;
use super::path::Carried;
use super::segment::{Control, Header, SEGMENT, Segment};
use super::{Kernel, Key};
use cubenet_core::Instant;
use etherparse::{
    IpHeaders, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header, PacketBuilder,
    PacketBuilderStep, TcpHeader, TcpOptionElement,
};
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::{PcapNgBlock, PcapNgWriter};
use pcap_file::{DataLink, PcapError};
use std::borrow::Cow;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Windows are shown in units of this many bits.
const WINDOW_SCALE: u8 = 8;
const TTL: u8 = 64;

pub(crate) struct Capture {
    /// In memory: the file is the application's, and is not written to under the lock.
    blocks: PcapNgWriter<Vec<u8>>,
    packet: Vec<u8>,
    /// When the last packet left: what waits for work to be done is written before its time.
    last: Instant,
}

/// The file that a capture goes to.
pub(crate) struct CaptureFile {
    writer: Box<dyn Write + Send>,
    /// Why no more is written.
    error: Option<io::Error>,
}

impl CaptureFile {
    pub(crate) fn new(writer: Box<dyn Write + Send>) -> Self {
        CaptureFile {
            writer,
            error: None,
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        if self.error.is_none() {
            self.error = self.writer.write_all(bytes).err();
        }
    }

    /// Ends it. Says what went wrong, if anything did.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        match self.error {
            Some(error) => Err(error),
            None => self.writer.flush(),
        }
    }
}

impl Header {
    /// Counts from where the streams of the two ends begin: two streams between the same ports are
    /// not to be taken for one.
    fn begin_at(&mut self, sender: Key, receiver: Option<Key>) {
        let begin = |key: Key| key.number().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        self.seq += begin(sender);
        if let (Some(ack), Some(receiver)) = (&mut self.ack, receiver) {
            *ack += begin(receiver);
        }
    }
}

impl Capture {
    pub(crate) fn new() -> io::Result<Self> {
        let mut blocks = PcapNgWriter::new(Vec::new()).map_err(to_io)?;
        let interface = InterfaceDescriptionBlock {
            linktype: DataLink::RAW,
            snaplen: 0,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed("simulation")),
                // Times are in nanoseconds.
                InterfaceDescriptionOption::IfTsResol(9),
            ],
        };
        blocks.write_block(&interface.into_block()).map_err(to_io)?;
        Ok(Capture {
            blocks,
            packet: Vec::new(),
            last: Instant::ZERO,
        })
    }

    /// Takes the bytes written since the last call.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.blocks.get_mut())
    }

    fn write(&mut self, at: Instant, comment: Option<&'static str>) {
        let at = at.max(self.last);
        self.last = at;
        let comment = comment.map(|comment| EnhancedPacketOption::Comment(Cow::Borrowed(comment)));
        let packet = EnhancedPacketBlock {
            interface_id: 0,
            timestamp: Duration::from_micros(at.as_micros()),
            original_len: self.packet.len() as u32,
            data: Cow::Borrowed(&self.packet),
            options: comment.into_iter().collect(),
        };
        // Memory takes whatever is written, and the interface is there.
        let _ = self.blocks.write_block(&packet.into_block());
    }

    fn segment(&mut self, (from, to): Ends, header: Header, data: &[u8]) {
        let scale = if header.syn { 0 } else { WINDOW_SCALE };
        let window = u16::try_from(header.window >> scale).unwrap_or(u16::MAX);
        let mut tcp = TcpHeader::new(from.port(), to.port(), header.seq as u32, window);
        (tcp.syn, tcp.fin, tcp.rst) = (header.syn, header.fin, header.rst);
        tcp.psh = !data.is_empty();
        tcp.ack = header.ack.is_some();
        tcp.acknowledgment_number = header.ack.unwrap_or(0) as u32;
        if header.syn {
            // Two options have room.
            let _ = tcp.set_options(&[
                TcpOptionElement::MaximumSegmentSize(SEGMENT as u16),
                TcpOptionElement::WindowScale(WINDOW_SCALE),
            ]);
        }
        self.packet.clear();
        // Memory takes whatever is written, and no segment is too long.
        let written = ip(from.ip(), to.ip()).tcp_header(tcp);
        let _ = written.write(&mut self.packet, data);
    }

    fn datagram(&mut self, (from, to): Ends, data: &[u8]) {
        self.packet.clear();
        // Memory takes whatever is written, and no datagram is too long.
        let udp = ip(from.ip(), to.ip()).udp(from.port(), to.port());
        let _ = udp.write(&mut self.packet, data);
    }

    /// An ICMP message of the host at the second address: port unreachable.
    fn unreachable(&mut self, (from, to): Ends, data: &[u8]) {
        const UDP: usize = 8;
        self.datagram((from, to), data);
        let headers = if to.is_ipv4() { 20 } else { 40 } + UDP;
        let quoted = self.packet[..headers.min(self.packet.len())].to_vec();
        self.packet.clear();
        let back = ip(to.ip(), from.ip());
        // Destination unreachable, port unreachable.
        let _ = if from.is_ipv4() {
            let icmp = back.icmpv4_raw(3, 3, [0; 4]);
            icmp.write(&mut self.packet, &quoted)
        } else {
            let icmp = back.icmpv6_raw(1, 4, [0; 4]);
            icmp.write(&mut self.packet, &quoted)
        };
    }
}

/// Where a packet comes from and where it goes.
type Ends = (SocketAddr, SocketAddr);

fn ip(from: IpAddr, to: IpAddr) -> PacketBuilderStep<IpHeaders> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let header = Ipv4Header {
                time_to_live: TTL,
                source: from.octets(),
                destination: to.octets(),
                ..Ipv4Header::default()
            };
            PacketBuilder::ip(IpHeaders::Ipv4(header, Ipv4Extensions::default()))
        }
        (from, to) => {
            let octets = |address| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            let header = Ipv6Header {
                hop_limit: TTL,
                source: octets(from),
                destination: octets(to),
                ..Ipv6Header::default()
            };
            PacketBuilder::ip(IpHeaders::Ipv6(header, Ipv6Extensions::default()))
        }
    }
}

impl Kernel {
    /// Writes down whatever is sent from now on. Returns what was written to before.
    pub(crate) fn set_capture(&mut self, capture: Option<Capture>) -> Option<Capture> {
        let before = std::mem::replace(&mut self.capture, capture.map(Box::new));
        before.map(|capture| *capture)
    }

    /// Takes what a capture has written, if that is at least `least` bytes.
    pub(crate) fn take_captured(&mut self, least: usize) -> Option<Vec<u8>> {
        let capture = self.capture.as_mut()?;
        let is_enough = capture.blocks.get_ref().len() >= least;
        is_enough.then(|| capture.take())
    }

    pub(super) fn capture_datagram(
        &mut self,
        at: Instant,
        ends: Ends,
        data: &[u8],
        carried: Carried,
    ) {
        if let Some(capture) = &mut self.capture {
            capture.datagram(ends, data);
            capture.write(at, comment(carried));
        }
    }

    pub(super) fn capture_unreachable(&mut self, ends: Ends, data: &[u8], arrives: bool) {
        let now = self.now;
        if let Some(capture) = &mut self.capture {
            capture.unreachable(ends, data);
            capture.write(now, (!arrives).then_some(LOST));
        }
    }

    /// A segment of a stream that is open.
    pub(super) fn capture_segment(&mut self, segment: &Segment, carried: Carried) {
        if self.capture.is_none() {
            return;
        }
        let now = self.now;
        let Some(ends) = self.outside_ends(segment.from) else {
            return;
        };
        let Some(mut header) = self.header_of(segment.from) else {
            return;
        };
        header.seq = 1 + segment.at;
        header.fin = segment.end;
        header.begin_at(segment.from, Some(segment.to));
        if let Some(capture) = &mut self.capture {
            capture.segment(ends, header, &segment.bytes);
            capture.write(now, comment(carried));
        }
    }

    /// A segment without data that the peer of `to` sends it.
    pub(super) fn capture_control(&mut self, to: Key, what: Control, arrives: bool) {
        if self.capture.is_none() {
            return;
        }
        let now = self.now;
        let Some((local, remote)) = self.outside_ends(to) else {
            return;
        };
        // A connecting socket has no peer yet.
        let sender = self
            .stream(to)
            .and_then(|socket| socket.peer().or(socket.accepted_by));
        let of_sender = sender.and_then(|sender| self.header_of(sender));
        let mut header = of_sender.unwrap_or_else(|| Header {
            ack: self.stream(to).map(|socket| socket.acknowledgeable()),
            ..Header::default()
        });
        match what {
            Control::SynAck => {
                header.syn = true;
                header.seq = 0;
                header.ack = Some(1);
            }
            Control::Reset => header.rst = true,
            Control::Acknowledgement => {}
        }
        header.begin_at(sender.unwrap_or(to), Some(to));
        if let Some(capture) = &mut self.capture {
            capture.segment((remote, local), header, &[]);
            capture.write(now, (!arrives).then_some(LOST));
        }
    }

    /// A SYN.
    pub(super) fn capture_syn(&mut self, key: Key, ends: Ends, window: u64, carried: Carried) {
        let now = self.now;
        if let Some(capture) = &mut self.capture {
            let mut header = Header {
                syn: true,
                window,
                ..Header::default()
            };
            header.begin_at(key, None);
            capture.segment(ends, header, &[]);
            capture.write(now, comment(carried));
        }
    }

    /// The ends of a stream as they are seen outside of any router.
    fn outside_ends(&mut self, key: Key) -> Option<Ends> {
        let (local, remote) = self.ends(key)?;
        let socket = self.stream(key)?;
        if socket.nat != Side::Inside {
            return Some((local, remote));
        }
        let peer = socket.peer().and_then(|peer| self.ends(peer));
        Some((peer.map_or(local, |(_, seen)| seen), remote))
    }

    /// What a segment says that a stream sends now.
    fn header_of(&mut self, key: Key) -> Option<Header> {
        let socket = self.stream(key)?;
        Some(socket.header())
    }
}

const LOST: &str = "lost on its way";

fn comment(carried: Carried) -> Option<&'static str> {
    match carried {
        Carried::Arrives(_) => None,
        Carried::Damaged(_) => Some("damaged on its way"),
        Carried::Lost => Some(LOST),
    }
}

fn to_io(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}
