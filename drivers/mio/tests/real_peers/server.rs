//! The `echo` example as its users know it: many connections at once, none that has anything to
//! say, and the end. With `CUBENET_EXAMPLES` another
//! system's is tried, under the load of this one.

use crate::process::{echo_server, server_time, tried};
use cubenet_tests::process::{Server, example, text};
use cubenet_tests::{eventually, framed};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// Runs `load` and returns what it printed.
fn load(address: SocketAddr, arguments: &[&str]) -> String {
    let address = address.to_string();
    let mut load = example("load");
    let output = load
        .args(["--connect", &address, "--connections", "500"])
        .args(["--seconds", "1", "--json"])
        .args(arguments)
        .output()
        .expect("load runs");
    let text = text(&output);
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

#[test]
fn five_hundred_connections_at_once_get_answers_of_every_size() {
    let (echo, address) = echo_server();
    for size in ["0", "1", "255", "256", "1000", "65534", "65535"] {
        load(address, &["--size", size]);
    }
    let counters = echo.interrupt().join("\n");
    assert!(counters.contains("0 callbacks panicked"), "{counters}");
}

#[test]
fn five_hundred_datagram_peers_at_once_get_answers_of_every_size() {
    let (mut echo, _) = echo_server();
    let address = echo.address();
    for size in ["1", "255", "1000", "1472", "60000"] {
        load(address, &["--transport", "udp", "--size", size]);
    }
    let counters = echo.interrupt().join("\n");
    assert!(counters.contains("0 callbacks panicked"), "{counters}");
}

#[test]
fn idle_connections_take_no_server_time() {
    let (mut echo, tcp) = echo_server();
    let udp = echo.address();
    let mut streams: Vec<_> = (0..200)
        .map(|_| TcpStream::connect(tcp).expect("it listens"))
        .collect();
    for stream in &mut streams {
        let mut answer = [0; 3];
        stream.write_all(&framed(b"x")).expect("it is taken");
        stream.read_exact(&mut answer).expect("an answer");
    }
    let peers: Vec<_> = (0..200)
        .map(|_| {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
            socket.connect(udp).expect("an address");
            socket.send(b"x").expect("it is taken");
            socket
        })
        .collect();
    for peer in &peers {
        peer.recv(&mut [0; 2]).expect("an answer");
    }
    let Some(before) = server_time(&echo) else {
        return cubenet_tests::system::skipped("the system tells no processor times");
    };
    std::thread::sleep(Duration::from_secs(10));
    let spent = server_time(&echo).expect("it runs");
    let spent = spent.saturating_sub(before);
    let _ = writeln!(std::io::stderr(), "idle: {spent:?} of ten seconds");
    assert!(
        spent < Duration::from_millis(100),
        "{spent:?} of ten seconds"
    );
    // They are all still there, and see that it ends.
    let ends = std::thread::spawn(move || echo.interrupt());
    for stream in &mut streams {
        assert_eq!(stream.read(&mut [0; 1]).expect("an end in order"), 0);
    }
    for peer in &peers {
        assert_eq!(peer.recv(&mut [0; 2]).expect("a close datagram"), 0);
    }
    drop(streams);
    eventually("it has ended", || ends.is_finished());
    let counters = ends.join().expect("it ends gracefully").join("\n");
    assert!(counters.contains("0 open, 400 accepted"), "{counters}");
}

#[test]
fn an_interrupted_example_prints_what_it_has_seen() {
    let (echo, address) = echo_server();
    let address = address.to_string();
    let commands: [(&str, &[&str], &str); 4] = [
        ("demo", &["--tcp", "20", "--udp", "20"], "all is well"),
        ("load", &["--connect", &address], "messages/s"),
        ("handoff", &[], "did not wait"),
        ("tick", &["--players", "100"], "have arrived"),
    ];
    for (name, arguments, last) in commands {
        let mut example = tried(name);
        let started = Server::start(example.args(arguments).args(["--seconds", "600"]));
        std::thread::sleep(Duration::from_secs(2));
        let printed = started.interrupt().join("\n");
        assert!(printed.contains(last), "{name}: {printed}");
    }
    echo.interrupt();
}

#[test]
fn another_protocol_on_a_plain_port_is_named_in_the_log() {
    let mut echo = example("echo");
    echo.args(["--listen", "127.0.0.1:0", "--transport", "tcp"]);
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let mut server = Server::start(echo.stderr(writer));
    // Its copy of the end that is written to.
    drop(echo);
    let address = server.address();
    let hello = [&[0x16, 3, 1, 2, 0, 1][..], &[0; 100]].concat();
    for begins in [&hello[..], b"GET / HTTP/1.1\r\n\r\n", b"PROXY UNKNOWN\r\n"] {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.write_all(begins).expect("it is taken");
        stream
            .shutdown(std::net::Shutdown::Write)
            .expect("it is open");
        let _ = stream.read_to_end(&mut Vec::new());
        // What is said of the same is bounded.
        std::thread::sleep(Duration::from_millis(1_100));
    }
    server.interrupt();
    let mut log = String::new();
    reader.read_to_string(&mut log).expect("it has ended");
    for spoken in ["TLS", "HTTP", "the PROXY protocol"] {
        let line = format!("the peer seems to speak {spoken}: this port is plain");
        assert!(log.contains(&line), "{log}");
    }
}
