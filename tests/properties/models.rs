//! The core against plain models of it: the lifecycle against its table, the demultiplexer
//! against a list, the send queue against a `VecDeque`. Operations are drawn one by one,
//! each from the state that the ones before it led to; a failure is shrunk to the fewest.

use cubenet_core::connection::lifecycle::{Input, State};
use cubenet_core::demux::{Demux, FixedTable, GrowingTable, Table};
use cubenet_core::{
    CloseReason, Frame, FullPolicy, Instant, Lifecycle, Limits, SendQueue, Timeout,
};
use cubenet_fuzz::model::demux::{Answer, Model as Peers};
use cubenet_fuzz::model::lifecycle::{End, Failure, Model as Row, TABLE, VIOLATION};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// Runs `T` on as many sequences of up to `steps` operations as proptest is configured for.
fn run<T: StateMachineTest>(steps: usize)
where
    T::Reference: 'static,
{
    let config = Config {
        cases: 400,
        failure_persistence: Some(Box::new(
            proptest::test_runner::FileFailurePersistence::WithSource("regressions"),
        )),
        source_file: Some(file!()),
        ..Config::default()
    };
    let sequences = T::Reference::sequential_strategy(1..steps);
    let outcome = TestRunner::new(config.clone()).run(&sequences, |(initial, steps, seen)| {
        T::test_sequential(config.clone(), initial, steps, seen);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

// The lifecycle.

#[derive(Clone, Debug)]
struct LifecycleModel(Row);

impl ReferenceStateMachine for LifecycleModel {
    type State = LifecycleModel;
    type Transition = Input;

    fn init_state() -> BoxedStrategy<Self::State> {
        let begin = [State::Connecting, State::Handshaking, State::Open];
        prop::sample::select(begin.to_vec())
            .prop_map(|begin| LifecycleModel(Row::new(begin)))
            .boxed()
    }

    fn transitions(_state: &Self::State) -> BoxedStrategy<Self::Transition> {
        let ended = prop_oneof![Just(CloseReason::Peer), Just(CloseReason::Truncated)];
        let failed = prop_oneof![
            Just(CloseReason::Local),
            Just(CloseReason::Reset),
            Just(CloseReason::Refused),
            Just(CloseReason::Timeout(Timeout::Drain)),
            Just(CloseReason::Overflow),
        ];
        prop_oneof![
            3 => Just(Input::TransportConnected),
            3 => Just(Input::Connected),
            2 => Just(Input::Close),
            2 => ended.prop_map(Input::Fin),
            1 => Just(Input::Violated(CloseReason::Protocol(VIOLATION))),
            2 => Just(Input::Flushed),
            1 => Just(Input::Acknowledged),
            1 => failed.prop_map(Input::Failed),
        ]
        .boxed()
    }

    fn apply(mut state: Self::State, input: &Self::Transition) -> Self::State {
        state.0.handle(*input);
        state
    }
}

struct LifecycleTest {
    lifecycle: Lifecycle,
    model: Row,
}

impl StateMachineTest for LifecycleTest {
    type SystemUnderTest = LifecycleTest;
    type Reference = LifecycleModel;

    fn init_test(LifecycleModel(model): &LifecycleModel) -> Self {
        let lifecycle = match model.state {
            State::Connecting => Lifecycle::connecting(),
            State::Handshaking => Lifecycle::handshaking(),
            _ => Lifecycle::accepted(),
        };
        LifecycleTest {
            lifecycle,
            model: *model,
        }
    }

    fn apply(mut test: Self, LifecycleModel(after): &LifecycleModel, input: Input) -> Self {
        let before = test.model.state;
        test.model.handle(input);
        assert_eq!(test.lifecycle.handle(input), before != after.state);
        assert_eq!(test.lifecycle.state(), after.state);
        assert_eq!(test.lifecycle.close_reason(), after.close_reason());
        test
    }
}

#[test]
fn the_lifecycle_follows_its_table() {
    run::<LifecycleTest>(30);
}

/// Every connection that inputs can lead to, each with every input: nothing is left to chance.
#[test]
fn every_row_of_the_table_is_reached_and_followed() {
    let mut inputs = vec![
        Input::TransportConnected,
        Input::Connected,
        Input::Close,
        Input::Flushed,
        Input::Acknowledged,
    ];
    inputs.extend(End::ALL.map(End::input));
    inputs.extend(Failure::ALL.map(|failure| Input::Failed(failure.reason())));
    let mut waiting = vec![
        (Row::new(State::Connecting), Lifecycle::connecting()),
        (Row::new(State::Handshaking), Lifecycle::handshaking()),
        (Row::new(State::Open), Lifecycle::accepted()),
    ];
    let mut met: Vec<Row> = waiting.iter().map(|(model, _)| *model).collect();
    let mut reached = [false; TABLE.len()];
    while let Some((model, lifecycle)) = waiting.pop() {
        for &input in &inputs {
            let (mut model, mut lifecycle) = (model, lifecycle);
            let before = model.state;
            reached[model.handle(input)] = true;
            assert_eq!(lifecycle.handle(input), before != model.state);
            assert_eq!(lifecycle.state(), model.state);
            assert_eq!(lifecycle.close_reason(), model.close_reason());
            if !met.contains(&model) {
                met.push(model);
                waiting.push((model, lifecycle));
            }
        }
    }
    let missed = TABLE.iter().zip(reached).filter(|(_, reached)| !reached);
    let missed: Vec<_> = missed.map(|(row, _)| row.to_string()).collect();
    assert!(missed.is_empty(), "never reached: {missed:#?}");
}

#[test]
fn the_model_is_the_table_in_the_documentation() {
    let source = include_str!("../../core/src/connection/lifecycle.rs");
    let rows = source.lines().filter(|line| line.starts_with("//! | `"));
    // The state in a column: what stands first in it, between its first marks.
    let state = |column: Option<&str>| {
        let name = column?.split('`').nth(1)?;
        Some(name.split('(').next()?.to_owned())
    };
    let documented: BTreeSet<_> = rows
        .map(|row| {
            let mut columns = row.split('|').skip(1);
            let from = state(columns.next()).expect("a row begins with a state");
            let to = state(columns.nth(1)).expect("a row ends with a state");
            (from, to)
        })
        .filter(|(from, to)| from != to)
        .collect();
    let changes = TABLE.iter().filter(|row| row.from != row.to);
    let modelled = changes.map(|row| (format!("{:?}", row.from), format!("{:?}", row.to)));
    assert_eq!(documented, modelled.collect());
}

// The demultiplexer.

#[derive(Clone, Debug)]
enum Operation {
    Datagram(u16, usize, bool),
    Insert(u16),
    Close(u16),
    Pass(u64),
}

#[derive(Clone, Debug)]
struct DemuxModel {
    peers: Peers,
    now: Instant,
    /// What the model said to the last datagram.
    answer: Option<Answer>,
    /// The peers that timed out, in order.
    expired: Vec<u16>,
    limits: Limits,
}

const SLOTS: usize = 12;

fn demux_limits(full_policy: FullPolicy) -> Limits {
    Limits::new()
        .with_max_datagram(100)
        .with_max_peers(10)
        .with_full_policy(full_policy)
        .with_datagram_idle_timeout(Duration::from_millis(500))
}

impl ReferenceStateMachine for DemuxModel {
    type State = DemuxModel;
    type Transition = Operation;

    fn init_state() -> BoxedStrategy<Self::State> {
        let policy = prop_oneof![
            Just(FullPolicy::Refuse),
            (0..400_u64)
                .prop_map(|silence| { FullPolicy::EvictIdleFor(Duration::from_millis(silence)) }),
        ];
        policy
            .prop_map(|policy| {
                let limits = demux_limits(policy);
                DemuxModel {
                    peers: Peers::new(&limits, SLOTS),
                    now: Instant::ZERO,
                    answer: None,
                    expired: Vec::new(),
                    limits,
                }
            })
            .boxed()
    }

    fn transitions(state: &Self::State) -> BoxedStrategy<Self::Transition> {
        let there: Vec<u16> = state.peers.peers().collect();
        let known = if there.is_empty() {
            (0..16_u16).boxed()
        } else {
            prop::sample::select(there).boxed()
        };
        let peer = prop_oneof![0..16_u16, known.clone()];
        let len = prop_oneof![1 => Just(0_usize), 5 => 1..100_usize, 1 => 101..200_usize];
        prop_oneof![
            8 => (peer.clone(), len, any::<bool>()).prop_map(|(peer, len, admitted)| {
                Operation::Datagram(peer, len, admitted)
            }),
            3 => peer.prop_map(Operation::Insert),
            1 => known.prop_map(Operation::Close),
            2 => (0..300_u64).prop_map(Operation::Pass),
        ]
        .boxed()
    }

    fn apply(mut state: Self::State, operation: &Self::Transition) -> Self::State {
        let now = state.now;
        match *operation {
            Operation::Datagram(peer, len, admitted) => {
                let answer = state.peers.handle_datagram(peer, len, true, now);
                match answer {
                    Answer::Admit if admitted => drop(state.peers.insert(peer, now)),
                    Answer::Evict(evicted) if admitted => {
                        state.peers.remove(evicted);
                        state.peers.insert(peer, now);
                    }
                    Answer::Close => state.peers.remove(peer),
                    _ => {}
                }
                state.answer = Some(answer);
            }
            Operation::Insert(peer) => drop(state.peers.insert(peer, now)),
            Operation::Close(peer) => state.peers.remove(peer),
            Operation::Pass(milliseconds) => {
                state.now = now.after(Duration::from_millis(milliseconds));
                state.expired.clear();
                while let Some(silent) = state.peers.handle_timeout(state.now) {
                    state.peers.remove(silent);
                    state.expired.push(silent);
                }
            }
        }
        state
    }
}

struct DemuxTest<T> {
    demux: Demux<u16, T>,
    now: Instant,
}

trait NewTable: Table<u16> {
    fn new() -> Self;
}

impl NewTable for GrowingTable<u16> {
    fn new() -> Self {
        GrowingTable::new()
    }
}

impl NewTable for FixedTable<u16, SLOTS, 4> {
    fn new() -> Self {
        FixedTable::new()
    }
}

impl<T: NewTable> DemuxTest<T> {
    fn slot_of(&self, peer: u16) -> Option<usize> {
        (0..64).find(|slot| self.demux.peer(*slot) == Some(peer))
    }

    fn remove(&mut self, peer: u16) {
        if let Some(slot) = self.slot_of(peer) {
            self.demux.remove(slot);
        }
    }
}

impl<T: NewTable> StateMachineTest for DemuxTest<T> {
    type SystemUnderTest = DemuxTest<T>;
    type Reference = DemuxModel;

    fn init_test(model: &DemuxModel) -> Self {
        DemuxTest {
            demux: Demux::new(T::new(), (1, 2), &model.limits),
            now: Instant::ZERO,
        }
    }

    fn apply(mut test: Self, model: &DemuxModel, operation: Operation) -> Self {
        let now = test.now;
        match operation {
            Operation::Datagram(peer, len, admitted) => {
                let arrival = test.demux.handle_datagram(&peer, len, || true, now);
                let answer = Peers::answer(arrival, |slot| test.demux.peer(slot));
                assert_eq!(Some(answer), model.answer);
                match answer {
                    Answer::Admit if admitted => drop(test.demux.insert(peer, now)),
                    Answer::Evict(evicted) if admitted => {
                        test.remove(evicted);
                        test.demux.insert(peer, now);
                    }
                    Answer::Close => test.remove(peer),
                    _ => {}
                }
            }
            Operation::Insert(peer) => {
                let there = test.demux.insert(peer, now).is_some();
                assert_eq!(there, model.peers.has(peer));
            }
            Operation::Close(peer) => test.remove(peer),
            Operation::Pass(_) => {
                test.now = model.now;
                for silent in &model.expired {
                    let slot = test.demux.handle_timeout(test.now).expect("a peer expires");
                    assert_eq!(
                        test.demux.peer(slot),
                        Some(*silent),
                        "the oldest goes first"
                    );
                    test.demux.remove(slot);
                }
                assert_eq!(test.demux.handle_timeout(test.now), None);
            }
        }
        test
    }

    fn check_invariants(test: &Self, model: &DemuxModel) {
        assert_eq!(test.demux.len(), model.peers.len());
        assert!(test.demux.len() <= model.limits.max_peers());
        assert_eq!(test.demux.poll_timeout(), model.peers.poll_timeout());
        for peer in 0..16 {
            assert_eq!(test.slot_of(peer).is_some(), model.peers.has(peer));
        }
    }
}

#[test]
fn the_demultiplexer_that_grows_agrees_with_a_list_of_peers() {
    run::<DemuxTest<GrowingTable<u16>>>(80);
}

#[test]
fn the_demultiplexer_of_fixed_size_agrees_with_a_list_of_peers() {
    run::<DemuxTest<FixedTable<u16, SLOTS, 4>>>(80);
}

// The send queue.

#[derive(Clone, Debug)]
enum Step {
    Push(Vec<u8>),
    PushFrame(Vec<u8>, usize),
    Advance(usize),
}

#[derive(Clone, Debug)]
struct QueueModel(VecDeque<u8>);

impl ReferenceStateMachine for QueueModel {
    type State = QueueModel;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self::State> {
        Just(QueueModel(VecDeque::new())).boxed()
    }

    fn transitions(state: &Self::State) -> BoxedStrategy<Self::Transition> {
        let bytes = || {
            let len = prop_oneof![3 => 0..50_usize, 1 => 4_000..4_200_usize];
            (len, any::<u8>()).prop_map(|(len, fill)| {
                (0..len)
                    .map(|at| fill.wrapping_add(at as u8))
                    .collect::<Vec<u8>>()
            })
        };
        let len = state.0.len();
        prop_oneof![
            bytes().prop_map(Step::Push),
            (bytes(), 0..100_usize).prop_map(|(bytes, sent)| {
                let sent = sent.min(bytes.len() + 2);
                Step::PushFrame(bytes, sent)
            }),
            (0..len + 10).prop_map(Step::Advance),
        ]
        .boxed()
    }

    fn apply(mut state: Self::State, step: &Self::Transition) -> Self::State {
        match step {
            Step::Push(bytes) => state.0.extend(bytes),
            Step::PushFrame(bytes, sent) => {
                let header = (bytes.len() as u16).to_be_bytes();
                state.0.extend(header.iter().chain(bytes).skip(*sent));
            }
            Step::Advance(count) => drop(state.0.drain(..(*count).min(state.0.len()))),
        }
        state
    }
}

struct QueueTest(SendQueue);

impl StateMachineTest for QueueTest {
    type SystemUnderTest = QueueTest;
    type Reference = QueueModel;

    fn init_test(_model: &QueueModel) -> Self {
        QueueTest(SendQueue::new())
    }

    fn apply(mut test: Self, _model: &QueueModel, step: Step) -> Self {
        match step {
            Step::Push(bytes) => test.0.push(&bytes),
            Step::PushFrame(bytes, sent) => {
                test.0.push_frame(&Frame::new(&bytes).unwrap(), sent);
            }
            Step::Advance(count) => test.0.advance(count),
        }
        test
    }

    fn check_invariants(test: &Self, QueueModel(model): &QueueModel) {
        assert_eq!(test.0.len(), model.len());
        assert_eq!(test.0.is_empty(), model.is_empty());
        assert!(test.0.chunks().flatten().eq(model));
        assert!(test.0.chunks().all(|chunk| !chunk.is_empty()));
    }
}

#[test]
fn the_send_queue_agrees_with_a_deque_of_bytes() {
    run::<QueueTest>(60);
}
