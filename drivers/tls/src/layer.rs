//! TLS as a layer: one connection of rustls, which is given the records that have arrived where they
//! lie, and whose own records go straight to the wire.

use crate::error::layer_error;
use cubenet_core::{Identity, LayerError, LayerState};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError,
    UnbufferedStatus, WriteTraffic,
};
use rustls::{CommonState, HandshakeKind};

/// The connection of a client or of a server.
pub(crate) trait Side {
    type Data;

    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    fn common(&self) -> &CommonState;
}

macro_rules! side {
    ($connection:ty, $data:ty) => {
        impl Side for $connection {
            type Data = $data;

            fn process<'c, 'i>(
                &'c mut self,
                bytes: &'i mut [u8],
            ) -> UnbufferedStatus<'c, 'i, $data> {
                self.process_tls_records(bytes)
            }

            fn common(&self) -> &CommonState {
                self
            }
        }
    };
}

side!(UnbufferedClientConnection, ClientConnectionData);
side!(UnbufferedServerConnection, ServerConnectionData);

/// What a record needs beside what it carries, at most: its header, its content type, the
/// authentication tag, and in TLS 1.2 the nonce.
const RECORD_OVERHEAD: usize = 64;
/// What a record carries, at most.
const RECORD: usize = 1 << 14;

/// One connection of TLS.
pub(crate) struct Tls<S> {
    side: S,
    /// Records, or messages of a handshake, of which a part has arrived. rustls has changed some of
    /// it in place, and knows where in it that is.
    held: Vec<u8>,
    is_open: bool,
    /// This side has said that it ends.
    is_closed: bool,
    has_ended: bool,
    error: Option<LayerError>,
}

impl<S: Side> Tls<S> {
    pub(crate) fn new(side: S) -> Self {
        Tls {
            side,
            held: Vec::new(),
            is_open: false,
            is_closed: false,
            has_ended: false,
            error: None,
        }
    }

    /// Sends what comes first.
    pub(crate) fn begin(&mut self, wire: &mut Vec<u8>) {
        self.process(&mut [], &mut Vec::new(), wire);
    }

    pub(crate) fn handle_input(
        &mut self,
        input: &mut [u8],
        stream: &mut Vec<u8>,
        wire: &mut Vec<u8>,
    ) {
        // Behind its own end nothing is received; and rustls, which takes `close_notify` for an alert,
        // panics (with the assertions of debug builds) if it then has another to send.
        if self.error.is_some() || self.has_ended || self.is_closed {
            return;
        }
        if self.held.is_empty() {
            let done = self.process(input, stream, wire);
            // An exact copy: most connections hold nothing, and the others should hold no more.
            self.held = input[done..].to_vec();
            return;
        }
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(input);
        let done = self.process(&mut held, stream, wire);
        if done < held.len() {
            held.drain(..done);
            self.held = held;
        }
    }

    /// Lets rustls go on with these records. Returns how many of their bytes are done with.
    fn process(&mut self, input: &mut [u8], stream: &mut Vec<u8>, wire: &mut Vec<u8>) -> usize {
        let mut done = 0;
        loop {
            let UnbufferedStatus { mut discard, state } = self.side.process(&mut input[done..]);
            let mut goes_on = true;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        match record {
                            Ok(record) => {
                                stream.extend_from_slice(record.payload);
                                discard += record.discard;
                            }
                            Err(error) => self.error = Some(layer_error(&error)),
                        }
                    }
                }
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, wire),
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.has_ended = true,
                Ok(ConnectionState::ReadEarlyData(_)) => {
                    let problem = "the peer sent early data, which is not accepted";
                    self.error = Some(LayerError::new(problem));
                    goes_on = false;
                }
                Ok(_) => goes_on = false,
                Err(error) => {
                    self.error.get_or_insert_with(|| layer_error(&error));
                }
            }
            done += discard;
            self.is_open |= !self.side.common().is_handshaking();
            // Behind an error rustls only has something to say: an alert.
            let says_more = self.error.is_some() && self.side.common().wants_write();
            if !says_more && (!goes_on || self.error.is_some()) {
                return done;
            }
        }
    }

    /// Does something with the connection while it can send. Nothing of what has arrived is whole,
    /// so there is nothing else for rustls to do but what it has to say by itself.
    fn with_traffic(
        &mut self,
        wire: &mut Vec<u8>,
        send: impl FnOnce(&mut WriteTraffic<'_, S::Data>, &mut Vec<u8>) -> Result<(), EncryptError>,
    ) {
        let mut send = Some(send);
        while self.error.is_none() {
            let UnbufferedStatus { state, .. } = self.side.process(&mut self.held);
            match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    if let Some(send) = send.take()
                        && let Err(error) = send(&mut traffic, wire)
                    {
                        self.error = Some(LayerError::new(error.to_string()));
                    }
                    return;
                }
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, wire),
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.has_ended = true,
                Ok(_) => return,
                Err(error) => {
                    self.error.get_or_insert_with(|| layer_error(&error));
                    return;
                }
            }
        }
    }

    pub(crate) fn handle_output(&mut self, stream: &[&[u8]], wire: &mut Vec<u8>) {
        // Mostly it is one piece: what was gathered.
        let joined;
        let bytes = match stream {
            [bytes] | [bytes, []] => *bytes,
            pieces => {
                joined = pieces.concat();
                &joined[..]
            }
        };
        if bytes.is_empty() {
            return;
        }
        self.with_traffic(wire, |traffic, wire| {
            let records = bytes.len().div_ceil(RECORD);
            let room = bytes.len() + records * RECORD_OVERHEAD;
            encrypt(wire, room, |room| traffic.encrypt(bytes, room))
        });
    }

    pub(crate) fn handle_close(&mut self, wire: &mut Vec<u8>) {
        self.with_traffic(wire, |traffic, wire| {
            encrypt(wire, RECORD_OVERHEAD, |room| {
                traffic.queue_close_notify(room)
            })
        });
        self.is_closed = true;
        self.held = Vec::new();
    }

    pub(crate) fn is_established(&self) -> bool {
        self.is_open
    }

    pub(crate) fn state(&self) -> LayerState<'_> {
        match &self.error {
            Some(error) => LayerState::Failed(error),
            None if self.has_ended => LayerState::Ended,
            None if self.is_open => LayerState::Open,
            None => LayerState::Handshaking,
        }
    }

    pub(crate) fn held(&self) -> usize {
        self.held.capacity()
    }

    pub(crate) fn identify(&self, identity: &mut Identity) {
        let common = self.side.common();
        identity.set_protocol(match common.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLS 1.2",
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3",
            _ => "TLS",
        });
        identity.set_resumed(common.handshake_kind() == Some(HandshakeKind::Resumed));
        // What this has not agreed on was not agreed on, whatever a layer before it has said.
        let suite = common.negotiated_cipher_suite();
        let suite = suite.and_then(|suite| suite.suite().as_str());
        identity.set_cipher(suite.map(str::to_owned));
        identity.set_alpn(common.alpn_protocol().map(<[u8]>::to_vec));
        if let Some(certificates) = common.peer_certificates() {
            let certificates = certificates.iter().map(|one| one.to_vec());
            identity.set_certificates(certificates.collect());
        }
    }
}

/// Appends what rustls has to say by itself.
fn encode<D>(mut data: EncodeTlsData<'_, D>, wire: &mut Vec<u8>) {
    append(wire, 0, |room| match data.encode(room) {
        Ok(written) => Ok(written),
        Err(EncodeError::InsufficientSize(size)) => Err(Some(size)),
        Err(EncodeError::AlreadyEncoded) => Err(None),
    });
}

/// The same as [`append`], for what encrypts.
fn encrypt(
    wire: &mut Vec<u8>,
    room: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>,
) -> Result<(), EncryptError> {
    let mut failed = None;
    append(wire, room, |room| match write(room) {
        Ok(written) => Ok(written),
        Err(EncryptError::InsufficientSize(size)) => Err(Some(size)),
        Err(error) => {
            failed = Some(error);
            Err(None)
        }
    });
    failed.map_or(Ok(()), Err)
}

/// Lets `write` write behind what is in `wire`, with so much room, or with as much as it asks for.
fn append(
    wire: &mut Vec<u8>,
    room: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<InsufficientSizeError>>,
) {
    let before = wire.len();
    let mut room = room;
    loop {
        wire.resize(before + room, 0);
        match write(&mut wire[before..]) {
            Ok(written) => return wire.truncate(before + written),
            Err(Some(size)) if size.required_size > room => room = size.required_size,
            Err(_) => return wire.truncate(before),
        }
    }
}
