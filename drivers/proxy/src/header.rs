//! The bytes of a header: whether they can be one, and its checksum.

use crc::{CRC_32_ISCSI, Crc};

/// How a header of version 1 begins.
pub(crate) const VERSION_1: &[u8] = b"PROXY ";
/// How a header of version 2 begins.
pub(crate) const VERSION_2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest header of version 1, in bytes.
pub(crate) const LONGEST_VERSION_1: usize = 107;
/// The longest name and protocol that are sent or taken, in bytes.
pub(crate) const LONGEST_FIELD: usize = 255;
/// The longest id of a connection, by the protocol.
pub(crate) const LONGEST_ID: usize = 128;
/// What comes before the addresses of version 2: its beginning, a command, a family, a length.
const FIXED: usize = 16;
/// The type of the field with the checksum.
const CHECKSUM: u8 = 3;
/// The type and the length of a field.
const FIELD_HEADER: usize = 3;

/// Whether a header can begin with these bytes.
pub(crate) fn may_begin_with(bytes: &[u8]) -> bool {
    [VERSION_1, VERSION_2].iter().any(|beginning| {
        let len = bytes.len().min(beginning.len());
        bytes[..len] == beginning[..len]
    })
}

/// The checksum (CRC-32C) of a header of version 2, whose own field counts as zeros. `None` if it has
/// no such field.
pub(crate) fn checksum(header: &[u8]) -> Option<u32> {
    if !header.starts_with(VERSION_2) {
        return None;
    }
    // The addresses of client and server, by their family.
    let addresses = match header.get(13)? >> 4 {
        1 => 12,
        2 => 36,
        3 => 216,
        _ => 0,
    };
    let mut at = FIXED + addresses;
    loop {
        let &[kind, high, low] = header.get(at..at + FIELD_HEADER)? else {
            return None;
        };
        let value = at + FIELD_HEADER;
        let end = value + usize::from(u16::from_be_bytes([high, low]));
        if kind == CHECKSUM {
            let crc = Crc::<u32>::new(&CRC_32_ISCSI);
            let mut digest = crc.digest();
            digest.update(header.get(..value)?);
            digest.update(&vec![0; end - value]);
            digest.update(header.get(end..)?);
            return Some(digest.finalize());
        }
        at = end;
    }
}
