//! What players and nodes say to each other: messages of a session, and datagrams.

use std::net::SocketAddr;

/// The longest name of a player or a room, and the longest line of chat, in bytes.
pub const MAX_NAME: usize = 32;
pub const MAX_LINE: usize = 512;
/// The longest datagram that passes everywhere.
const MAX_DATAGRAM: usize = 1_200;

/// What a player shows in its datagrams: it was told by way of its session, so no other has it.
pub type Ticket = [u8; 16];

/// The credentials of a login: which room, and by which name. A real game checks a password here.
pub fn credentials(room: &str, name: &str) -> String {
    format!("{room}/{name}")
}

/// The room and the name in credentials, if they are well-formed.
pub fn read_credentials(credentials: &[u8]) -> Option<(&str, &str)> {
    let (room, name) = std::str::from_utf8(credentials).ok()?.split_once('/')?;
    let is_letter = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
    let is_fine = |name: &str| (1..=MAX_NAME).contains(&name.len()) && name.chars().all(is_letter);
    (is_fine(room) && is_fine(name)).then_some((room, name))
}

/// What a player says to hear from which address it is seen to come.
pub const WHO_AM_I: &str = "/whoami";

/// What a node tells a player by way of its session. Players tell nodes their lines, as text.
#[derive(Debug, PartialEq)]
pub enum ToPlayer<'a> {
    /// Where to send datagrams, and what to show in them.
    Welcome { ticket: Ticket, udp: SocketAddr },
    /// A line of the room's chat.
    Line {
        number: u64,
        name: &'a str,
        text: &'a str,
    },
    /// What the node has to say.
    Notice(&'a str),
}

impl<'a> ToPlayer<'a> {
    pub fn encode(&self) -> Vec<u8> {
        match self {
            ToPlayer::Welcome { ticket, udp } => {
                [b"w", &ticket[..], udp.to_string().as_bytes()].concat()
            }
            ToPlayer::Line { number, name, text } => {
                let number = number.to_be_bytes();
                let len = [name.len() as u8];
                [b"l", &number[..], &len, name.as_bytes(), text.as_bytes()].concat()
            }
            ToPlayer::Notice(text) => [b"n", text.as_bytes()].concat(),
        }
    }

    pub fn decode(message: &'a [u8]) -> Option<Self> {
        let (kind, rest) = message.split_first()?;
        match kind {
            b'w' => {
                let (ticket, udp) = rest.split_first_chunk()?;
                let udp = std::str::from_utf8(udp).ok()?.parse().ok()?;
                Some(ToPlayer::Welcome {
                    ticket: *ticket,
                    udp,
                })
            }
            b'l' => {
                let (number, rest) = rest.split_first_chunk()?;
                let (len, rest) = rest.split_first()?;
                let (name, text) = rest.split_at_checked(usize::from(*len))?;
                Some(ToPlayer::Line {
                    number: u64::from_be_bytes(*number),
                    name: std::str::from_utf8(name).ok()?,
                    text: std::str::from_utf8(text).ok()?,
                })
            }
            b'n' => Some(ToPlayer::Notice(std::str::from_utf8(rest).ok()?)),
            _ => None,
        }
    }
}

/// Where a player is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dot {
    pub player: u32,
    pub x: i16,
    pub y: i16,
}

impl Dot {
    const LEN: usize = 8;

    fn encode(self, datagram: &mut Vec<u8>) {
        datagram.extend_from_slice(&self.player.to_be_bytes());
        datagram.extend_from_slice(&self.x.to_be_bytes());
        datagram.extend_from_slice(&self.y.to_be_bytes());
    }

    /// The dots that fill these bytes.
    pub fn decode_all(bytes: &[u8]) -> impl Iterator<Item = Dot> {
        bytes.as_chunks().0.iter().map(|dot: &[u8; Dot::LEN]| Dot {
            player: u32::from_be_bytes([dot[0], dot[1], dot[2], dot[3]]),
            x: i16::from_be_bytes([dot[4], dot[5]]),
            y: i16::from_be_bytes([dot[6], dot[7]]),
        })
    }

    pub fn encode_all(dots: &[Dot]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(dots.len() * Dot::LEN);
        for dot in dots {
            dot.encode(&mut bytes);
        }
        bytes
    }
}

/// A player's datagram: its ticket, and where it is.
pub fn position(ticket: &Ticket, x: i16, y: i16) -> Vec<u8> {
    [&ticket[..], &x.to_be_bytes(), &y.to_be_bytes()].concat()
}

/// The ticket of a player's datagram, and where the player is.
pub fn read_position(datagram: &[u8]) -> Option<(Ticket, i16, i16)> {
    let (ticket, place) = datagram.split_first_chunk()?;
    let [x1, x2, y1, y2] = *<&[u8; 4]>::try_from(place).ok()?;
    let (x, y) = (i16::from_be_bytes([x1, x2]), i16::from_be_bytes([y1, y2]));
    Some((*ticket, x, y))
}

/// A tick's datagrams: its number, and where all players of a room are.
pub fn tick(number: u32, dots: &[Dot]) -> Vec<Vec<u8>> {
    let at_once = (MAX_DATAGRAM - 4) / Dot::LEN;
    let datagram = |dots: &[Dot]| [&number.to_be_bytes()[..], &Dot::encode_all(dots)].concat();
    dots.chunks(at_once).map(datagram).collect()
}

/// The number of a tick, and the dots in this datagram of it.
pub fn read_tick(datagram: &[u8]) -> Option<(u32, impl Iterator<Item = Dot>)> {
    let (number, dots) = datagram.split_first_chunk()?;
    Some((u32::from_be_bytes(*number), Dot::decode_all(dots)))
}
