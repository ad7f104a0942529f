//! One behaviour for every driver: each behaviour is tried on each of them. The table in
//! `docs/src/conformance.md` is made of the same list; `CUBENET_WRITE_DOCS=1` writes it anew.

mod closing;
mod datagrams;
mod flow;
mod limits;
mod messages;
mod networks;

use cubenet_tests::harness::{Harness, mio, sim, smoltcp};
use cubenet_tests::system::{Device, ICMP, RESETS, device_and_kernel, have_taps, is_wine};
use libtest_mimic::{Arguments, Failed, Trial};
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// What the behaviour is, and the function that tries it.
type Behaviour = (&'static str, fn(&dyn Harness));

/// A part of the suite: its title, its behaviours.
type Part = (&'static str, &'static [Behaviour]);

const DATAGRAMS: &str = "Datagrams";

const PARTS: [Part; 6] = [
    ("Messages of a stream", messages::BEHAVIOURS),
    ("How a stream ends", closing::BEHAVIOURS),
    ("Backpressure and pauses", flow::BEHAVIOURS),
    ("Limits and clocks of a stream", limits::BEHAVIOURS),
    (DATAGRAMS, datagrams::BEHAVIOURS),
    ("Listeners, handles and networks", networks::BEHAVIOURS),
];

struct Driver {
    name: &'static str,
    /// Makes a world for it.
    world: fn() -> Box<dyn Harness>,
    /// What it cannot do, and why.
    without: &'static [(&'static str, &'static [&'static str])],
    /// Whether what it needs is there; says so if not.
    needs: fn() -> bool,
    /// Its streams have TLS over them. Datagrams have not, so it has no column for these.
    has_tls: bool,
}

const UNWINDING: (&str, &[&str]) = (
    "a device has no unwinding: a panic ends the program",
    &[
        "a panic in a callback closes with `Panicked`, and other connections go on",
        "a panic in `accepted` closes the connection",
        "a panic in a callback closes with `Panicked`, and other peers go on",
    ],
);
const OVERFLOW: (&str, &[&str]) = (
    "every connection has its rings from the beginning, and cannot outgrow them",
    &["a connection that exceeds `max_queued_total` closes with `Overflow`"],
);
const UNREACHABLE: (&str, &[&str]) = (
    "smoltcp reports only to a socket for ICMP that no socket listens",
    &["a connect to a port without a socket gets the error `Unreachable` and stays open"],
);
const ONE_FRAME: (&str, &[&str]) = (
    "a datagram is one frame, which is no longer than 9,100 bytes here",
    &["a datagram of 65,507 bytes passes"],
);

const DRIVERS: [Driver; 8] = [
    Driver {
        name: "mio",
        world: || Box::new(mio::Harness::new()),
        without: &[],
        needs: || true,
        has_tls: false,
    },
    Driver {
        name: "sim",
        world: || Box::new(sim::Harness::new()),
        without: &[],
        needs: || true,
        has_tls: false,
    },
    Driver {
        name: "sim, interleaved",
        world: || Box::new(sim::Harness::interleaved()),
        without: &[],
        needs: || true,
        has_tls: false,
    },
    Driver {
        name: "mio, TLS",
        world: || Box::new(mio::Harness::secured()),
        without: &[],
        needs: || true,
        has_tls: true,
    },
    Driver {
        name: "sim, TLS",
        world: || Box::new(sim::Harness::secured()),
        without: &[],
        needs: || true,
        has_tls: true,
    },
    Driver {
        name: "smoltcp",
        world: || Box::new(smoltcp::Harness::new()),
        without: &[UNWINDING, OVERFLOW, UNREACHABLE],
        needs: || true,
        has_tls: false,
    },
    Driver {
        name: "smoltcp, the kernel connects",
        world: || device_and_kernel(Device::Listens),
        without: &[UNWINDING, OVERFLOW, ONE_FRAME],
        needs: have_taps,
        has_tls: false,
    },
    Driver {
        name: "smoltcp connects to the kernel",
        world: || device_and_kernel(Device::Connects),
        without: &[UNREACHABLE, ONE_FRAME],
        needs: have_taps,
        has_tls: false,
    },
];

/// What Wine cannot show of the mio driver, and Windows can.
const WITHOUT_UNDER_WINE: [(&str, &[&str]); 2] = [
    (
        RESETS,
        &[
            "the side that aborts sees `Local`, its peer sees `Reset`",
            "an abort inside a callback ends the connection after it",
            "a RST closes with `Reset`",
            "what cannot be delivered in the drain time ends as `Timeout(Drain)`",
            "a connection that ends with messages undelivered ends with RST, not FIN",
            "a panic in a callback closes with `Panicked`, and other connections go on",
            "a connection that exceeds `max_queued_total` closes with `Overflow`",
            "a peer that reads nothing closes with `Timeout(WriteStall)`, on time",
            "stopping aborts at its deadline the connections of peers that do not read",
        ],
    ),
    (
        ICMP,
        &["a connect to a port without a socket gets the error `Unreachable` and stays open"],
    ),
];

/// Why this cannot be tried where this runs, if it cannot.
fn cannot_be_shown(driver: &Driver, behaviour: &str) -> Option<&'static str> {
    let mut without = WITHOUT_UNDER_WINE.iter();
    let (reason, _) = without.find(|(_, behaviours)| behaviours.contains(&behaviour))?;
    (is_wine() && driver.name.starts_with("mio")).then_some(reason)
}

impl Driver {
    /// Whether it has a column for a part.
    fn shows(&self, part: &str) -> bool {
        !(self.has_tls && part == DATAGRAMS)
    }

    /// Which of the reasons is why it cannot do this, if it cannot.
    fn lacks(&self, behaviour: &str) -> Option<usize> {
        let mut without = self.without.iter();
        without.position(|(_, behaviours)| behaviours.contains(&behaviour))
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for driver in DRIVERS {
        if !(driver.needs)() {
            continue;
        }
        for (part, behaviours) in PARTS.into_iter().filter(|(part, _)| driver.shows(part)) {
            for (behaviour, test) in behaviours {
                if driver.lacks(behaviour).is_some() {
                    continue;
                }
                let name = format!("{part}: {behaviour}");
                if let Some(reason) = cannot_be_shown(&driver, behaviour) {
                    eprintln!("skipped: [{}] {name}: Wine: {reason}", driver.name);
                    continue;
                }
                // On a thread of its own: a world may be one of that thread alone.
                let run = move || {
                    let trial = std::thread::spawn(move || test(&*(driver.world)()));
                    trial.join().map_err(|_| "it panicked".into())
                };
                trials.push(Trial::test(name, run).with_kind(driver.name));
            }
        }
    }
    trials.push(Trial::test(
        "the table in the documentation is this suite",
        table_is_current,
    ));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn table_is_current() -> Result<(), Failed> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/src/conformance.md");
    let table = table();
    if std::env::var_os("CUBENET_WRITE_DOCS").is_some() {
        std::fs::write(&path, &table)?;
    }
    if std::fs::read_to_string(&path)? != table {
        return Err(
            "docs/src/conformance.md is not current; run the conformance tests once with \
                    CUBENET_WRITE_DOCS=1"
                .into(),
        );
    }
    Ok(())
}

fn table() -> String {
    let count: usize = PARTS.iter().map(|(_, behaviours)| behaviours.len()).sum();
    let mut text = format!(
        "# One behaviour, every driver\n\n\
         {count} behaviours, each written once against `Handler`, `Link` and a small harness \
         (`tests/src/harness`) and tried on every driver by `cargo test --test conformance`. \
         This page is generated from that suite, which fails if a behaviour does not hold or \
         if the page is not current: a ✓ is a test that passes. A number is something that the \
         driver cannot do, for the reason below.\n"
    );
    let mut reasons: Vec<&str> = Vec::new();
    let mut lacking = 0;
    for (reason, behaviours) in DRIVERS.iter().flat_map(|driver| driver.without) {
        if !reasons.contains(reason) {
            reasons.push(reason);
        }
        lacking += behaviours.len();
    }
    for (part, behaviours) in PARTS {
        let shown: Vec<_> = DRIVERS.iter().filter(|of| of.shows(part)).collect();
        let names: Vec<_> = shown.iter().map(|driver| driver.name).collect();
        let _ = write!(
            text,
            "\n## {part}\n\n| behaviour | {} |\n",
            names.join(" | ")
        );
        let _ = writeln!(text, "| --- |{}", " :-: |".repeat(shown.len()));
        for (behaviour, _) in behaviours {
            let _ = write!(text, "| {behaviour} |");
            for driver in &shown {
                let lacks = driver.lacks(behaviour).map(|nth| driver.without[nth].0);
                lacking -= usize::from(lacks.is_some());
                let mark = lacks.map_or_else(
                    || "✓".to_owned(),
                    |reason| {
                        let nth = reasons.iter().position(|of| *of == reason);
                        (nth.expect("it was listed") + 1).to_string()
                    },
                );
                let _ = write!(text, " {mark} |");
            }
            text.push('\n');
        }
    }
    assert_eq!(lacking, 0, "what a driver cannot do is named as it is here");
    text.push_str("\n## What a driver cannot do\n\n");
    for (nth, reason) in (1..).zip(reasons) {
        let _ = writeln!(text, "{nth}. {reason}.");
    }
    text
}
