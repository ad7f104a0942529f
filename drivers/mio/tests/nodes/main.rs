//! The service of the example `lobby` on two nodes, with `HAProxy` in front, sessions in Redis and 200 bots: nodes
//! that die, stop or sleep, Redis that is away, `HAProxy` that begins anew. Nothing that was acknowledged is
//! lost or comes twice.
//!
//! Each takes up to half a minute and both processors, so they are run by themselves, in release mode:
//! `cargo test --release --package cubenet-mio --test nodes -- --ignored --test-threads 1`

#![cfg(unix)]

mod behind;
mod prober;
mod seen;
mod service;

use cubenet_tests::eventually;
use cubenet_tests::process::{Server, example};
use cubenet_tests::services::Redis;
use prober::{Prober, who_am_i};
use service::{BOTS, Node, Service, WAIT, longest_away, outcome};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Without tools, and without a load that would hold up other tests.
#[test]
fn one_node_in_memory_loses_nothing() {
    let bots = ["--bots", "40", "--seconds", "2", "--lines", "5", "--json"];
    let bots = Server::start(example("lobby").args(bots));
    let outcome = outcome(bots);
    assert_eq!(outcome["said"], 40 * 2 * 5);
    assert_eq!(outcome["heard"], 20 * 40 * 2 * 5);
    assert!(outcome["ticks"].as_u64() > Some(40), "{outcome}");
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
#[ignore = "takes both processors"]
fn a_node_is_killed_and_its_players_go_on_at_the_other_within_three_seconds() {
    let Some(mut service) = Service::start() else {
        return;
    };
    let bots = service.bots(10);
    sleep(2 * SECOND);
    let resumed = service.nodes[0].players();
    service.nodes[0].server.kill();
    let killed = Instant::now();
    eventually("all are at the other", || {
        service.nodes[1].players() == BOTS
    });
    assert!(killed.elapsed() < 3 * SECOND, "{:?}", killed.elapsed());
    // It comes back, and is of use again.
    service.nodes[0].start_again();
    let outcome = outcome(bots);
    assert!(outcome["resumes"].as_u64() >= Some(resumed), "{outcome}");
    assert!(longest_away(&outcome) < 3.0, "{outcome}");
}

#[test]
#[ignore = "takes both processors"]
fn both_nodes_are_replaced_one_after_the_other_and_no_connect_is_refused() {
    let Some(mut service) = Service::start() else {
        return;
    };
    let prober = Prober::start(service.haproxy.address);
    let bots = service.bots(14);
    sleep(SECOND);
    for node in 0..2 {
        let node = &mut service.nodes[node];
        let before = node.players();
        node.server.signal("TERM");
        let printed = node.server.rest();
        assert!(node.server.has_succeeded(), "{printed:?}");
        assert!(before > 0 && printed.iter().any(|line| line.starts_with("stopping with")));
        node.start_again();
        sleep(2 * SECOND);
    }
    let outcome = outcome(bots);
    assert!(outcome["resumes"].as_u64() >= Some(BOTS), "{outcome}");
    assert!(longest_away(&outcome) < 3.0, "{outcome}");
    let probes = prober.stop();
    assert!(probes > 20, "{probes}");
}

#[test]
#[ignore = "takes both processors"]
fn a_process_hands_its_sockets_to_the_next_and_no_connect_is_refused() {
    let Some(redis) = Redis::start() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("handover");
    let path = path.to_str().unwrap();
    let mut node = Node::start("a", &redis.url(), &["--handover", path]);
    let prober = Prober::start(node.address);
    let bots = node.bots(8);
    for _ in 0..2 {
        sleep(2 * SECOND);
        let next = node.next();
        let before = std::mem::replace(&mut node, next);
        let printed = before.server.end();
        let is_all = |line: &String| line.ends_with("players in 10 rooms");
        assert!(printed.iter().any(is_all), "{printed:?}");
    }
    let outcome = outcome(bots);
    assert!(outcome["resumes"].as_u64() >= Some(2 * BOTS), "{outcome}");
    assert!(longest_away(&outcome) < 3.0, "{outcome}");
    let probes = prober.stop();
    assert!(probes > 20, "{probes}");
}

#[test]
#[ignore = "takes both processors"]
fn redis_stops_for_five_seconds_and_comes_back() {
    let Some(mut service) = Service::start() else {
        return;
    };
    let bots = service.bots(12);
    sleep(2 * SECOND);
    service.redis.stop();
    sleep(SECOND);
    // A login is refused, with a reason; those who are there go on.
    let refused = prober::login(service.haproxy.address);
    assert_eq!(refused, Err("StoreAway".to_owned()));
    sleep(4 * SECOND);
    service.redis.start_again();
    let outcome = outcome(bots);
    assert_eq!(outcome["sessions_lost"], serde_json::json!({}), "{outcome}");
}

#[test]
#[ignore = "takes both processors"]
fn haproxy_reads_its_configuration_again() {
    let Some(service) = Service::start() else {
        return;
    };
    let prober = Prober::start(service.haproxy.address);
    let bots = service.bots(8);
    sleep(2 * SECOND);
    // The worker before is given two seconds, and then cuts all that it has.
    service.haproxy.reload();
    let outcome = outcome(bots);
    assert!(outcome["resumes"].as_u64() >= Some(BOTS), "{outcome}");
    assert!(longest_away(&outcome) < 3.0, "{outcome}");
    prober.stop();
}

#[test]
#[ignore = "takes both processors"]
fn a_node_sleeps_longer_than_it_may_and_knows_that_its_sessions_are_gone() {
    let Some(mut service) = Service::start() else {
        return;
    };
    let lease = WAIT + WAIT / 3;
    let bots = service.bots(lease.as_secs() + 8);
    sleep(2 * SECOND);
    let asleep = service.nodes[0].players();
    service.nodes[0].server.signal("STOP");
    eventually("they go on at the other", || {
        service.nodes[1].players() == BOTS
    });
    sleep(lease + SECOND);
    service.nodes[0].server.signal("CONT");
    eventually("it knows", || service.nodes[0].players() == 0);
    service.nodes[0].server.signal("TERM");
    let ended = service.nodes[0].server.rest();
    // It may have noticed by the time, or when it wanted to store something.
    let gone = ["LeaseLost: ", "TakenOver: "];
    let count = |line: &String| {
        let ended = line.strip_prefix("sessions ended, ")?;
        let count = gone.iter().find_map(|reason| ended.strip_prefix(reason));
        Some(count.expect("no other reason").parse::<u64>().unwrap())
    };
    assert_eq!(ended.iter().filter_map(count).sum::<u64>(), asleep);
    let outcome = outcome(bots);
    assert!(outcome["resumes"].as_u64() >= Some(asleep), "{outcome}");
}

#[test]
#[ignore = "takes both processors"]
fn a_handler_sees_the_address_of_the_client_behind_haproxy() {
    let Some(service) = Service::start() else {
        return;
    };
    for _ in 0..4 {
        let (own, seen) = who_am_i(service.haproxy.address);
        assert_eq!(seen, own.to_string());
    }
}
