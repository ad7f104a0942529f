//! The client's half of a session, whatever a server says: it sends nothing but well-formed packets, the same
//! message under a number whenever it sends it, and acknowledges and delivers each number once and in order.
//!
//! Read as: steps, each an operation of the application's or a packet of the server's.

use arbitrary::Arbitrary;
use cubenet_core::{ConnectionId, Instant, Link, SendError, Transport};
use cubenet_session::wire::{self, End, Refusal, ToClient, ToServer};
use cubenet_session::{Client, Event, SessionId, Token};
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

/// Bytes for what is not acknowledged: few, so that they are used up.
const MEMORY: usize = 128;

/// What happens.
#[derive(Arbitrary, Debug)]
enum Step<'a> {
    /// Another connection; over a transport that loses, or not.
    Connected {
        loses: bool,
        credentials: u8,
    },
    Disconnected,
    /// A packet with numbers near those that are right.
    Welcome(u8),
    Resumed(u8, i8),
    Message(i8, &'a [u8]),
    Ack(i8),
    Refused(u8, u16),
    Ended(u8),
    Ask,
    /// Any bytes.
    Packet(&'a [u8]),
    /// The same of a connection that is over.
    Late(&'a [u8]),
    Send(u8),
    Keep(u8),
    Flush,
    Acknowledge,
    Wait(u16),
    End,
    /// Whether the link takes anything from now on.
    Takes(bool),
}

/// A link that keeps what is sent.
struct Kept {
    number: u64,
    loses: bool,
    takes: bool,
    now: u64,
    sent: Vec<Vec<u8>>,
}

impl Link for Kept {
    fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        if !self.takes {
            return Err(SendError::Full);
        }
        self.sent.push(message.to_vec());
        Ok(())
    }

    fn close(&mut self) {}

    fn abort(&mut self) {}

    fn is_closed(&self) -> bool {
        false
    }

    fn transport(&self) -> Transport {
        if self.loses {
            Transport::Udp
        } else {
            Transport::Tcp
        }
    }

    fn peer_addr(&self) -> SocketAddr {
        ([127, 0, 0, 1], 1).into()
    }

    fn local_addr(&self) -> SocketAddr {
        ([127, 0, 0, 1], 2).into()
    }

    fn id(&self) -> ConnectionId {
        ConnectionId::from_u64(self.number)
    }

    fn queued(&self) -> usize {
        0
    }

    fn pause(&mut self) {}

    fn resume(&mut self) {}

    fn now(&self) -> Instant {
        Instant::from_micros(self.now)
    }
}

/// What is known of the session from outside.
#[derive(Default)]
struct Model {
    token: Option<Token>,
    attempt: u64,
    received: u64,
    /// What was given to the client to send, by its numbers.
    given: HashMap<u64, Vec<u8>>,
    /// What has happened to it, and to those before.
    reached: BTreeSet<&'static str>,
}

impl Model {
    /// What the client has sent is what it must be.
    fn check(&mut self, link: &mut Kept) {
        for packet in link.sent.drain(..) {
            match ToServer::decode(&packet).expect("a packet is well-formed") {
                ToServer::Login { .. } => assert_eq!(self.token, None),
                ToServer::Resume {
                    token,
                    attempt,
                    received,
                } => {
                    assert_eq!(self.token, Some(token));
                    // Over a transport that loses, one is said again.
                    assert!(attempt > self.attempt || (link.loses && attempt == self.attempt));
                    self.attempt = attempt;
                    assert_eq!(received, self.received);
                }
                ToServer::Message(message) => {
                    assert_eq!(self.given[&message.number], message.payload);
                }
                ToServer::Ack(number) => assert_eq!(number, self.received),
                ToServer::End => {}
            }
        }
    }
}

fn token(secret: u8) -> Token {
    Token::new(SessionId::from_bytes([7; 16]), [secret; 16])
}

fn near(number: u64, by: i8) -> u64 {
    number.wrapping_add_signed(by.into())
}

fn payload(len: u8, number: u64) -> Vec<u8> {
    (0..len).map(|at| at ^ number as u8).collect()
}

/// Panics if `data` breaks the property of this module.
pub fn check(data: &[u8]) {
    run(data);
}

/// The same. Returns what the client was told.
pub fn run(data: &[u8]) -> BTreeSet<&'static str> {
    let Some(steps) = crate::read::<Vec<Step<'_>>>(data) else {
        return BTreeSet::new();
    };
    let mut client = Client::<MEMORY>::new();
    let mut model = Model::default();
    let mut last = 0;
    let mut link = Kept {
        number: 1,
        loses: false,
        takes: true,
        now: 1,
        sent: Vec::new(),
    };
    for step in steps {
        match step {
            Step::Connected { loses, credentials } => {
                (link.number, link.loses) = (link.number + 1, loses);
                if !client.has_session() {
                    model = Model {
                        reached: model.reached,
                        ..Model::default()
                    };
                    last = 0;
                }
                let credentials = vec![0; credentials.into()];
                let _ = client.connected(&mut link, &credentials);
            }
            Step::Disconnected => client.disconnected(&link),
            Step::Welcome(secret) => {
                let packet = wire::welcome(&token(secret)).to_vec();
                receive(&mut client, &mut model, &mut link, &packet);
            }
            Step::Resumed(secret, by) => {
                let packet = wire::resumed(&token(secret), near(last, by)).to_vec();
                receive(&mut client, &mut model, &mut link, &packet);
            }
            Step::Message(by, bytes) => {
                let mut packet = wire::message_header(near(model.received, by)).to_vec();
                packet.extend_from_slice(bytes);
                receive(&mut client, &mut model, &mut link, &packet);
            }
            Step::Ack(by) => {
                let packet = wire::ack(near(last, by)).to_vec();
                receive(&mut client, &mut model, &mut link, &packet);
            }
            Step::Refused(reason, millis) => {
                let reason = [Refusal::UnknownSession, Refusal::Busy][usize::from(reason % 2)];
                let again = Duration::from_millis(millis.into());
                let packet = wire::refused(reason, again).to_vec();
                receive(&mut client, &mut model, &mut link, &packet);
            }
            Step::Ended(reason) => {
                let reason = [End::TakenOver, End::Expired][usize::from(reason % 2)];
                let packet = wire::ended(reason).to_vec();
                receive(&mut client, &mut model, &mut link, &packet);
            }
            Step::Ask => receive(&mut client, &mut model, &mut link, &wire::ask()),
            Step::Packet(bytes) => receive(&mut client, &mut model, &mut link, bytes),
            Step::Late(bytes) => {
                let now = std::mem::replace(&mut link.number, 0);
                let event = client.received(&mut link, bytes);
                assert_eq!(event, Ok(Event::Nothing));
                link.number = now;
            }
            Step::Send(len) | Step::Keep(len) => {
                let message = payload(len, last + 1);
                model.given.insert(last + 1, message.clone());
                let kept = if matches!(step, Step::Send(_)) {
                    client.send(&mut link, &message)
                } else {
                    client.keep(&message)
                };
                match kept {
                    Ok(number) => {
                        last += 1;
                        assert_eq!(number, last);
                    }
                    Err(_) => drop(model.given.remove(&(last + 1))),
                }
            }
            Step::Flush => client.flush(&mut link),
            Step::Acknowledge => client.acknowledge(&mut link),
            Step::Wait(millis) => {
                link.now += 1_000 * u64::from(millis);
                let due = client.poll_timeout();
                client.handle_timeout(&mut link, b"again");
                assert!(due > link.now() || client.poll_timeout() > link.now());
            }
            Step::End => {
                client.end(&mut link);
                model.token = None;
            }
            Step::Takes(takes) => link.takes = takes,
        }
        assert!(client.unacknowledged() <= last);
        assert_eq!(client.has_session(), model.token.is_some());
        model.check(&mut link);
    }
    model.reached
}

/// The server says something. What it means is what it must mean.
fn receive(client: &mut Client<MEMORY>, model: &mut Model, link: &mut Kept, packet: &[u8]) {
    let had = model.token;
    match client.received(link, packet) {
        Ok(Event::Opened) => {
            let Ok(ToClient::Welcome { token }) = ToClient::decode(packet) else {
                panic!("nothing else opens a session");
            };
            assert_eq!(had, None, "there was none");
            model.reached.insert("opened");
            model.token = Some(token);
        }
        Ok(Event::Resumed) => {
            let Ok(ToClient::Resumed { token, .. }) = ToClient::decode(packet) else {
                panic!("nothing else resumes a session");
            };
            assert!(had.is_some(), "there was one");
            model.reached.insert("resumed");
            model.token = Some(token);
        }
        Ok(Event::Message(payload)) => {
            let Ok(ToClient::Message(message)) = ToClient::decode(packet) else {
                panic!("nothing else is a message");
            };
            assert_eq!(message.number, model.received + 1, "once and in order");
            assert_eq!(message.payload, payload);
            model.received += 1;
            model.reached.insert("message");
        }
        Ok(Event::Ended(_)) => {
            model.token = None;
            model.reached.insert("ended");
        }
        Ok(Event::Refused {
            reason: Refusal::UnknownSession,
            ..
        }) => {
            model.token = None;
            model.reached.insert("refused");
        }
        Ok(_) => {}
        Err(_) => {
            model.reached.insert("error");
        }
    }
}
