//! Progress while a load runs, and a table at its end.

use super::load::{Counts, Outcome};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// A bar on a terminal; elsewhere, a line a second.
pub struct Progress {
    bar: ProgressBar,
    total: Duration,
    printed: u64,
}

impl Progress {
    pub fn new(total: Duration) -> Self {
        let style = "{elapsed_precise} [{bar:40}] {msg}";
        let style = ProgressStyle::with_template(style).expect("the template is well-formed");
        let bar =
            ProgressBar::new(total.as_millis() as u64).with_style(style.progress_chars("=> "));
        Progress {
            bar,
            total,
            printed: 0,
        }
    }

    pub fn show(&mut self, elapsed: Duration, loads: &[&Counts]) {
        let answered: u64 = loads.iter().map(|load| load.answered.load(Relaxed)).sum();
        let wrong = |load: &&Counts| load.damaged.load(Relaxed) + load.broken.load(Relaxed);
        let wrong: u64 = loads.iter().map(wrong).sum();
        let text = format!("{answered} answers verified, {wrong} wrong");
        self.bar
            .set_position(elapsed.min(self.total).as_millis() as u64);
        if !std::io::stderr().is_terminal() && elapsed.as_secs() > self.printed {
            self.printed = elapsed.as_secs();
            complain!("{} of {} s: {text}", self.printed, self.total.as_secs());
        }
        self.bar.set_message(text);
    }

    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

/// The name of a row, and what it says of a load.
type Row = (&'static str, fn(&Outcome) -> String);

/// One column a load, so that it fits any terminal.
pub fn table(outcomes: &[Outcome]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let transports = outcomes.iter().map(|one| one.plan.transport.to_string());
    table.set_header(std::iter::once(String::new()).chain(transports));
    let rows: [Row; 11] = [
        ("connections", |one| one.connected.to_string()),
        ("window", |one| one.plan.window.to_string()),
        ("bytes", |one| one.plan.size.to_string()),
        ("messages/s", |one| {
            format!("{:.0}", one.messages_per_second())
        }),
        ("p50", |one| micros(one.latency_at(0.5))),
        ("p99", |one| micros(one.latency_at(0.99))),
        ("p99.9", |one| micros(one.latency_at(0.999))),
        ("max", |one| micros(one.latency_at(1.0))),
        ("lost", |one| one.lost.to_string()),
        ("damaged", |one| one.damaged.to_string()),
        ("broken", |one| one.broken.to_string()),
    ];
    for (name, value) in rows {
        table.add_row(std::iter::once(name.to_owned()).chain(outcomes.iter().map(value)));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The same for programs; times in microseconds.
pub fn as_json(outcome: &Outcome) -> Value {
    let micros = |quantile| outcome.latency_at(quantile).as_nanos() as f64 / 1e3;
    json!({
        "transport": outcome.plan.transport.to_string(),
        "address": outcome.plan.address.to_string(),
        "connections": outcome.connected,
        "window": outcome.plan.window,
        "size": outcome.plan.size,
        "seconds": outcome.elapsed.as_secs_f64(),
        "messages": outcome.answered,
        "messages_per_second": outcome.messages_per_second(),
        "lost": outcome.lost,
        "damaged": outcome.damaged,
        "broken": outcome.broken,
        "latency_us": {
            "p50": micros(0.5),
            "p90": micros(0.9),
            "p99": micros(0.99),
            "p99.9": micros(0.999),
            "max": micros(1.0),
        },
    })
}

fn micros(duration: Duration) -> String {
    let micros = duration.as_nanos() as f64 / 1e3;
    if micros < 10_000.0 {
        format!("{micros:.0} µs")
    } else {
        format!("{:.1} ms", micros / 1e3)
    }
}
