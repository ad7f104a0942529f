//! What a node shows of itself: to Prometheus, to load balancers, and in a browser.

use crate::node::Node;
use crate::support::openmetrics::{self, Labels, Source, counters, gauge};
use crate::support::system::End;
use crate::support::web::{self, Page};
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// A page with charts of the same figures.
const PAGE: &str = include_str!("page.html");

/// Shows a node on this address. Returns that, with the port that the system chose if it was to.
pub fn serve(node: &Node, name: &str, address: SocketAddr, end: &End) -> io::Result<SocketAddr> {
    let mut registry = Registry::default();
    let name = Info::new([("name", name.to_owned())]);
    registry.register("lobby_node", "The node", name);
    openmetrics::register_network(&mut registry, &node.network, &node.listeners);
    registry.register_collector(Box::new(Source(of_lobby(node))));
    let tick_time = node.ticks().time.clone();
    let help = "How long ticks took in seconds";
    registry.register("lobby_tick_seconds", help, tick_time);
    let end = end.clone();
    web::serve(address, move |asked| match asked.path {
        // HAProxy sends no more clients to a node that answers so, and leaves those who are there.
        "/health" if end.is_asked() => Some(Page::text(404, "stopping\n")),
        "/health" => Some(Page::text(200, "well\n")),
        "/" => Some(Page {
            status: 200,
            kind: "text/html; charset=utf-8",
            body: PAGE.to_owned(),
        }),
        "/metrics" => Some(openmetrics::page(&registry, asked)),
        _ => None,
    })
}

fn of_lobby(node: &Node) -> impl Fn(&mut DescriptorEncoder<'_>) -> fmt::Result + use<> {
    let (hall, ticks) = (Arc::clone(&node.hall), node.ticks());
    move |encoder| {
        let (players, rooms) = (hall.players() as u64, hall.rooms() as u64);
        gauge(encoder, "lobby_players", "Players on this node", players)?;
        gauge(
            encoder,
            "lobby_rooms",
            "Rooms that have players on this node",
            rooms,
        )?;
        let lines = hall.counts.lines_published.load(Relaxed);
        let help = "Lines that players of this node have said";
        counters(encoder, "lobby_lines", help, [(Labels::new(), lines)])?;
        let datagrams = ticks.datagrams.load(Relaxed);
        let help = "Datagrams of ticks sent to players of this node";
        counters(
            encoder,
            "lobby_tick_datagrams",
            help,
            [(Labels::new(), datagrams)],
        )?;
        let ended = hall.counts.ended.lock().map_err(|_| fmt::Error)?.clone();
        let ended = ended.into_iter();
        let ended = ended.map(|(reason, count)| (vec![("reason", format!("{reason:?}"))], count));
        let help = "Sessions that are over on this node, by the reason";
        counters(encoder, "lobby_sessions_ended", help, ended)
    }
}
