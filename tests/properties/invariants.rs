//! The eight invariants of the protocol, as properties of the core under arbitrary inputs.
//! Each test names its invariant by the number it has in the documentation.

use cubenet_core::connection::lifecycle::Input;
use cubenet_core::demux::{Arrival, Demux, GrowingTable};
use cubenet_core::{
    Action, Backlog, CloseReason, Decoder, Fixed, FrameError, Growing, Instant, Lifecycle, Limits,
    RecvHalf, SendError, SendHalf, SendQueue, State, Storage, Timeout, frame,
};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::HashMap;
use std::time::Duration;

/// What a stream of bytes came to.
#[derive(Debug, PartialEq)]
struct Events {
    messages: Vec<Vec<u8>>,
    error: Option<FrameError>,
    in_frame: bool,
}

fn decode<S: Storage>(decoder: &mut Decoder<S>, bytes: &[u8], cuts: &[usize]) -> Events {
    let mut messages = Vec::new();
    for mut piece in chunked(bytes, cuts) {
        loop {
            match decoder.decode(&mut piece) {
                Ok(Some(message)) => messages.push(message.to_vec()),
                Ok(None) => break,
                Err(error) => {
                    return Events {
                        messages,
                        error: Some(error),
                        in_frame: false,
                    };
                }
            }
        }
    }
    Events {
        messages,
        error: None,
        in_frame: decoder.in_frame(),
    }
}

/// `bytes` cut into pieces of these lengths, over and over; zero-length pieces included.
fn chunked<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut rest = bytes;
    let mut pieces = Vec::new();
    for cut in cuts.iter().cycle().take(2 * bytes.len() + cuts.len()) {
        let (piece, after) = rest.split_at((*cut).min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    pieces
}

/// Frames of all kinds of lengths, most of them short, with now and then some garbage.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let len = prop_oneof![8 => 0..20_usize, 2 => 200..300_usize, 1 => 60_000..=65_535_usize];
    let frame = (len, any::<u8>()).prop_map(|(len, byte)| {
        let mut frame = frame::header(len).unwrap().to_vec();
        frame.extend((0..len).map(|at| byte.wrapping_add(at as u8)));
        frame
    });
    let garbage = vec(any::<u8>(), 0..40);
    vec(prop_oneof![9 => frame, 1 => garbage], 0..12).prop_map(|parts| parts.concat())
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    vec(
        prop_oneof![4 => 0..4_usize, 2 => 0..300_usize, 1 => 0..70_000_usize],
        1..8,
    )
    .prop_filter("it must advance", |cuts| cuts.iter().any(|cut| *cut > 0))
}

fn limit() -> impl Strategy<Value = usize> {
    prop_oneof![Just(65_535_usize), 0..400_usize]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn invariant_1_the_same_bytes_in_any_chunking_give_the_same_events(
        bytes in stream(), cuts in cuts(), limit in limit(),
    ) {
        let whole = decode(&mut Decoder::new(Growing::new(), limit), &bytes, &[usize::MAX]);
        let pieces = decode(&mut Decoder::new(Growing::new(), limit), &bytes, &cuts);
        prop_assert_eq!(&whole, &pieces);
        let fixed = decode(&mut Decoder::new(Fixed::<65_535>::new(), limit), &bytes, &cuts);
        prop_assert_eq!(&whole, &fixed);
    }

    #[test]
    fn invariant_2_no_input_panics_and_an_error_is_the_last_event(
        bytes in vec(any::<u8>(), 0..3_000), cuts in cuts(), limit in limit(),
    ) {
        let mut decoder = Decoder::new(Fixed::<100>::new(), limit);
        let events = decode(&mut decoder, &bytes, &cuts);
        prop_assert!(events.messages.iter().all(|message| message.len() <= limit.min(100)));
        if let Some(error) = events.error {
            let is_over = matches!(error, FrameError::TooLong { declared, limit } if declared > limit);
            prop_assert!(is_over);
            let again = decoder.decode(&mut &b"\0\0"[..]).map(|message| message.is_some());
            prop_assert_eq!(again, Err(error));
        }
    }

    #[test]
    fn invariant_3_memory_for_a_partial_frame_is_at_most_twice_what_arrived(
        bytes in stream(), cuts in cuts(),
    ) {
        const CONSTANT: usize = size_of::<Vec<u8>>();
        let mut decoder = Decoder::new(Growing::new(), 65_535);
        let mut of_frame = 0;
        for mut piece in chunked(&bytes, &cuts) {
            loop {
                let before = piece.len();
                let message = decoder.decode(&mut piece).unwrap().map(|message| message.len());
                if message.is_none() {
                    of_frame += before;
                    break;
                }
                of_frame = 0;
            }
            prop_assert!(decoder.footprint() <= 2 * of_frame + CONSTANT);
            if !decoder.in_frame() {
                prop_assert_eq!(decoder.footprint(), 0);
            }
        }
    }

    #[test]
    fn invariant_4_a_connection_closes_exactly_once_and_for_good(
        inputs in vec(input(), 0..40), connects in any::<bool>(),
    ) {
        let mut lifecycle = if connects {
            Lifecycle::connecting()
        } else {
            Lifecycle::accepted()
        };
        let mut opened = lifecycle.state() == State::Open;
        let mut closed = None;
        for input in inputs {
            let before = lifecycle.state();
            let changed = lifecycle.handle(input);
            let after = lifecycle.state();
            prop_assert_eq!(changed, before != after);
            if after == State::Open {
                prop_assert!(opened || input == Input::Connected);
                opened = true;
                prop_assert!(lifecycle.was_open());
                prop_assert!(before.accepts_messages());
            }
            if let Some(reason) = closed {
                prop_assert_eq!(lifecycle.close_reason(), Some(reason));
                prop_assert_eq!(after, State::Closed);
            }
            prop_assert_eq!(lifecycle.close_reason().is_some(), after == State::Closed);
            closed = lifecycle.close_reason();
        }
    }

    #[test]
    fn invariant_5_what_was_accepted_before_a_close_is_delivered_whole_in_order_once(
        messages in vec(vec(any::<u8>(), 0..200), 0..60),
        takes in vec(0..500_usize, 1..20),
        cuts in cuts(),
    ) {
        let limits = small_limits();
        let mut sender = SendHalf::accepted();
        let mut queue = SendQueue::new();
        let mut wire = Vec::new();
        let mut accepted = Vec::new();
        let mut takes = takes.iter().cycle();
        for message in &messages {
            let backlog = Backlog::growing(queue.len(), queue.len());
            match sender.admit(message.len(), backlog, &limits) {
                Ok(header) => {
                    prop_assert_eq!(Some(header), frame::header(message.len()));
                    queue.push(&header);
                    queue.push(message);
                    accepted.push(message.clone());
                }
                Err(SendError::Full) => {}
                Err(other) => prop_assert!(false, "{other:?}"),
            }
            take(&mut queue, &mut wire, *takes.next().unwrap());
            sender.handle_written(true, queue.len(), Instant::ZERO);
        }
        sender.close(Instant::ZERO);
        let late = sender.admit(1, Backlog::growing(0, 0), &limits);
        prop_assert_eq!(late, Err(SendError::Closed));
        while sender.poll_action(queue.len()) == Action::Wait {
            take(&mut queue, &mut wire, 1 + *takes.next().unwrap());
            sender.handle_written(true, queue.len(), Instant::ZERO);
        }
        prop_assert_eq!(sender.poll_action(0), Action::SendFin);
        prop_assert_eq!(sender.state(), State::Finishing);
        let received = decode(&mut Decoder::new(Growing::new(), 65_535), &wire, &cuts);
        prop_assert_eq!(received.messages, accepted);
        prop_assert!(!received.in_frame && received.error.is_none());
    }

    #[test]
    fn invariant_6_queued_bytes_and_peers_stay_within_their_limits(
        sends in vec((0..300_usize, 0..400_usize), 0..200),
        peers in vec(any::<u8>(), 0..200),
    ) {
        let limits = small_limits();
        let mut sender = SendHalf::accepted();
        let mut queued = 0;
        for (len, taken) in sends {
            let backlog = Backlog::growing(queued, queued);
            match sender.admit(len, backlog, &limits) {
                Ok(_) => queued += len + frame::HEADER_LEN,
                Err(SendError::TooLong { .. }) => prop_assert!(len > limits.max_message()),
                Err(_) => prop_assert!(queued > 0),
            }
            prop_assert!(queued <= limits.max_queued());
            queued -= taken.min(queued);
            if sender.poll_writable(Backlog::growing(queued, queued), &limits) {
                prop_assert!(queued <= limits.low_watermark());
            }
        }
        let mut demux = Demux::new(GrowingTable::new(), (3, 4), &limits);
        for peer in peers {
            if demux.handle_datagram(&peer, 1, || true, Instant::ZERO) == Arrival::Admit {
                prop_assert!(demux.insert(peer, Instant::ZERO).is_some());
            }
            prop_assert!(demux.len() <= limits.max_peers());
        }
    }

    #[test]
    fn invariant_7_the_same_inputs_give_the_same_outputs(
        bytes in stream(), cuts in cuts(), gaps in vec(0..40_000_u64, 1..20),
        operations in vec((0..30_u16, 0..5_u8, 0..3_000_u64), 0..200),
    ) {
        let run = || (timed_events(&bytes, &cuts, &gaps), demux_events(&operations));
        prop_assert_eq!(run(), run());
    }

    #[test]
    fn invariant_8_when_everything_is_closed_nothing_is_left(
        messages in vec(vec(any::<u8>(), 0..6_000), 0..20), peers in vec(any::<u16>(), 0..100),
    ) {
        let limits = Limits::default();
        let mut queue = SendQueue::new();
        let decoder = Decoder::new(Growing::new(), limits.max_message());
    let mut receiver = RecvHalf::connecting(decoder, Instant::ZERO);
        for message in &messages {
            queue.push(&frame::header(message.len()).unwrap());
            queue.push(message);
        }
        let mut received = 0;
        let mut wire = Vec::new();
        while !queue.is_empty() {
            wire.clear();
            take(&mut queue, &mut wire, 700);
            let mut input = &wire[..];
            while receiver.handle_input(&mut input, Instant::ZERO).unwrap().is_some() {
                received += 1;
            }
        }
        prop_assert_eq!(received, messages.len());
        prop_assert_eq!(receiver.footprint(), 0);
        prop_assert!(queue.is_empty());

        let mut demux = Demux::new(GrowingTable::new(), (5, 6), &limits);
        let slots: Vec<_> = peers.iter().filter_map(|peer| demux.insert(*peer, Instant::ZERO)).collect();
        for slot in slots {
            demux.remove(slot);
        }
        prop_assert!(demux.is_empty());
        prop_assert_eq!(demux.poll_timeout(), Instant::NEVER);
        prop_assert_eq!(demux.handle_timeout(Instant::NEVER), None);

        let mut sender = SendHalf::accepted();
        sender.abort(CloseReason::Reset);
        sender.handle_timeout(Instant::from_micros(u64::MAX - 1), &limits);
        prop_assert_eq!(sender.close_reason(), Some(CloseReason::Reset));
    }

    #[test]
    fn the_demultiplexer_agrees_with_a_plain_map(
        operations in vec((0..30_u16, 0..5_u8, 0..3_000_u64), 0..300),
    ) {
        demux_events(&operations);
    }
}

fn input() -> impl Strategy<Value = Input> {
    let reason = || {
        prop_oneof![
            Just(CloseReason::Reset),
            Just(CloseReason::Local),
            Just(CloseReason::Timeout(Timeout::Drain)),
        ]
    };
    let ended = prop_oneof![Just(CloseReason::Peer), Just(CloseReason::Truncated)];
    prop_oneof![
        Just(Input::TransportConnected),
        Just(Input::Connected),
        Just(Input::Close),
        ended.prop_map(Input::Fin),
        Just(Input::Violated(CloseReason::Protocol(
            FrameError::TooLong {
                declared: 2,
                limit: 1
            }
        ))),
        Just(Input::Violated(CloseReason::Layer)),
        Just(Input::Flushed),
        Just(Input::Acknowledged),
        reason().prop_map(Input::Failed),
    ]
}

fn small_limits() -> Limits {
    Limits::new()
        .with_max_message(200)
        .with_max_datagram(200)
        .with_max_queued(1_000)
        .with_low_watermark(300)
        .with_max_queued_total(5_000)
        .with_max_peers(20)
        .with_datagram_idle_timeout(Duration::from_millis(5))
        .with_frame_timeout(Duration::from_millis(30))
        .with_stream_idle_timeout(Duration::from_millis(100))
}

/// The transport takes `count` bytes off the front of the queue.
fn take(queue: &mut SendQueue, wire: &mut Vec<u8>, count: usize) {
    let taken: Vec<u8> = queue.chunks().flatten().copied().take(count).collect();
    queue.advance(taken.len());
    wire.extend(taken);
}

/// What a receiving half answers to a stream whose pieces come at these intervals.
fn timed_events(bytes: &[u8], cuts: &[usize], gaps: &[u64]) -> Vec<String> {
    let limits = small_limits();
    let decoder = Decoder::new(Growing::new(), limits.max_message());
    let mut receiver = RecvHalf::connecting(decoder, Instant::ZERO);
    let mut now = Instant::ZERO;
    let mut events = Vec::new();
    for (mut piece, gap) in chunked(bytes, cuts).into_iter().zip(gaps.iter().cycle()) {
        now = now.after(Duration::from_micros(*gap));
        events.push(format!("{:?}", receiver.handle_timeout(now, &limits)));
        loop {
            match receiver.handle_input(&mut piece, now) {
                Ok(Some(message)) => events.push(format!("{:?}", &*message)),
                Ok(None) => break,
                Err(error) => {
                    events.push(error.to_string());
                    return events;
                }
            }
        }
        events.push(format!("{:?}", receiver.poll_timeout(&limits)));
    }
    events.push(format!("{:?}", receiver.handle_fin()));
    events
}

/// Runs operations on a demultiplexer and on a plain map side by side, and compares. Returns
/// what the demultiplexer answered.
fn demux_events(operations: &[(u16, u8, u64)]) -> Vec<Arrival> {
    let limits = small_limits();
    let idle = limits.datagram_idle_timeout();
    let mut demux = Demux::new(GrowingTable::new(), (7, 8), &limits);
    let mut model: HashMap<u16, (usize, Instant)> = HashMap::new();
    let mut now = Instant::ZERO;
    let mut arrivals = Vec::new();
    for (peer, operation, micros) in operations {
        now = now.after(Duration::from_micros(*micros));
        while let Some(slot) = demux.handle_timeout(now) {
            let expired = demux.peer(slot).expect("it names a peer");
            let (of_model, last) = model.remove(&expired).expect("the model has them");
            assert_eq!(of_model, slot);
            assert!(now >= last.after(idle));
            assert!(
                model.values().all(|(_, other)| *other >= last),
                "the oldest goes first"
            );
            demux.remove(slot);
        }
        assert!(model.values().all(|(_, last)| now < last.after(idle)));
        if *operation == 0 {
            if let Some((slot, _)) = model.remove(peer) {
                demux.remove(slot);
            }
        } else {
            let len = [0, 1, 200, 201][usize::from(*operation) % 4];
            let arrival = demux.handle_datagram(peer, len, || true, now);
            arrivals.push(arrival);
            let known = model.get_mut(peer).map(|(slot, last)| {
                *last = now;
                *slot
            });
            let expected = match known {
                _ if len > limits.max_datagram() => Arrival::TooLong(known),
                Some(slot) if len == 0 => Arrival::Close(slot),
                Some(slot) => Arrival::Deliver(slot),
                None if len == 0 => Arrival::Ignore,
                None if model.len() < limits.max_peers() => Arrival::Admit,
                None => Arrival::Refuse,
            };
            assert_eq!(arrival, expected);
            if arrival == Arrival::Admit {
                let slot = demux.insert(*peer, now).expect("there is room");
                assert!(
                    model.values().all(|(other, _)| *other != slot),
                    "a slot of its own"
                );
                model.insert(*peer, (slot, now));
            }
        }
        assert_eq!(demux.len(), model.len());
        for (peer, (slot, _)) in &model {
            assert_eq!(demux.peer(*slot), Some(*peer));
        }
    }
    arrivals
}
