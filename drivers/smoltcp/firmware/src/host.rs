//! The device's address on the network that QEMU makes: 10.0.2.15, the gateway is 10.0.2.2.

use crate::board::{self, Ethernet};
use crate::clock::Clock;
use cubenet_core::Instant;
use smoltcp::iface::{Config, Interface};
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Address, Ipv4Cidr};

/// Its own address.
pub const ADDRESS: Ipv4Address = Ipv4Address::new(10, 0, 2, 15);
/// The gateway, which is the machine that runs QEMU.
pub const GATEWAY: Ipv4Address = Ipv4Address::new(10, 0, 2, 2);

const HARDWARE_ADDRESS: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

/// The interface and its device.
pub fn start(now: Instant) -> (Interface, Ethernet) {
    let mut device = board::ethernet(HARDWARE_ADDRESS);
    let mut config = Config::new(EthernetAddress(HARDWARE_ADDRESS).into());
    config.random_seed = now.as_micros();
    let now = smoltcp::time::Instant::from_micros(now.as_micros() as i64);
    let mut interface = Interface::new(config, &mut device, now);
    interface.update_ip_addrs(|addresses| {
        let address = IpCidr::Ipv4(Ipv4Cidr::new(ADDRESS, 24));
        addresses.push(address).expect("there is room for one");
    });
    let route = interface.routes_mut().add_default_ipv4_route(GATEWAY);
    route.expect("there is room for one");
    (interface, device)
}

/// What peers must not know. These boards have no source of randomness: a product takes it
/// from one, or from what it was given when it was made.
pub fn key(clock: &Clock) -> (u64, u64) {
    (clock.cycles(), 0x6375_6265_6e65_7421)
}
