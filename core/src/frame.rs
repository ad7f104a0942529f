//! The frame of a stream: a two-byte length, big endian, and a payload of that length.
//!
//! The length counts the payload alone, 0 to 65,535 bytes. These are the bytes of
//! Erlang's `{packet, 2}`, Twisted's `Int16StringReceiver` and DNS over TCP.

#[cfg(feature = "alloc")]
use crate::send_error::SendError;
#[cfg(feature = "alloc")]
use bytes::{BufMut, Bytes, BytesMut};
use core::fmt;

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 2;

/// The longest payload a frame can declare, in bytes.
pub const MAX_PAYLOAD: usize = u16::MAX as usize;

/// The header of a frame with a payload of `len` bytes; `None` above [`MAX_PAYLOAD`].
#[inline]
pub fn header(len: usize) -> Option<[u8; HEADER_LEN]> {
    u16::try_from(len).ok().map(encode)
}

/// The header of a frame with a payload of `len` bytes.
#[inline]
pub(crate) const fn encode(len: u16) -> [u8; HEADER_LEN] {
    len.to_be_bytes()
}

/// The length that the header at the front of `bytes` declares; `None` if it is not whole.
/// It may be `limit` at most.
#[inline]
pub fn declared(bytes: &[u8], limit: usize) -> Result<Option<usize>, FrameError> {
    let [first, second, ..] = *bytes else {
        return Ok(None);
    };
    let declared = u16::from_be_bytes([first, second]);
    if usize::from(declared) > limit {
        // What a header declares is above the limit, so the limit is a `u16` too.
        let limit = limit as u16;
        return Err(FrameError::TooLong { declared, limit });
    }
    Ok(Some(usize::from(declared)))
}

/// What a peer seems to speak whose first frame would be of this length, if that is another protocol that
/// is often sent to the wrong port: for a log.
pub const fn looks_like(declared: usize) -> Option<&'static str> {
    if declared > MAX_PAYLOAD {
        return None;
    }
    // What would be its header is how these begin.
    match &(declared as u16).to_be_bytes() {
        b"\x16\x03" => Some("TLS"),
        b"PR" | b"\r\n" => Some("the PROXY protocol"),
        b"GE" | b"PO" | b"HE" => Some("HTTP"),
        b"SS" => Some("SSH"),
        _ => None,
    }
}

/// How a peer can break the framing. The connection it happens on is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FrameError {
    /// A header declared a payload longer than the limit. Nothing was stored for it.
    TooLong {
        /// Bytes the header declared.
        declared: u16,
        /// Bytes that were allowed.
        limit: u16,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::TooLong { declared, limit } => write!(
                f,
                "the peer declared a frame of {declared} bytes, the limit is {limit}"
            ),
        }
    }
}

impl core::error::Error for FrameError {}

/// A message framed once, to be sent to many connections. Cloning shares the bytes.
///
/// ```
/// use cubenet_core::Frame;
/// let frame = Frame::new(b"state of the world").unwrap();
/// assert_eq!(frame.payload(), b"state of the world");
/// assert_eq!(&frame.as_bytes()[..2], [0, 18]);
/// ```
#[cfg(feature = "alloc")]
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    bytes: Bytes,
}

#[cfg(feature = "alloc")]
impl Frame {
    /// Frames a copy of `payload`; [`SendError::TooLong`] if it is longer than [`MAX_PAYLOAD`].
    pub fn new(payload: &[u8]) -> Result<Frame, SendError> {
        let (len, limit) = (payload.len(), MAX_PAYLOAD);
        let header = header(len).ok_or(SendError::TooLong { len, limit })?;
        let mut bytes = BytesMut::with_capacity(HEADER_LEN + payload.len());
        bytes.put_slice(&header);
        bytes.put_slice(payload);
        Ok(Frame {
            bytes: bytes.freeze(),
        })
    }

    /// The message, without its header: what a datagram carries.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[HEADER_LEN..]
    }

    /// Header and message, as they go over a stream.
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }
}

#[cfg(feature = "alloc")]
impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({} bytes)", self.payload().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_protocols_are_known_by_how_they_begin() {
        let begins = |bytes: &[u8]| looks_like(declared(bytes, MAX_PAYLOAD).unwrap().unwrap());
        assert_eq!(begins(b"\x16\x03\x01\x02\0"), Some("TLS"));
        assert_eq!(begins(b"PROXY UNKNOWN\r\n"), Some("the PROXY protocol"));
        assert_eq!(begins(b"\r\n\r\n\0"), Some("the PROXY protocol"));
        assert_eq!(begins(b"HEAD / HTTP/1.0"), Some("HTTP"));
        assert_eq!(begins(b"SSH-2.0-"), Some("SSH"));
        assert_eq!(begins(b"\0\x05hello"), None);
        assert_eq!(looks_like(0x1_1603), None);
    }

    #[test]
    fn a_header_is_big_endian_and_counts_the_payload_alone() {
        assert_eq!(header(0), Some([0, 0]));
        assert_eq!(header(258), Some([1, 2]));
        assert_eq!(header(MAX_PAYLOAD), Some([0xff, 0xff]));
        assert_eq!(header(MAX_PAYLOAD + 1), None);
    }

    #[cfg(feature = "alloc")]
    #[test]
    fn a_frame_too_long_for_its_header_is_refused() {
        let longest = Frame::new(&std::vec![0; MAX_PAYLOAD]).unwrap();
        assert_eq!(std::format!("{longest:?}"), "Frame(65535 bytes)");
        let too_long = SendError::TooLong {
            len: 65_536,
            limit: 65_535,
        };
        assert_eq!(Frame::new(&std::vec![0; MAX_PAYLOAD + 1]), Err(too_long));
    }

    #[test]
    fn an_error_tells_both_lengths() {
        let error = FrameError::TooLong {
            declared: 5,
            limit: 4,
        };
        let text = std::string::ToString::to_string(&error);
        assert_eq!(text, "the peer declared a frame of 5 bytes, the limit is 4");
    }
}
