use super::*;
use crate::connection::{Action, RecvHalf, SendHalf, State};
use crate::decode::Decoder;
use crate::storage::Growing;
use crate::{CloseReason, Limits};
use alloc::boxed::Box;
use alloc::vec;
use std::borrow::ToOwned;
use std::string::ToString;
use std::time::Duration;

/// A layer that greets with a letter of its own, flips the case of everything, and ends with `.`;
/// `!` breaks its protocol.
struct Flip {
    letter: u8,
    greeted: bool,
    ended: bool,
    error: Option<LayerError>,
    deadline: Instant,
}

impl Flip {
    fn new(letter: u8) -> Self {
        Flip {
            letter,
            greeted: false,
            ended: false,
            error: None,
            deadline: Instant::NEVER,
        }
    }

    fn boxed(letter: u8) -> Layered {
        Layered::new(Box::new(Flip::new(letter)))
    }
}

impl Layer for Flip {
    fn begin(&mut self, now: Instant, wire: &mut Vec<u8>) {
        self.deadline = now.after(Duration::from_secs(1));
        wire.push(self.letter);
    }

    fn handle_input(&mut self, input: &mut [u8], stream: &mut Vec<u8>, wire: &mut Vec<u8>) {
        for byte in input {
            match *byte {
                _ if self.error.is_some() || self.ended => {}
                b'.' => self.ended = true,
                b'!' => {
                    self.error = Some(LayerError::new("an exclamation mark"));
                    wire.push(b'?');
                }
                greeting if !self.greeted => self.greeted = greeting == self.letter,
                flipped => stream.push(flipped ^ 0x20),
            }
        }
    }

    fn handle_output(&mut self, stream: &[&[u8]], wire: &mut Vec<u8>) {
        wire.extend(stream.concat().iter().map(|byte| byte ^ 0x20));
    }

    fn handle_close(&mut self, wire: &mut Vec<u8>) {
        wire.push(b'.');
    }

    fn is_established(&self) -> bool {
        self.greeted
    }

    fn state(&self) -> LayerState<'_> {
        match &self.error {
            Some(error) => LayerState::Failed(error),
            None if self.ended => LayerState::Ended,
            None if self.greeted => LayerState::Open,
            None => LayerState::Handshaking,
        }
    }

    fn held(&self) -> usize {
        3
    }

    fn poll_timeout(&self) -> Instant {
        self.deadline
    }

    fn handle_timeout(&mut self, now: Instant) {
        if now >= self.deadline {
            self.error = Some(LayerError::new("no greeting"));
        }
    }

    fn identify(&self, identity: &mut Identity) {
        identity.set_cipher(char::from(self.letter).to_string());
    }
}

fn second(seconds: u64) -> Instant {
    Instant::from_micros(seconds * 1_000_000)
}

fn halves() -> (RecvHalf<Decoder<Growing>>, SendHalf) {
    let decoder = Decoder::new(Growing::new(), 10);
    (
        RecvHalf::accepted(decoder, second(0)),
        SendHalf::handshaking(second(0)),
    )
}

#[test]
fn what_is_sent_in_the_handshake_follows_it() {
    let (mut recv, mut half) = halves();
    let mut layered = Flip::boxed(b'h');
    let (mut stream, mut wire) = (Vec::new(), Vec::new());
    let begun = layered.begin(&mut recv, &mut half, second(0), &mut wire);
    assert_eq!(begun, None);
    layered.handle_output(&half, &[b"ab", b"c"], &mut wire);
    assert_eq!((&wire[..], layered.pending()), (&b"h"[..], 3));
    let established = layered.poll_established(&mut recv, &mut half, second(1), &mut wire);
    assert_eq!(established, None);
    layered.handle_input(&mut b"hX".to_vec(), &mut stream, &mut wire);
    assert_eq!(stream, b"x");
    let established = layered.poll_established(&mut recv, &mut half, second(1), &mut wire);
    assert_eq!(established, Some(true));
    assert_eq!((&wire[..], layered.pending()), (&b"hABC"[..], 0));
    let again = layered.poll_established(&mut recv, &mut half, second(1), &mut wire);
    assert_eq!(again, None);
    layered.handle_output(&half, &[b"d"], &mut wire);
    assert_eq!(wire, b"hABCD");
    assert_eq!(
        (layered.held(), layered.identity().cipher()),
        (3, Some("h"))
    );
}

#[test]
fn a_connection_that_closed_in_the_handshake_delivers_and_is_not_open() {
    let (mut recv, mut half) = halves();
    let mut layered = Flip::boxed(b'h');
    let (mut stream, mut wire) = (Vec::new(), Vec::new());
    layered.handle_output(&half, &[b"abc"], &mut wire);
    half.close(second(1));
    assert_eq!(half.poll_action(layered.pending()), Action::Wait);
    layered.handle_input(&mut b"h".to_vec(), &mut stream, &mut wire);
    let established = layered.poll_established(&mut recv, &mut half, second(1), &mut wire);
    assert_eq!(established, Some(false));
    assert_eq!(half.poll_action(layered.pending()), Action::SendFin);
    layered.handle_close(&mut wire);
    layered.handle_close(&mut wire);
    layered.handle_output(&half, &[b"d"], &mut wire);
    assert_eq!(wire, b"ABC.");
}

#[test]
fn a_handshake_that_fails_sends_the_alert_and_drops_what_waited() {
    let (mut recv, mut half) = halves();
    let mut layered = Flip::boxed(b'h');
    let (mut stream, mut wire) = (Vec::new(), Vec::new());
    layered.handle_output(&half, &[b"abc"], &mut wire);
    layered.handle_input(&mut b"!".to_vec(), &mut stream, &mut wire);
    let established = layered.poll_established(&mut recv, &mut half, second(1), &mut wire);
    assert_eq!((established, layered.pending()), (None, 0));
    layered.handle_close(&mut wire);
    assert_eq!(wire, b"?", "a layer that failed has said all");
    assert_eq!(layered.error().unwrap().to_string(), "an exclamation mark");
    assert_eq!(half.state(), State::Draining);
    half.handle_timeout(second(9), &Limits::new());
    assert_eq!(
        half.close_reason(),
        Some(CloseReason::Timeout(crate::Timeout::Drain))
    );
}

#[test]
fn what_came_before_a_failure_is_delivered_although_it_came_with_the_handshake() {
    let (mut recv, mut half) = halves();
    let mut layered = Flip::boxed(b'h');
    let (mut stream, mut wire) = (Vec::new(), Vec::new());
    layered.handle_output(&half, &[b"never"], &mut wire);
    layered.handle_input(&mut b"hABC!".to_vec(), &mut stream, &mut wire);
    let established = layered.poll_established(&mut recv, &mut half, second(1), &mut wire);
    assert_eq!((established, layered.pending()), (Some(true), 0));
    assert_eq!((&stream[..], &wire[..]), (&b"abc"[..], &b"?"[..]));
    assert_eq!(half.state(), State::Open);
    layered.handle_delivered(&recv, &mut half, second(1));
    layered.handle_fin(&recv, &mut half, second(2));
    assert_eq!(half.poll_action(0), Action::Close(CloseReason::Layer));
}

#[test]
fn a_stream_whose_layer_did_not_end_is_truncated() {
    let opened = || {
        let (mut recv, mut half) = halves();
        let mut layered = Flip::boxed(b'h');
        let (mut stream, mut wire) = (Vec::new(), Vec::new());
        layered.handle_input(&mut b"h".to_vec(), &mut stream, &mut wire);
        layered.poll_established(&mut recv, &mut half, second(1), &mut wire);
        (recv, half, layered)
    };
    let (recv, mut half, layered) = opened();
    layered.handle_fin(&recv, &mut half, second(2));
    let truncated = Action::Close(CloseReason::Truncated);
    assert_eq!(half.poll_action(0), truncated);
    let (recv, mut half, mut layered) = opened();
    layered.handle_input(&mut b".A".to_vec(), &mut Vec::new(), &mut Vec::new());
    layered.handle_delivered(&recv, &mut half, second(2));
    layered.handle_fin(&recv, &mut half, second(2));
    assert_eq!(half.poll_action(0), Action::Close(CloseReason::Peer));
    let (recv, mut half, mut layered) = opened();
    layered.handle_delivered(&recv, &mut half, second(2));
    assert_eq!(half.state(), State::Open);
    layered.handle_input(&mut b"!".to_vec(), &mut Vec::new(), &mut Vec::new());
    layered.handle_delivered(&recv, &mut half, second(2));
    layered.handle_fin(&recv, &mut half, second(2));
    assert_eq!(half.poll_action(0), Action::Close(CloseReason::Layer));
}

#[test]
fn a_layer_has_a_clock_of_its_own_until_it_is_open() {
    let (mut recv, mut half) = halves();
    let mut layered = Flip::boxed(b'h');
    let mut wire = Vec::new();
    layered.begin(&mut recv, &mut half, second(0), &mut wire);
    assert_eq!(layered.poll_timeout(&half), second(1));
    layered.handle_timeout(&mut half, second(0));
    assert_eq!(half.state(), State::Handshaking);
    let mut late = (Flip::boxed(b'h'), SendHalf::handshaking(second(0)));
    late.0.begin(&mut recv, &mut late.1, second(0), &mut wire);
    late.0.handle_timeout(&mut late.1, second(1));
    assert_eq!(late.1.state(), State::Draining);
    layered.handle_input(&mut b"h".to_vec(), &mut Vec::new(), &mut wire);
    layered.poll_established(&mut recv, &mut half, second(0), &mut wire);
    assert_eq!(layered.poll_timeout(&half), Instant::NEVER);
    layered.handle_timeout(&mut half, second(5));
    assert_eq!(half.state(), State::Open);
}

/// A layer that is through, or has failed, as it begins.
struct AtOnce(Option<LayerError>);

impl Layer for AtOnce {
    fn begin(&mut self, _now: Instant, wire: &mut Vec<u8>) {
        wire.extend(b"hello");
    }

    fn handle_input(&mut self, input: &mut [u8], stream: &mut Vec<u8>, _wire: &mut Vec<u8>) {
        stream.extend_from_slice(input);
    }

    fn handle_output(&mut self, stream: &[&[u8]], wire: &mut Vec<u8>) {
        wire.extend(stream.concat());
    }

    fn handle_close(&mut self, _wire: &mut Vec<u8>) {}

    fn is_established(&self) -> bool {
        self.0.is_none()
    }

    fn state(&self) -> LayerState<'_> {
        self.0.as_ref().map_or(LayerState::Open, LayerState::Failed)
    }
}

#[test]
fn a_layer_may_be_through_as_it_begins_or_fail() {
    let (mut recv, mut half) = halves();
    let mut layered = Layered::new(Box::new(AtOnce(None)));
    let mut wire = Vec::new();
    layered.handle_output(&half, &[b"early"], &mut wire);
    let begun = layered.begin(&mut recv, &mut half, second(0), &mut wire);
    assert_eq!(begun, Some(true));
    assert_eq!((&wire[..], half.state()), (&b"helloearly"[..], State::Open));
    assert_eq!(layered.overhead(wire.len()), 5);
    assert_eq!(layered.overhead(0), 0);
    let (mut recv, mut half) = halves();
    let mut layered = Layered::new(Box::new(AtOnce(Some(LayerError::new("no")))));
    let begun = layered.begin(&mut recv, &mut half, second(0), &mut wire);
    assert_eq!(begun, None);
    let reason = CloseReason::Handshake;
    assert_eq!(half.poll_action(0), Action::Reset(reason));
}

#[test]
fn two_that_make_layers_make_a_stack() {
    let make = |letter| move |_: Ends| -> Box<dyn Layer> { Box::new(Flip::new(letter)) };
    let nowhere = "0.0.0.0:0".parse().unwrap();
    let mut stack = make(b'o')
        .then(make(b'i'))
        .make_layer(Ends::new(nowhere, nowhere));
    let (mut stream, mut wire) = (Vec::new(), Vec::new());
    stack.begin(second(0), &mut wire);
    stack.handle_input(&mut b"oIx".to_vec(), &mut stream, &mut wire);
    assert_eq!((&wire[..], &stream[..]), (&b"oI"[..], &b"x"[..]));
}

#[test]
fn the_inner_layer_of_a_stack_begins_behind_the_outer_one() {
    let mut stack = Stack::new(Flip::new(b'o'), Flip::new(b'i'));
    let (mut stream, mut wire) = (Vec::new(), Vec::new());
    stack.begin(second(0), &mut wire);
    assert_eq!(wire, b"o");
    assert_eq!(stack.state(), LayerState::Handshaking);
    assert_eq!(stack.poll_timeout(), second(1));
    stack.handle_input(&mut b"oI".to_vec(), &mut stream, &mut wire);
    assert_eq!((&wire[..], stack.state()), (&b"oI"[..], LayerState::Open));
    stack.handle_input(&mut b"xy".to_vec(), &mut stream, &mut wire);
    assert_eq!(stream, b"xy", "flipped twice");
    stack.handle_output(&[b"ab"], &mut wire);
    stack.handle_close(&mut wire);
    assert_eq!(wire, [&b"oIab"[..], &[b'.' ^ 0x20], b"."].concat());
    assert_eq!(stack.held(), 6);
    let mut identity = Identity::default();
    stack.identify(&mut identity);
    assert_eq!(
        identity.cipher(),
        Some("i"),
        "the inner one has the last word"
    );
    stack.handle_input(&mut [b'.' ^ 0x20], &mut stream, &mut wire);
    assert_eq!(stack.state(), LayerState::Ended);
    stack.handle_input(&mut b"!".to_vec(), &mut stream, &mut wire);
    assert!(matches!(stack.state(), LayerState::Failed(_)));
}

#[test]
fn the_clock_of_a_stack_is_that_of_the_layer_in_its_handshake() {
    for outer_is_late in [true, false] {
        let mut stack = Stack::new(Flip::new(b'o'), Flip::new(b'i'));
        let mut wire = Vec::new();
        stack.begin(second(0), &mut wire);
        if !outer_is_late {
            stack.handle_input(&mut b"o".to_vec(), &mut vec![], &mut wire);
            assert_eq!(stack.poll_timeout(), second(1));
        }
        stack.handle_timeout(second(1));
        assert!(matches!(stack.state(), LayerState::Failed(_)));
    }
}

#[test]
fn an_identity_has_what_the_layers_have_shown() {
    let mut identity = Identity::default();
    assert_eq!(identity.client_addr(), None);
    let client = ([192, 0, 2, 1], 4).into();
    identity.set_client_addr(client);
    identity.set_server_addr(client);
    identity.set_server_name("a.example".to_owned());
    identity.set_alpn(b"game".to_vec());
    identity.set_protocol("TLS 1.3");
    identity.set_cipher("TLS13_AES_128_GCM_SHA256".to_owned());
    identity.set_certificates(vec![vec![1]]);
    assert_eq!(identity.client_addr(), Some(client));
    assert_eq!(identity.server_addr(), Some(client));
    assert_eq!(identity.server_name(), Some("a.example"));
    assert_eq!(identity.alpn(), Some(&b"game"[..]));
    assert_eq!(identity.protocol(), Some("TLS 1.3"));
    assert_eq!(identity.cipher(), Some("TLS13_AES_128_GCM_SHA256"));
    assert_eq!(identity.certificates(), [vec![1]]);
}

#[test]
fn a_closure_makes_layers() {
    let make = |ends: Ends| -> Box<dyn Layer> {
        assert_eq!(ends.local_addr.port(), 2);
        Box::new(Flip::new(b'm'))
    };
    let ends = Ends::new(([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into());
    let layered = Layered::new(make.make_layer(ends));
    assert_eq!(
        std::format!("{layered:?}"),
        "Layered { state: Handshaking, pending: 0, is_closed: false, .. }"
    );
}
