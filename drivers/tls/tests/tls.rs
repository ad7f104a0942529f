//! TLS on the mio driver, with both ends ours.

use cubenet_mio::{CloseReason, Limits, Report, Timeout};
use cubenet_tests::authority::{Authority, Issued};
use cubenet_tests::{
    Event, RawClient, Reports, echo, eventually, framed, ignore, network, network_with, pattern,
};
use cubenet_tls::{
    CertificateFiles, Client, ClientConfig, ClientHello, Server, ServerConfig, TicketKeys,
    client_config_with_ca, client_config_with_certificate, server_config,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "game.example";

fn server(issued: &Issued) -> Server {
    Server::new(server_config(&issued.certificate, &issued.key).unwrap())
}

fn client(authority: &Authority) -> Client {
    Client::new(client_config_with_ca(authority.ca()).unwrap(), NAME).unwrap()
}

fn roots(authority: &Authority) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(authority.ca()).unwrap())
        .unwrap();
    roots
}

fn with_versions(
    authority: &Authority,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Client {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots(authority))
        .with_no_client_auth();
    Client::new(Arc::new(config), NAME).unwrap()
}

#[test]
fn messages_of_every_size_pass_both_ways_over_both_versions() {
    let authority = Authority::new();
    let network = network();
    let (server, address) = Reports::listen_layered(&network, server(&authority.issue(NAME)), echo);
    for (version, called) in [
        (&rustls::version::TLS13, "TLS 1.3"),
        (&rustls::version::TLS12, "TLS 1.2"),
    ] {
        let client = with_versions(&authority, &[version]);
        let (client, connection) = Reports::connect_layered(&network, address, client);
        let sizes = [0, 1, 2, 255, 16_382, 16_383, 16_384, 65_534, 65_535];
        for size in sizes {
            connection.send(pattern(size)).unwrap();
        }
        let identity = client.opened().identity().unwrap();
        assert_eq!(identity.protocol(), Some(called));
        assert_eq!(identity.certificates().len(), 1);
        let identity = server.opened().identity().unwrap();
        assert_eq!(identity.protocol(), Some(called));
        assert_eq!(identity.server_name(), Some(NAME));
        assert!(identity.cipher().unwrap().starts_with("TLS"));
        assert!(identity.certificates().is_empty());
        for size in sizes {
            assert_eq!(client.received(), pattern(size));
        }
        for number in 0_u32..5_000 {
            connection.send(number.to_be_bytes()).unwrap();
        }
        for number in 0_u32..5_000 {
            assert_eq!(client.received(), number.to_be_bytes());
        }
        connection.close();
        assert_eq!(client.closed(), CloseReason::Local);
        assert_eq!(server.closed_at_last(), CloseReason::Peer);
        while !matches!(server.next(), Event::Dropped) {}
    }
    let metrics = network.metrics();
    assert_eq!((metrics.queued_bytes, metrics.held_bytes), (0, 0));
    assert_eq!((metrics.open, metrics.handshaking), (0, 0));
}

#[test]
fn a_client_says_what_is_wrong_with_the_certificate_and_the_server_what_the_client_said() {
    let (authority, other) = (Authority::new(), Authority::new());
    let network = network();
    let cases = [
        (
            authority.issue_expired(NAME),
            "the certificate of the peer has expired",
        ),
        (
            authority.issue("other.example"),
            "the certificate of the peer is for another name",
        ),
        (
            other.issue(NAME),
            "the certificate of the peer is from an authority that is not trusted",
        ),
    ];
    for (nth, (issued, says)) in cases.iter().enumerate() {
        let (server, address) = Reports::listen_layered(&network, server(issued), ignore);
        let (client, _connection) = Reports::connect_layered(&network, address, client(&authority));
        let (reason, report) = client.failed();
        assert_eq!(reason, CloseReason::Handshake);
        assert!(report.ends_with(says), "{report}");
        eventually("the server has closed it, too", || {
            network.metrics().closed(CloseReason::Handshake) == 2 * (nth as u64 + 1)
        });
        assert!(server.next_within(Duration::from_millis(20)).is_none());
    }
}

#[test]
fn two_sides_without_a_version_in_common_say_so() {
    let authority = Authority::new();
    let network = network();
    let issued = authority.issue(NAME);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = vec![CertificateDer::from_pem_file(&issued.certificate).unwrap()];
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(&issued.key).unwrap())
        .unwrap();
    let (_server, address) =
        Reports::listen_layered(&network, Server::new(Arc::new(config)), ignore);
    let client = with_versions(&authority, &[&rustls::version::TLS12]);
    let (client, _connection) = Reports::connect_layered(&network, address, client);
    let (reason, report) = client.failed();
    assert_eq!(reason, CloseReason::Handshake);
    assert!(report.ends_with("no version of TLS in common"), "{report}");
}

#[test]
fn each_side_can_require_a_certificate_and_see_it() {
    let authority = Authority::new();
    let network = network();
    let issued = authority.issue(NAME);
    let files = CertificateFiles::builder(&issued.certificate, &issued.key);
    let files = files.client_ca(authority.ca()).load().unwrap();
    let (server, address) = Reports::listen_layered(&network, Server::with_source(files), echo);
    let player = authority.issue("player");
    let config = client_config_with_certificate(authority.ca(), &player.certificate, &player.key);
    let known = Client::new(config.unwrap(), NAME).unwrap();
    let (known, connection) = Reports::connect_layered(&network, address, known);
    connection.send(b"it is me").unwrap();
    known.opened();
    assert_eq!(known.received(), b"it is me");
    let identity = server.opened().identity().unwrap();
    let shown = CertificateDer::from_pem_file(&player.certificate).unwrap();
    assert_eq!(identity.certificates(), [shown.to_vec()]);
    // One without is refused. In TLS 1.3 the client is through before it learns of that.
    let (unknown, _connection) = Reports::connect_layered(&network, address, client(&authority));
    eventually("the server has refused it", || {
        network.metrics().closed(CloseReason::Handshake) == 1
    });
    match unknown.next() {
        Event::Opened(_) => {
            let reason = unknown.closed();
            assert!(
                matches!(reason, CloseReason::Layer | CloseReason::Truncated),
                "{reason:?}"
            );
        }
        Event::Failed(error) => assert_eq!(error.reason(), CloseReason::Handshake),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_source_serves_two_names_by_what_the_client_asks_for_and_refuses_a_third() {
    let authority = Authority::new();
    let network = network();
    let configs = [NAME, "lobby.example"].map(|name| {
        let issued = authority.issue(name);
        (
            name,
            server_config(&issued.certificate, &issued.key).unwrap(),
        )
    });
    let source = move |hello: &ClientHello<'_>| {
        let mut configs = configs.iter();
        let (_, config) = configs.find(|(name, _)| hello.server_name() == Some(name))?;
        Some(Arc::clone(config))
    };
    let (server, address) = Reports::listen_layered(&network, Server::with_source(source), ignore);
    let config = client_config_with_ca(authority.ca()).unwrap();
    for name in [NAME, "lobby.example"] {
        let client = Client::new(Arc::clone(&config), name).unwrap();
        let (client, _connection) = Reports::connect_layered(&network, address, client);
        client.opened();
        let identity = server.opened().identity().unwrap();
        assert_eq!(identity.server_name(), Some(name));
    }
    let third = Client::new(config, "third.example").unwrap();
    let (third, _connection) = Reports::connect_layered(&network, address, third);
    let (reason, report) = third.failed();
    assert_eq!(reason, CloseReason::Handshake);
    let says = "the peer does not serve the name that we asked for";
    assert!(report.ends_with(says), "{report}");
}

#[test]
fn certificates_are_renewed_for_new_connections_and_bad_files_change_nothing() {
    let authority = Authority::new();
    let network = network();
    let issued = authority.issue(NAME);
    let files = CertificateFiles::load(&issued.certificate, &issued.key).unwrap();
    let (_server, address) =
        Reports::listen_layered(&network, Server::with_source(files.clone()), echo);
    let shown = || {
        let (client, connection) = Reports::connect_layered(&network, address, client(&authority));
        let identity = client.opened().identity().unwrap();
        (identity.certificates().to_vec(), connection, client)
    };
    let (before, connection, client) = shown();
    authority.issue(NAME);
    assert_eq!(shown().0, before, "not before it is asked for");
    files.reload().unwrap();
    assert_ne!(shown().0, before);
    connection.send(b"still there").unwrap();
    assert_eq!(client.received(), b"still there");
    let renewed = shown().0;
    std::fs::write(&issued.certificate, "nothing").unwrap();
    let error = Report::new(&files.reload().unwrap_err()).to_string();
    assert!(error.contains("it has no certificate (PEM)"), "{error}");
    assert!(error.contains("game.example.pem"), "{error}");
    assert_eq!(shown().0, renewed);
}

#[test]
fn protocols_are_agreed_on_by_alpn() {
    let authority = Authority::new();
    let network = network();
    let issued = authority.issue(NAME);
    let speaks = |protocols: &[&str]| -> Vec<Vec<u8>> {
        protocols
            .iter()
            .map(|one| one.as_bytes().to_vec())
            .collect()
    };
    let served = speaks(&["game/2", "game/1"]);
    let change = move |config: &mut ServerConfig| config.alpn_protocols.clone_from(&served);
    let files = CertificateFiles::builder(&issued.certificate, &issued.key).change(change);
    let files = files.load().unwrap();
    let (server, address) = Reports::listen_layered(&network, Server::with_source(files), ignore);
    let speaking = |protocols| {
        let config = client_config_with_ca(authority.ca()).unwrap();
        let mut config = Arc::unwrap_or_clone(config);
        config.alpn_protocols = speaks(protocols);
        Reports::connect_layered(
            &network,
            address,
            Client::new(Arc::new(config), NAME).unwrap(),
        )
    };
    let (client, _connection) = speaking(&["game/1"]);
    assert_eq!(
        client.opened().identity().unwrap().alpn(),
        Some(&b"game/1"[..])
    );
    let identity = server.opened().identity().unwrap();
    assert_eq!(identity.alpn(), Some(&b"game/1"[..]));
    let (client, _connection) = speaking(&["chat"]);
    let (reason, report) = client.failed();
    assert_eq!(reason, CloseReason::Handshake);
    assert!(report.ends_with("(ALPN) in common"), "{report}");
}

/// A server of a process of its own, as far as sessions go.
fn sealing(issued: &Issued, keys: &TicketKeys) -> Server {
    let files = CertificateFiles::builder(&issued.certificate, &issued.key).tickets(keys.clone());
    Server::with_source(files.load().unwrap())
}

#[test]
fn a_session_goes_on_wherever_its_ticket_can_be_opened() {
    let authority = Authority::new();
    let network = network();
    let issued = authority.issue(NAME);
    let keys = TicketKeys::new([[1; 32]]).unwrap();
    let others = TicketKeys::new([[1; 32], [9; 32]]).unwrap();
    let (one, first) = Reports::listen_layered(&network, sealing(&issued, &keys), echo);
    let (another, second) = Reports::listen_layered(&network, sealing(&issued, &others), echo);
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        keys.rotate([[1; 32]]).unwrap();
        let client = with_versions(&authority, &[version]);
        let resumed = |server: &Reports, address| {
            let (client, connection) = Reports::connect_layered(&network, address, client.clone());
            // Its answer comes behind the tickets.
            connection.send(b"ticket, please").unwrap();
            let here = client.opened().identity().unwrap();
            assert_eq!(client.received(), b"ticket, please");
            let there = server.opened().identity().unwrap();
            assert_eq!(server.received(), b"ticket, please");
            connection.close();
            assert_eq!(server.closed(), CloseReason::Peer);
            assert_eq!(here.is_resumed(), there.is_resumed());
            assert_eq!(here.certificates().len(), 1);
            here.is_resumed()
        };
        assert!(!resumed(&one, first), "{version:?}: it is new");
        assert!(resumed(&one, first), "{version:?}: it has come back");
        assert!(resumed(&another, second), "{version:?}: to another process");
        // The key that sealed its ticket, behind a new one.
        keys.rotate([[2; 32], [1; 32]]).unwrap();
        assert!(resumed(&one, first), "{version:?}: the old key opens");
        assert!(resumed(&one, first), "{version:?}: the new one does, too");
        keys.rotate([[3; 32]]).unwrap();
        assert!(!resumed(&one, first), "{version:?}: its key is gone");
    }
}

#[test]
fn a_session_does_not_get_around_the_certificate_of_the_client() {
    let authority = Authority::new();
    let others = Authority::new();
    let network = network();
    let issued = authority.issue(NAME);
    let keys = TicketKeys::new([[1; 32]]).unwrap();
    let (_lax, lax) = Reports::listen_layered(&network, sealing(&issued, &keys), echo);
    let ca = authority.folder().join("clients.pem");
    std::fs::copy(authority.ca(), &ca).unwrap();
    let files = CertificateFiles::builder(&issued.certificate, &issued.key);
    let files = files.client_ca(&ca).tickets(keys).load().unwrap();
    let strict = Server::with_source(files.clone());
    let (_strict, strict) = Reports::listen_layered(&network, strict, echo);
    let outcome = |address, client: &Client| {
        let (client, connection) = Reports::connect_layered(&network, address, client.clone());
        // It may be refused already.
        let _ = connection.send(b"ticket, please");
        let Event::Opened(connection) = client.next() else {
            return None;
        };
        // None, if it was refused meanwhile.
        let identity = connection.identity();
        let is_resumed = identity.is_some_and(|identity| identity.is_resumed());
        let answered = matches!(client.next(), Event::Received(_));
        connection.close();
        answered.then_some(is_resumed)
    };
    // From where no certificate is asked for.
    let without = client(&authority);
    assert_eq!(outcome(lax, &without), Some(false));
    assert_eq!(outcome(lax, &without), Some(true));
    assert_eq!(outcome(strict, &without), None);
    // From the time of another authority.
    let player = authority.issue("player");
    let config = client_config_with_certificate(authority.ca(), &player.certificate, &player.key);
    let player = Client::new(config.unwrap(), NAME).unwrap();
    assert_eq!(outcome(strict, &player), Some(false));
    assert_eq!(outcome(strict, &player), Some(true));
    std::fs::copy(others.ca(), &ca).unwrap();
    files.reload().unwrap();
    assert_eq!(outcome(strict, &player), None);
}

#[test]
fn keys_of_tickets_are_one_to_eight() {
    for count in [0, 9] {
        let error = TicketKeys::new(vec![[0; 32]; count]).unwrap_err();
        assert!(error.to_string().contains("1 to 8"), "{error}");
    }
    let keys = TicketKeys::new([[7; 32]; 8]).unwrap();
    assert!(keys.rotate([]).is_err());
    assert!(
        !format!("{keys:?}").contains('7'),
        "nothing of them is shown"
    );
    let long = Duration::from_secs(8 * 24 * 60 * 60);
    assert!(TicketKeys::with_lifetime([[0; 32]], long).is_err());
}

#[test]
fn a_stream_that_ends_without_close_notify_is_truncated() {
    let authority = Authority::new();
    let network = network();
    let (server, address) =
        Reports::listen_layered(&network, server(&authority.issue(NAME)), ignore);
    // A client of rustls' own, over a socket of the test's.
    let config = client_config_with_ca(authority.ca()).unwrap();
    let name = NAME.try_into().unwrap();
    let mut tls = rustls::ClientConnection::new(config, name).unwrap();
    let mut raw = RawClient::connect(address);
    {
        use std::io::Write;
        let mut stream = rustls::Stream::new(&mut tls, &mut raw.stream);
        stream.write_all(&framed(b"the last")).unwrap();
        stream.flush().unwrap();
    }
    raw.stream.shutdown(Shutdown::Write).unwrap();
    server.opened();
    assert_eq!(server.received(), b"the last");
    assert_eq!(server.closed(), CloseReason::Truncated);
}

#[test]
fn peers_that_do_not_speak_tls_are_closed_and_counted() {
    let authority = Authority::new();
    let limits = Limits::new().with_handshake_timeout(Duration::from_millis(300));
    let network = network_with(limits);
    let (server, address) =
        Reports::listen_layered(&network, server(&authority.issue(NAME)), ignore);
    for garbage in [framed(b"a plain message"), vec![0xff; 100], vec![0; 70_000]] {
        let mut raw = RawClient::connect(address);
        raw.write(&garbage);
        // An alert, and the end.
        let (answer, _) = raw.rest();
        assert!(answer.len() < 10, "{answer:?}");
    }
    eventually("they are counted", || {
        network.metrics().closed(CloseReason::Handshake) == 3
    });
    let mut slow = RawClient::connect(address);
    slow.write(&[22, 3, 1]);
    slow.rest();
    let late = CloseReason::Timeout(Timeout::Handshake);
    eventually("it is counted", || network.metrics().closed(late) == 1);
    assert!(server.next_within(Duration::from_millis(20)).is_none());
    eventually("nothing is left", || {
        let metrics = network.metrics();
        (metrics.handshaking, metrics.held_bytes) == (0, 0)
    });
}

#[test]
fn a_record_that_is_damaged_on_the_way_closes_the_connection() {
    use std::io::Write;
    let authority = Authority::new();
    let network = network();
    let (server, address) =
        Reports::listen_layered(&network, server(&authority.issue(NAME)), ignore);
    let config = client_config_with_ca(authority.ca()).unwrap();
    let mut tls = rustls::ClientConnection::new(config, NAME.try_into().unwrap()).unwrap();
    let mut raw = RawClient::connect(address);
    let mut stream = rustls::Stream::new(&mut tls, &mut raw.stream);
    stream.write_all(&framed(b"whole")).unwrap();
    stream.flush().unwrap();
    let mut wire = Vec::new();
    tls.writer().write_all(&framed(b"damaged")).unwrap();
    while tls.wants_write() {
        tls.write_tls(&mut wire).unwrap();
    }
    let last = wire.len() - 1;
    wire[last] ^= 1;
    raw.write(&wire);
    server.opened();
    assert_eq!(server.received(), b"whole");
    // Tickets, and the alert.
    raw.rest();
    drop(raw);
    assert_eq!(server.closed(), CloseReason::Layer);
}

#[test]
fn configurations_that_cannot_work_say_what_is_wrong() {
    let authority = Authority::new();
    let issued = authority.issue(NAME);
    let other = authority.issue("other.example");
    let nowhere = authority.folder().join("nowhere.pem");
    let error = |error: cubenet_tls::Error| Report::new(&error).to_string();
    let missing = error(server_config(&nowhere, &issued.key).unwrap_err());
    assert!(missing.contains("nowhere.pem"), "{missing}");
    let no_key = error(server_config(&issued.certificate, authority.ca()).unwrap_err());
    assert!(no_key.contains("it has no private key (PEM)"), "{no_key}");
    let mixed = error(server_config(&issued.certificate, &other.key).unwrap_err());
    assert!(!mixed.is_empty());
    let config = client_config_with_ca(authority.ca()).unwrap();
    let name = error(Client::new(config, "no name").unwrap_err());
    assert!(name.contains("\"no name\" is no server name"), "{name}");
}
