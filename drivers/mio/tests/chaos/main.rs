//! Chaos on the real mio driver: handlers, closures, destructors and other threads do what a
//! seed says (send, close, abort, pause, listen, connect, panic, block), on their own and on
//! other connections and networks, while peers send garbage and, in a build with
//! `--cfg cubenet_faults`, system calls fail and fall short by the same seed. At the end of a
//! run nothing may be left, lost, doubled, dead or spinning.
//!
//! ```sh
//! drivers/mio/tests/chaos/run --seconds 60          # new seeds for a minute, with faults
//! drivers/mio/tests/chaos/run --seed 42 --times 50  # one seed again; threads race, so several times
//! ```

mod checks;
mod peers;
mod subscriber;
mod user;
mod world;

use clap::Parser;
use cubenet_tests::allocation::Counting;
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Chaos on the real mio driver.
#[derive(Parser)]
struct Options {
    /// The first seed; drawn from the clock if it is left out
    #[arg(long)]
    seed: Option<u64>,
    /// How many seeds to run, counted up from the first
    #[arg(long)]
    seeds: Option<u64>,
    /// How long to run new seeds
    #[arg(long)]
    seconds: Option<u64>,
    /// How often to run each seed
    #[arg(long, default_value_t = 1)]
    times: u64,
    /// What is meant for another test harness
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _others: Vec<String>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let drawn = || {
        let since_epoch = std::time::SystemTime::UNIX_EPOCH.elapsed();
        since_epoch.map_or(0, |time| time.as_micros() as u64)
    };
    let first = options.seed.unwrap_or_else(drawn);
    let count = match (options.seed, options.seeds, options.seconds) {
        (_, Some(seeds), _) => seeds,
        (_, None, Some(_)) => u64::MAX,
        (Some(_), None, None) => 1,
        (None, None, None) => 30,
    };
    let until = options
        .seconds
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    world::watch_panics();
    subscriber::install();
    let mut process = checks::Process::new();
    let (mut runs, mut faults) = (0_u64, 0);
    for seed in (first..).take(usize::try_from(count).unwrap_or(usize::MAX)) {
        if until.is_some_and(|until| Instant::now() >= until) {
            break;
        }
        for _ in 0..options.times {
            let ran = world::run(seed);
            runs += 1;
            faults += ran.faults;
            let mut violations = ran.violations;
            process.check(runs, &mut violations);
            if !violations.is_empty() {
                println!("chaos: seed {seed} failed, after {runs} runs:");
                for violation in violations.iter().take(20) {
                    println!("  {violation}");
                }
                println!("again: drivers/mio/tests/chaos/run --seed {seed} --times 200");
                println!("{} passed, 1 failed", runs - 1);
                return ExitCode::FAILURE;
            }
        }
    }
    println!("chaos: seeds from {first}, {faults} faults");
    println!("{runs} passed, 0 failed");
    ExitCode::SUCCESS
}
