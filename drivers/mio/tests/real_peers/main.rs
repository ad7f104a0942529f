//! Real clients and servers of the same wire format, each as a process of its own, over
//! loopback: Erlang's `{packet, 2}`, Twisted's `Int16StringReceiver`, `dig` and `dnsperf`; and over TLS.
//!
//! A tool that is absent is said to be, and its test passes; with `CUBENET_REQUIRE_TOOLS`
//! set it fails.

#[cfg(target_os = "linux")]
mod examples;
mod process;
mod server;
#[cfg(unix)]
mod tls;

use crate::process::echo_server;
use cubenet_core::{Decoder, Growing};
use cubenet_mio::{Network, Transport};
use cubenet_tests::process::{Server, example, text};
use cubenet_tests::{Reports, have, ignore, pattern};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SIZES: [usize; 7] = [0, 1, 2, 255, 256, 65_534, 65_535];

fn beside(file: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/real_peers", file]
        .iter()
        .collect()
}

fn have_erlang() -> bool {
    let mut probe = Command::new("erl");
    have(
        "Erlang (erl)",
        probe.args(["-noshell", "-eval", "halt(0)."]),
    )
}

/// A Python that has Twisted.
fn twisted() -> Option<&'static str> {
    let has_it = |python: &&&str| {
        let mut probe = Command::new(python);
        let probe = probe.args(["-c", "import twisted"]).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    };
    let python = ["python3", "/usr/bin/python3"].iter().find(has_it).copied();
    have(
        "Twisted",
        &mut Command::new(python.map_or("false", |_| "true")),
    )
    .then_some(())?;
    python
}

/// Forwards one connection to `server` and back. Returns where to connect, and what the client will
/// have sent once it has ended.
fn tap(server: SocketAddr) -> (SocketAddr, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let forward = move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut upstream = TcpStream::connect(server).unwrap();
        let (mut back, mut answers) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
        let answering = std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
        let mut sent = Vec::new();
        let mut buffer = [0; 65_536];
        while let Ok(read @ 1..) = client.read(&mut buffer) {
            upstream.write_all(&buffer[..read]).unwrap();
            sent.extend_from_slice(&buffer[..read]);
        }
        let _ = upstream.shutdown(Shutdown::Write);
        let _ = answering.join();
        sent
    };
    (address, std::thread::spawn(forward))
}

/// Checks that what a real program sent is whole frames, and keeps a little of it for the
/// fuzzers to start from, in the directory that `CUBENET_CAPTURES` names.
fn captured(program: &str, stream: &[u8]) {
    const LITTLE: usize = 2_048;
    let mut decoder = Decoder::new(Growing::new(), 65_535);
    let mut rest = stream;
    let mut kept = 0;
    while decoder.decode(&mut rest).unwrap().is_some() {
        let end = stream.len() - rest.len();
        if end <= LITTLE {
            kept = end;
        }
    }
    assert!(
        !decoder.in_frame() && kept > 0,
        "{program} sends whole frames"
    );
    if let Some(directory) = std::env::var_os("CUBENET_CAPTURES") {
        std::fs::write(PathBuf::from(directory).join(program), &stream[..kept]).unwrap();
    }
}

/// Runs their client against our `echo`.
fn their_client(program: &str, command: &mut Command) {
    let (echo, address) = echo_server();
    let (address, sent) = tap(address);
    let output = command.arg(address.port().to_string()).output().unwrap();
    assert_eq!(text(&output), "ok\n");
    captured(program, &sent.join().unwrap());
    let counters = echo.interrupt().join("\n");
    assert!(
        counters.contains("peer 1"),
        "it saw an orderly end: {counters}"
    );
}

/// Connects to their server from ours, and with `load`.
fn their_server(command: &mut Command) {
    let mut server = Server::start(command);
    let address = server.address();
    let network = Network::builder().workers(1).start().unwrap();
    let client = Reports::default();
    let connection = client.connect(&network, Transport::Tcp, address, ignore);
    client.opened();
    for size in SIZES {
        connection.send(pattern(size)).unwrap();
    }
    for size in SIZES {
        assert_eq!(client.received(), pattern(size));
    }
    connection.send(b"drip").unwrap();
    let small: Vec<usize> = SIZES.into_iter().filter(|size| *size < 1_000).collect();
    for size in &small {
        connection.send(pattern(*size)).unwrap();
        assert_eq!(client.received(), pattern(*size));
    }
    connection.close();
    client.closed();
    for size in ["0", "64", "65535"] {
        let mut load = example("load");
        load.args(["--connect", &address.to_string(), "--connections", "8"]);
        load.args(["--window", "4", "--seconds", "0.5", "--size", size]);
        let output = load.output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
}

#[test]
fn erlang_connects_to_us() {
    if have_erlang() {
        their_client(
            "erlang",
            Command::new("escript").arg(beside("erlang_client.escript")),
        );
    }
}

#[test]
fn we_connect_to_erlang() {
    if have_erlang() {
        their_server(Command::new("escript").arg(beside("erlang_server.escript")));
    }
}

#[test]
fn twisted_connects_to_us() {
    if let Some(python) = twisted() {
        their_client(
            "twisted",
            Command::new(python).arg(beside("twisted_client.py")),
        );
    }
}

#[test]
fn we_connect_to_twisted() {
    if let Some(python) = twisted() {
        their_server(Command::new(python).arg(beside("twisted_server.py")));
    }
}

/// Our `dns` with the zone of the tests: its UDP and its TCP address.
fn dns_server() -> (Server, SocketAddr, SocketAddr) {
    let mut dns = example("dns");
    dns.args(["--listen", "127.0.0.1:0", "--zone"])
        .arg(beside("example.zone"));
    let mut server = Server::start(&mut dns);
    let (udp, tcp) = (server.address(), server.address());
    (server, udp, tcp)
}

fn dig(server: SocketAddr, question: &[&str]) -> String {
    let mut dig = Command::new("dig");
    dig.args([
        "@127.0.0.1",
        "+tries=1",
        "+time=10",
        "-p",
        &server.port().to_string(),
    ]);
    let output = dig.args(question).output().unwrap();
    assert!(output.status.success(), "{question:?}: {}", text(&output));
    text(&output)
}

#[test]
fn dig_asks_over_both_transports() {
    if !have("dig", Command::new("dig").arg("-v")) {
        return;
    }
    let (_server, udp, tcp) = dns_server();
    let (tapped, sent) = tap(tcp);
    dig(tapped, &["+tcp", "www.example.test", "A"]);
    captured("dig", &sent.join().unwrap());
    for (address, transport) in [(udp, "+notcp"), (tcp, "+tcp")] {
        let short = |name, rtype| dig(address, &[transport, "+short", name, rtype]);
        assert_eq!(short("www.example.test", "A"), "192.0.2.80\n192.0.2.81\n");
        assert_eq!(short("WWW.Example.Test", "AAAA"), "2001:db8::80\n");
        let web = "www.example.test.\n192.0.2.80\n192.0.2.81\n";
        assert_eq!(short("web.example.test", "A"), web);
        let servers = "ns1.example.test.\nns2.elsewhere.test.\n";
        assert_eq!(short("example.test", "NS"), servers);
        assert_eq!(short("any.wild.example.test", "TXT"), "\"anything\"\n");
        assert!(short("example.test", "SOA").starts_with("ns1.example.test. hostmaster"));
        for (name, status) in [
            ("nope.example.test", "NXDOMAIN"),
            ("b.c.example.test", "NOERROR"),
            ("elsewhere.test", "REFUSED"),
        ] {
            let answer = dig(address, &[transport, name, "A"]);
            assert!(answer.contains(&format!("status: {status}")), "{answer}");
            assert!(answer.contains("ANSWER: 0"), "{answer}");
        }
    }
}

#[test]
fn dig_is_told_of_a_truncated_answer_and_gets_the_whole_over_tcp() {
    if !have("dig", Command::new("dig").arg("-v")) {
        return;
    }
    let (_server, udp, tcp) = dns_server();
    let big = ["+ignore", "+notcp", "big.example.test", "TXT"];
    let answer = dig(udp, &big);
    let flags = answer
        .lines()
        .find(|line| line.starts_with(";; flags:"))
        .unwrap_or_default();
    assert!(flags.contains(" tc"), "{answer}");
    let answer = dig(tcp, &["+tcp", "+short", "big.example.test", "TXT"]);
    assert_eq!(answer.lines().count(), 40);
}

#[test]
fn dig_asks_several_questions_on_one_tcp_connection() {
    if !have("dig", Command::new("dig").arg("-v")) {
        return;
    }
    let (server, _, tcp) = dns_server();
    let mut question = vec!["+tcp", "+keepopen", "+short"];
    question.extend(["www.example.test", "AAAA"].repeat(10));
    let answer = dig(tcp, &question);
    assert_eq!(answer, "2001:db8::80\n".repeat(10));
    let counters = server.interrupt().join("\n");
    assert!(counters.contains("1 accepted"), "{counters}");
    assert!(counters.contains("messages: 10 in"), "{counters}");
}

#[test]
fn dnsperf_loses_no_query_over_tcp() {
    if !have("dnsperf", Command::new("dnsperf").arg("-h")) {
        return;
    }
    let (_server, udp, tcp) = dns_server();
    let questions = std::env::temp_dir().join(format!("cubenet-{}.txt", std::process::id()));
    std::fs::write(
        &questions,
        "www.example.test A\nnope.example.test A\nbig.example.test TXT\n",
    )
    .unwrap();
    for (mode, address) in [("udp", udp), ("tcp", tcp)] {
        let start = Instant::now();
        let mut dnsperf = Command::new("dnsperf");
        dnsperf.args([
            "-m",
            mode,
            "-s",
            "127.0.0.1",
            "-p",
            &address.port().to_string(),
        ]);
        dnsperf
            .args(["-c", "8", "-l", "3"])
            .arg("-d")
            .arg(&questions);
        let output = text(&dnsperf.output().unwrap());
        assert!(start.elapsed() >= Duration::from_secs(3), "{output}");
        let figure = |name: &str| {
            let line = output
                .lines()
                .find(|line| line.trim_start().starts_with(name));
            let figure = line.and_then(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
            figure.unwrap_or_else(|| panic!("no {name}: {output}"))
        };
        assert!(figure("Queries completed:") > 1_000, "{output}");
        let lost = figure("Queries lost:");
        assert!(mode == "udp" || lost == 0, "{output}");
    }
    let _ = std::fs::remove_file(&questions);
}
