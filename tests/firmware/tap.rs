//! The echo server and the kernel's own TCP, over a tap in a network namespace, with delay and
//! loss between the two.
//!
//! The delay and the loss are made here, between the tap and QEMU: `tc netem` would do the
//! same, but not every kernel has it.

use crate::board::{BOARDS, PATIENCE, build};
use crate::wire::start;
use cubenet_tests::system::tap::{DEVICE, Tap, enter, have_taps};
use cubenet_tests::{framed, pattern};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// One way; a round trip takes twice as long.
const DELAY: Duration = Duration::from_millis(10);
/// Of a hundred frames, each way.
const LOST: u64 = 3;

/// Carries frames between the tap and QEMU.
struct Relay {
    tap: Tap,
    socket: UnixDatagram,
    board: PathBuf,
    random: u64,
    /// With the moment at which each arrives.
    to_board: VecDeque<(Instant, Vec<u8>)>,
    to_kernel: VecDeque<(Instant, Vec<u8>)>,
    lost: usize,
}

impl Relay {
    fn is_lost(&mut self) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let lost = self.random % 100 < LOST;
        self.lost += usize::from(lost);
        lost
    }

    fn go_on(&mut self) {
        let now = Instant::now();
        while let Some(frame) = self.tap.take() {
            if !self.is_lost() {
                self.to_board.push_back((now + DELAY, frame));
            }
        }
        let mut buffer = [0; 2_048];
        while let Ok(len) = self.socket.recv(&mut buffer) {
            if !self.is_lost() {
                let frame = buffer[..len].to_vec();
                self.to_kernel.push_back((now + DELAY, frame));
            }
        }
        while self.to_board.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, frame)) = self.to_board.pop_front() {
                let _ = self.socket.send_to(&frame, &self.board);
            }
        }
        while self.to_kernel.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, frame)) = self.to_kernel.pop_front() {
                self.tap.give(frame);
            }
        }
    }
}

/// Messages there and back through the kernel's own TCP.
fn round_trips(count: usize) {
    let address = (DEVICE, 7).into();
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).expect("the board listens");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a socket option");
    let messages: Vec<_> = (0..count).map(|nth| pattern(nth * 131 % 1_023)).collect();
    let bytes: Vec<u8> = messages
        .iter()
        .flat_map(|message| framed(message))
        .collect();
    let mut writer = stream.try_clone().expect("a second handle");
    let all = bytes.clone();
    let writer = std::thread::spawn(move || writer.write_all(&all).expect("all is taken"));
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).expect("all comes back");
    writer.join().expect("it has written");
    assert!(back == bytes, "other bytes came back");
    stream.shutdown(Shutdown::Write).expect("it is open");
    let rest = stream.read(&mut [0]).expect("it ends in order");
    assert_eq!(rest, 0);
}

#[test]
fn the_kernels_tcp_gets_through_delay_and_loss() {
    if !have_taps() {
        return;
    }
    for name in BOARDS {
        let Some(programs) = build(name) else {
            return;
        };
        // The namespace is this thread's, and QEMU needs none.
        let trial = std::thread::spawn(move || {
            let relay: Arc<OnceLock<Mutex<Relay>>> = Arc::default();
            let moving = Arc::clone(&relay);
            let (tap, _pump) = enter(1_500, move || {
                if let Some(relay) = moving.get() {
                    relay.lock().expect("no thread panicked with it").go_on();
                }
            });
            let end = |which| {
                let name = format!("cubenet-tap-{name}-{which}-{}", std::process::id());
                std::env::temp_dir().join(name)
            };
            let ends = [end("here"), end("board")];
            let socket = UnixDatagram::bind(&ends[0]).expect("the path is ours");
            socket.set_nonblocking(true).expect("a socket option");
            let _board = start(name, &programs, &ends);
            let relay = relay.get_or_init(|| {
                Mutex::new(Relay {
                    tap,
                    socket,
                    board: ends[1].clone(),
                    random: 0x9e37_79b9_7f4a_7c15,
                    to_board: VecDeque::new(),
                    to_kernel: VecDeque::new(),
                    lost: 0,
                })
            });
            for _ in 0..3 {
                round_trips(60);
            }
            let lost = relay.lock().expect("no thread panicked with it").lost;
            println!("{name}: {lost} frames were lost");
            assert!(lost > 5, "{name}: {lost} lost frames are too few to tell");
            for end in ends {
                std::fs::remove_file(end).expect("it is ours");
            }
        });
        trial.join().expect("it gets through");
    }
}
