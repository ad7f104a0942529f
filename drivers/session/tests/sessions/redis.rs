//! Sessions in a real Redis: nodes that die, and Redis that stops and comes back.

use crate::support::*;
use cubenet_session::Redis;
use cubenet_session::wire::Refusal;
use cubenet_tests::services::Redis as Server;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

/// A store in this Redis.
pub(crate) fn store(server: &Server) -> Redis {
    let redis = Redis::new(&server.url()).unwrap();
    redis.with_timeout(Duration::from_millis(500))
}

#[test]
fn a_session_goes_from_node_to_node() {
    if let Some(server) = Server::start() {
        outlives_its_nodes(|| store(&server), 11);
    }
}

#[test]
fn redis_that_stops_and_goes_on_loses_nothing() {
    let Some(server) = Server::start() else {
        return;
    };
    let network = clients();
    let node = Node::start(store(&server), roomy());
    let player = Shared::new(3_000);
    player.connect(&network, node.address);
    player.wait("it plays", |player| player.echoed > 100);
    server.signal("STOP");
    let other = Shared::new(1);
    other.connect(&network, node.address);
    other.wait("it is refused", |player| {
        player.refused == [Refusal::StoreAway]
    });
    server.signal("CONT");
    player.wait("it goes on", |player| player.echoed == player.goal);
    assert_eq!(node.wrong.load(SeqCst), 0);
    other.connect(&network, node.address);
    other.wait("it plays", |player| player.echoed == 1);
    network.stop(Duration::ZERO);
}

#[test]
fn a_wrong_url_says_so() {
    let error = Redis::new("no url").unwrap_err();
    let source = std::error::Error::source(&error).expect("what is wrong with it");
    assert!(source.to_string().contains("URL"), "{source}");
}
