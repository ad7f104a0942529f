use super::*;

fn second(seconds: u64) -> Instant {
    Instant::from_micros(seconds * 1_000_000)
}

fn own(own: usize) -> Backlog {
    Backlog::growing(own, own)
}

fn limits() -> Limits {
    Limits::new()
        .with_max_message(100)
        .with_max_datagram(100)
        .with_max_queued(200)
        .with_low_watermark(50)
        .with_max_queued_total(1_000)
        .with_write_stall_timeout(Duration::from_secs(30))
        .with_drain_timeout(Duration::from_secs(5))
}

#[test]
fn a_refused_connection_is_reset_if_it_was_sent_something() {
    let mut half = SendHalf::accepted();
    let closed = Action::Close(CloseReason::Local);
    assert_eq!(half.turn_away(0), closed);
    let mut half = SendHalf::accepted();
    let reset = Action::Reset(CloseReason::Local);
    assert_eq!(half.turn_away(1), reset);
    assert_eq!(half.poll_action(0), reset, "what was sent is lost");
}

#[test]
fn after_full_writable_is_due_once_at_the_low_watermark() {
    let limits = limits();
    let mut half = SendHalf::accepted();
    assert_eq!(half.admit(98, own(100), &limits), Ok([0, 98]));
    assert!(
        !half.poll_writable(own(0), &limits),
        "nothing was refused yet"
    );
    let full = half.admit(99, own(100), &limits);
    assert_eq!(full, Err(SendError::Full));
    assert!(!half.poll_writable(own(51), &limits));
    assert!(half.poll_writable(own(50), &limits));
    assert!(!half.poll_writable(own(50), &limits), "once");
}

#[test]
fn the_total_bound_spares_a_connection_that_has_nothing_queued() {
    let limits = limits();
    let mut half = SendHalf::accepted();
    let total = 998;
    let spared = half.admit(1, Backlog::growing(0, total), &limits);
    assert_eq!(spared, Ok([0, 1]));
    let full = half.admit(1, Backlog::growing(1, total), &limits);
    assert_eq!(full, Err(SendError::Full));
}

#[test]
fn a_connection_that_takes_the_total_over_its_bound_is_closed_as_overflow() {
    let limits = limits();
    let mut half = SendHalf::accepted();
    half.handle_queued(false, Backlog::growing(10, 1_000), second(1), &limits);
    assert_eq!(half.state(), State::Open);
    half.handle_queued(false, Backlog::growing(10, 1_001), second(1), &limits);
    assert_eq!(half.poll_action(10), Action::Reset(CloseReason::Overflow));
}

#[test]
fn a_fixed_buffer_bounds_messages_and_the_watermark() {
    let limits = limits();
    let mut half = SendHalf::accepted();
    let at = |own| Backlog::fixed(own, 40);
    let too_long = SendError::TooLong { len: 39, limit: 38 };
    assert_eq!(half.admit(39, at(0), &limits), Err(too_long));
    assert_eq!(half.admit(38, at(0), &limits), Ok([0, 38]));
    assert_eq!(half.admit(9, at(30), &limits), Err(SendError::Full));
    assert!(!half.poll_writable(at(21), &limits));
    assert!(half.poll_writable(at(20), &limits));
    assert_eq!(half.handle_full(), SendError::Full);
    assert!(half.poll_writable(at(0), &limits));
}

#[test]
fn a_message_over_the_limit_is_refused_and_the_connection_lives() {
    let mut half = SendHalf::accepted();
    assert_eq!(half.admit(100, own(0), &limits()), Ok([0, 100]));
    let refused = half.admit(101, own(0), &limits());
    let too_long = SendError::TooLong {
        len: 101,
        limit: 100,
    };
    assert_eq!(refused, Err(too_long));
    assert_eq!(half.state(), State::Open);
}

#[test]
fn a_stream_carries_an_empty_message() {
    let mut half = SendHalf::accepted();
    assert_eq!(half.admit(0, own(0), &limits()), Ok([0, 0]));
}

#[test]
fn a_stall_is_timed_from_the_last_progress() {
    let limits = limits();
    let mut half = SendHalf::accepted();
    assert_eq!(half.poll_timeout(&limits), Instant::NEVER);
    half.handle_written(false, 100, second(1));
    half.handle_written(false, 150, second(5));
    assert_eq!(half.poll_timeout(&limits), second(31));
    half.handle_written(true, 10, second(20));
    assert_eq!(half.poll_timeout(&limits), second(50));
    half.handle_timeout(second(49), &limits);
    assert_eq!(half.state(), State::Open);
    half.handle_timeout(second(50), &limits);
    let stalled = CloseReason::Timeout(Timeout::WriteStall);
    assert_eq!(half.close_reason(), Some(stalled));
}

#[test]
fn an_open_half_with_nothing_queued_has_no_deadline() {
    let limits = limits();
    let half = SendHalf::accepted();
    assert!(!SendHalf::has_deadline(half.state(), 0));
    assert_eq!(half.poll_timeout(&limits), Instant::NEVER);
    assert!(SendHalf::has_deadline(State::Open, 1));
    assert!(SendHalf::has_deadline(State::Draining, 0));
    assert!(SendHalf::has_deadline(State::Connecting, 0));
}

#[test]
fn a_close_with_nothing_queued_goes_straight_to_finishing() {
    let limits = limits();
    let mut half = SendHalf::accepted();
    half.close(second(1));
    assert_eq!(half.poll_action(0), Action::SendFin);
    assert_eq!(half.poll_action(0), Action::SendFin, "it was not done yet");
    half.handle_fin_sent();
    assert_eq!(half.poll_action(0), Action::Wait);
    assert_eq!(half.state(), State::Finishing);
    assert_eq!(half.admit(1, own(0), &limits), Err(SendError::Closed));
    half.handle_timeout(second(6), &limits);
    assert_eq!(half.poll_action(0), Action::Close(CloseReason::Local));
}

#[test]
fn what_cannot_be_delivered_in_time_ends_in_a_drain_timeout() {
    let mut half = SendHalf::accepted();
    half.close(second(1));
    assert_eq!(half.poll_action(10), Action::Wait);
    assert_eq!(half.state(), State::Draining);
    half.handle_written(true, 5, second(4));
    half.handle_timeout(second(6), &limits());
    let late = CloseReason::Timeout(Timeout::Drain);
    assert_eq!(half.poll_action(5), Action::Reset(late));
    assert_eq!(half.close_reason(), Some(late));
}

#[test]
fn a_fin_of_the_peer_does_not_put_off_what_drains() {
    let limits = limits();
    let mut half = SendHalf::accepted();
    half.close(second(1));
    half.handle_fin(CloseReason::Peer, second(4));
    assert_eq!(half.poll_action(10), Action::Wait);
    assert_eq!(half.poll_timeout(&limits), second(6));
    half.handle_written(true, 0, second(5));
    assert_eq!(half.poll_action(0), Action::Close(CloseReason::Local));
}

#[test]
fn a_fin_of_the_peer_with_nothing_queued_is_the_end() {
    let mut half = SendHalf::accepted();
    half.handle_fin(CloseReason::Peer, second(1));
    assert_eq!(half.poll_action(0), Action::Close(CloseReason::Peer));
    let mut half = SendHalf::accepted();
    half.handle_fin(CloseReason::Peer, second(1));
    assert_eq!(half.poll_action(1), Action::Wait);
    assert_eq!(half.state(), State::Draining);
}

#[test]
fn a_peer_that_broke_the_framing_gets_what_was_sent_and_is_read_to_its_fin() {
    let error = FrameError::TooLong {
        declared: 9,
        limit: 1,
    };
    let limits = limits();
    let mut half = SendHalf::accepted();
    half.handle_violation(error, second(1));
    assert_eq!(half.poll_action(10), Action::Wait);
    assert_eq!(half.admit(1, own(10), &limits), Err(SendError::Closed));
    half.handle_written(true, 0, second(2));
    assert_eq!(half.poll_action(0), Action::SendFin);
    assert_eq!(half.state(), State::Finishing);
    assert_eq!(half.poll_timeout(&limits), second(6));
    half.handle_fin(CloseReason::Peer, second(3));
    let violated = CloseReason::Protocol(error);
    assert_eq!(half.poll_action(0), Action::Close(violated));
}

#[test]
fn a_driver_that_stops_does_not_wait_for_a_fin_once_everything_is_acknowledged() {
    let mut half = SendHalf::accepted();
    half.close(second(1));
    half.handle_acknowledged();
    assert_eq!(half.poll_action(10), Action::Wait);
    half.handle_written(true, 0, second(2));
    assert_eq!(half.poll_action(0), Action::SendFin);
    half.handle_acknowledged();
    assert_eq!(half.poll_action(0), Action::Close(CloseReason::Local));
}

#[test]
fn an_established_connection_has_no_clock_until_something_waits() {
    let mut half = SendHalf::connecting(second(0));
    half.handle_connected();
    assert_eq!(half.state(), State::Open);
    assert_eq!(half.poll_timeout(&limits()), Instant::NEVER);
    half.handle_written(true, 10, second(3));
    assert_eq!(half.poll_timeout(&limits()), second(33));
    half.handle_written(true, 0, second(4));
    assert_eq!(half.poll_timeout(&limits()), Instant::NEVER);
}

#[test]
fn a_connect_that_is_given_up_sends_what_is_queued_and_no_fin_without_it() {
    let mut half = SendHalf::connecting(second(0));
    half.close(second(1));
    assert_eq!(half.poll_action(0), Action::Close(CloseReason::Local));
    let mut half = SendHalf::connecting(second(0));
    half.handle_queued(false, own(10), second(1), &limits());
    half.close(second(1));
    assert_eq!(half.poll_action(10), Action::Wait);
    half.handle_connected();
    assert_eq!(half.poll_action(10), Action::Wait);
    assert_eq!(half.poll_action(0), Action::SendFin);
}

#[test]
fn a_connection_ends_in_order_only_if_it_delivered_everything_and_was_not_aborted() {
    let mut closes = SendHalf::accepted();
    closes.close(second(1));
    assert_eq!(closes.poll_action(0), Action::SendFin);
    closes.abort(CloseReason::Local);
    let reset = Action::Reset(CloseReason::Local);
    assert_eq!(closes.poll_action(0), reset, "it was waiting for the peer");
    let stalled = CloseReason::Timeout(Timeout::WriteStall);
    let mut stalls = SendHalf::accepted();
    stalls.time_out(Timeout::WriteStall);
    assert_eq!(stalls.poll_action(1), Action::Reset(stalled));
    stalls.abort(CloseReason::Local);
    let in_order = Action::Close(stalled);
    assert_eq!(
        stalls.poll_action(0),
        in_order,
        "an abort after the end changes nothing"
    );
}

#[test]
fn a_connection_that_is_turned_away_is_reset_if_anything_was_sent_on_it() {
    let local = CloseReason::Local;
    assert_eq!(SendHalf::accepted().turn_away(0), Action::Close(local));
    assert_eq!(SendHalf::accepted().turn_away(1), Action::Reset(local));
    let mut aborted = SendHalf::accepted();
    aborted.abort(local);
    assert_eq!(aborted.turn_away(0), Action::Reset(local));
}

#[test]
fn a_handshake_has_a_clock_of_its_own() {
    let limits = limits().with_handshake_timeout(Duration::from_secs(3));
    let mut half = SendHalf::connecting(second(0));
    half.handle_transport_connected(second(5));
    assert_eq!(half.state(), State::Handshaking);
    assert_eq!(half.poll_timeout(&limits), second(8));
    let mut opens = SendHalf::handshaking(second(5));
    assert!(opens.handle_connected());
    assert_eq!(opens.poll_timeout(&limits), Instant::NEVER);
    half.handle_timeout(second(8), &limits);
    let late = CloseReason::Timeout(Timeout::Handshake);
    assert_eq!(half.poll_action(0), Action::Close(late));
    let mut closed = SendHalf::connecting(second(0));
    closed.close(second(4));
    closed.handle_transport_connected(second(5));
    assert_eq!(closed.poll_timeout(&limits), second(9), "it drains");
}

#[test]
fn the_alert_of_a_layer_that_failed_is_delivered() {
    let mut half = SendHalf::handshaking(second(0));
    half.handle_layer_failure(second(1));
    assert_eq!(half.poll_action(7), Action::Wait);
    assert_eq!(half.poll_timeout(&limits()), second(6));
    assert_eq!(half.poll_action(0), Action::SendFin);
    half.handle_fin_sent();
    half.handle_fin(CloseReason::Peer, second(2));
    assert_eq!(half.poll_action(0), Action::Close(CloseReason::Handshake));
    let mut open = SendHalf::accepted();
    open.handle_layer_failure(second(1));
    open.handle_fin(CloseReason::Peer, second(2));
    assert_eq!(open.poll_action(0), Action::Close(CloseReason::Layer));
}

#[test]
fn an_unanswered_connect_times_out() {
    let limits = limits();
    let mut half = SendHalf::connecting(second(0));
    assert_eq!(half.admit(1, own(0), &limits), Ok([0, 1]), "it is queued");
    half.handle_written(false, 3, second(1));
    half.handle_timeout(second(10), &limits);
    let late = CloseReason::Timeout(Timeout::Connect);
    assert_eq!(half.close_reason(), Some(late));
}
