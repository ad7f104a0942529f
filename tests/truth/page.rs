//! The page of the book.

use crate::programs::Row;
use std::fmt::Write;
use std::path::Path;

/// Writes the table into the page, if it is to be written.
pub(crate) fn write(pairs: &[(Row, Row)]) {
    if std::env::var_os("CUBENET_WRITE_DOCS").is_none() {
        return;
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src/simulator.md");
    let text = std::fs::read_to_string(&page).expect("the page is there");
    let (before, rest) = text.split_once(BEGIN).expect("the table begins somewhere");
    let (_, after) = rest.split_once(END).expect("the table ends somewhere");
    let mut table = "| program | real kernels | simulator |\n| --- | --- | --- |\n".to_owned();
    for (real, simulated) in pairs {
        let _ = writeln!(
            table,
            "| {} | {} | {} |",
            real.what,
            real.shown(),
            simulated.shown()
        );
    }
    let text = format!("{before}{BEGIN}\n{table}{END}{after}");
    std::fs::write(page, text).expect("the page can be written");
}

const BEGIN: &str = "<!-- measured -->";
const END: &str = "<!-- end -->";
