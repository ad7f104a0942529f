//! The echo server over tokio, on one thread.
//!
//! `tokio_server tcp|udp PORT`

use bytes::BytesMut;
use futures_util::{StreamExt, TryStreamExt};
use std::collections::HashMap;
use std::error::Error;
use std::net::SocketAddr;
use std::time::Instant;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::codec::LengthDelimitedCodec;

/// What a server remembers of a datagram peer.
struct Peer {
    messages: u64,
    last: Instant,
}

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [transport, port] = &words[..] else {
        return Err("usage: tokio_server tcp|udp PORT".into());
    };
    let address: SocketAddr = format!("127.0.0.1:{port}").parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        match &**transport {
            "udp" => datagrams(address).await,
            _ => streams(address).await,
        }
    })
}

async fn streams(address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(echo(stream));
    }
}

/// `forward` writes when no further message is there, so that a batch leaves in one write.
async fn echo(stream: TcpStream) {
    let framed = LengthDelimitedCodec::builder()
        .length_field_length(2)
        .max_frame_length(65_535)
        .new_framed(stream);
    let (sink, messages) = framed.split();
    let _ = messages.map_ok(BytesMut::freeze).forward(sink).await;
}

/// A table of peers, as cubenet keeps one.
async fn datagrams(address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let socket = UdpSocket::bind(address).await?;
    let mut peers: HashMap<SocketAddr, Peer> = HashMap::new();
    let mut bytes = vec![0; 65_536];
    loop {
        let (len, from) = socket.recv_from(&mut bytes).await?;
        let now = Instant::now();
        let peer = peers.entry(from).or_insert(Peer {
            messages: 0,
            last: now,
        });
        peer.messages += 1;
        peer.last = now;
        socket.send_to(&bytes[..len], from).await?;
    }
}
