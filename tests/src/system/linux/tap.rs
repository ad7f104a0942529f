//! A network namespace of a thread's own, with a tap device on which the kernel's network
//! stack exchanges frames with the test.

use nix::sched::{CloneFlags, unshare};
use smoltcp::phy::{
    Device, DeviceCapabilities, Medium, RxToken, TunTapInterface, TxToken, wait as phy_wait,
};
use smoltcp::time::{Duration, Instant};
use std::collections::VecDeque;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

/// The kernel's address in the namespace.
pub const KERNEL: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The address of the other end.
pub const DEVICE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The longest packet, so that the datagrams of most tests go in one piece.
pub const MTU: usize = 9_100;
/// The hardware address of the other end.
pub const HARDWARE: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Whether this process may make namespaces and taps; says so if not.
pub fn have_taps() -> bool {
    let probe = std::thread::spawn(|| {
        let all = unshare(CloneFlags::CLONE_NEWNET).is_ok() && set_up(MTU);
        all && TunTapInterface::new("tap0", Medium::Ethernet).is_ok()
    });
    let may = probe.join().unwrap_or(false);
    let answer = if may { "true" } else { "false" };
    crate::have(
        "right to make network namespaces (be root)",
        &mut Command::new(answer),
    )
}

fn ip(arguments: &str) -> bool {
    let mut ip = Command::new("ip");
    ip.args(arguments.split(' '))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    ip.status().is_ok_and(|status| status.success())
}

fn set_up(mtu: usize) -> bool {
    ip("link set lo up")
        && ip("tuntap add dev tap0 mode tap")
        && ip(&format!("link set tap0 up mtu {mtu}"))
        && ip(&format!("addr add {KERNEL}/24 dev tap0"))
}

fn is_up() -> bool {
    let shown = Command::new("ip").args(["link", "show", "tap0"]).output();
    shown.is_ok_and(|shown| String::from_utf8_lossy(&shown.stdout).contains("state UP"))
}

/// Waits until the kernel and the device at the other end know each other: what is sent while
/// they look for each other may be lost, or overtaken.
pub fn introduce() {
    let socket = UdpSocket::bind((KERNEL, 0)).expect("a free port");
    // To an address without a host.
    socket
        .send_to(b"hello", (DEVICE, 9))
        .expect("it can be sent");
    let knows = || {
        let shown = Command::new("ip")
            .args(["neigh", "show", "dev", "tap0"])
            .output();
        shown.is_ok_and(|shown| String::from_utf8_lossy(&shown.stdout).contains("lladdr"))
    };
    crate::eventually("they know each other", knows);
}

/// Frames on their way, either way.
#[derive(Default)]
struct Frames {
    from_kernel: VecDeque<Vec<u8>>,
    to_kernel: VecDeque<Vec<u8>>,
}

/// The end of the tap that is not the kernel's. It can be used on any thread.
#[derive(Clone)]
pub struct Tap {
    frames: Arc<Mutex<Frames>>,
    mtu: usize,
}

/// Ends the thread behind a [`Tap`].
pub struct Pump {
    ended: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Takes this thread, and those it starts from now on, into a namespace of their own with a
/// tap. `each` is called whenever frames have been moved, and at least every millisecond.
pub fn enter(mtu: usize, each: impl Fn() + Send + 'static) -> (Tap, Pump) {
    unshare(CloneFlags::CLONE_NEWNET).expect("it was tried before");
    assert!(set_up(mtu), "it was tried before");
    let tap = Tap {
        frames: Arc::default(),
        mtu,
    };
    let ended = Arc::new(AtomicBool::new(false));
    let (frames, end) = (Arc::clone(&tap.frames), Arc::clone(&ended));
    let (up, is_running) = channel();
    let thread = std::thread::spawn(move || {
        let mut kernel = TunTapInterface::new("tap0", Medium::Ethernet).expect("it is there");
        // Until it is up, what is sent is lost.
        while !is_up() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let _ = up.send(());
        while !end.load(Ordering::Relaxed) {
            pump(&mut kernel, &frames);
            each();
            pump(&mut kernel, &frames);
            let _ = phy_wait(kernel.as_raw_fd(), Some(Duration::from_millis(1)));
        }
    });
    is_running.recv().expect("the tap can be opened");
    let pump = Pump {
        ended,
        thread: Some(thread),
    };
    (tap, pump)
}

/// Moves what there is to move.
fn pump(kernel: &mut TunTapInterface, frames: &Mutex<Frames>) {
    let mut frames = frames.lock().expect("no thread panicked with it");
    while let Some((frame, _)) = kernel.receive(Instant::ZERO) {
        frames.from_kernel.push_back(frame.consume(<[u8]>::to_vec));
    }
    while let Some(frame) = frames.to_kernel.pop_front() {
        if let Some(token) = kernel.transmit(Instant::ZERO) {
            token.consume(frame.len(), |copy| copy.copy_from_slice(&frame));
        }
    }
}

impl Tap {
    /// The next frame that the kernel sent.
    pub fn take(&self) -> Option<Vec<u8>> {
        let mut frames = self.frames.lock().expect("no thread panicked with it");
        frames.from_kernel.pop_front()
    }

    /// Hands the kernel a frame.
    pub fn give(&self, frame: Vec<u8>) {
        let mut frames = self.frames.lock().expect("no thread panicked with it");
        frames.to_kernel.push_back(frame);
    }
}

impl Device for Tap {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Tap;

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities
    }

    fn receive(&mut self, _now: Instant) -> Option<(Frame, Tap)> {
        Some((Frame(self.take()?), self.clone()))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Tap> {
        Some(self.clone())
    }
}

/// A frame that the kernel sent.
pub struct Frame(Vec<u8>);

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Tap {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = vec![0; len];
        let result = write(&mut frame);
        self.give(frame);
        result
    }
}
