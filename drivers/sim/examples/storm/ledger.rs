//! What each side sent and received: the handlers of both sides, and the book they keep.

use bytes::Bytes;
use cubenet_sim::{CloseReason, ConnectError, Handler, Link, Message, SendError, Transport};
use siphasher::sip::SipHasher13;
use std::collections::BTreeMap;
use std::hash::Hasher;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const HEAD: usize = 16;

/// A message that contains its connect, its number, and a checksum.
pub(crate) fn message(connect: u32, number: u32, filler: usize) -> Vec<u8> {
    let mut message = vec![0; HEAD];
    message.extend((0..filler).map(|at| (at as u32 ^ number) as u8));
    message[..4].copy_from_slice(&connect.to_le_bytes());
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

/// The connect and the number of a message; `None` if it is damaged.
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

/// What is known of one connect, from both its ends.
#[derive(Clone, Debug)]
struct Entry {
    transport: Transport,
    connected: bool,
    accepted: bool,
    /// Messages that the client's `send` accepted.
    sent: u32,
    /// Of those, that the server received.
    received: u32,
    /// Answers that the server's `send` accepted.
    answered: u32,
    /// Of those, that the client received.
    answers_received: u32,
    client_closed: Option<CloseReason>,
    server_closed: Option<CloseReason>,
}

#[derive(Default)]
struct Book {
    entries: Vec<Entry>,
    /// The connects, by the address that each comes from.
    clients: BTreeMap<(bool, SocketAddr), u32>,
    failures: Vec<String>,
    damaged: u64,
    delivered_in_full: u64,
    received_in_full: u64,
}

/// The book that both sides keep.
#[derive(Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<Book>>);

impl Ledger {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn connect(&self, transport: Transport) -> u32 {
        let mut book = self.book();
        book.entries.push(Entry {
            transport,
            connected: false,
            accepted: false,
            sent: 0,
            received: 0,
            answered: 0,
            answers_received: 0,
            client_closed: None,
            server_closed: None,
        });
        book.entries.len() as u32 - 1
    }

    /// The connect comes from this address.
    pub(crate) fn connects_from(&self, connect: u32, transport: Transport, address: SocketAddr) {
        let stream = transport == Transport::Tcp;
        self.book().clients.insert((stream, address), connect);
    }

    /// The client that connects from this address; `None` if it was forged.
    pub(crate) fn client(&self, transport: Transport, address: SocketAddr) -> Option<u32> {
        let stream = transport == Transport::Tcp;
        self.book().clients.get(&(stream, address)).copied()
    }

    /// The sky has been clear for a while: a connection that is still there at both ends has
    /// received everything.
    pub(crate) fn all_is_received(&self) {
        let mut book = self.book();
        let Book {
            entries,
            failures,
            received_in_full,
            ..
        } = &mut *book;
        for (connect, entry) in entries.iter().enumerate() {
            let open = entry.client_closed.is_none() && entry.server_closed.is_none();
            if entry.transport != Transport::Tcp || !entry.connected || !entry.accepted || !open {
                continue;
            }
            *received_in_full += 1;
            if entry.received != entry.sent || entry.answers_received != entry.answered {
                failures.push(format!(
                    "connect {connect}: something is stuck on its way: {entry:?}"
                ));
            }
        }
    }

    pub(crate) fn connects(&self) -> usize {
        self.book().entries.len()
    }

    pub(crate) fn connected(&self, connect: u32, yes: bool) {
        let mut book = self.book();
        let entry = &mut book.entries[connect as usize];
        if entry.connected {
            book.failures
                .push(format!("connect {connect} was reported twice"));
        } else {
            entry.connected = yes;
        }
    }

    pub(crate) fn sent(&self, connect: u32) {
        self.book().entries[connect as usize].sent += 1;
    }

    pub(crate) fn fail(&self, failure: String) {
        self.book().failures.push(failure);
    }

    pub(crate) fn failures(&self) -> Vec<String> {
        self.book().failures.clone()
    }

    /// A side that saw an orderly close of a stream must have received everything.
    pub(crate) fn settle(&self) {
        let mut book = self.book();
        let Book {
            entries,
            failures,
            delivered_in_full,
            ..
        } = &mut *book;
        for (connect, entry) in entries.iter().enumerate() {
            if entry.transport != Transport::Tcp {
                continue;
            }
            let pairs = [
                ("server", entry.server_closed, entry.received, entry.sent),
                (
                    "client",
                    entry.client_closed,
                    entry.answers_received,
                    entry.answered,
                ),
            ];
            for (side, closed, received, sent) in pairs {
                if closed != Some(CloseReason::Peer) {
                    continue;
                }
                *delivered_in_full += 1;
                if received != sent {
                    failures.push(format!(
                        "connect {connect}: the {side} saw an orderly end and received {received} of \
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
            entries.fold((0_u64, 0_u64), |(sent, received), entry| {
                (
                    sent + u64::from(entry.sent),
                    received + u64::from(entry.received),
                )
            })
        };
        let ((tcp_sent, tcp_received), (udp_sent, udp_received)) =
            (of(Transport::Tcp), of(Transport::Udp));
        format!(
            "TCP: {tcp_sent} messages sent, {tcp_received} received, each whole, in order and once; {} \
             orderly ends, each after everything; {} connections open to the last, nothing stuck\n\
             UDP: {udp_sent} sent, {udp_received} received; {} damaged or forged and detected",
            book.delivered_in_full, book.received_in_full, book.damaged
        )
    }
}

/// What either end checks.
struct End {
    transport: Transport,
    ledger: Ledger,
    connect: Option<u32>,
    /// The next message of a stream.
    next: u32,
    closed: bool,
}

impl End {
    fn fail(&self, what: &str) {
        let connect = self.connect;
        self.ledger.fail(format!(
            "connect {connect:?} over {}: {what}",
            self.transport
        ));
    }

    /// Checks a message. Returns its connect, if it is whole.
    fn received(&mut self, message: &[u8]) -> Option<u32> {
        if self.closed {
            self.fail("a message after the end");
        }
        let stream = self.transport == Transport::Tcp;
        let Some((connect, number)) = read(message) else {
            self.ledger.book().damaged += 1;
            if stream {
                self.fail("a message of a stream is damaged");
            }
            return None;
        };
        if stream && self.connect != Some(connect) {
            self.fail("a message of another connection");
        }
        if stream && number != self.next {
            self.fail(&format!("message {number} came, {} was next", self.next));
        }
        self.next = number + 1;
        Some(connect)
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
        let connect = ledger.client(transport, peer);
        if let Some(connect) = connect {
            ledger.book().entries[connect as usize].accepted = true;
        }
        let end = End {
            transport,
            ledger,
            connect,
            next: 0,
            closed: false,
        };
        Server { end, refused: None }
    }

    fn answer(&mut self, link: &mut dyn Link, message: &[u8]) -> bool {
        let answer = link.send(message);
        if let (Ok(()), Some(connect)) = (answer, self.end.connect) {
            self.end.ledger.book().entries[connect as usize].answered += 1;
        }
        answer != Err(SendError::Full)
    }
}

impl Handler for Server {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        let Some(connect) = self.end.received(&message) else {
            return;
        };
        self.end.ledger.book().entries[connect as usize].received += 1;
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
        if let Some(connect) = self.end.connect {
            self.end.ledger.book().entries[connect as usize].server_closed = Some(reason);
        }
    }
}

/// Checks the answers.
pub(crate) struct Client {
    end: End,
}

impl Client {
    pub(crate) fn new(connect: u32, transport: Transport, ledger: Ledger) -> Self {
        let end = End {
            transport,
            ledger,
            connect: Some(connect),
            next: 0,
            closed: false,
        };
        Client { end }
    }

    /// Its connect succeeded or failed.
    fn connect_ended(&self, connected: bool) {
        if let Some(connect) = self.end.connect {
            self.end.ledger.connected(connect, connected);
        }
    }
}

impl Handler for Client {
    fn connected(&mut self, _link: &mut dyn Link) {
        self.connect_ended(true);
    }

    fn connect_failed(&mut self, _error: ConnectError) {
        self.connect_ended(false);
        self.end.closed = true;
    }

    fn received(&mut self, _link: &mut dyn Link, message: Message<'_>) {
        if let Some(connect) = self.end.received(&message) {
            self.end.ledger.book().entries[connect as usize].answers_received += 1;
        }
    }

    fn closed(&mut self, _link: &mut dyn Link, reason: CloseReason) {
        self.end.closed();
        if let Some(connect) = self.end.connect {
            self.end.ledger.book().entries[connect as usize].client_closed = Some(reason);
        }
    }
}
