//! The metrics of a network one by one, with their names, for a program that collects them.

use super::{Histogram, Metrics};
use core::iter;

/// One of the [`Metrics`] of a network or a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metric<'m> {
    /// Its name: words of small letters with `_` between. Without the unit, and without what a collector
    /// puts in front or behind.
    pub name: &'static str,
    /// What kind of number it is.
    pub kind: MetricKind,
    /// Its unit: `"bytes"` or `"seconds"`; empty if it counts things.
    pub unit: &'static str,
    /// What it says, in a sentence without a full stop.
    pub help: &'static str,
    /// If several have one name: which of them it is, as a name and a value. They follow one another.
    pub label: Option<(&'static str, &'static str)>,
    /// The number.
    pub value: MetricValue<'m>,
}

/// What kind of number a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MetricKind {
    /// It only goes up.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How often something took how long.
    Histogram,
}

/// The value of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricValue<'m> {
    /// Of a counter, or a gauge.
    Number(u64),
    /// Of a histogram.
    Histogram(&'m Histogram),
}

impl Metrics {
    /// All of them, one by one. Those of one name follow one another; new ones may come with a version.
    ///
    /// ```
    /// use cubenet_core::{MetricValue, Metrics};
    /// for metric in Metrics::default().iter() {
    ///     if let MetricValue::Number(number) = metric.value {
    ///         println!("{} {:?} {number} {}", metric.name, metric.label, metric.unit);
    ///     }
    /// }
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = Metric<'_>> {
        let drops = self.dropped().into_iter().map(|(reason, count)| {
            let help = "Datagrams dropped, by the reason";
            counter("datagrams_dropped", "", help, count).labelled("reason", reason)
        });
        let closes = self.closed_by.iter().map(|(reason, count)| {
            let help = "Connections closed, by the reason";
            counter("connections_closed", "", help, *count).labelled("reason", reason)
        });
        let all = self.gauges().into_iter().chain(self.counters());
        all.chain(drops).chain(closes).chain(self.histograms())
    }

    fn gauges(&self) -> [Metric<'_>; 8] {
        [
            gauge("connections_open", "", "Connections open now", self.open),
            gauge(
                "connections_limit",
                "",
                "The most connections that may be open, of each transport",
                self.open_limit,
            ),
            gauge(
                "connections_handshaking",
                "",
                "Connections whose layers are in their handshake now",
                self.handshaking,
            ),
            gauge(
                "handshakes_limit",
                "",
                "The most connections whose layers may be in their handshake",
                self.handshaking_limit,
            ),
            gauge(
                "queued",
                "bytes",
                "Bytes that wait to be sent now",
                self.queued_bytes,
            ),
            gauge(
                "queued_limit",
                "bytes",
                "The most bytes that may wait to be sent",
                self.queued_limit,
            ),
            gauge(
                "held",
                "bytes",
                "Bytes of input held now: parts of frames, and what is not delivered yet",
                self.held_bytes,
            ),
            gauge(
                "held_limit",
                "bytes",
                "The most bytes of input that may be held",
                self.held_limit,
            ),
        ]
    }

    fn counters(&self) -> [Metric<'_>; 13] {
        let refused = |reason, count| {
            let help = "Connections of peers refused, by the reason";
            counter("connections_refused", "", help, count).labelled("reason", reason)
        };
        [
            counter(
                "connections_accepted",
                "",
                "Connections that peers opened and the application admitted",
                self.accepted,
            ),
            counter(
                "connections_connected",
                "",
                "Connections that this side opened",
                self.connected,
            ),
            counter(
                "connects_failed",
                "",
                "Connects of this side that failed, or were closed before they were complete",
                self.connect_failed,
            ),
            refused("application", self.refused_by_application()),
            refused("limit", self.refused_by_limit),
            refused("address", self.refused_by_address),
            refused("handshakes", self.refused_by_handshakes),
            counter(
                "accepts_failed",
                "",
                "Times that accept failed for lack of descriptors or memory",
                self.accept_failed,
            ),
            counter(
                "messages_received",
                "",
                "Messages handed to handlers",
                self.messages_in,
            ),
            counter(
                "messages_sent",
                "",
                "Messages accepted by send",
                self.messages_out,
            ),
            counter(
                "received",
                "bytes",
                "Bytes of messages handed to handlers, without headers",
                self.bytes_in,
            ),
            counter(
                "sent",
                "bytes",
                "Bytes of messages accepted by send, without headers",
                self.bytes_out,
            ),
            counter(
                "callback_panics",
                "",
                "Callbacks that panicked",
                self.panics,
            ),
        ]
    }

    fn histograms(&self) -> impl Iterator<Item = Metric<'_>> {
        let histogram = |name, help, histogram| Metric {
            name,
            kind: MetricKind::Histogram,
            unit: "seconds",
            help,
            label: None,
            value: MetricValue::Histogram(histogram),
        };
        let handler = "How long callbacks took that ran in a row for one stream or datagram socket, and what they sent to leave";
        let handler = histogram("handler", handler, &self.handler_time);
        let help = "How long workers took for all that one look for events had shown";
        let times = self.loop_delay.iter();
        let loop_delay = times.map(move |times| histogram("loop_delay", help, times));
        iter::once(handler).chain(loop_delay)
    }
}

impl Metric<'_> {
    fn labelled(mut self, name: &'static str, value: &'static str) -> Self {
        self.label = Some((name, value));
        self
    }
}

fn number(
    kind: MetricKind,
    name: &'static str,
    unit: &'static str,
    help: &'static str,
    value: u64,
) -> Metric<'static> {
    Metric {
        name,
        kind,
        unit,
        help,
        label: None,
        value: MetricValue::Number(value),
    }
}

fn gauge(
    name: &'static str,
    unit: &'static str,
    help: &'static str,
    value: u64,
) -> Metric<'static> {
    number(MetricKind::Gauge, name, unit, help, value)
}

fn counter(
    name: &'static str,
    unit: &'static str,
    help: &'static str,
    value: u64,
) -> Metric<'static> {
    number(MetricKind::Counter, name, unit, help, value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::CloseReason;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn every_metric_has_a_name_of_its_own_and_those_of_one_name_are_alike() {
        let metrics = Metrics {
            loop_delay: Some(Histogram::default()),
            ..Metrics::default()
        };
        let mut names = BTreeMap::new();
        let mut whole = BTreeSet::new();
        let mut last = "";
        for metric in metrics.iter() {
            let alike = (metric.kind, metric.unit, metric.help);
            if metric.name == last {
                assert_eq!(names[last], alike);
            } else {
                let before = names.insert(metric.name, alike);
                assert_eq!(before, None, "{} comes twice", metric.name);
            }
            last = metric.name;
            assert!(whole.insert((metric.name, metric.label)), "{}", metric.name);
            let is_small = |letter: char| letter.is_ascii_lowercase() || letter == '_';
            assert!(metric.name.chars().all(is_small), "{}", metric.name);
            assert!(!metric.help.ends_with('.') && !metric.help.is_empty());
        }
    }

    #[test]
    fn every_number_of_the_metrics_is_among_them() {
        let mut metrics = Metrics {
            open: 1,
            open_limit: 2,
            handshaking: 3,
            handshaking_limit: 4,
            queued_bytes: 5,
            queued_limit: 6,
            held_bytes: 7,
            held_limit: 8,
            accepted: 9,
            connected: 10,
            connect_failed: 11,
            refused: 12 + 13 + 14 + 15,
            refused_by_limit: 13,
            refused_by_address: 14,
            refused_by_handshakes: 15,
            accept_failed: 16,
            messages_in: 17,
            messages_out: 18,
            bytes_in: 19,
            bytes_out: 20,
            panics: 21,
            dropped_too_long: 22,
            dropped_table_full: 23,
            dropped_not_admitted: 24,
            dropped_empty: 25,
            dropped_paused: 26,
            dropped_not_sent: 27,
            ..Metrics::default()
        };
        *metrics.closed_by.get_mut(CloseReason::Local) = 28;
        let numbers = metrics.iter().filter_map(|metric| match metric.value {
            MetricValue::Number(number) => Some(number),
            MetricValue::Histogram(_) => None,
        });
        let numbers: BTreeSet<u64> = numbers.filter(|number| *number > 0).collect();
        assert!(numbers.into_iter().eq(1..=28));
        let mut sum = metrics.clone();
        sum.add(&metrics);
        let doubled = |metric: &Metric<'_>| match metric.value {
            MetricValue::Number(number) => number,
            MetricValue::Histogram(histogram) => histogram.count(),
        };
        for (one, two) in metrics.iter().zip(sum.iter()) {
            assert_eq!(2 * doubled(&one), doubled(&two), "{}", one.name);
        }
    }
}
