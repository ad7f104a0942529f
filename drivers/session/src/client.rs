//! The client's half of a session: without an allocator, so that a device keeps its session, too.

use crate::ring::Ring;
use crate::token::Token;
use crate::wire::{self, End, LOGIN_HEADER, Numbered, Refusal, ToClient, WireError};
use core::time::Duration;
use cubenet_core::{ConnectionId, Instant, Link, SendError};

/// After so many messages, or so many bytes of them, an acknowledgement is sent.
const ACK_MESSAGES: u32 = 16;
const ACK_BYTES: u32 = 2_048;
/// When what was not answered is sent again, where the transport loses; then twice as late, up to 16
/// times.
pub(crate) const RETRANSMIT_AFTER: Duration = Duration::from_millis(200);
pub(crate) const MAX_DOUBLINGS: u32 = 4;

/// A session, as its client keeps it: what has been sent and not acknowledged, in `N` bytes, what has
/// arrived, and the token to go on with.
///
/// It lives longer than a connection. The application's handler tells it what happens to that:
///
/// ```
/// use cubenet_core::{CloseReason, Handler, Link, Message};
/// use cubenet_session::{Client, Event};
///
/// struct Player {
///     session: Client<4096>,
/// }
///
/// impl Handler for Player {
///     fn connected(&mut self, link: &mut dyn Link) {
///         // A login, or, if there is a session, its resume.
///         if self.session.connected(link, b"name and password").is_err() {
///             link.close();
///         }
///     }
///
///     fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
///         match self.session.received(link, &message) {
///             Ok(Event::Message(payload)) => println!("{payload:?}"),
///             Ok(Event::Opened) => {
///                 let _ = self.session.send(link, b"hello");
///             }
///             Ok(Event::Refused { .. } | Event::Ended(_)) | Err(_) => link.close(),
///             Ok(_) => {}
///         }
///     }
///
///     fn writable(&mut self, link: &mut dyn Link) {
///         self.session.flush(link);
///     }
///
///     fn closed(&mut self, link: &mut dyn Link, _reason: CloseReason) {
///         // The application connects again when it likes.
///         self.session.disconnected(link);
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Client<const N: usize> {
    ring: Ring<N>,
    phase: Phase,
    /// The connection that it was told of last. What others say is no matter.
    connection: Option<ConnectionId>,
    token: Option<Token>,
    /// How often it has been resumed, or tried.
    attempt: u64,
    /// The number of the last message that has arrived.
    received: u64,
    /// What has arrived since the last acknowledgement.
    unacknowledged: Unacknowledged,
    /// Whether the connection loses nothing.
    is_reliable: bool,
    /// Since when the server owes an answer, and how often that was asked for again.
    waits_since: Instant,
    repeats: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is no connection, or it has said nothing.
    Apart,
    /// A login is under way.
    LoggingIn,
    /// A resume is under way.
    Resuming,
    /// The session has a connection.
    Active,
}

#[derive(Clone, Copy, Debug, Default)]
struct Unacknowledged {
    messages: u32,
    bytes: u32,
    /// An acknowledgement is to be sent in any case.
    due: bool,
}

/// What a packet of the server means to the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Nothing.
    Nothing,
    /// The login was accepted: the session is open.
    Opened,
    /// The session goes on. What was sent and had not arrived is sent again.
    Resumed,
    /// The next message.
    Message(&'a [u8]),
    /// The login or the resume failed. If the session is [unknown](Refusal::UnknownSession), it is lost,
    /// and the next connection begins with a login.
    Refused {
        /// Why.
        reason: Refusal,
        /// When it may be tried again; zero if that would be in vain.
        retry_after: Duration,
    },
    /// The session is over. The next connection begins with a login, unless another connection
    /// goes on with the session ([`End::TakenOver`]).
    Ended(End),
}

impl<const N: usize> Client<N> {
    /// Without a session.
    pub const fn new() -> Self {
        Client {
            ring: Ring::new(),
            phase: Phase::Apart,
            connection: None,
            token: None,
            attempt: 0,
            received: 0,
            unacknowledged: Unacknowledged {
                messages: 0,
                bytes: 0,
                due: false,
            },
            is_reliable: true,
            waits_since: Instant::ZERO,
            repeats: 0,
        }
    }

    /// Whether there is a session to go on with.
    pub const fn has_session(&self) -> bool {
        self.token.is_some()
    }

    /// Whether the session has a connection, so that what is sent leaves at once.
    pub fn is_active(&self) -> bool {
        self.phase == Phase::Active
    }

    /// How many messages have been sent and not acknowledged.
    pub fn unacknowledged(&self) -> u64 {
        self.ring.len()
    }

    /// There is a connection: asks the server to go on with the session, or, without one, for a login.
    ///
    /// # Errors
    ///
    /// [`SendError::TooLong`] if the credentials are longer than the memory for messages has room
    /// for, or what the link says. Then nothing was sent.
    pub fn connected(&mut self, link: &mut dyn Link, credentials: &[u8]) -> Result<(), SendError> {
        self.phase = Phase::Apart;
        self.connection = Some(link.id());
        self.is_reliable = link.transport().is_reliable();
        self.progress(link);
        if self.token.is_some() {
            self.attempt += 1;
            self.send_resume(link)?;
            self.phase = Phase::Resuming;
            return Ok(());
        }
        // Messages of a session that is lost.
        self.ring.reset();
        self.send_login(link, credentials)?;
        self.phase = Phase::LoggingIn;
        Ok(())
    }

    fn send_resume(&self, link: &mut dyn Link) -> Result<(), SendError> {
        let token = self.token.as_ref().ok_or(SendError::Closed)?;
        link.send(&wire::resume(token, self.attempt, self.received))
    }

    fn send_login(&mut self, link: &mut dyn Link, credentials: &[u8]) -> Result<(), SendError> {
        let too_long = SendError::TooLong {
            len: credentials.len(),
            limit: N.saturating_sub(LOGIN_HEADER),
        };
        let packet = self.ring.free(LOGIN_HEADER + credentials.len());
        let packet = packet.ok_or(too_long)?;
        packet[..LOGIN_HEADER].copy_from_slice(&wire::login_header());
        packet[LOGIN_HEADER..].copy_from_slice(credentials);
        link.send(packet)
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do; never over a stream.
    pub fn poll_timeout(&self) -> Instant {
        let waits = match self.phase {
            Phase::Apart => false,
            Phase::LoggingIn | Phase::Resuming => true,
            Phase::Active => self.ring.len() > 0,
        };
        if self.is_reliable || !waits {
            return Instant::NEVER;
        }
        let doublings = self.repeats.min(MAX_DOUBLINGS);
        self.waits_since.after(RETRANSMIT_AFTER * (1 << doublings))
    }

    /// Says again what the server has not answered, where the transport may have lost it. To be called
    /// when [`poll_timeout`](Self::poll_timeout) has come, or every so often; with the credentials of
    /// [`connected`](Self::connected).
    pub fn handle_timeout(&mut self, link: &mut dyn Link, credentials: &[u8]) {
        if self.connection != Some(link.id()) || link.now() < self.poll_timeout() {
            return;
        }
        self.waits_since = link.now();
        self.repeats = self.repeats.saturating_add(1);
        // What finds no room is as good as lost.
        let _ = match self.phase {
            Phase::LoggingIn => self.send_login(link, credentials),
            Phase::Resuming => self.send_resume(link),
            Phase::Active => {
                self.ring.rewind();
                self.flush(link);
                Ok(())
            }
            Phase::Apart => Ok(()),
        };
    }

    /// The server has answered, or has nothing to answer yet.
    fn progress(&mut self, link: &dyn Link) {
        self.waits_since = link.now();
        self.repeats = 0;
    }

    /// The connection is over. The session waits for another, unless it has one already.
    pub fn disconnected(&mut self, link: &dyn Link) {
        if self.connection == Some(link.id()) {
            self.connection = None;
            self.phase = Phase::Apart;
        }
    }

    /// A message of the connection has arrived. Returns what it means.
    ///
    /// # Errors
    ///
    /// The server broke the rules of the protocol: close the connection.
    pub fn received<'a>(
        &mut self,
        link: &mut dyn Link,
        packet: &'a [u8],
    ) -> Result<Event<'a>, WireError> {
        if self.connection != Some(link.id()) {
            return Ok(Event::Nothing);
        }
        let packet = ToClient::decode(packet)?;
        match (self.phase, packet) {
            (Phase::LoggingIn, ToClient::Welcome { token }) => {
                self.token = Some(token);
                self.attempt = 0;
                self.received = 0;
                self.activate(link);
                Ok(Event::Opened)
            }
            (Phase::Resuming, ToClient::Resumed { received, .. })
                if received < self.ring.acknowledged() =>
            {
                // The server has forgotten what it had acknowledged.
                self.phase = Phase::Apart;
                self.token = None;
                Ok(Event::Ended(End::LeaseLost))
            }
            (Phase::Resuming, ToClient::Resumed { token, received }) => {
                if !self.ring.acknowledge(received) {
                    return Err(WireError::Invalid);
                }
                self.token = Some(token);
                self.activate(link);
                Ok(Event::Resumed)
            }
            (
                Phase::LoggingIn | Phase::Resuming,
                ToClient::Refused {
                    reason,
                    retry_after,
                },
            ) => {
                self.phase = Phase::Apart;
                if reason == Refusal::UnknownSession {
                    self.token = None;
                }
                Ok(Event::Refused {
                    reason,
                    retry_after,
                })
            }
            (Phase::Active, ToClient::Message(message)) => self.handle_message(link, message),
            (Phase::Active, ToClient::Ack(number)) => {
                let before = self.ring.acknowledged();
                if !self.ring.acknowledge(number) {
                    return Err(WireError::Invalid);
                }
                if self.ring.acknowledged() > before {
                    self.progress(link);
                }
                Ok(Event::Nothing)
            }
            (_, ToClient::Ended(reason)) => {
                self.phase = Phase::Apart;
                self.token = None;
                Ok(Event::Ended(reason))
            }
            // Asked, or greeted again by a server that does not know that it has: the transport loses.
            (
                Phase::Active,
                ToClient::Ask | ToClient::Welcome { .. } | ToClient::Resumed { .. },
            ) => {
                self.acknowledge(link);
                Ok(Event::Nothing)
            }
            // It has overtaken the server's answer, or is of a session that was left.
            _ if !self.is_reliable => Ok(Event::Nothing),
            _ => Err(WireError::Invalid),
        }
    }

    /// Sends a message: it arrives once, and in order, if the session lives. Returns its number.
    /// Without a connection it is kept, and leaves when the session goes on.
    ///
    /// # Errors
    ///
    /// [`SendError::Full`] if too much is not acknowledged yet; [`SendError::Closed`] without a
    /// session; [`SendError::TooLong`] if there is never room for it.
    pub fn send(&mut self, link: &mut dyn Link, payload: &[u8]) -> Result<u64, SendError> {
        if self.ring.len() == 0 {
            self.progress(link);
        }
        let number = self.keep(payload)?;
        self.flush(link);
        Ok(number)
    }

    /// The same while there is no connection.
    ///
    /// # Errors
    ///
    /// As those of [`send`](Self::send).
    pub fn keep(&mut self, payload: &[u8]) -> Result<u64, SendError> {
        if !self.has_session() {
            return Err(SendError::Closed);
        }
        self.ring.push(payload)
    }

    /// Acknowledges what has arrived at once, not only when there is more of it.
    pub fn acknowledge(&mut self, link: &mut dyn Link) {
        self.unacknowledged.due = true;
        self.flush(link);
    }

    /// Sends what waits for room: to be called when the link is writable.
    pub fn flush(&mut self, link: &mut dyn Link) {
        if self.phase != Phase::Active || self.connection != Some(link.id()) {
            return;
        }
        let Unacknowledged {
            messages,
            bytes,
            due,
        } = self.unacknowledged;
        if (due || messages >= ACK_MESSAGES || bytes >= ACK_BYTES)
            && link.send(&wire::ack(self.received)).is_ok()
        {
            self.unacknowledged = Unacknowledged::default();
        }
        while let Some(packet) = self.ring.next()
            && link.send(packet).is_ok()
        {
            self.ring.advance();
        }
    }

    /// Ends the session, on the server, too, if it has a connection; otherwise it expires there. What has
    /// not left is lost. Close the connection behind it.
    pub fn end(&mut self, link: &mut dyn Link) {
        if self.phase == Phase::Active && self.connection == Some(link.id()) {
            let _ = link.send(&wire::end());
        }
        self.phase = Phase::Apart;
        self.token = None;
    }

    /// The server has answered: sends all that has not arrived there.
    fn activate(&mut self, link: &mut dyn Link) {
        self.phase = Phase::Active;
        self.progress(link);
        self.ring.rewind();
        // It says that the new token has arrived: the server forgets the old one.
        self.acknowledge(link);
    }

    fn handle_message<'a>(
        &mut self,
        link: &mut dyn Link,
        message: Numbered<'a>,
    ) -> Result<Event<'a>, WireError> {
        let Numbered { number, payload } = message;
        if number != self.received + 1 {
            // One that has arrived already, or, of a transport that loses, one behind a gap.
            if number > self.received && link.transport().is_reliable() {
                return Err(WireError::Invalid);
            }
            self.acknowledge(link);
            return Ok(Event::Nothing);
        }
        self.received = number;
        let Unacknowledged {
            messages, bytes, ..
        } = &mut self.unacknowledged;
        *messages = messages.saturating_add(1);
        *bytes = bytes.saturating_add(payload.len() as u32);
        self.flush(link);
        Ok(Event::Message(payload))
    }
}

impl<const N: usize> Default for Client<N> {
    fn default() -> Self {
        Self::new()
    }
}
