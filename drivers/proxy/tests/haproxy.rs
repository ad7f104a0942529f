//! `HAProxy` in front: it passes TLS through, or ends it, and says who the client is.

use cubenet_mio::{CloseReason, ConnectOptions, Identity, MakeLayer, Transport};
use cubenet_proxy::{AcceptProxy, SendProxy};
use cubenet_tests::tls::{NAME, Tls, certificate_pem};
use cubenet_tests::{Event, Reports, echo, eventually, have, ignore, network, unused_port};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// `HAProxy`, which ends with the test, in a folder of its own.
struct Haproxy {
    child: Child,
    folder: PathBuf,
    address: SocketAddr,
}

impl Haproxy {
    /// One with this line for its frontend and that for its server at `to`. `None`, and it says so, if
    /// there is none.
    fn start(name: &str, bind: &str, server: &str, to: SocketAddr) -> Option<Self> {
        if !have("haproxy", Command::new("haproxy").arg("-v")) {
            return None;
        }
        let folder = format!("cubenet-haproxy-{}-{name}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("server.pem"), certificate_pem()).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], unused_port()));
        let pem = folder.join("server.pem");
        let bind = bind.replace("PEM", pem.to_str().unwrap());
        let config = format!(
            "global\n  maxconn 100\n\
             defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n\
             frontend game\n  bind {address} {bind}\n  default_backend game\n\
             backend game\n  server one {to} {server}\n"
        );
        let path = folder.join("haproxy.cfg");
        std::fs::write(&path, config).unwrap();
        let child = Command::new("haproxy")
            .args(["-db", "-f"])
            .arg(&path)
            .stdout(Stdio::null())
            .spawn();
        let child = child.unwrap();
        let haproxy = Haproxy {
            child,
            folder,
            address,
        };
        eventually("HAProxy listens", || TcpStream::connect(address).is_ok());
        Some(haproxy)
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn loopback() -> AcceptProxy {
    AcceptProxy::new(["127.0.0.0/8".parse().unwrap()])
}

/// Has a message sent back by way of `HAProxy`. Returns what the server knows of the client, and where
/// the client's end really is.
fn through(
    haproxy: &Haproxy,
    server: &Reports,
    options: &ConnectOptions,
    claimed: Option<SocketAddr>,
) -> (Arc<Identity>, SocketAddr) {
    let network = network();
    let client = Reports::default();
    let connection =
        client.connect_with(options, &network, Transport::Tcp, haproxy.address, ignore);
    connection.send(b"by way of a proxy").unwrap();
    client.opened();
    assert_eq!(client.received(), b"by way of a proxy");
    let local_addr = connection.local_addr();
    // Another only tried whether HAProxy listens.
    let is_ours = |identity: &Identity| {
        let client = identity.client_addr();
        client == Some(local_addr) || client == claimed
    };
    let found = loop {
        match server.next() {
            Event::Opened(connection) => {
                let identity = connection.identity();
                if let Some(identity) = identity.filter(|identity| is_ours(identity)) {
                    break identity;
                }
            }
            Event::Received(message) => assert_eq!(message, b"by way of a proxy"),
            _ => {}
        }
    };
    connection.close();
    assert_eq!(client.closed(), CloseReason::Local);
    (found, local_addr)
}

#[test]
fn haproxy_passes_tls_through_and_says_who_the_client_is() {
    let network = network();
    let tls = Tls::new();
    let accept = loopback().then(tls.server);
    let (server, to) = Reports::listen_layered(&network, accept, echo);
    let send = "send-proxy-v2 proxy-v2-options crc32c,unique-id,authority";
    let Some(haproxy) = Haproxy::start("through", "", send, to) else {
        return;
    };
    let (identity, client) = through(
        &haproxy,
        &server,
        &ConnectOptions::new().layer(tls.client),
        None,
    );
    assert_eq!(identity.client_addr(), Some(client));
    assert_eq!(identity.server_addr(), Some(haproxy.address));
    assert!(identity.checksum().is_some());
    assert_eq!(identity.protocol(), Some("TLS 1.3"));
    assert_eq!(identity.server_name(), Some(NAME));
}

#[test]
fn haproxy_ends_tls_and_says_who_the_client_is_and_what_it_asked_for() {
    let network = network();
    let (server, to) = Reports::listen_layered(&network, loopback(), echo);
    let send = "send-proxy-v2 proxy-v2-options crc32c,ssl,authority";
    let bind = "ssl crt PEM";
    let Some(haproxy) = Haproxy::start("ending", bind, send, to) else {
        return;
    };
    let (identity, client) = through(
        &haproxy,
        &server,
        &ConnectOptions::new().layer(Tls::new().client),
        None,
    );
    assert_eq!(identity.client_addr(), Some(client));
    assert_eq!(identity.server_name(), Some(NAME));
    assert_eq!(identity.protocol(), None, "TLS ends at the proxy");
}

#[test]
fn haproxy_sends_version_1_too() {
    let network = network();
    let (server, to) = Reports::listen_layered(&network, loopback(), echo);
    let Some(haproxy) = Haproxy::start("version-1", "", "send-proxy", to) else {
        return;
    };
    let (identity, client) = through(&haproxy, &server, &ConnectOptions::new(), None);
    assert_eq!(identity.client_addr(), Some(client));
    assert_eq!(identity.checksum(), None);
}

#[test]
fn haproxy_believes_us_in_turn() {
    let network = network();
    let (server, to) = Reports::listen_layered(&network, loopback(), echo);
    let Some(haproxy) = Haproxy::start("chain", "accept-proxy", "send-proxy-v2", to) else {
        return;
    };
    let client = "203.0.113.7:51000".parse().unwrap();
    let send = SendProxy::new(client, haproxy.address);
    for send in [send.clone(), send.checksum().version_1()] {
        let options = ConnectOptions::new().layer(send);
        let (identity, _) = through(&haproxy, &server, &options, Some(client));
        assert_eq!(identity.client_addr(), Some(client));
    }
}
