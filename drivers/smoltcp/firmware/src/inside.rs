//! What is needed to measure inside of the device, where both ends are: its network, the
//! count of instructions, and what is sent.

use crate::board::HERTZ;
use crate::clock::Clock;
use crate::loopback::Loopback;
use crate::println;
use core::net::SocketAddr;
use smoltcp::iface::{Config, Interface};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr, Ipv4Address, Ipv4Cidr};

/// The device's own address.
pub const ADDRESS: Ipv4Address = Ipv4Address::new(127, 0, 0, 1);
/// Where the serving end is.
pub const SERVER: SocketAddr = SocketAddr::new(core::net::IpAddr::V4(ADDRESS), 7);
/// Bytes of a ring, and of the datagrams of a port each way.
pub const BYTES: usize = 512;
/// What goes there and back.
pub const MESSAGE: [u8; 64] = [0x55; 64];
/// Round trips before those that count: connecting, and the first measurement of the way.
pub const WARM_UP: u32 = 20;
/// Round trips that count.
pub const COUNTED: u32 = 500;

/// The interface of the network inside the device.
pub fn interface(mut loopback: &mut Loopback) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = 42;
    let mut interface = Interface::new(config, &mut loopback, Instant::ZERO);
    interface.update_ip_addrs(|addresses| {
        let address = IpCidr::Ipv4(Ipv4Cidr::new(ADDRESS, 8));
        addresses.push(address).expect("there is room for one");
    });
    interface
}

/// Counts round trips and, from the first that counts to the last, instructions.
pub struct Count {
    round_trips: u32,
    began: u64,
}

impl Count {
    /// Nothing has been counted.
    pub const fn new() -> Self {
        Count {
            round_trips: 0,
            began: 0,
        }
    }

    /// One round trip more. Prints what one cost, and is true, when it was the last.
    pub fn round_trip(&mut self, clock: &Clock, of: &str) -> bool {
        self.round_trips += 1;
        if self.round_trips == WARM_UP {
            self.began = clock.cycles();
        }
        let is_last = self.round_trips == WARM_UP + COUNTED;
        if is_last {
            let cycles = clock.cycles() - self.began;
            println!("{of} {}", instructions(cycles) / COUNTED);
        }
        is_last
    }
}

impl Default for Count {
    fn default() -> Self {
        Count::new()
    }
}

/// QEMU, run with `-icount shift=10`, lets 1,024 ns pass for every instruction.
fn instructions(cycles: u64) -> u32 {
    (cycles * 1_000_000_000 / u64::from(HERTZ) / 1_024) as u32
}
