//! Lines on stdout and stderr, which may be closed or full: what cannot be written there is no
//! reason to panic, but for a program that was to print a result it is a failure.

use cubenet_mio::{Error, Report};
use std::fmt::Arguments;
use std::io::{Write, stderr, stdout};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

static LOST: AtomicBool = AtomicBool::new(false);

/// A line on stdout.
pub fn out(line: Arguments<'_>) {
    let mut out = stdout().lock();
    if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush())
        && !LOST.swap(true, Relaxed)
    {
        err(format_args!("cannot write to stdout: {error}"));
    }
}

/// A line on stderr. If that fails there is nowhere to say so.
pub fn err(line: Arguments<'_>) {
    let _ = writeln!(stderr(), "{line}");
}

/// What the process ends with: `code`, unless something could not be printed.
pub fn ended(code: ExitCode) -> ExitCode {
    if LOST.load(Relaxed) {
        ExitCode::FAILURE
    } else {
        code
    }
}

/// What a process ends with whose run went well or did not, or failed; says why.
pub fn outcome(run: &Result<bool, Error>) -> ExitCode {
    match run {
        Ok(good) => ended(ExitCode::from(u8::from(!good))),
        Err(error) => {
            err(format_args!("{}", Report::new(error)));
            ExitCode::FAILURE
        }
    }
}

/// `println!` that does not panic.
macro_rules! say {
    ($($line:tt)*) => { $crate::support::print::out(format_args!($($line)*)) };
}

/// `eprintln!` that does not panic.
macro_rules! complain {
    ($($line:tt)*) => { $crate::support::print::err(format_args!($($line)*)) };
}
