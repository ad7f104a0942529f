//! What bots have seen, as a table and for programs.

use super::bot::Bot;
use comfy_table::{CellAlignment, Table, presets};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

pub struct Outcome {
    /// Whether all bots have come.
    pub joined: bool,
    pub bots: usize,
    pub rooms: usize,
    pub seconds: Duration,
    said: u64,
    heard: u64,
    /// Lines that came behind a later one of the same bot, that came twice, and that did not come.
    lost: u64,
    doubled: u64,
    pub missing: u64,
    unacknowledged: u64,
    logins: u64,
    resumes: u64,
    /// How long bots were away, and how long lines took to come back to those who said them, in
    /// microseconds.
    away: Histogram<u64>,
    arrival: Histogram<u64>,
    ticks: u64,
    ticks_lost: u64,
    refused: BTreeMap<String, u64>,
    over: BTreeMap<String, u64>,
}

impl Outcome {
    pub fn new() -> Self {
        // Up to ten minutes, with three digits.
        let empty = || Histogram::new_with_bounds(1, 600_000_000, 3);
        let [away, arrival] = [(); 2].map(|()| empty().expect("the bounds are in order"));
        Outcome {
            joined: false,
            bots: 0,
            rooms: 0,
            seconds: Duration::ZERO,
            said: 0,
            heard: 0,
            lost: 0,
            doubled: 0,
            missing: 0,
            unacknowledged: 0,
            logins: 0,
            resumes: 0,
            away,
            arrival,
            ticks: 0,
            ticks_lost: 0,
            refused: BTreeMap::new(),
            over: BTreeMap::new(),
        }
    }

    pub fn add(&mut self, bot: &Bot) {
        self.said += bot.said;
        self.heard += bot.lines;
        self.lost += bot.lost;
        self.doubled += bot.doubled;
        self.unacknowledged += bot.unacknowledged();
        self.logins += bot.logins;
        self.resumes += bot.away.len() as u64;
        for (histogram, times) in [
            (&mut self.away, &bot.away),
            (&mut self.arrival, &bot.arrivals),
        ] {
            for time in times {
                histogram.saturating_record(time.as_micros() as u64);
            }
        }
        self.ticks += bot.ticks;
        self.ticks_lost += bot.ticks_lost;
        for (why, count) in &bot.refused {
            *self.refused.entry(why.clone()).or_default() += count;
        }
        if let Some(why) = &bot.over {
            *self.over.entry(why.clone()).or_default() += 1;
        }
    }

    /// Whether every bot has its session, and all that was said has arrived once.
    pub fn is_good(&self) -> bool {
        let wrong = self.lost + self.doubled + self.missing + self.unacknowledged;
        self.joined && wrong == 0 && self.over.is_empty() && self.said > 0
    }

    /// Why bots were not let in.
    pub fn refusals(&self) -> String {
        let reasons = self.refused.iter().chain(&self.over);
        let reasons: Vec<&str> = reasons.map(|(why, _)| why.as_str()).collect();
        if reasons.is_empty() {
            return "nothing answers".to_owned();
        }
        reasons.join("; ")
    }

    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        let millis = |histogram: &Histogram<u64>, quantile| {
            let micros = histogram.value_at_quantile(quantile);
            format!("{:.1} ms", micros as f64 / 1e3)
        };
        let rows = [
            ("bots", self.bots.to_string()),
            ("rooms", self.rooms.to_string()),
            ("logins", self.logins.to_string()),
            ("lines said", self.said.to_string()),
            ("lines heard", self.heard.to_string()),
            ("lost", (self.lost + self.missing).to_string()),
            ("doubled", self.doubled.to_string()),
            ("not acknowledged", self.unacknowledged.to_string()),
            ("a line comes back after, p50", millis(&self.arrival, 0.5)),
            ("p99", millis(&self.arrival, 0.99)),
            ("max", millis(&self.arrival, 1.0)),
            ("resumes", self.resumes.to_string()),
            ("longest time away", millis(&self.away, 1.0)),
            ("ticks", self.ticks.to_string()),
            ("ticks lost", self.ticks_lost.to_string()),
        ];
        for (name, value) in rows {
            table.add_row([name.to_owned(), value]);
        }
        for (why, count) in &self.refused {
            table.add_row([format!("tried again: {why}"), count.to_string()]);
        }
        for (why, count) in &self.over {
            table.add_row([format!("sessions lost: {why}"), count.to_string()]);
        }
        let values = table.column_mut(1);
        values
            .expect("there are two")
            .set_cell_alignment(CellAlignment::Right);
        table
    }

    /// The same for programs; times in milliseconds.
    pub fn as_json(&self) -> Value {
        let millis = |histogram: &Histogram<u64>, quantile| {
            histogram.value_at_quantile(quantile) as f64 / 1e3
        };
        json!({
            "good": self.is_good(),
            "joined": self.joined,
            "bots": self.bots,
            "rooms": self.rooms,
            "seconds": self.seconds.as_secs_f64(),
            "logins": self.logins,
            "said": self.said,
            "heard": self.heard,
            "lost": self.lost + self.missing,
            "doubled": self.doubled,
            "not_acknowledged": self.unacknowledged,
            "resumes": self.resumes,
            "away_ms": { "p50": millis(&self.away, 0.5), "max": millis(&self.away, 1.0) },
            "arrival_ms": {
                "p50": millis(&self.arrival, 0.5),
                "p99": millis(&self.arrival, 0.99),
                "max": millis(&self.arrival, 1.0),
            },
            "ticks": self.ticks,
            "ticks_lost": self.ticks_lost,
            "tried_again": self.refused,
            "sessions_lost": self.over,
        })
    }
}
