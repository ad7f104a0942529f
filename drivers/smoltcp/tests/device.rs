//! What is the smoltcp driver's own: memory, ports, clocks, and when it wants to be polled. One
//! network, which talks to itself over smoltcp's loopback, in virtual time.

use cubenet_smoltcp::smoltcp::iface::{Config, Interface, SocketStorage};
use cubenet_smoltcp::smoltcp::phy::{Loopback, Medium};
use cubenet_smoltcp::smoltcp::wire::{HardwareAddress, IpCidr};
use cubenet_smoltcp::{
    Bytes, CloseReason, ConnectionId, Error, FullPolicy, Handler, Instant, Limits, Link, Memory,
    Message, Network, PortMemory, SendError, StreamMemory, Transport,
};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

/// What happened, in order.
#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl Log {
    fn add(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }

    fn count(&self, what: &str) -> usize {
        let log = self.0.lock().unwrap();
        log.iter().filter(|line| line.starts_with(what)).count()
    }
}

#[derive(Clone, Copy)]
struct Echo(&'static Log);

impl Handler for Echo {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        self.0.add(format!("received {}", message.len()));
        if link.local().port() == 7 {
            let _ = link.send(&message);
        }
    }

    fn writable(&mut self, _link: &mut dyn Link) {
        self.0.add("writable".to_owned());
    }

    fn closed(&mut self, _link: &mut dyn Link, reason: CloseReason) {
        self.0.add(format!("closed {reason:?}"));
    }
}

const RING: usize = 256;

struct World {
    network: Network<'static, Loopback, Echo>,
    now: Instant,
    log: &'static Log,
    /// Polls so far.
    polls: usize,
}

fn leak<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

fn limits() -> Limits {
    Limits {
        max_message: RING - 2,
        max_datagram: 100,
        ..Limits::default()
    }
}

fn start(limits: Limits) -> Result<World, Error> {
    let mut device = Loopback::new(Medium::Ip);
    let config = Config::new(HardwareAddress::Ip);
    let now = cubenet_smoltcp::smoltcp::time::Instant::ZERO;
    let mut interface = Interface::new(config, &mut device, now);
    interface.update_ip_addrs(|addresses| {
        let address: IpCidr = "127.0.0.1/8".parse().unwrap();
        addresses.push(address).unwrap();
    });
    let receive = leak(Bytes::<{ 4 * RING }>::new()).lend();
    let transmit = leak(Bytes::<{ 4 * RING }>::new()).lend();
    let memory = Memory {
        sockets: leak([const { SocketStorage::EMPTY }; 7]),
        streams: leak(StreamMemory::<Echo, 4, 2>::new()).lend(receive, transmit),
        ports: leak([const { None }; 3]),
        scratch: leak(Bytes::<RING>::new()).lend(),
        early: leak([0; 64]),
    };
    let mut network = Network::new(interface, device, memory, limits, (1, 2))?;
    // A port on which nothing could be received is refused, and takes no place.
    let deaf = leak(PortMemory::<Echo, 2, 0>::new()).lend(leak([0; 64]), leak([0; 64]));
    assert!(matches!(network.add_port(deaf), Err(Error::Memory(_))));
    for _ in 0..3 {
        let port = leak(PortMemory::<Echo, 2, 4>::new());
        let bytes = [(); 2].map(|()| leak(Bytes::<256>::new()).lend());
        let [receive, transmit] = bytes;
        network.add_port(port.lend(receive, transmit))?;
    }
    Ok(World {
        network,
        now: Instant::from_micros(1),
        log: leak(Log::default()),
        polls: 0,
    })
}

impl World {
    fn listen(&mut self, transport: Transport) {
        let log = self.log;
        let accepted = leak(move |_: &mut dyn Link| Some(Echo(log)));
        let any = SocketAddr::from(([0, 0, 0, 0], 7));
        self.network.listen(transport, any, accepted).unwrap();
    }

    fn call(&mut self, transport: Transport) -> Result<ConnectionId, Error> {
        let log = self.log;
        let connected = leak(move |outcome: Result<&mut dyn Link, _>| {
            let _ = outcome.ok()?;
            Some(Echo(log))
        });
        let there = SocketAddr::from(([127, 0, 0, 1], 7));
        self.network.connect(transport, there, connected, self.now)
    }

    fn send(&mut self, id: ConnectionId, message: &[u8]) -> Option<Result<(), SendError>> {
        self.network.with(id, self.now, |link| link.send(message))
    }

    /// Polls when the network wants to be, for so long.
    fn pass(&mut self, time: Duration) {
        let end = self.now.after(time);
        loop {
            self.network.poll(self.now);
            self.polls += 1;
            assert!(self.polls < 100_000, "it is never content");
            let at = self.network.poll_at(self.now);
            if at > end {
                break;
            }
            // The loopback says nothing of what lies in it.
            self.now = at.max(self.now.after(Duration::from_micros(50)));
        }
        // What the loopback holds by then.
        for _ in 0..20 {
            self.network.poll(self.now);
        }
        self.now = end.max(self.now);
    }
}

const MOMENT: Duration = Duration::from_millis(300);

#[test]
fn messages_of_every_length_go_round_the_rings() {
    let mut world = start(limits()).unwrap();
    world.listen(Transport::Tcp);
    let id = world.call(Transport::Tcp).unwrap();
    for len in (0..RING - 2).chain([RING - 2]) {
        world.pass(MOMENT);
        assert_eq!(world.send(id, &vec![7; len]), Some(Ok(())));
    }
    world.pass(MOMENT);
    assert_eq!(world.log.count("received"), 2 * (RING - 1));
    assert_eq!(world.log.count("received 254"), 2);
    let refused = world.send(id, &[7; RING - 1]);
    let (len, limit) = (RING - 1, RING - 2);
    assert_eq!(refused, Some(Err(SendError::TooLong { len, limit })));
}

#[test]
fn a_stream_that_waits_for_late_segments_keeps_nobody_awake() {
    let mut world = start(limits()).unwrap();
    world.listen(Transport::Tcp);
    let id = world.call(Transport::Tcp).unwrap();
    world.pass(MOMENT);
    world
        .network
        .with(id, world.now, |link| link.close())
        .unwrap();
    world.pass(MOMENT);
    assert_eq!(world.log.count("closed"), 2);
    let before = world.polls;
    world.pass(Duration::from_mins(1));
    assert!(world.polls - before < 40, "{} polls", world.polls - before);
    assert_eq!(world.network.poll_at(world.now), Instant::NEVER);
}

#[test]
fn datagrams_that_keep_leaving_are_not_given_up() {
    let limits = Limits {
        write_stall_timeout: Duration::from_secs(1),
        ..limits()
    };
    let mut world = start(limits).unwrap();
    world.listen(Transport::Udp);
    let id = world.call(Transport::Udp).unwrap();
    for _ in 0..300 {
        assert_eq!(world.send(id, &[7; 50]), Some(Ok(())));
        world.pass(Duration::from_millis(10));
    }
    assert_eq!(world.network.counts().stalled, 0);
    assert_eq!(world.log.count("received"), 600);
}

#[test]
fn datagrams_sent_before_every_poll_are_not_given_up() {
    let limits = Limits {
        write_stall_timeout: Duration::from_secs(1),
        ..limits()
    };
    let mut world = start(limits).unwrap();
    let id = world.call(Transport::Udp).unwrap();
    for _ in 0..1_000 {
        assert_eq!(world.send(id, &[7; 50]), Some(Ok(())));
        world.network.poll(world.now);
        world.now = world.now.after(Duration::from_millis(5));
    }
    assert_eq!(world.network.counts().stalled, 0);
}

#[test]
fn a_port_that_was_freed_keeps_nobody_awake() {
    let mut world = start(limits()).unwrap();
    let id = world.call(Transport::Udp).unwrap();
    let ask = |link: &mut dyn Link| {
        link.send(b"x").unwrap();
        link.abort();
    };
    world.network.with(id, world.now, ask).unwrap();
    world.pass(Duration::from_mins(2));
    assert_eq!(world.network.poll_at(world.now), Instant::NEVER);
}

#[test]
fn a_port_with_little_memory_lets_the_longest_silent_make_way() {
    let limits = Limits {
        full_policy: FullPolicy::EvictSilentFor(Duration::from_millis(100)),
        ..limits()
    };
    let mut world = start(limits).unwrap();
    world.listen(Transport::Udp);
    // There is room for two peers; the first caller goes without a word.
    for _ in 0..3 {
        let id = world.call(Transport::Udp).unwrap();
        world.send(id, b"hello").unwrap().unwrap();
        world.pass(MOMENT);
        world
            .network
            .with(id, world.now, |link| link.abort())
            .unwrap();
        world.pass(MOMENT);
    }
    assert_eq!(world.log.count("closed Overflow"), 1);
    assert_eq!(world.log.count("received 5"), 6);
}

#[test]
fn a_port_is_free_again_once_its_call_has_ended() {
    let mut world = start(limits()).unwrap();
    world.listen(Transport::Udp);
    for _ in 0..10 {
        let first = world.call(Transport::Udp).unwrap();
        let second = world.call(Transport::Udp).unwrap();
        let none = world.call(Transport::Udp).unwrap_err();
        assert!(none.to_string().contains("add_port"), "{none}");
        for id in [first, second] {
            world
                .network
                .with(id, world.now, |link| link.close())
                .unwrap();
        }
        world.pass(Duration::from_millis(1));
        assert!(world.network.with(first, world.now, |_| ()).is_none());
    }
}

#[test]
fn after_full_there_is_a_writable() {
    let mut world = start(limits()).unwrap();
    world.listen(Transport::Tcp);
    let id = world.call(Transport::Tcp).unwrap();
    // Before the answer, too.
    while world.send(id, &[7; 20]) == Some(Ok(())) {}
    world.pass(MOMENT);
    assert_eq!(world.log.count("writable"), 1);
    while world.send(id, &[7; 100]) == Some(Ok(())) {}
    world.pass(MOMENT);
    assert_eq!(world.log.count("writable"), 2);
}

#[test]
fn it_stops_soon() {
    let mut world = start(limits()).unwrap();
    for transport in [Transport::Tcp, Transport::Udp] {
        world.listen(transport);
        let id = world.call(transport).unwrap();
        world.send(id, b"hello").unwrap().unwrap();
        world.pass(MOMENT);
    }
    world.network.stop(Duration::from_secs(5), world.now);
    world.pass(MOMENT);
    assert!(world.network.is_stopped());
    assert_eq!(world.log.count("closed"), 4);
    assert!(matches!(world.call(Transport::Tcp), Err(Error::Stopped)));
}

#[test]
fn memory_that_does_not_fit_is_refused_with_a_reason() {
    let long = Limits {
        max_message: RING - 1,
        ..limits()
    };
    let error = start(long).err().unwrap().to_string();
    assert!(
        error.contains("max_message") && error.contains("receive ring"),
        "{error}"
    );
    let long = Limits {
        max_datagram: RING + 1,
        ..limits()
    };
    let error = start(long).err().unwrap().to_string();
    assert!(
        error.contains("max_datagram") && error.contains("scratch"),
        "{error}"
    );
}
