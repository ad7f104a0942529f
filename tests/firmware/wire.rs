//! The echo server behind a wire that loses, doubles, reorders and damages frames: QEMU hands
//! each frame to this process as a datagram, where smoltcp is the client.

use crate::board::{BOARDS, Board, PATIENCE, build};
use cubenet_tests::{framed, pattern};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

/// What a wire does to how many of a hundred frames.
const LOST: u64 = 3;
const DOUBLED: u64 = 3;
const HELD_BACK: u64 = 3;
const DAMAGED: u64 = 3;

/// A wire with faults, both ways.
#[derive(Clone)]
struct Wire(Rc<RefCell<Inner>>);

struct Inner {
    socket: UnixDatagram,
    board: PathBuf,
    random: u64,
    /// Frames that arrived, after the faults.
    arrived: VecDeque<Vec<u8>>,
    /// Frames that were overtaken: one each way.
    held_back: [Option<Vec<u8>>; 2],
    /// Faults so far.
    faults: u32,
}

impl Inner {
    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    /// What becomes of a frame that goes this way.
    fn through(&mut self, way: usize, mut frame: Vec<u8>) -> Vec<Vec<u8>> {
        let fate = self.random(100);
        self.faults += u32::from(fate < LOST + DOUBLED + HELD_BACK + DAMAGED);
        let mut out = match fate {
            fate if fate < LOST => vec![],
            fate if fate < LOST + DOUBLED => vec![frame.clone(), frame],
            fate if fate < LOST + DOUBLED + HELD_BACK => {
                return self.held_back[way].replace(frame).into_iter().collect();
            }
            fate if fate < LOST + DOUBLED + HELD_BACK + DAMAGED => {
                let (at, bit) = (self.random(frame.len() as u64), self.random(8));
                frame[at as usize] ^= 1 << bit;
                vec![frame]
            }
            _ => vec![frame],
        };
        out.extend(self.held_back[way].take());
        out
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        let mut buffer = [0; 2_048];
        while let Ok(len) = self.socket.recv(&mut buffer) {
            let frames = self.through(0, buffer[..len].to_vec());
            self.arrived.extend(frames);
        }
        self.arrived.pop_front()
    }

    fn send(&mut self, frame: Vec<u8>) {
        for frame in self.through(1, frame) {
            let _ = self.socket.send_to(&frame, &self.board);
        }
    }
}

impl Device for Wire {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Wire;

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1_514;
        capabilities
    }

    fn receive(&mut self, _now: Instant) -> Option<(Frame, Wire)> {
        let frame = self.0.borrow_mut().receive()?;
        Some((Frame(frame), self.clone()))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Wire> {
        Some(self.clone())
    }
}

struct Frame(Vec<u8>);

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Wire {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = vec![0; len];
        let result = write(&mut frame);
        self.0.borrow_mut().send(frame);
        result
    }
}

/// A client on the wire.
struct Client {
    interface: Interface,
    wire: Wire,
    sockets: SocketSet<'static>,
    start: std::time::Instant,
}

impl Client {
    fn new(wire: Wire) -> Self {
        let mut device = wire.clone();
        let mut config = Config::new(EthernetAddress([2, 0, 0, 0, 0, 1]).into());
        config.random_seed = 7;
        let mut interface = Interface::new(config, &mut device, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            let address = IpCidr::new(IpAddress::v4(10, 0, 2, 2), 24);
            addresses.push(address).expect("there is room for one");
        });
        Client {
            interface,
            wire,
            sockets: SocketSet::new(vec![]),
            start: std::time::Instant::now(),
        }
    }

    fn poll(&mut self) {
        let now = Instant::from_micros(self.start.elapsed().as_micros() as i64);
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        std::thread::sleep(Duration::from_micros(200));
    }

    /// Sends all of this to the board's port 7, and returns what comes back of the same
    /// length.
    fn there_and_back(&mut self, bytes: &[u8], port: u16) -> Vec<u8> {
        let ring = || tcp::SocketBuffer::new(vec![0; 4_096]);
        let mut socket = tcp::Socket::new(ring(), ring());
        socket.set_nagle_enabled(false);
        let handle = self.sockets.add(socket);
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        let board = (IpAddress::v4(10, 0, 2, 15), 7);
        socket
            .connect(self.interface.context(), board, port)
            .expect("it is closed");
        let (mut sent, mut back) = (0, Vec::new());
        let start = std::time::Instant::now();
        while back.len() < bytes.len() {
            assert!(
                start.elapsed() < PATIENCE,
                "{sent} sent, {} back",
                back.len()
            );
            let socket = self.sockets.get_mut::<tcp::Socket>(handle);
            assert!(
                socket.is_open(),
                "it ended: {sent} sent, {} back",
                back.len()
            );
            if socket.may_send() {
                sent += socket.send_slice(&bytes[sent..]).expect("it is open");
            }
            while socket.can_recv() {
                let _ = socket.recv(|part| {
                    back.extend_from_slice(part);
                    (part.len(), ())
                });
            }
            self.poll();
        }
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        socket.close();
        for _ in 0..50 {
            self.poll();
        }
        self.sockets.remove(handle);
        back
    }
}

pub(crate) fn start(name: &str, programs: &Path, ends: &[PathBuf; 2]) -> Board {
    let model = if name == "mps2-an385" {
        "lan9118"
    } else {
        "stellaris"
    };
    let [here, board] = ends.each_ref().map(|path| path.display());
    let mut qemu = Command::new("qemu-system-arm");
    qemu.args([
        "-M",
        name,
        "-nographic",
        "-monitor",
        "none",
        "-serial",
        "stdio",
    ]);
    qemu.args(["-semihosting-config", "enable=on,target=native"]);
    qemu.arg("-netdev").arg(format!(
        "dgram,id=wire,local.type=unix,local.path={board},remote.type=unix,remote.path={here}"
    ));
    qemu.args(["-net", &format!("nic,netdev=wire,model={model}"), "-kernel"]);
    let mut started = Board::start(qemu.arg(programs.join("echo")));
    started.wait_for("READY");
    started
}

#[test]
fn messages_arrive_whole_and_in_order_over_a_faulty_wire() {
    for name in BOARDS {
        let Some(programs) = build(name) else {
            return;
        };
        let end = |which| {
            let name = format!("cubenet-{name}-{which}-{}", std::process::id());
            std::env::temp_dir().join(name)
        };
        let ends = [end("here"), end("board")];
        let socket = UnixDatagram::bind(&ends[0]).expect("the path is ours");
        socket.set_nonblocking(true).expect("a socket option");
        let _board = start(name, &programs, &ends);
        let wire = Wire(Rc::new(RefCell::new(Inner {
            socket,
            board: ends[1].clone(),
            random: 0x9e37_79b9_7f4a_7c15,
            arrived: VecDeque::new(),
            held_back: [None, None],
            faults: 0,
        })));
        let mut client = Client::new(wire.clone());
        for nth in 0..2 {
            let messages = (0..60).map(|nth| framed(&pattern((nth * 197) % 1_023)));
            let bytes = messages.collect::<Vec<_>>().concat();
            let back = client.there_and_back(&bytes, 40_000 + nth);
            assert!(back == bytes, "{name}: other bytes came back");
        }
        let faults = wire.0.borrow().faults;
        println!("{name}: {faults} faults");
        assert!(faults > 20, "{name}: {faults} faults are too few to tell");
        for end in ends {
            std::fs::remove_file(end).expect("it is ours");
        }
    }
}
