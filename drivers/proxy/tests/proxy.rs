//! Streams that come by way of a proxy: what its header says, and headers that are none.

use cubenet_core::layer::Layer;
use cubenet_core::{Ends, Instant};
use cubenet_mio::{CloseReason, Identity, LayerState, Limits, MakeLayer, Timeout};
use cubenet_proxy::{AcceptProxy, SendProxy};
use cubenet_tests::tls::{NAME, Tls};
use cubenet_tests::{RawClient, Reports, echo, eventually, framed, ignore, network, network_with};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant as Clock};

fn loopback() -> AcceptProxy {
    AcceptProxy::new(["127.0.0.0/8".parse().unwrap()])
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn from_client() -> SendProxy {
    SendProxy::new(address("203.0.113.7:51000"), address("198.51.100.1:443"))
}

/// What a layer makes of bytes that arrive in these pieces: what the header says, and the stream
/// behind it, or what is wrong.
fn read<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> Result<(Identity, Vec<u8>), String> {
    let here = address("127.0.0.1:1");
    let mut layer = loopback().make_layer(Ends::new(here, here));
    let (mut stream, mut wire) = (Vec::new(), Vec::new());
    layer.begin(Instant::ZERO, &mut wire);
    for piece in pieces {
        layer.handle_input(&mut piece.to_vec(), &mut stream, &mut wire);
    }
    assert!(wire.is_empty(), "a server answers nothing");
    match layer.state() {
        LayerState::Failed(error) => Err(error.to_string()),
        LayerState::Open => {
            assert_eq!(layer.held(), 0);
            let mut identity = Identity::default();
            layer.identify(&mut identity);
            Ok((identity, stream))
        }
        _ => Err(format!("{} bytes wait", layer.held())),
    }
}

/// The same, whole and byte by byte, which is the same.
fn read_both(bytes: &[u8]) -> Result<(Identity, Vec<u8>), String> {
    let whole = read([bytes]);
    let alone = read(bytes.chunks(1));
    if let Ok(whole) = &whole {
        assert_eq!(alone.as_ref(), Ok(whole));
    } else {
        assert!(alone.is_err(), "{alone:?}");
    }
    whole
}

#[test]
fn version_1_says_who_the_client_is() {
    let (identity, rest) =
        read_both(b"PROXY TCP4 203.0.113.7 198.51.100.1 51000 443\r\n\0\x02ok").unwrap();
    assert_eq!(identity.client_addr(), Some(address("203.0.113.7:51000")));
    assert_eq!(identity.server_addr(), Some(address("198.51.100.1:443")));
    assert_eq!(rest, b"\0\x02ok");
    let (identity, _) = read_both(b"PROXY TCP6 2001:db8::7 2001:db8::1 1 65535\r\n").unwrap();
    assert_eq!(identity.client_addr(), Some(address("[2001:db8::7]:1")));
    let (identity, rest) = read_both(b"PROXY UNKNOWN\r\nx").unwrap();
    assert_eq!((identity, &rest[..]), (Identity::default(), &b"x"[..]));
    let longest = b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
                    ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
    assert_eq!(longest.len(), 104);
    read_both(longest).unwrap();
}

#[test]
fn version_2_says_more() {
    let sent = from_client()
        .server_name("game.example")
        .and_then(|sent| sent.alpn(b"game/1"))
        .and_then(|sent| sent.unique_id(&[7; 128]))
        .unwrap()
        .checksum();
    let bytes = [sent.to_bytes(), b"behind".to_vec()].concat();
    let (identity, rest) = read_both(&bytes).unwrap();
    assert_eq!(identity.client_addr(), Some(address("203.0.113.7:51000")));
    assert_eq!(identity.server_addr(), Some(address("198.51.100.1:443")));
    assert_eq!(identity.server_name(), Some("game.example"));
    assert_eq!(identity.alpn(), Some(&b"game/1"[..]));
    assert_eq!(identity.unique_id(), Some(&[7; 128][..]));
    assert!(identity.checksum().is_some());
    assert_eq!(rest, b"behind");
    let (identity, _) = read_both(&SendProxy::local().to_bytes()).unwrap();
    assert_eq!(identity, Identity::default());
}

#[test]
fn addresses_of_two_kinds_are_sent_as_one() {
    let sent = SendProxy::new(address("203.0.113.7:1"), address("[2001:db8::1]:2"));
    for sent in [sent.clone(), sent.version_1()] {
        let (identity, _) = read_both(&sent.to_bytes()).unwrap();
        // IPv4 again on this side.
        assert_eq!(identity.client_addr(), Some(address("203.0.113.7:1")));
        assert_eq!(identity.server_addr(), Some(address("[2001:db8::1]:2")));
    }
}

#[test]
fn a_field_that_is_too_long_is_refused() {
    let error = from_client().unique_id(&[0; 129]).unwrap_err();
    assert!(error.to_string().contains("129 bytes"), "{error}");
    assert!(from_client().server_name(&"x".repeat(256)).is_err());
    assert!(from_client().alpn(&[0; 256]).is_err());
}

/// Version 2 with this command, family and length, and what follows.
fn version_2(command: u8, family: u8, len: u16, rest: &[u8]) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    bytes.extend([command, family]);
    bytes.extend(len.to_be_bytes());
    bytes.extend(rest);
    bytes
}

#[test]
fn what_is_no_header_says_what_is_wrong() {
    let wrong: [(&[u8], &str); 9] = [
        (b"\0\x05hello", "begins with something else"),
        (b"\x16\x03\x01", "\\x16\\x03\\x01"),
        (b"GET / HTTP/1.1\r\n", "GET / HT"),
        (b"PROXY TCP5 1.2.3.4 5.6.7.8 1 2\r\n", "malformed"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 70000\r\n", "malformed"),
        (b"PROXY TCP4 1.2.3.4 2001:db8::1 1 2\r\n", "malformed"),
        (b"PROXYX", "begins with something else"),
        (&version_2(0x11, 0x11, 0, b""), "malformed"),
        (&version_2(0x21, 0x41, 0, b""), "malformed"),
    ];
    for (bytes, says) in wrong {
        let problem = read_both(bytes).unwrap_err();
        assert!(problem.contains(says), "{bytes:?}: {problem}");
    }
    let endless = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat();
    assert!(read_both(&endless).unwrap_err().contains("malformed"));
    let too_long = [&endless[..], b"\r\n"].concat();
    read_both(&too_long).unwrap_err();
}

#[test]
fn a_length_that_is_wrong_is_noticed() {
    let addresses = [0; 12];
    // Shorter than the addresses.
    let problem = read_both(&version_2(0x21, 0x11, 11, &addresses)).unwrap_err();
    assert!(problem.contains("malformed"), "{problem}");
    // Longer than what is there: the rest is waited for.
    let problem = read([&version_2(0x21, 0x11, 13, &addresses)[..]]).unwrap_err();
    assert!(problem.contains("wait"), "{problem}");
    // A field that is longer than the header, and half a field.
    for field in [&[2, 0, 9, b'x'][..], &[2, 0], &[3, 0, 1, 0]] {
        let rest = [&addresses[..], field].concat();
        let bytes = version_2(0x21, 0x11, rest.len() as u16, &rest);
        let problem = read_both(&bytes).unwrap_err();
        assert!(problem.contains("field"), "{problem}");
    }
}

#[test]
fn every_damaged_byte_of_a_header_with_a_checksum_is_noticed() {
    let header = from_client().server_name(NAME).unwrap().checksum();
    let header = header.to_bytes();
    let (whole, _) = read([&header[..]]).unwrap();
    for at in 0..header.len() {
        let mut damaged = header.clone();
        damaged[at] ^= 1;
        match read([&damaged[..]]) {
            Err(_) => {}
            // The type of the checksum's own field is what makes it one; and whose address it is, or
            // whether it is one, the command and the family say.
            Ok((identity, _)) => assert!(identity.checksum().is_none(), "{at}: {identity:?}"),
        }
    }
    assert!(whole.checksum().is_some());
}

#[test]
fn a_client_is_known_before_it_is_accepted_and_a_fin_is_an_orderly_end() {
    let network = network();
    let (server, to) = Reports::listen_layered(&network, loopback(), echo);
    let mut client = RawClient::connect(to);
    client.write(&[&from_client().to_bytes()[..], &framed(b"hello")].concat());
    let connection = server.opened();
    let identity = connection.identity().unwrap();
    assert_eq!(identity.client_addr(), Some(address("203.0.113.7:51000")));
    assert_eq!(connection.peer_addr().ip(), address("127.0.0.1:1").ip());
    assert_eq!(server.received(), b"hello");
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.rest(), (framed(b"hello"), true));
    assert_eq!(server.closed(), CloseReason::Peer);
}

#[test]
fn a_header_is_sent_on_connect_before_what_was_sent_already() {
    let network = network();
    let (server, to) = Reports::listen_layered(&network, loopback(), echo);
    let (client, connection) = Reports::connect_layered(&network, to, from_client().version_1());
    connection.send(b"early").unwrap();
    client.opened();
    assert_eq!(client.received(), b"early");
    let identity = server.opened().identity().unwrap();
    assert_eq!(identity.client_addr(), Some(address("203.0.113.7:51000")));
    assert_eq!(server.received(), b"early");
    connection.close();
    assert_eq!(client.closed(), CloseReason::Local);
    assert_eq!(server.closed(), CloseReason::Peer);
}

#[test]
fn it_comes_before_tls() {
    let network = network();
    let tls = Tls::new();
    let accept = loopback().then(tls.server);
    let (server, to) = Reports::listen_layered(&network, accept, echo);
    let send = from_client().server_name("of.the.proxy").unwrap();
    let (client, connection) = Reports::connect_layered(&network, to, send.then(tls.client));
    connection.send(b"both").unwrap();
    client.opened();
    assert_eq!(client.received(), b"both");
    let identity = server.opened().identity().unwrap();
    assert_eq!(identity.client_addr(), Some(address("203.0.113.7:51000")));
    assert_eq!(identity.protocol(), Some("TLS 1.3"));
    assert_eq!(identity.server_name(), Some(NAME), "TLS has the last word");
    connection.close();
    assert_eq!(server.received(), b"both");
    assert_eq!(server.closed(), CloseReason::Peer);
    assert_eq!(client.closed(), CloseReason::Local);
}

#[test]
fn a_peer_that_is_not_trusted_is_reset_and_counted() {
    let network = network();
    let accept = AcceptProxy::new(["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
    let (server, to) = Reports::listen_layered(&network, accept.clone(), ignore);
    let mut client = RawClient::connect(to);
    assert_eq!(client.rest(), (Vec::new(), false));
    eventually("it is counted", || accept.untrusted() == 1);
    eventually("its reason, too", || {
        let metrics = network.metrics();
        metrics.closed(CloseReason::Handshake) == 1 && metrics.handshaking == 0
    });
    server.nothing();
}

#[test]
fn a_header_has_its_time() {
    let patient = Limits::new().with_handshake_timeout(Duration::from_secs(60));
    let network = network_with(patient);
    let accept = loopback().timeout(Duration::from_millis(200));
    let (server, to) = Reports::listen_layered(&network, accept, ignore);
    let began = Clock::now();
    let mut client = RawClient::connect(to);
    client.write(b"PROXY ");
    client.rest();
    assert!(began.elapsed() >= Duration::from_millis(200));
    drop(client);
    eventually("it is closed", || {
        network.metrics().closed(CloseReason::Handshake) == 1
    });
    server.nothing();
}

#[test]
fn the_timeout_of_handshakes_holds_besides() {
    let limits = Limits::new().with_handshake_timeout(Duration::from_millis(200));
    let network = network_with(limits);
    let (server, to) = Reports::listen_layered(&network, loopback(), ignore);
    let mut client = RawClient::connect(to);
    client.write(&from_client().to_bytes()[..20]);
    client.rest();
    eventually("it is closed", || {
        let timeout = CloseReason::Timeout(Timeout::Handshake);
        network.metrics().closed(timeout) == 1
    });
    server.nothing();
}

#[test]
fn a_connection_that_ends_in_its_header_is_never_accepted() {
    let network = network();
    let (server, to) = Reports::listen_layered(&network, loopback(), ignore);
    for len in [0, 1, 15, 20] {
        let mut client = RawClient::connect(to);
        client.write(&from_client().to_bytes()[..len]);
    }
    eventually("they are closed", || {
        network.metrics().closed(CloseReason::Handshake) == 4
    });
    server.nothing();
}
