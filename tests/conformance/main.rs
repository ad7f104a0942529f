//! One behaviour for every driver: each sentence is tried on each of them. The table in
//! `docs/src/conformance.md` is made of the same list; `CUBENET_WRITE_DOCS=1` writes it anew.

mod closing;
mod datagrams;
mod flow;
mod limits;
mod messages;
mod networks;

use cubenet_tests::harness::{Harness, mio, sim};
use libtest_mimic::{Arguments, Failed, Trial};
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// A sentence, and what tries it.
type Behaviour = (&'static str, fn(&dyn Harness));

/// A part of the suite: its title, its behaviours.
type Part = (&'static str, &'static [Behaviour]);

const PARTS: [Part; 6] = [
    ("Messages of a stream", messages::BEHAVIOURS),
    ("How a stream ends", closing::BEHAVIOURS),
    ("Backpressure and pauses", flow::BEHAVIOURS),
    ("Limits and clocks of a stream", limits::BEHAVIOURS),
    ("Datagrams", datagrams::BEHAVIOURS),
    ("Listeners, handles and networks", networks::BEHAVIOURS),
];

/// A driver: its name, and how a world for it is made.
type Driver = (&'static str, fn() -> Box<dyn Harness>);

const DRIVERS: [Driver; 2] = [
    ("mio", || Box::new(mio::Harness::new())),
    ("sim", || Box::new(sim::Harness::new())),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for (driver, world) in DRIVERS {
        for (part, behaviours) in PARTS {
            for (sentence, behaviour) in behaviours {
                let name = format!("{part}: {sentence}");
                let run = move || {
                    behaviour(&*world());
                    Ok(())
                };
                trials.push(Trial::test(name, run).with_kind(driver));
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
         if the page is not current: a ✓ is a test that passes.\n"
    );
    for (part, behaviours) in PARTS {
        let names: Vec<_> = DRIVERS.iter().map(|(name, _)| *name).collect();
        let _ = write!(
            text,
            "\n## {part}\n\n| behaviour | {} |\n",
            names.join(" | ")
        );
        let _ = writeln!(text, "| --- |{}", " :-: |".repeat(DRIVERS.len()));
        for (sentence, _) in behaviours {
            let _ = writeln!(text, "| {sentence} |{}", " ✓ |".repeat(DRIVERS.len()));
        }
    }
    text
}
