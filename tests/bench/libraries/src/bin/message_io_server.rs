//! The echo server over message-io, on its one thread.
//!
//! `message_io_server tcp|udp PORT`
//!
//! Its own framing has a length of variable size, so the server frames messages itself.

use message_io::network::{Endpoint, NetEvent, Transport};
use message_io::node;
use std::collections::HashMap;
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [transport, port] = &words[..] else {
        return Err("usage: message_io_server tcp|udp PORT".into());
    };
    let datagrams = transport == "udp";
    let transport = if datagrams {
        Transport::Udp
    } else {
        Transport::Tcp
    };
    let (handler, listener) = node::split::<()>();
    handler
        .network()
        .listen(transport, format!("127.0.0.1:{port}"))?;
    // Bytes of frames that have not arrived whole.
    let mut begun: HashMap<Endpoint, Vec<u8>> = HashMap::new();
    let mut out = Vec::new();
    listener.for_each(move |event| match event.network() {
        NetEvent::Message(from, bytes) if datagrams => {
            handler.network().send(from, bytes);
        }
        NetEvent::Message(from, bytes) => {
            let begun = begun.entry(from).or_default();
            out.clear();
            if begun.is_empty() {
                let rest = echo(bytes, &mut out);
                begun.extend_from_slice(rest);
            } else {
                begun.extend_from_slice(bytes);
                let rest = echo(begun, &mut out).len();
                begun.drain(..begun.len() - rest);
            }
            if !out.is_empty() {
                handler.network().send(from, &out);
            }
        }
        NetEvent::Disconnected(peer) => {
            begun.remove(&peer);
        }
        NetEvent::Accepted(..) | NetEvent::Connected(..) => {}
    });
    Ok(())
}

/// Answers each whole message; returns what is left of the bytes.
fn echo<'a>(mut bytes: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
    while let Some((header, behind)) = bytes.split_first_chunk::<2>() {
        let Some((message, behind)) =
            behind.split_at_checked(usize::from(u16::from_be_bytes(*header)))
        else {
            break;
        };
        out.extend_from_slice(header);
        out.extend_from_slice(message);
        bytes = behind;
    }
    bytes
}
