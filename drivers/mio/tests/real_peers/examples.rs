//! What the examples do with an output that is gone, with words they do not understand, and with
//! a server that is not there.

use crate::process::echo_server;
use cubenet_tests::process::{Server, example, text};
use cubenet_tests::system::skipped;
use std::collections::HashSet;
use std::fs::OpenOptions;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

fn zone() -> PathBuf {
    [
        env!("CARGO_MANIFEST_DIR"),
        "tests/real_peers",
        "example.zone",
    ]
    .iter()
    .collect()
}

fn dns() -> Command {
    let mut dns = example("dns");
    dns.args(["--listen", "127.0.0.1:0", "--zone"]).arg(zone());
    dns
}

/// Neither a reader that has gone nor a full device makes them panic.
#[test]
fn an_output_that_cannot_be_written_is_reported_without_a_panic() {
    let (_echo, address) = echo_server();
    let address = address.to_string();
    let mut load = example("load");
    load.args(["--connect", &address, "--seconds", "0.5"]);
    let mut demo = example("demo");
    demo.args(["--tcp", "10", "--udp", "10", "--seconds", "1"]);
    let mut handoff = example("handoff");
    handoff.args(["--seconds", "1"]);
    let mut tick = example("tick");
    tick.args(["--players", "10", "--seconds", "1"]);
    for mut example in [load, demo, handoff, tick] {
        let full = OpenOptions::new().write(true).open("/dev/full");
        let full = full.expect("Linux has it");
        let ran = example.stdout(full).output().expect("it runs");
        let said = text(&ran);
        assert_eq!(ran.status.code(), Some(1), "{example:?}: {said}");
        assert!(said.contains("cannot write to stdout"), "{said}");
        // Nothing can be said at all.
        let full = || OpenOptions::new().write(true).open("/dev/full").unwrap();
        let status = example.stdout(full()).stderr(full()).status();
        assert_eq!(status.expect("it runs").code(), Some(1), "{example:?}");
    }
    let mut echo = example("echo");
    echo.args(["--listen", "127.0.0.1:0"]);
    for mut server in [echo, dns()] {
        let mut started = server
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        // The reader has gone before anything was written.
        drop(started.stdout.take());
        std::thread::sleep(Duration::from_millis(500));
        assert!(started.try_wait().unwrap().is_none(), "it serves on");
        let pid = started.id().to_string();
        let killed = Command::new("kill").args(["-INT", &pid]).status();
        assert!(killed.unwrap().success());
        let ended = started.wait().unwrap();
        assert_eq!(ended.code(), Some(1), "{server:?}");
    }
}

#[test]
fn an_address_without_a_port_and_a_filter_that_is_none_are_reported() {
    let mut echo = example("echo");
    echo.args(["--listen", "127.0.0.1"]);
    let mut load = example("load");
    load.args(["--connect", "localhost"]);
    let mut dns = example("dns");
    dns.args(["--listen", "::1"]).arg("--zone").arg(zone());
    for mut example in [echo, load, dns] {
        let ran = example.output().expect("it runs");
        let said = text(&ran);
        assert_eq!(ran.status.code(), Some(2), "{said}");
        assert!(said.contains("a host and a port"), "{said}");
    }
    let (_echo, address) = echo_server();
    let address = address.to_string();
    let mut load = example("load");
    let ran = load
        .args(["--connect", &address, "--seconds", "0.3"])
        .env("RUST_LOG", "cubenet=loud=very")
        .output()
        .expect("it runs");
    let said = text(&ran);
    assert!(ran.status.success(), "{said}");
    assert!(said.contains("RUST_LOG=cubenet=loud=very"), "{said}");
}

#[test]
fn a_load_says_once_that_no_socket_listens_for_its_datagrams() {
    let unused = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = unused.local_addr().unwrap().to_string();
    drop(unused);
    let mut load = example("load");
    let ran = load
        .args(["--connect", &address, "--transport", "udp"])
        .args(["--connections", "20", "--seconds", "2.5"])
        .output()
        .expect("it runs");
    let said = text(&ran);
    assert_eq!(ran.status.code(), Some(1), "{said}");
    if !cubenet_tests::system::wine_cannot(cubenet_tests::system::ICMP) {
        let times = said.matches("no socket listens").count();
        assert_eq!(times, 1, "{said}");
    }
}

#[test]
fn a_table_of_results_fits_a_terminal() {
    let mut demo = example("demo");
    let ran = demo
        .args(["--tcp", "10", "--udp", "10", "--seconds", "1"])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(said.contains("messages/s"), "{said}");
    for line in said.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

/// A query for the SOA record of `example.test`, or for all there is of it.
fn query(number: u16, all: bool) -> Vec<u8> {
    let [high, low] = number.to_be_bytes();
    let header = [high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let rtype = if all { 255 } else { 6 };
    [&header[..], b"\x07example\x04test\0", &[0, rtype, 0, 1]].concat()
}

/// More ports than the table of a listener holds, within the time that a silent one would stay.
#[test]
fn more_resolver_ports_than_there_are_places_are_answered() {
    let mut server = Server::start(&mut dns());
    let address = server.address();
    let mut asked = HashSet::new();
    let mut number = 0_u16;
    // From several addresses, since one has too few ports.
    for host in 1..=4_u8 {
        while asked.len() < 16_500 * usize::from(host) {
            let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 9, host], 0)));
            let socket = socket.expect("loopback has it");
            let local = socket.local_addr().unwrap();
            if !asked.insert(local) {
                continue;
            }
            socket
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            number = number.wrapping_add(1);
            socket.send_to(&query(number, false), address).unwrap();
            let mut answer = [0; 600];
            let len = socket.recv(&mut answer);
            let len = len.unwrap_or_else(|error| panic!("{} asked: {error}", asked.len()));
            assert_eq!(answer[..2], number.to_be_bytes());
            assert!(len > 12);
        }
    }
    assert!(asked.len() > 65_536, "{} ports", asked.len());
    server.interrupt();
}

#[test]
fn a_query_for_all_there_is_is_answered_over_udp_by_no_more_than_it_was() {
    let mut server = Server::start(&mut dns());
    let address = server.address();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let asked = query(7, true);
    socket.send_to(&asked, address).unwrap();
    let mut answer = [0; 4_096];
    let len = socket.recv(&mut answer).expect("it is answered");
    assert!(len <= asked.len() + 11, "{len} bytes for {}", asked.len());
    assert_eq!(answer[2] & 2, 2, "it is to be asked over TCP");
    server.interrupt();
}

/// The README's client is this example, to the letter.
#[test]
fn the_client_of_the_readme_ends_when_there_is_no_server() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let source = std::fs::read_to_string(root.join("examples/client.rs")).unwrap();
    let (_, code) = source.split_once("\n\n").expect("a comment, then the code");
    let readme = std::fs::read_to_string(root.join("../../README.md")).unwrap();
    assert!(readme.contains(code), "the README has another client");
    if TcpListener::bind("127.0.0.1:7000").is_err() {
        return skipped("something listens on port 7000");
    }
    let ran = example("client").output().expect("it runs and ends");
    let said = text(&ran);
    assert!(said.contains("127.0.0.1:7000"), "{said}");
}
