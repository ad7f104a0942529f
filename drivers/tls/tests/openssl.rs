//! TLS with OpenSSL at the other end, which connects and which is connected to.

use cubenet_mio::{CloseReason, ConnectOptions, ListenOptions, Transport};
use cubenet_tests::authority::{Authority, Issued};
use cubenet_tests::{Reports, echo, framed, have, ignore, network, unused_port};
use cubenet_tls::{CertificateFiles, Client, Server, ServerConfig, client_config_with_ca};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

const NAME: &str = "game.example";

fn have_openssl() -> bool {
    have("openssl", Command::new("openssl").arg("version"))
}

/// A process that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn openssl(arguments: &[&str]) -> Running {
    let child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    Running(child.unwrap())
}

/// Connects OpenSSL to an echo server, has a message sent back, and returns what the server saw.
fn echoed(authority: &Authority, certificate: &Issued, arguments: &[&str]) -> String {
    let network = network();
    let change = |config: &mut ServerConfig| config.alpn_protocols = vec![b"game/1".to_vec()];
    let files = CertificateFiles::builder(&certificate.certificate, &certificate.key);
    let files = files.change(change).load();
    let server = Reports::default();
    let options = ListenOptions::new().layer(Server::with_source(files.unwrap()));
    let address = server.listen_with(options, &network, Transport::Tcp, echo);
    let (to, ca) = (address.to_string(), authority.ca());
    let mut all = vec!["s_client", "-connect", &to, "-servername", NAME, "-CAfile"];
    all.extend([ca.to_str().unwrap(), "-verify_return_error", "-quiet"]);
    all.extend(arguments);
    let mut client = openssl(&all);
    let message = framed(b"a message");
    client
        .0
        .stdin
        .as_mut()
        .unwrap()
        .write_all(&message)
        .unwrap();
    let identity = server.opened().identity().unwrap();
    assert_eq!(server.received(), b"a message");
    let mut answer = vec![0; message.len()];
    let output = client.0.stdout.as_mut().unwrap();
    output.read_exact(&mut answer).unwrap();
    assert_eq!(answer, message);
    assert_eq!(identity.server_name(), Some(NAME));
    let alpn = identity.alpn().unwrap_or_default();
    let alpn = String::from_utf8_lossy(alpn);
    format!("{} {alpn}", identity.protocol().unwrap())
}

#[test]
fn openssl_connects_over_both_versions_and_with_every_kind_of_key() {
    if !have_openssl() {
        return;
    }
    let authority = Authority::new();
    let ecdsa = authority.issue(NAME);
    assert_eq!(echoed(&authority, &ecdsa, &["-tls1_3"]), "TLS 1.3 ");
    assert_eq!(echoed(&authority, &ecdsa, &["-tls1_2"]), "TLS 1.2 ");
    let spoken = ["-alpn", "other,game/1"];
    assert_eq!(echoed(&authority, &ecdsa, &spoken), "TLS 1.3 game/1");
    let ed25519 = authority.issue_with("ed25519", NAME, &rcgen::PKCS_ED25519, |_| ());
    assert_eq!(echoed(&authority, &ed25519, &[]), "TLS 1.3 ");
    // `ring` makes no RSA keys; OpenSSL does.
    let rsa = authority.folder().join("rsa.key");
    let made = Command::new("openssl")
        .args([
            "genpkey",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:2048",
            "-out",
        ])
        .arg(&rsa)
        .stderr(Stdio::null())
        .status();
    assert!(made.unwrap().success());
    let rsa = authority.issue_for("rsa", NAME, &std::fs::read_to_string(&rsa).unwrap());
    assert_eq!(echoed(&authority, &rsa, &["-tls1_3"]), "TLS 1.3 ");
    assert_eq!(echoed(&authority, &rsa, &["-tls1_2"]), "TLS 1.2 ");
}

#[test]
fn we_connect_to_openssl() {
    if !have_openssl() {
        return;
    }
    let authority = Authority::new();
    let issued = authority.issue(NAME);
    let address = SocketAddr::from(([127, 0, 0, 1], unused_port()));
    for version in ["-tls1_3", "-tls1_2"] {
        let to = address.to_string();
        // Sends back each line reversed.
        let mut server = openssl(&[
            "s_server",
            "-accept",
            &to,
            "-cert",
            issued.certificate.to_str().unwrap(),
            "-key",
            issued.key.to_str().unwrap(),
            "-rev",
            version,
        ]);
        let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines();
        let ready = lines
            .by_ref()
            .map_while(Result::ok)
            .any(|line| line.starts_with("ACCEPT"));
        assert!(ready, "OpenSSL listens");
        let network = network();
        let client = Reports::default();
        let config = client_config_with_ca(authority.ca()).unwrap();
        let options = ConnectOptions::new().layer(Client::new(config, NAME).unwrap());
        let connection = client.connect_with(&options, &network, Transport::Tcp, address, ignore);
        client.opened();
        // A line that is a frame whichever way it is read.
        connection.send(b"ab\x05\0\n").unwrap();
        assert_eq!(client.received(), b"ba\x05\0\n");
        connection.close();
        assert_eq!(client.closed(), CloseReason::Local);
    }
}
