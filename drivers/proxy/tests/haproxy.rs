//! `HAProxy` in front: it passes TLS through, or ends it, and says who the client is.

use cubenet_mio::{CloseReason, ConnectOptions, Identity, MakeLayer, Transport};
use cubenet_proxy::{AcceptProxy, SendProxy};
use cubenet_tests::services::Haproxy;
use cubenet_tests::tls::{NAME, Tls, certificate_pem};
use cubenet_tests::{Event, Reports, echo, ignore, network};
use std::net::SocketAddr;
use std::sync::Arc;

/// `HAProxy` with this line for its frontend and that for its server at `to`. `None`, and it says so, if
/// there is none.
fn start(bind: &str, server: &str, to: SocketAddr) -> Option<Haproxy> {
    let config = format!(
        "global\n  maxconn 100\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n\
         frontend game\n  bind ADDRESS {bind}\n  default_backend game\n\
         backend game\n  server one {to} {server}\n"
    );
    Haproxy::start(&config, &[("server.pem", certificate_pem())])
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
    let Some(haproxy) = start("", send, to) else {
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
    let bind = "ssl crt FOLDER/server.pem";
    let Some(haproxy) = start(bind, send, to) else {
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
    let Some(haproxy) = start("", "send-proxy", to) else {
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
    let Some(haproxy) = start("accept-proxy", "send-proxy-v2", to) else {
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
