//! Who sent what and who heard it: the handlers of both sides, and the book they keep.

use bytes::Bytes;
use cubenet_sim::{CloseReason, ConnectError, Handler, Link, Message, SendError, Transport};
use siphasher::sip::SipHasher13;
use std::collections::BTreeMap;
use std::hash::Hasher;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const HEAD: usize = 16;

/// A message that tells whose it is, the how manyeth, and whether it is whole.
pub(crate) fn message(call: u32, number: u32, filler: usize) -> Vec<u8> {
    let mut message = vec![0; HEAD];
    message.extend((0..filler).map(|at| (at as u32 ^ number) as u8));
    message[..4].copy_from_slice(&call.to_le_bytes());
    message[4..8].copy_from_slice(&number.to_le_bytes());
    let sum = checksum(&message);
    message[8..HEAD].copy_from_slice(&sum.to_le_bytes());
    message
}

fn checksum(message: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(&message[..8]);
    hasher.write(&message[HEAD..]);
    hasher.finish()
}

/// Whose a message is and the how manyeth; `None` if it is damaged.
fn read(message: &[u8]) -> Option<(u32, u32)> {
    let (head, _) = message.split_first_chunk::<HEAD>()?;
    let sum = u64::from_le_bytes(head[8..].try_into().ok()?);
    if sum != checksum(message) {
        return None;
    }
    let number = |at: usize| {
        let bytes = [head[at], head[at + 1], head[at + 2], head[at + 3]];
        u32::from_le_bytes(bytes)
    };
    Some((number(0), number(4)))
}

/// What is known of one call, from both its ends.
#[derive(Clone, Debug)]
struct Entry {
    transport: Transport,
    connected: bool,
    accepted: bool,
    /// Messages that the client's `send` accepted.
    sent: u32,
    /// Of those, that the server heard.
    heard: u32,
    /// Answers that the server's `send` accepted.
    answered: u32,
    /// Of those, that the client heard.
    answers_heard: u32,
    client_closed: Option<CloseReason>,
    server_closed: Option<CloseReason>,
}

#[derive(Default)]
struct Book {
    entries: Vec<Entry>,
    /// Whose call comes from where.
    callers: BTreeMap<(bool, SocketAddr), u32>,
    failures: Vec<String>,
    damaged: u64,
    delivered_in_full: u64,
    heard_in_full: u64,
}

/// The book that both sides keep.
#[derive(Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<Book>>);

impl Ledger {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn call(&self, transport: Transport) -> u32 {
        let mut book = self.book();
        book.entries.push(Entry {
            transport,
            connected: false,
            accepted: false,
            sent: 0,
            heard: 0,
            answered: 0,
            answers_heard: 0,
            client_closed: None,
            server_closed: None,
        });
        book.entries.len() as u32 - 1
    }

    /// The call comes from this address.
    pub(crate) fn calls_from(&self, call: u32, transport: Transport, address: SocketAddr) {
        let stream = transport == Transport::Tcp;
        self.book().callers.insert((stream, address), call);
    }

    /// The client that connects from this address; `None` if it was forged.
    pub(crate) fn caller(&self, transport: Transport, address: SocketAddr) -> Option<u32> {
        let stream = transport == Transport::Tcp;
        self.book().callers.get(&(stream, address)).copied()
    }

    /// The sky has been clear for a while: a connection that is still there at both ends has
    /// heard everything.
    pub(crate) fn all_is_heard(&self) {
        let mut book = self.book();
        let Book {
            entries,
            failures,
            heard_in_full,
            ..
        } = &mut *book;
        for (call, entry) in entries.iter().enumerate() {
            let open = entry.client_closed.is_none() && entry.server_closed.is_none();
            if entry.transport != Transport::Tcp || !entry.connected || !entry.accepted || !open {
                continue;
            }
            *heard_in_full += 1;
            if entry.heard != entry.sent || entry.answers_heard != entry.answered {
                failures.push(format!(
                    "call {call}: something is stuck on its way: {entry:?}"
                ));
            }
        }
    }

    pub(crate) fn calls(&self) -> usize {
        self.book().entries.len()
    }

    pub(crate) fn connected(&self, call: u32, yes: bool) {
        let mut book = self.book();
        let entry = &mut book.entries[call as usize];
        if entry.connected {
            book.failures
                .push(format!("call {call} was told twice how it went"));
        } else {
            entry.connected = yes;
        }
    }

    pub(crate) fn sent(&self, call: u32) {
        self.book().entries[call as usize].sent += 1;
    }

    pub(crate) fn fail(&self, failure: String) {
        self.book().failures.push(failure);
    }

    pub(crate) fn failures(&self) -> Vec<String> {
        self.book().failures.clone()
    }

    /// A side that was told of an orderly close of a stream must have received everything.
    pub(crate) fn settle(&self) {
        let mut book = self.book();
        let Book {
            entries,
            failures,
            delivered_in_full,
            ..
        } = &mut *book;
        for (call, entry) in entries.iter().enumerate() {
            if entry.transport != Transport::Tcp {
                continue;
            }
            let pairs = [
                ("server", entry.server_closed, entry.heard, entry.sent),
                (
                    "client",
                    entry.client_closed,
                    entry.answers_heard,
                    entry.answered,
                ),
            ];
            for (who, closed, heard, sent) in pairs {
                if closed != Some(CloseReason::Peer) {
                    continue;
                }
                *delivered_in_full += 1;
                if heard != sent {
                    failures.push(format!(
                        "call {call}: the {who} was told of an orderly end and heard {heard} of \
                         {sent} messages: {entry:?}"
                    ));
                }
            }
        }
    }

    pub(crate) fn summary(&self) -> String {
        let book = self.book();
        let of = |transport| {
            let entries = book.entries.iter();
            let entries = entries.filter(move |entry| entry.transport == transport);
            entries.fold((0_u64, 0_u64), |(sent, heard), entry| {
                (sent + u64::from(entry.sent), heard + u64::from(entry.heard))
            })
        };
        let ((tcp_sent, tcp_heard), (udp_sent, udp_heard)) =
            (of(Transport::Tcp), of(Transport::Udp));
        format!(
            "TCP: {tcp_sent} messages sent, {tcp_heard} heard, each whole, in order and once; {} \
             orderly ends, each after everything; {} connections open to the last, nothing stuck\n\
             UDP: {udp_sent} sent, {udp_heard} heard; {} damaged or forged and told apart",
            book.delivered_in_full, book.heard_in_full, book.damaged
        )
    }
}

/// What either end checks.
struct End {
    transport: Transport,
    ledger: Ledger,
    call: Option<u32>,
    /// The next message of a stream.
    next: u32,
    closed: bool,
}

impl End {
    fn fail(&self, what: &str) {
        let call = self.call;
        self.ledger
            .fail(format!("call {call:?} over {}: {what}", self.transport));
    }

    /// Checks a message. Returns whose it is, if it is whole.
    fn heard(&mut self, message: &[u8]) -> Option<u32> {
        if self.closed {
            self.fail("a message after the end");
        }
        let stream = self.transport == Transport::Tcp;
        let Some((call, number)) = read(message) else {
            self.ledger.book().damaged += 1;
            if stream {
                self.fail("a message of a stream is damaged");
            }
            return None;
        };
        if stream && self.call != Some(call) {
            self.fail("a message of another connection");
        }
        if stream && number != self.next {
            self.fail(&format!("message {number} came, {} was next", self.next));
        }
        self.next = number + 1;
        Some(call)
    }

    fn closed(&mut self) {
        if std::mem::replace(&mut self.closed, true) {
            self.fail("it closed twice");
        }
    }
}

/// Sends every message back; reads no more while there is no room.
pub(crate) struct Server {
    end: End,
    refused: Option<Bytes>,
}

impl Server {
    pub(crate) fn new(transport: Transport, peer: SocketAddr, ledger: Ledger) -> Self {
        let call = ledger.caller(transport, peer);
        if let Some(call) = call {
            ledger.book().entries[call as usize].accepted = true;
        }
        let end = End {
            transport,
            ledger,
            call,
            next: 0,
            closed: false,
        };
        Server { end, refused: None }
    }

    fn answer(&mut self, link: &mut dyn Link, message: &[u8]) -> bool {
        let answer = link.send(message);
        if let (Ok(()), Some(call)) = (answer, self.end.call) {
            self.end.ledger.book().entries[call as usize].answered += 1;
        }
        answer != Err(SendError::Full)
    }
}

impl Handler for Server {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        let Some(call) = self.end.heard(&message) else {
            return;
        };
        self.end.ledger.book().entries[call as usize].heard += 1;
        if !self.answer(link, &message) {
            self.refused = Some(message.into_bytes());
            link.pause();
        }
    }

    fn writable(&mut self, link: &mut dyn Link) {
        if let Some(message) = self.refused.take() {
            if !self.answer(link, &message) {
                self.end.fail("there was to be room");
            }
            link.resume();
        }
    }

    fn closed(&mut self, _link: &mut dyn Link, reason: CloseReason) {
        self.end.closed();
        if let Some(call) = self.end.call {
            self.end.ledger.book().entries[call as usize].server_closed = Some(reason);
        }
    }
}

/// Checks the answers.
pub(crate) struct Client {
    end: End,
}

impl Client {
    pub(crate) fn new(call: u32, transport: Transport, ledger: Ledger) -> Self {
        let end = End {
            transport,
            ledger,
            call: Some(call),
            next: 0,
            closed: false,
        };
        Client { end }
    }

    /// It is told how its connect went.
    fn told(&self, connected: bool) {
        if let Some(call) = self.end.call {
            self.end.ledger.connected(call, connected);
        }
    }
}

impl Handler for Client {
    fn connected(&mut self, _link: &mut dyn Link) {
        self.told(true);
    }

    fn connect_failed(&mut self, _error: ConnectError) {
        self.told(false);
        self.end.closed = true;
    }

    fn received(&mut self, _link: &mut dyn Link, message: Message<'_>) {
        if let Some(call) = self.end.heard(&message) {
            self.end.ledger.book().entries[call as usize].answers_heard += 1;
        }
    }

    fn closed(&mut self, _link: &mut dyn Link, reason: CloseReason) {
        self.end.closed();
        if let Some(call) = self.end.call {
            self.end.ledger.book().entries[call as usize].client_closed = Some(reason);
        }
    }
}
