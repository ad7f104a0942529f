//! Whatever happens, in any order: connects, messages, closes, unknown peers, garbage, a device without room,
//! addresses that go and come, time. A seed says what.

use crate::world::{Family, World, limits, start, with_each_family};
use cubenet_smoltcp::smoltcp::wire::IpCidr;
use cubenet_smoltcp::{ConnectionId, Listener, Transport};
use std::time::Duration;

/// Hosts that are there, and some that are not.
const LIVING: [u8; 3] = [10, 11, 12];
const MISSING: [u8; 3] = [90, 91, 92];

struct Storm {
    random: fastrand::Rng,
    world: World,
    ids: Vec<ConnectionId>,
    listeners: Vec<Listener>,
}

impl Storm {
    fn new(seed: u64, family: Family) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let short = |random: &mut fastrand::Rng| Duration::from_millis(random.u64(200..20_000));
        let limits = limits()
            .with_connect_timeout(short(&mut random))
            .with_drain_timeout(short(&mut random))
            .with_write_stall_timeout(short(&mut random))
            .with_stream_idle_timeout(short(&mut random))
            .with_datagram_idle_timeout(short(&mut random))
            .with_first_message_timeout(short(&mut random))
            .with_frame_timeout(short(&mut random));
        let mut world = start(family, limits).unwrap();
        world.wire().living.extend(LIVING);
        if random.bool() {
            world.network.set_streams_per_address(random.usize(1..4));
        }
        Storm {
            random,
            world,
            ids: Vec::new(),
            listeners: Vec::new(),
        }
    }

    fn transport(&mut self) -> Transport {
        [Transport::Tcp, Transport::Udp][self.random.usize(0..2)]
    }

    fn host(&mut self) -> u8 {
        let hosts = [&LIVING[..], &MISSING].concat();
        hosts[self.random.usize(0..hosts.len())]
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let len = self.random.usize(0..=most);
        (0..len).map(|_| self.random.u8(..)).collect()
    }

    /// A connection of this end, or of one that was accepted.
    fn some_id(&mut self) -> Option<ConnectionId> {
        let accepted = self.world.log.accepted();
        let ids = [&self.ids[..], &accepted].concat();
        if ids.is_empty() {
            return None;
        }
        Some(ids[self.random.usize(0..ids.len())])
    }

    fn step(&mut self) {
        match self.random.u32(0..100) {
            0..4 if self.listeners.len() < 2 => {
                let transport = self.transport();
                let port = 7 + self.listeners.len() as u16;
                let listener = self.world.try_listen_at(transport, port);
                self.listeners.extend(listener);
            }
            4 => {
                if let Some(listener) = self.listeners.pop() {
                    self.world.network.close_listener(listener);
                }
            }
            5..14 => {
                let transport = self.transport();
                let connected = match self.random.u32(0..4) {
                    0 => {
                        let host = self.host();
                        let there = (self.world.family.host(host), 9);
                        self.world.connect_to(transport, there)
                    }
                    1 => self
                        .world
                        .connect_to(transport, (self.world.family.far(), 9)),
                    _ => self.world.connect(transport),
                };
                self.ids.extend(connected);
            }
            14..40 => {
                if let Some(id) = self.some_id() {
                    let message = self.bytes(120);
                    let _ = self.world.send(id, &message);
                }
            }
            40..46 => {
                let what = self.random.u32(0..4);
                if let Some(id) = self.some_id() {
                    let now = self.world.now;
                    self.world.network.with(id, now, |link| match what {
                        0 => link.close(),
                        1 => link.abort(),
                        2 => link.pause(),
                        _ => link.resume(),
                    });
                }
            }
            46..52 => {
                let (host, port) = (self.host(), self.random.u16(1..20));
                self.world.receive_syn(host, port);
            }
            52..62 => {
                let (host, from) = (self.host(), self.random.u16(1..20));
                let (to, payload) = (self.random.u16(6..10), self.bytes(120));
                self.world.receive_datagram(host, from, to, &payload);
            }
            62..66 => {
                // Of any protocol, and of none.
                let (host, protocol) = (self.host(), self.random.u8(..));
                let garbage = self.bytes(80);
                self.world.wire().receive(host, protocol, &garbage);
            }
            66..68 => {
                let mut frame = self.bytes(100);
                frame.resize(frame.len().max(14), 0);
                self.world.wire().incoming.push_back(frame);
            }
            68..71 => {
                let room = self.random.usize(0..4);
                self.world.wire().room = room.checked_sub(1);
            }
            71..73 => self.world.wire().room = None,
            73 => self.change_addresses(),
            74..90 => self.world.network.poll(self.world.now),
            _ => {
                let micros = 10_u64.pow(self.random.u32(0..8));
                let time = Duration::from_micros(self.random.u64(0..=micros));
                // Connections that write whenever they can are never content.
                if self.world.wire().room.is_none() && time < Duration::from_secs(1) {
                    self.world.pass(time);
                } else {
                    self.world.now = self.world.now.after(time);
                    self.world.network.poll(self.world.now);
                }
            }
        }
        let (opened, closed) = (
            self.world.log.count("opened"),
            self.world.log.count("closed"),
        );
        assert!(closed <= opened, "closed is called once");
        self.world.polls = 0;
    }

    /// The device loses its addresses, or has them again.
    fn change_addresses(&mut self) {
        let family = self.world.family;
        let prefix = if family.host(0).is_ipv4() { 24 } else { 64 };
        let interface = &mut self.world.network.stack().interface;
        interface.update_ip_addrs(|addresses| {
            if addresses.is_empty() {
                for own in family.own() {
                    let cidr = format!("{own}/{prefix}").parse::<IpCidr>();
                    let _ = addresses.push(cidr.unwrap());
                }
            } else {
                addresses.clear();
            }
        });
    }

    /// It stops, and nothing is left.
    fn end(mut self, seed: u64) {
        self.world.wire().room = None;
        self.world.wire().incoming.clear();
        let deadline = Duration::from_secs(self.random.u64(0..10));
        self.world.network.stop(deadline, self.world.now);
        self.world.pass(deadline + Duration::from_secs(30));
        assert!(self.world.network.is_stopped(), "seed {seed}");
        assert_eq!(self.world.network.open(), 0, "seed {seed}");
        let (opened, closed) = (
            self.world.log.count("opened"),
            self.world.log.count("closed"),
        );
        assert_eq!(opened, closed, "seed {seed}: closed is called for each");
    }
}

#[test]
fn nothing_is_lost_reported_twice_or_left() {
    with_each_family(|family| {
        for seed in 0..600 {
            let mut storm = Storm::new(seed, family);
            for _ in 0..200 {
                storm.step();
            }
            storm.end(seed);
        }
    });
}
