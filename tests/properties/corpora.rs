//! What the fuzzers have kept, tried again: every committed input of every target.

use cubenet_core::{CloseReason, FrameError, Timeout};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The files of a target's corpus, in order.
fn corpus(target: &str) -> Vec<PathBuf> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let corpus = corpus.join(target);
    let entries =
        std::fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display()));
    let mut inputs: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    inputs
}

#[test]
fn every_input_of_every_corpus_passes_its_check() {
    for (target, check) in cubenet_fuzz::CHECKS {
        let inputs = corpus(target);
        assert!(inputs.len() > 10, "{target} has a corpus");
        for input in inputs {
            let bytes = std::fs::read(&input).unwrap();
            let outcome = std::panic::catch_unwind(|| check(&bytes));
            assert!(outcome.is_ok(), "{target} fails on {}", input.display());
        }
    }
}

#[test]
fn the_corpus_of_pairs_reaches_every_reason_to_close() {
    let inputs = corpus("pair");
    let bytes = inputs.iter().map(|input| std::fs::read(input).unwrap());
    let reasons = bytes.filter_map(|bytes| cubenet_fuzz::pair::run(&bytes));
    let reached: BTreeSet<&str> = reasons.flatten().map(CloseReason::name).collect();
    let expected = [
        CloseReason::Local,
        CloseReason::Peer,
        CloseReason::Truncated,
        CloseReason::Reset,
        CloseReason::Timeout(Timeout::Connect),
        CloseReason::Timeout(Timeout::Frame),
        CloseReason::Timeout(Timeout::FirstMessage),
        CloseReason::Timeout(Timeout::Idle),
        CloseReason::Timeout(Timeout::WriteStall),
        CloseReason::Timeout(Timeout::Drain),
        CloseReason::Protocol(FrameError::TooLong {
            declared: 1,
            limit: 0,
        }),
        CloseReason::Overflow,
    ];
    let expected: BTreeSet<&str> = expected.into_iter().map(CloseReason::name).collect();
    assert_eq!(reached, expected);
}

#[test]
fn the_corpus_of_sessions_reaches_everything_that_a_client_is_told() {
    let inputs = corpus("session");
    let bytes = inputs.iter().map(|input| std::fs::read(input).unwrap());
    let reached: BTreeSet<&str> = bytes
        .flat_map(|bytes| cubenet_fuzz::session::run(&bytes))
        .collect();
    let expected = ["ended", "error", "message", "opened", "refused", "resumed"];
    assert!(reached.into_iter().eq(expected));
}

#[test]
fn every_target_has_its_check() {
    let targets = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/fuzz_targets");
    let mut names: Vec<String> = std::fs::read_dir(targets)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let mut checks = cubenet_fuzz::CHECKS.map(|(name, _)| name.to_owned());
    checks.sort();
    assert_eq!(names, checks);
}
