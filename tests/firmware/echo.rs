//! The echo server on each board: whole messages through everything that a network and its
//! users can do to it.

use crate::board::{BOARDS, Board, PATIENCE, build};
use cubenet_tests::{framed, pattern};
use socket2::SockRef;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a stream of the firmware may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// The longest message and datagram of the firmware.
const MAX_MESSAGE: usize = 1022;
const MAX_DATAGRAM: usize = 1472;

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("the board listens");
    stream.set_nodelay(true).expect("a socket option");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a socket option");
    stream
}

fn receive(stream: &mut TcpStream) -> Vec<u8> {
    let mut header = [0; 2];
    stream.read_exact(&mut header).expect("an answer");
    let mut message = vec![0; usize::from(u16::from_be_bytes(header))];
    stream.read_exact(&mut message).expect("all of it");
    message
}

/// Round trips of every length, one after the other.
fn stream_round_trips(address: SocketAddr, count: usize) {
    let mut stream = connect(address);
    for nth in 0..count {
        let message = pattern(nth * MAX_MESSAGE / (count - 1));
        stream.write_all(&framed(&message)).expect("it is taken");
        assert!(receive(&mut stream) == message, "round trip {nth}");
    }
}

/// The same lengths, all on their way at once.
fn stream_bulk(address: SocketAddr, count: usize) {
    let mut stream = connect(address);
    let messages: Vec<_> = (0..count)
        .map(|nth| pattern(nth * MAX_MESSAGE / (count - 1)))
        .collect();
    let bytes: Vec<u8> = messages
        .iter()
        .flat_map(|message| framed(message))
        .collect();
    let mut writer = stream.try_clone().expect("a second handle");
    let writer = std::thread::spawn(move || writer.write_all(&bytes).expect("all is taken"));
    for (nth, message) in messages.iter().enumerate() {
        assert!(receive(&mut stream) == *message, "message {nth} of many");
    }
    writer.join().expect("it has written");
}

/// The same lengths, sent a byte at a time. So that they arrive so, too, there is a pause after
/// each of the first.
fn stream_byte_by_byte(address: SocketAddr, count: usize) {
    let mut stream = connect(address);
    for nth in 0..count {
        let message = pattern(nth * MAX_MESSAGE / (count - 1));
        for (place, byte) in framed(&message).into_iter().enumerate() {
            stream.write_all(&[byte]).expect("it is taken");
            if place < 8 {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        assert!(receive(&mut stream) == message, "byte by byte, {nth}");
    }
}

fn datagram_round_trips(address: SocketAddr, count: usize) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.connect(address).expect("a socket option");
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .expect("a socket option");
    let mut buffer = [0; 2048];
    let mut again = 0;
    for nth in 0..count {
        let datagram = pattern(1 + nth * (MAX_DATAGRAM - 1) / (count - 1));
        // A datagram may be lost even here; an answer to one that was sent again may be old.
        'sent: loop {
            socket.send(&datagram).expect("it is taken");
            while let Ok(len) = socket.recv(&mut buffer) {
                if buffer[..len] == datagram {
                    break 'sent;
                }
            }
            again += 1;
            assert!(again <= count / 100, "more than one in a hundred is lost");
        }
    }
    // The way to close it.
    socket.send(b"").expect("it is taken");
}

fn one_after_another(address: SocketAddr, count: usize) {
    for nth in 0..count {
        let mut stream = connect(address);
        stream
            .write_all(&framed(&pattern(nth % 50)))
            .expect("it is taken");
        assert!(
            receive(&mut stream) == pattern(nth % 50),
            "connection {nth}"
        );
        if nth % 2 == 0 {
            // Either side may be the first to end.
            stream.shutdown(Shutdown::Write).expect("it is open");
            let _ = stream.read(&mut [0]);
        }
    }
}

fn at_once(address: SocketAddr, count: usize) {
    let mut streams: Vec<_> = (0..count).map(|_| connect(address)).collect();
    for round in 0..20 {
        for (nth, stream) in streams.iter_mut().enumerate() {
            stream
                .write_all(&framed(&[nth as u8, round]))
                .expect("it is taken");
        }
        for (nth, stream) in streams.iter_mut().enumerate() {
            assert_eq!(receive(stream), [nth as u8, round]);
        }
    }
}

fn resets(address: SocketAddr, count: usize) {
    for nth in 0..count {
        let mut stream = connect(address);
        stream
            .write_all(&framed(b"bye")[..nth % 6])
            .expect("it is taken");
        let at_once = Some(Duration::ZERO);
        SockRef::from(&stream)
            .set_linger(at_once)
            .expect("a socket option");
    }
}

/// A header that declares more than the limit ends the connection, after what was sent
/// before it was answered.
fn too_long(address: SocketAddr) {
    let mut stream = connect(address);
    let too_long = (MAX_MESSAGE as u16 + 1).to_be_bytes();
    stream
        .write_all(&[framed(b"last"), too_long.to_vec()].concat())
        .expect("it is taken");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("it ends in order");
    assert_eq!(rest, framed(b"last"));
}

fn random_bytes(tcp: SocketAddr, udp: SocketAddr, duration: Duration) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.connect(udp).expect("a socket option");
    socket.set_nonblocking(true).expect("a socket option");
    let start = Instant::now();
    while start.elapsed() < duration {
        let mut stream = connect(tcp);
        stream.set_nonblocking(true).expect("a socket option");
        for _ in 0..random() % 20 {
            let len = (random() % 2_000) as usize;
            let bytes: Vec<u8> = (0..len).map(|_| random() as u8).collect();
            let _ = stream.write(&bytes);
            let _ = stream.read(&mut [0; 4_096]);
            let _ = socket.send(&bytes[..len.min(MAX_DATAGRAM)]);
            let _ = socket.recv(&mut [0; 2_048]);
        }
    }
}

fn round_trips(board: &Board) {
    stream_round_trips(board.port("tcp 7"), 1_000);
    datagram_round_trips(board.port("udp 7"), 1_000);
}

#[test]
fn a_board_serves_on_after_abuse() {
    for name in BOARDS {
        let Some(programs) = build(name) else {
            return;
        };
        let mut board = Board::run(name, &programs.join("echo"), &[]);
        let (tcp, udp) = (board.port("tcp 7"), board.port("udp 7"));
        let processes = board.processes();
        assert!(!processes.is_empty(), "QEMU is a child of `run`");
        // It sleeps when there is nothing to do.
        let before = board.processor_time();
        std::thread::sleep(Duration::from_secs(3));
        let spent = board.processor_time().saturating_sub(before);
        assert!(
            spent < Duration::from_millis(300),
            "{name}: {spent:?} of 3 s while idle"
        );
        round_trips(&board);
        stream_byte_by_byte(tcp, 1_000);
        stream_bulk(tcp, 1_000);
        one_after_another(tcp, 500);
        at_once(tcp, 8);
        resets(tcp, 50);
        // They came faster than the board has streams; those it has are free again soon.
        std::thread::sleep(Duration::from_millis(500));
        // Abandoned: they neither read nor close, until the board closes them as idle.
        let abandoned: Vec<_> = (0..3).map(|_| connect(tcp)).collect();
        too_long(tcp);
        random_bytes(tcp, udp, Duration::from_secs(10));
        drop(abandoned);
        round_trips(&board);
        let quit = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        // QEMU opens a connection to the board for each of ours, however late and even if ours was
        // reset meanwhile; it does not reset such a one, so the board closes it as idle.
        std::thread::sleep(IDLE + Duration::from_secs(2));
        quit.send_to(b"quit", board.port("udp 9"))
            .expect("it is taken");
        let open: usize = board.wait_for("open").parse().expect("a number");
        // The socket that asks for the end is one of them.
        assert!(open <= 3, "{name}: {open} connections are left");
        assert!(board.ended_well(), "{name} ends with status 0");
        for process in processes {
            let there = Path::new("/proc").join(process.to_string()).exists();
            assert!(!there, "{name}: process {process} is left");
        }
    }
}
