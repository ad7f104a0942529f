//! What client and server say to each other: each packet is one message of the transport. Numbers are
//! big endian.
//!
//! | packet | byte | and then | from |
//! | --- | --- | --- | --- |
//! | login | 1 | version (1), credentials | client |
//! | resume | 2 | version (1), token (32), attempt (8), last message that has arrived (8) | client |
//! | message | 3 | its number (8), payload | both |
//! | ack | 4 | last message that has arrived (8) | both |
//! | end | 5 | | client |
//! | welcome | 17 | token (32) | server |
//! | resumed | 18 | token (32), last message that has arrived (8) | server |
//! | refused | 19 | reason (1), milliseconds after which to try again (4) | server |
//! | ended | 20 | reason (1) | server |
//! | ask | 21 | | server |
//!
//! Each side numbers its messages from 1. They are kept until the other side has acknowledged them,
//! and sent again after a resume, from the one behind the last that has arrived there. A message
//! that arrives a second time is acknowledged and dropped.

use crate::token::Token;
use core::fmt;
use core::time::Duration;

/// The version of what is said. A server refuses others.
pub const VERSION: u8 = 1;
/// Bytes in front of the payload of a message.
pub const MESSAGE_HEADER: usize = 1 + NUMBER;
/// Bytes in front of the credentials of a login.
pub const LOGIN_HEADER: usize = 2;

const NUMBER: usize = 8;
const RESUME_LEN: usize = LOGIN_HEADER + Token::LEN + 2 * NUMBER;

const LOGIN: u8 = 1;
const RESUME: u8 = 2;
const MESSAGE: u8 = 3;
const ACK: u8 = 4;
const END: u8 = 5;
const WELCOME: u8 = 17;
const RESUMED: u8 = 18;
const REFUSED: u8 = 19;
const ENDED: u8 = 20;
const ASK: u8 = 21;

/// What a client says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToServer<'a> {
    /// It has no session, and wants one.
    Login {
        /// What the application checks.
        credentials: &'a [u8],
    },
    /// It has a session, and goes on with it.
    Resume {
        /// Of its session.
        token: Token,
        /// Which of its resumes this is, from 1. One that is overtaken by a later one is refused.
        attempt: u64,
        /// The number of the last message that has arrived at the client.
        received: u64,
    },
    /// A message.
    Message(Numbered<'a>),
    /// All messages up to this number have arrived at the client.
    Ack(u64),
    /// It is done: the session ends.
    End,
}

/// What a server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToClient<'a> {
    /// The session is open.
    Welcome {
        /// To be presented to go on with it.
        token: Token,
    },
    /// The session goes on.
    Resumed {
        /// Replaces the token that was presented.
        token: Token,
        /// The number of the last message that has arrived at the server.
        received: u64,
    },
    /// A login or a resume has failed.
    Refused {
        /// Why.
        reason: Refusal,
        /// When it may be tried again; zero if that would be in vain.
        retry_after: Duration,
    },
    /// A message.
    Message(Numbered<'a>),
    /// All messages up to this number have arrived at the server, and are stored.
    Ack(u64),
    /// The session is over.
    Ended(End),
    /// The server waits for an acknowledgement.
    Ask,
}

/// A message and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbered<'a> {
    /// From 1, for each direction of a session.
    pub number: u64,
    /// The application's bytes.
    pub payload: &'a [u8],
}

/// Why a login or a resume has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// The application did not accept the credentials.
    Credentials,
    /// There is no such session, it has expired, or the token is wrong. Log in anew.
    UnknownSession,
    /// Too many sessions, or too many attempts.
    Busy,
    /// The server cannot reach its store.
    StoreAway,
    /// The server speaks another version.
    Version,
}

/// Why a session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum End {
    /// The client has ended it.
    Client,
    /// The application has ended it, on the server.
    Application,
    /// The client did not come back in time.
    Expired,
    /// It was resumed on another server, which has it now. To the client this says that another
    /// connection goes on with it.
    TakenOver,
    /// The other side has broken the rules of the protocol.
    Violation,
    /// The server could not tell in time whether the session was still its own.
    LeaseLost,
}

/// A packet that breaks the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WireError {
    /// It has no bytes.
    Empty,
    /// Its first byte is none that this side is sent.
    Unknown(u8),
    /// It is shorter or longer than one that begins so.
    Length {
        /// Its first byte.
        kind: u8,
        /// How long it is.
        len: usize,
    },
    /// It is of another version.
    Version(u8),
    /// Its token or its number cannot be.
    Invalid,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireError::Empty => f.write_str("an empty packet"),
            WireError::Unknown(kind) => write!(f, "no packet begins with the byte {kind}"),
            WireError::Length { kind, len } => {
                write!(
                    f,
                    "a packet that begins with the byte {kind} has {len} bytes"
                )
            }
            WireError::Version(version) => {
                write!(
                    f,
                    "version {version} of the protocol, this is version {VERSION}"
                )
            }
            WireError::Invalid => f.write_str("a number that cannot be"),
        }
    }
}

impl core::error::Error for WireError {}

impl<'a> ToServer<'a> {
    /// Reads a packet of a client.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn decode(packet: &'a [u8]) -> Result<Self, WireError> {
        let (kind, body) = split_kind(packet)?;
        let wrong = length_error(kind, packet);
        match kind {
            LOGIN | RESUME => {
                let (&version, body) = body.split_first().ok_or(wrong)?;
                if version != VERSION {
                    return Err(WireError::Version(version));
                }
                if kind == LOGIN {
                    return Ok(ToServer::Login { credentials: body });
                }
                let (token, numbers) = split_token(body).ok_or(wrong)?;
                let (attempt, received) = numbers.split_at_checked(NUMBER).ok_or(wrong)?;
                Ok(ToServer::Resume {
                    token,
                    attempt: number(attempt).ok_or(wrong)?,
                    received: number(received).ok_or(wrong)?,
                })
            }
            MESSAGE => Ok(ToServer::Message(numbered(body).ok_or(wrong)?)),
            ACK => Ok(ToServer::Ack(number(body).ok_or(wrong)?)),
            END if body.is_empty() => Ok(ToServer::End),
            END => Err(wrong),
            other => Err(WireError::Unknown(other)),
        }
    }
}

impl<'a> ToClient<'a> {
    /// Reads a packet of a server.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn decode(packet: &'a [u8]) -> Result<Self, WireError> {
        let (kind, body) = split_kind(packet)?;
        let wrong = length_error(kind, packet);
        match kind {
            WELCOME => match split_token(body) {
                Some((token, [])) => Ok(ToClient::Welcome { token }),
                _ => Err(wrong),
            },
            RESUMED => {
                let (token, received) = split_token(body).ok_or(wrong)?;
                let received = number(received).ok_or(wrong)?;
                Ok(ToClient::Resumed { token, received })
            }
            REFUSED => {
                let [reason, millis @ ..] = body else {
                    return Err(wrong);
                };
                let millis = millis.try_into().map_err(|_| wrong)?;
                Ok(ToClient::Refused {
                    reason: Refusal::from_byte(*reason).ok_or(WireError::Invalid)?,
                    retry_after: Duration::from_millis(u32::from_be_bytes(millis).into()),
                })
            }
            MESSAGE => Ok(ToClient::Message(numbered(body).ok_or(wrong)?)),
            ACK => Ok(ToClient::Ack(number(body).ok_or(wrong)?)),
            ENDED => match body {
                [reason] => Ok(ToClient::Ended(
                    End::from_byte(*reason).ok_or(WireError::Invalid)?,
                )),
                _ => Err(wrong),
            },
            ASK if body.is_empty() => Ok(ToClient::Ask),
            ASK => Err(wrong),
            other => Err(WireError::Unknown(other)),
        }
    }
}

impl Refusal {
    const ALL: [Refusal; 5] = [
        Refusal::Credentials,
        Refusal::UnknownSession,
        Refusal::Busy,
        Refusal::StoreAway,
        Refusal::Version,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        let nth = usize::from(byte).checked_sub(1)?;
        Self::ALL.get(nth).copied()
    }

    fn to_byte(self) -> u8 {
        self as u8 + 1
    }
}

impl End {
    const ALL: [End; 6] = [
        End::Client,
        End::Application,
        End::Expired,
        End::TakenOver,
        End::Violation,
        End::LeaseLost,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        let nth = usize::from(byte).checked_sub(1)?;
        Self::ALL.get(nth).copied()
    }

    fn to_byte(self) -> u8 {
        self as u8 + 1
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Credentials => "the credentials were not accepted",
            Refusal::UnknownSession => "there is no such session: log in anew",
            Refusal::Busy => "too many sessions or attempts: try again later",
            Refusal::StoreAway => "the server cannot reach its store: try again later",
            Refusal::Version => "the server speaks another version of the protocol",
        })
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            End::Client => "the client has ended it",
            End::Application => "the server has ended it",
            End::Expired => "the client did not come back in time",
            End::TakenOver => "it goes on elsewhere",
            End::Violation => "the other side broke the rules of the protocol",
            End::LeaseLost => "the server could not tell in time whether it was still its own",
        })
    }
}

/// A packet of known length.
pub type Packet<const N: usize> = [u8; N];

/// The bytes in front of the credentials of a login.
pub const fn login_header() -> Packet<LOGIN_HEADER> {
    [LOGIN, VERSION]
}

/// The packet of a client that goes on with its session.
pub fn resume(token: &Token, attempt: u64, received: u64) -> Packet<RESUME_LEN> {
    let mut packet = [0; RESUME_LEN];
    packet[..LOGIN_HEADER].copy_from_slice(&[RESUME, VERSION]);
    let (of_token, numbers) = packet[LOGIN_HEADER..].split_at_mut(Token::LEN);
    of_token.copy_from_slice(&token.to_bytes());
    numbers[..NUMBER].copy_from_slice(&attempt.to_be_bytes());
    numbers[NUMBER..].copy_from_slice(&received.to_be_bytes());
    packet
}

/// The bytes in front of the payload of a message.
pub fn message_header(number: u64) -> Packet<MESSAGE_HEADER> {
    with_number(MESSAGE, number)
}

/// The packet that acknowledges all messages up to a number.
pub fn ack(received: u64) -> Packet<{ 1 + NUMBER }> {
    with_number(ACK, received)
}

/// The packet with which a client ends its session.
pub const fn end() -> Packet<1> {
    [END]
}

/// The packet of a server that has opened a session.
pub fn welcome(token: &Token) -> Packet<{ 1 + Token::LEN }> {
    let mut packet = [WELCOME; 1 + Token::LEN];
    packet[1..].copy_from_slice(&token.to_bytes());
    packet
}

/// The packet of a server that goes on with a session.
pub fn resumed(token: &Token, received: u64) -> Packet<{ 1 + Token::LEN + NUMBER }> {
    let mut packet = [RESUMED; 1 + Token::LEN + NUMBER];
    packet[1..][..Token::LEN].copy_from_slice(&token.to_bytes());
    packet[1 + Token::LEN..].copy_from_slice(&received.to_be_bytes());
    packet
}

/// The packet of a server that refuses a login or a resume.
pub fn refused(reason: Refusal, retry_after: Duration) -> Packet<6> {
    let millis = u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX);
    let [a, b, c, d] = millis.to_be_bytes();
    [REFUSED, reason.to_byte(), a, b, c, d]
}

/// The packet of a server on which a session is over.
pub fn ended(reason: End) -> Packet<2> {
    [ENDED, reason.to_byte()]
}

/// The packet of a server that waits for an acknowledgement.
pub const fn ask() -> Packet<1> {
    [ASK]
}

fn with_number(kind: u8, number: u64) -> Packet<{ 1 + NUMBER }> {
    let mut packet = [kind; 1 + NUMBER];
    packet[1..].copy_from_slice(&number.to_be_bytes());
    packet
}

fn split_kind(packet: &[u8]) -> Result<(u8, &[u8]), WireError> {
    let (kind, body) = packet.split_first().ok_or(WireError::Empty)?;
    Ok((*kind, body))
}

fn length_error(kind: u8, packet: &[u8]) -> WireError {
    WireError::Length {
        kind,
        len: packet.len(),
    }
}

fn split_token(body: &[u8]) -> Option<(Token, &[u8])> {
    let (token, rest) = body.split_first_chunk()?;
    Some((Token::from_bytes(token), rest))
}

fn number(body: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(body.try_into().ok()?))
}

fn numbered(body: &[u8]) -> Option<Numbered<'_>> {
    let (number, payload) = body.split_first_chunk()?;
    Some(Numbered {
        number: u64::from_be_bytes(*number),
        payload,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::SessionId;
    use proptest::prelude::*;

    fn token() -> Token {
        Token::new(SessionId::from_bytes([7; 16]), [9; 16])
    }

    #[test]
    fn a_packet_of_a_client_is_read_as_it_was_written() {
        let login = [&login_header()[..], b"name"].concat();
        let message = [&message_header(3)[..], b"hello"].concat();
        let resume = resume(&token(), 4, 5);
        let packets: [(&[u8], ToServer<'_>); 5] = [
            (
                &login,
                ToServer::Login {
                    credentials: b"name",
                },
            ),
            (
                &resume,
                ToServer::Resume {
                    token: token(),
                    attempt: 4,
                    received: 5,
                },
            ),
            (
                &message,
                ToServer::Message(Numbered {
                    number: 3,
                    payload: b"hello",
                }),
            ),
            (&ack(u64::MAX), ToServer::Ack(u64::MAX)),
            (&end(), ToServer::End),
        ];
        for (packet, meaning) in packets {
            assert_eq!(ToServer::decode(packet), Ok(meaning));
        }
    }

    #[test]
    fn a_packet_of_a_server_is_read_as_it_was_written() {
        let message = [&message_header(1)[..], b""].concat();
        let token = token();
        let second = Duration::from_secs(1);
        let packets: [(&[u8], ToClient<'_>); 5] = [
            (&welcome(&token), ToClient::Welcome { token }),
            (
                &resumed(&token, 5),
                ToClient::Resumed { token, received: 5 },
            ),
            (
                &message,
                ToClient::Message(Numbered {
                    number: 1,
                    payload: b"",
                }),
            ),
            (&ack(2), ToClient::Ack(2)),
            (&ask(), ToClient::Ask),
        ];
        for (packet, meaning) in packets {
            assert_eq!(ToClient::decode(packet), Ok(meaning));
        }
        for reason in Refusal::ALL {
            let retry_after = second;
            let packet = refused(reason, retry_after);
            let meaning = ToClient::Refused {
                reason,
                retry_after,
            };
            assert_eq!(ToClient::decode(&packet), Ok(meaning));
        }
        for reason in End::ALL {
            assert_eq!(
                ToClient::decode(&ended(reason)),
                Ok(ToClient::Ended(reason))
            );
        }
    }

    #[test]
    fn a_packet_cut_short_or_too_long_says_so() {
        let packets: Vec<Vec<u8>> = [
            &resume(&token(), 4, 5)[..],
            &ack(1),
            &end(),
            &welcome(&token()),
            &resumed(&token(), 5),
            &refused(Refusal::Busy, Duration::ZERO),
            &ended(End::Client),
            &ask(),
        ]
        .map(<[u8]>::to_vec)
        .into();
        for packet in packets {
            let mut long = packet.clone();
            long.push(0);
            for wrong in [&packet[..packet.len() - 1], &long] {
                let error = match ToServer::decode(wrong) {
                    Err(WireError::Unknown(_)) => ToClient::decode(wrong).unwrap_err(),
                    other => other.unwrap_err(),
                };
                let kind = packet[0];
                let len = wrong.len();
                let is_expected = match wrong {
                    [] => error == WireError::Empty,
                    _ => error == WireError::Length { kind, len },
                };
                assert!(is_expected, "{error}");
            }
        }
    }

    #[test]
    fn another_version_is_told_apart_from_garbage() {
        assert_eq!(ToServer::decode(&[1, 2, 0]), Err(WireError::Version(2)));
        assert_eq!(ToServer::decode(&[99]), Err(WireError::Unknown(99)));
        assert_eq!(ToClient::decode(&[ENDED, 0]), Err(WireError::Invalid));
        assert_eq!(ToClient::decode(&[ENDED, 7]), Err(WireError::Invalid));
        assert!(WireError::Version(2).to_string().contains("version 2"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(packet: Vec<u8>) {
            let _ = ToServer::decode(&packet);
            let _ = ToClient::decode(&packet);
        }
    }
}
