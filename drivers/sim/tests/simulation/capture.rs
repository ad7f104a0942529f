//! Captures: what is sent, in a file.

use super::*;
use pcap_file::pcapng::{Block, PcapNgReader};
use std::io::{self, Write};

/// A file in memory, or one on a disk that becomes full.
#[derive(Clone, Default)]
struct File {
    bytes: Arc<Mutex<Vec<u8>>>,
    room: Option<usize>,
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut written = self.bytes.lock().unwrap();
        if self
            .room
            .is_some_and(|room| written.len() + bytes.len() > room)
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        written.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_capture_has_every_packet_at_its_time_and_changes_nothing() {
    let run = |capture: Option<File>| {
        let (conditions, faults) = storm();
        let builder = Simulation::builder().seed(3).conditions(conditions);
        let simulation = builder.faults(faults).build().unwrap();
        if let Some(file) = capture {
            simulation.capture(file).unwrap();
        }
        let (_server, network) = server_and_client(&simulation);
        for nth in 0..20 {
            let transport = [Transport::Tcp, Transport::Udp][nth % 2];
            let connection = network.connect(transport, "10.0.0.1:7000", |_| Echo);
            connection.unwrap().send([1; 3_000]).unwrap();
        }
        simulation.run_for(Duration::from_secs(5));
        simulation.end_capture().unwrap();
        (simulation.trace_hash(), simulation.traffic())
    };
    let file = File::default();
    let (hash, traffic) = run(Some(file.clone()));
    assert_eq!(hash, run(None).0);
    let bytes = file.bytes.lock().unwrap();
    let mut reader = PcapNgReader::new(&bytes[..]).unwrap();
    let (mut packets, mut last) = (0, Duration::ZERO);
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block.unwrap() {
            packets += 1;
            assert!(packet.timestamp >= last && packet.timestamp <= Duration::from_secs(5));
            last = packet.timestamp;
            assert_eq!(packet.data[0] >> 4, 4, "an IPv4 packet");
        }
    }
    let sent = traffic.packets + traffic.control + traffic.duplicated + traffic.spoofed;
    // A segment at which the network resets its connection is not sent.
    assert_eq!(packets, sent - traffic.reset);
}

/// A file whose writes look at a connection.
struct Curious(Connection, Arc<Mutex<usize>>);

impl Write for Curious {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.queued();
        *self.1.lock().unwrap() += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_file_of_a_capture_may_use_a_connection() {
    let simulation = Simulation::new(2);
    let (_server, network) = server_and_client(&simulation);
    let client = Client::default();
    let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
    let written = Arc::new(Mutex::new(0));
    let file = Curious(connection.clone(), Arc::clone(&written));
    simulation.capture(file).unwrap();
    for _ in 0..100 {
        connection.send([0; 1_000]).unwrap();
        simulation.run_for(Duration::from_millis(10));
    }
    assert!(*written.lock().unwrap() > 128 << 10, "while it runs");
    simulation.end_capture().unwrap();
    assert!(*written.lock().unwrap() > 200_000, "and the rest");
}

#[test]
fn a_capture_that_cannot_be_written_says_so_at_its_end() {
    let simulation = Simulation::new(1);
    let file = File {
        room: Some(1_000),
        ..File::default()
    };
    simulation.capture(file).unwrap();
    let (_server, network) = server_and_client(&simulation);
    let client = Client::default();
    let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
    for _ in 0..100 {
        connection.send([0; 100]).unwrap();
        simulation.run_for(Duration::from_millis(10));
    }
    assert_eq!(client.messages().len(), 100, "the simulation goes on");
    let error = simulation.end_capture().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(simulation.end_capture().is_ok(), "there is none any more");
}
