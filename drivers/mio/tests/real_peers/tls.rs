//! The same over TLS, and others that speak it: Python's `ssl`, Netty, `GnuTLS`, `kdig`; sessions that
//! go on, and certificates of clients.

use crate::{SIZES, beside, have_erlang, twisted};
use cubenet_mio::{ConnectOptions, Network, Transport};
use cubenet_tests::authority::{Authority, Issued};
use cubenet_tests::process::{Server, example, text};
use cubenet_tests::{Reports, framed, have, ignore, pattern};
use cubenet_tls::{Client, client_config_with_ca, client_config_with_certificate};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const NAME: &str = "game.example";

/// Our `echo` with this certificate, and more arguments.
fn echo(issued: &Issued, more: &[&Path]) -> (Server, SocketAddr) {
    let mut echo = example("echo");
    echo.args(["--listen", "127.0.0.1:0", "--transport", "tcp"]);
    echo.arg("--tls-cert").arg(&issued.certificate);
    echo.arg("--tls-key").arg(&issued.key).args(more);
    let mut server = Server::start(&mut echo);
    let address = server.address();
    (server, address)
}

/// Runs their client, which is given the authority, the name and what is in `more`, against our `echo`.
fn their_client(command: &mut Command, connections: usize) {
    let authority = Authority::new();
    let (echo, address) = echo(&authority.issue(NAME), &[]);
    command.arg(authority.ca()).arg(NAME);
    ran(command.arg(address.port().to_string()));
    ended(echo, connections);
}

/// Their client says that all is well.
fn ran(command: &mut Command) {
    let output = command.output().unwrap();
    let said = text(&output);
    assert!(said.ends_with("ok\n") && output.status.success(), "{said}");
}

/// Our server saw so many connections, each of which ended in order.
fn ended(echo: Server, connections: usize) {
    let counters = echo.interrupt().join("\n");
    let orderly = format!("closed: {connections}, peer {connections}\n");
    assert!(counters.contains(&orderly), "{counters}");
}

/// Connects to their server, which is given a certificate and a key, from ours, and with `load`.
fn their_server(command: &mut Command) {
    let authority = Authority::new();
    let issued = authority.issue(NAME);
    command.arg(&issued.certificate).arg(&issued.key);
    let client = Client::new(client_config_with_ca(authority.ca()).unwrap(), NAME).unwrap();
    connect_to(command, client, &[Path::new("--tls-ca"), &authority.ca()]);
}

fn connect_to(command: &mut Command, client: Client, of_load: &[&Path]) {
    let mut server = Server::start(command);
    let address = server.address();
    let network = Network::builder().workers(1).start().unwrap();
    let (reports, options) = (Reports::default(), ConnectOptions::new().layer(client));
    let tcp = Transport::Tcp;
    let connection = reports.connect_with(&options, &network, tcp, address, ignore);
    reports.opened();
    for size in SIZES {
        connection.send(pattern(size)).unwrap();
    }
    for size in SIZES {
        assert_eq!(reports.received(), pattern(size));
    }
    connection.send(b"drip").unwrap();
    for size in SIZES.into_iter().filter(|size| *size < 1_000) {
        connection.send(pattern(size)).unwrap();
        assert_eq!(reports.received(), pattern(size));
    }
    connection.close();
    reports.closed();
    for size in ["0", "64", "65535"] {
        let mut load = example("load");
        load.args(["--connect", &address.to_string(), "--connections", "8"]);
        load.args(["--window", "4", "--seconds", "0.5", "--size", size]);
        load.args(["--server-name", NAME]).args(of_load);
        let output = load.output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
}

/// Erlang, with its `ssl`.
fn have_erlang_ssl() -> bool {
    have_erlang() && {
        let mut probe = Command::new("erl");
        let eval = "{ok, _} = application:ensure_all_started(ssl), halt(0).";
        have("ssl of Erlang", probe.args(["-noshell", "-eval", eval]))
    }
}

#[test]
fn erlang_connects_to_us() {
    if have_erlang_ssl() {
        their_client(
            Command::new("escript").arg(beside("erlang_client.escript")),
            1,
        );
    }
}

#[test]
fn we_connect_to_erlang() {
    if have_erlang_ssl() {
        their_server(Command::new("escript").arg(beside("erlang_server.escript")));
    }
}

#[test]
fn twisted_connects_to_us() {
    if let Some(python) = twisted() {
        their_client(Command::new(python).arg(beside("twisted_client.py")), 1);
    }
}

#[test]
fn we_connect_to_twisted() {
    if let Some(python) = twisted() {
        their_server(Command::new(python).arg(beside("twisted_server.py")));
    }
}

fn have_python() -> bool {
    let mut probe = Command::new("python3");
    have("Python with ssl", probe.args(["-c", "import ssl"]))
}

#[test]
fn python_connects_to_us_and_its_sessions_go_on() {
    if have_python() {
        // Twice over each version.
        their_client(Command::new("python3").arg(beside("python_client.py")), 4);
    }
}

#[test]
fn python_shows_us_its_certificate() {
    if !have_python() {
        return;
    }
    let authority = Authority::new();
    let required = [Path::new("--tls-client-ca"), &authority.ca()];
    let (echo, address) = echo(&authority.issue(NAME), &required);
    let player = authority.issue("player");
    let mut python = Command::new("python3");
    python.arg(beside("python_client.py")).arg(authority.ca());
    python.arg(NAME).arg(&player.certificate).arg(&player.key);
    ran(python.arg(address.port().to_string()));
    ended(echo, 4);
}

#[test]
fn we_connect_to_python() {
    if have_python() {
        their_server(Command::new("python3").arg(beside("python_server.py")));
    }
}

#[test]
fn we_show_python_our_certificate() {
    if !have_python() {
        return;
    }
    let authority = Authority::new();
    let (server, player) = (authority.issue(NAME), authority.issue("player"));
    let mut python = Command::new("python3");
    python.arg(beside("python_server.py"));
    python.arg(&server.certificate).arg(&server.key);
    python.arg(authority.ca());
    let ca = authority.ca();
    let config = client_config_with_certificate(&ca, &player.certificate, &player.key);
    let client = Client::new(config.unwrap(), NAME).unwrap();
    let of_load = [
        Path::new("--tls-ca"),
        &ca,
        Path::new("--tls-cert"),
        &player.certificate,
        Path::new("--tls-key"),
        &player.key,
    ];
    connect_to(&mut python, client, &of_load);
}

/// Netty's classes, where Debian has them.
const NETTY: &str = "/usr/share/java/netty-buffer.jar:/usr/share/java/netty-codec.jar:\
                     /usr/share/java/netty-common.jar:/usr/share/java/netty-handler.jar:\
                     /usr/share/java/netty-resolver.jar:/usr/share/java/netty-transport.jar";

/// Netty as one or the other, by the compiler that comes with Java.
fn netty(side: &str) -> Option<Command> {
    let mut probe = Command::new("javac");
    let has_java = have("Java", probe.arg("-version"));
    let mut has_netty = Command::new("test");
    let handler = "/usr/share/java/netty-handler.jar";
    let has_netty = has_java && have("Netty", has_netty.args(["-e", handler]));
    let mut java = Command::new("java");
    java.args(["-cp", NETTY])
        .arg(beside("Netty.java"))
        .arg(side);
    has_netty.then_some(java)
}

#[test]
fn netty_connects_to_us() {
    if let Some(mut netty) = netty("client") {
        their_client(&mut netty, 1);
    }
}

#[test]
fn we_connect_to_netty() {
    if let Some(mut netty) = netty("server") {
        their_server(&mut netty);
    }
}

/// A process that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn gnutls_connects_to_us() {
    let mut probe = Command::new("gnutls-cli");
    if !have("gnutls-cli", probe.arg("--version")) {
        return;
    }
    let authority = Authority::new();
    let (echo, address) = echo(&authority.issue(NAME), &[]);
    for version in ["VERS-TLS1.3", "VERS-TLS1.2"] {
        let mut client = Command::new("gnutls-cli");
        client.args(["--logfile", "/dev/null", "--sni-hostname", NAME]);
        client.args(["--verify-hostname", NAME, "--x509cafile"]);
        client.arg(authority.ca());
        let priority = format!("NORMAL:-VERS-ALL:+{version}");
        client.args(["--priority", &priority, "-p"]);
        client.arg(address.port().to_string()).arg("127.0.0.1");
        client.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut client = Running(client.spawn().unwrap());
        let message = framed(b"from GnuTLS\n");
        let mut input = client.0.stdin.take().unwrap();
        input.write_all(&message).unwrap();
        let mut answer = vec![0; message.len()];
        let output = client.0.stdout.as_mut().unwrap();
        std::io::Read::read_exact(output, &mut answer).unwrap();
        assert_eq!(answer, message);
        drop(input);
        assert!(client.0.wait().unwrap().success());
    }
    ended(echo, 2);
}

#[test]
fn we_connect_to_gnutls() {
    let mut probe = Command::new("gnutls-serv");
    if !have("gnutls-serv", probe.arg("--version")) {
        return;
    }
    let authority = Authority::new();
    let issued = authority.issue(NAME);
    let address = SocketAddr::from(([127, 0, 0, 1], cubenet_tests::unused_port()));
    let mut server = Command::new("gnutls-serv");
    server.args(["--echo", "--quiet", "-p", &address.port().to_string()]);
    server.arg("--x509certfile").arg(&issued.certificate);
    server.arg("--x509keyfile").arg(&issued.key);
    server.stdin(Stdio::null()).stdout(Stdio::null());
    let _server = Running(server.stderr(Stdio::null()).spawn().unwrap());
    cubenet_tests::eventually("it listens", || TcpStream::connect(address).is_ok());
    let network = Network::builder().workers(1).start().unwrap();
    let client = Client::new(client_config_with_ca(authority.ca()).unwrap(), NAME).unwrap();
    let (client, connection) = Reports::connect_layered(&network, address, client);
    client.opened();
    // It sends back lines of text: a frame that is one, its header included.
    for len in [0x0141, 0x0f0f] {
        let mut line = vec![b'x'; len];
        line[len - 1] = b'\n';
        connection.send(&line).unwrap();
        assert_eq!(client.received(), line);
    }
    connection.close();
    client.closed();
}

/// Our `dns` over TLS.
fn dns(authority: &Authority) -> (Server, SocketAddr) {
    let issued = authority.issue(NAME);
    let mut dns = example("dns");
    dns.args(["--listen", "127.0.0.1:0", "--zone"]);
    dns.arg(beside("example.zone"));
    dns.arg("--tls-cert").arg(&issued.certificate);
    dns.arg("--tls-key").arg(&issued.key);
    let mut server = Server::start(&mut dns);
    let (_udp, tcp) = (server.address(), server.address());
    (server, tcp)
}

#[test]
fn kdig_asks_over_tls() {
    if !have("kdig", Command::new("kdig").arg("-V")) {
        return;
    }
    let authority = Authority::new();
    let (_server, address) = dns(&authority);
    let mut kdig = Command::new("kdig");
    kdig.args(["@127.0.0.1", "-p", &address.port().to_string()]);
    kdig.arg(format!("+tls-ca={}", authority.ca().display()));
    kdig.arg(format!("+tls-hostname={NAME}"));
    let output = kdig.args(["www.example.test", "A"]).output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("TLS session (TLS1.3)"), "{said}");
    assert!(said.contains("192.0.2.80"), "{said}");
}

#[test]
fn dnsperf_loses_no_query_over_tls() {
    if !have("dnsperf", Command::new("dnsperf").arg("-h")) {
        return;
    }
    let authority = Authority::new();
    let (_server, address) = dns(&authority);
    let questions = authority.folder().join("questions.txt");
    std::fs::write(&questions, "www.example.test A\nbig.example.test TXT\n").unwrap();
    let mut dnsperf = Command::new("dnsperf");
    dnsperf.args(["-m", "dot", "-s", "127.0.0.1"]);
    dnsperf.args(["-p", &address.port().to_string()]);
    dnsperf
        .args(["-c", "8", "-l", "3"])
        .arg("-d")
        .arg(&questions);
    let said = text(&dnsperf.output().unwrap());
    let figure = |name: &str| {
        let line = said
            .lines()
            .find(|line| line.trim_start().starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok())
    };
    assert!(figure("Queries completed:") > Some(1_000), "{said}");
    assert_eq!(figure("Queries lost:"), Some(0), "{said}");
}

#[test]
fn a_certificate_is_renewed_on_sighup_and_connections_stay() {
    let old = Authority::new();
    let new = Authority::new();
    let issued = old.issue(NAME);
    let (echo, address) = echo(&issued, &[]);
    let network = Network::builder().workers(1).start().unwrap();
    let trusting = |authority: &Authority| {
        let config = client_config_with_ca(authority.ca()).unwrap();
        Client::new(config, NAME).unwrap()
    };
    let (before, connection) = Reports::connect_layered(&network, address, trusting(&old));
    before.opened();
    let renewed = new.issue(NAME);
    std::fs::copy(&renewed.certificate, &issued.certificate).unwrap();
    std::fs::copy(&renewed.key, &issued.key).unwrap();
    echo.signal("HUP");
    let mut tries = 0;
    loop {
        let (after, _connection) = Reports::connect_layered(&network, address, trusting(&new));
        if let cubenet_tests::Event::Opened(_) = after.next() {
            break;
        }
        tries += 1;
        assert!(tries < 100, "the new certificate is never shown");
        std::thread::sleep(Duration::from_millis(50));
    }
    connection.send(b"still here").unwrap();
    assert_eq!(before.received(), b"still here");
    connection.close();
    before.closed();
    echo.interrupt();
}

#[test]
fn flags_that_do_not_fit_say_so() {
    let authority = Authority::new();
    let issued = authority.issue(NAME);
    let said = |name: &str, arguments: &[&Path]| {
        let output = example(name).args(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        text(&output)
    };
    let [cert, key, ca] = ["--tls-cert", "--tls-key", "--tls-ca"].map(Path::new);
    let missing = said("echo", &[cert, &issued.certificate]);
    assert!(missing.contains("--tls-key"), "{missing}");
    let swapped = said("echo", &[cert, &issued.key, key, &issued.certificate]);
    assert!(swapped.contains("it has no certificate (PEM)"), "{swapped}");
    let prefix = said("echo", &[Path::new("--proxy-protocol"), Path::new("10")]);
    assert!(prefix.contains("10.0.0.0/8"), "{prefix}");
    let connect = [Path::new("--connect"), Path::new("127.0.0.1:1")];
    let nameless = said("load", &[&connect[..], &[ca, &authority.ca()]].concat());
    assert!(nameless.contains("--server-name"), "{nameless}");
    let over_udp = ["--transport", "udp", "--server-name", NAME].map(Path::new);
    let over_udp = said("load", &[&connect[..], &over_udp].concat());
    assert!(over_udp.contains("TLS is over TCP"), "{over_udp}");
}
