//! What cubenet costs a device: flash, memory, stack and instructions, beside smoltcp alone.
//! The figures are the same on every run and every machine with the same compiler (flash and
//! stack nearly), so the page in the documentation is held to them; `CUBENET_WRITE_DOCS=1` writes
//! it anew.

use crate::board::{BOARDS, Board, build, folder};
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

/// What was found out about one board.
struct Costs {
    board: &'static str,
    /// Bytes of flash and of memory: of smoltcp alone, and of the same on cubenet.
    flash: [usize; 2],
    memory: [usize; 2],
    stream: usize,
    peer: usize,
    /// Instructions of a round trip.
    tcp: [usize; 2],
    udp: [usize; 2],
    stack: [usize; 2],
}

/// Flash, and memory without stack, of a program.
fn sizes(programs: &Path, program: &str) -> [usize; 2] {
    let output = Command::new("arm-none-eabi-size")
        .arg(programs.join(program))
        .output();
    let output = output.expect("it comes with the linker").stdout;
    let text = String::from_utf8(output).expect("it is text");
    let line = text.lines().nth(1).expect("a line of figures");
    let mut figures = line.split_whitespace().map(str::parse::<usize>);
    let mut next = || figures.next().expect("a figure").expect("a number");
    let (text, data, bss) = (next(), next(), next());
    // What memory is to hold at the beginning lies in flash as well.
    [text + data, data + bss]
}

/// Runs a program on a processor whose every instruction takes the same time, and returns the
/// figures that it prints behind these words.
fn figures<const N: usize>(
    board: &str,
    programs: &Path,
    program: &str,
    words: [&str; N],
) -> [usize; N] {
    let mut qemu = Command::new("qemu-system-arm");
    qemu.args([
        "-M",
        board,
        "-nographic",
        "-monitor",
        "none",
        "-serial",
        "stdio",
    ]);
    qemu.args(["-icount", "shift=10,sleep=off", "-nic", "none"]);
    qemu.args(["-semihosting-config", "enable=on,target=native", "-kernel"]);
    let mut board = Board::start(qemu.arg(programs.join(program)));
    let figures = words.map(|word| board.wait_for(word).parse().expect("a number"));
    assert!(board.ended_well(), "{program} ends with status 0");
    figures
}

fn measure(board: &'static str, programs: &Path) -> Costs {
    let [flash, memory] = {
        let (bare, cubenet) = (sizes(programs, "bare"), sizes(programs, "minimal"));
        [[bare[0], cubenet[0]], [bare[1], cubenet[1]]]
    };
    let [stream, peer] = figures(board, programs, "sizes", ["stream", "peer"]);
    let words = ["tcp", "udp", "deepest stack"];
    let bare = figures(board, programs, "round_trips_bare", words);
    let cubenet = figures(board, programs, "round_trips", words);
    let [tcp, udp, stack] = [0, 1, 2].map(|nth| [bare[nth], cubenet[nth]]);
    Costs {
        board,
        flash,
        memory,
        stream,
        peer,
        tcp,
        udp,
        stack,
    }
}

fn compiler() -> String {
    let script = std::fs::read_to_string(folder().join("target/compiler"));
    script.expect("the build writes it").trim().to_owned()
}

fn page(costs: &[Costs]) -> String {
    let mut page = format!(
        "# What it costs a device\n\n\
         Measured by `cargo test --test firmware cost`, which fails if one of these figures \
         changes: they are the same on every run with the same compiler, here {}, \
         `opt-level = \"s\"` and LTO; flash and stack differ a little with the folder in which \
         it works, by 600 and 64 bytes at most.\n\n\
         Two echo servers with the same sockets and rings (10 TCP, 2 UDP, 16 peers; \
         `drivers/smoltcp/firmware/src/bin/bare.rs` is smoltcp alone and sends back bytes, \
         `minimal.rs` is cubenet and sends back messages). Memory is without stack.\n\n\
         | board | flash, smoltcp alone | cubenet | added | memory, smoltcp alone | cubenet | \
         added |\n| --- | --: | --: | --: | --: | --: | --: |\n",
        compiler()
    );
    for of in costs {
        let Costs {
            board,
            flash,
            memory,
            ..
        } = of;
        let _ = writeln!(
            page,
            "| `{board}` | {} | {} | {} | {} | {} | {} |",
            flash[0],
            flash[1],
            flash[1] - flash[0],
            memory[0],
            memory[1],
            memory[1] - memory[0]
        );
    }
    page.push_str(
        "\nOf the memory, per connection, beside the socket and its rings, with a handler that \
         keeps nothing:\n\n| board | a TCP connection | a UDP peer |\n| --- | --: | --: |\n",
    );
    for Costs {
        board,
        stream,
        peer,
        ..
    } in costs
    {
        let _ = writeln!(page, "| `{board}` | {stream} | {peer} |");
    }
    page.push_str(
        "\nA round trip of 64 bytes with both ends on the device, counted by QEMU \
         (`-icount`), and the deepest stack meanwhile, found by painting:\n\n\
         | board | TCP, smoltcp alone | cubenet | ratio | UDP, smoltcp alone | cubenet | ratio | \
         stack, smoltcp alone | cubenet |\n\
         | --- | --: | --: | --: | --: | --: | --: | --: | --: |\n",
    );
    for Costs {
        board,
        tcp,
        udp,
        stack,
        ..
    } in costs
    {
        let ratio = |of: &[usize; 2]| of[1] as f64 / of[0] as f64;
        let _ = writeln!(
            page,
            "| `{board}` | {} | {} | {:.3} | {} | {} | {:.3} | {} | {} |",
            tcp[0],
            tcp[1],
            ratio(tcp),
            udp[0],
            udp[1],
            ratio(udp),
            stack[0],
            stack[1]
        );
    }
    page
}

#[test]
fn the_cost_is_what_the_documentation_says() {
    let mut costs = Vec::new();
    for board in BOARDS {
        let Some(programs) = build(board) else {
            return;
        };
        costs.push(measure(board, &programs));
    }
    for of in &costs {
        assert!(
            of.stream <= 96 && of.peer <= 48,
            "a connection costs too much memory"
        );
        assert!(
            100 * of.tcp[1] <= 105 * of.tcp[0],
            "a round trip over TCP costs too much: {:?}",
            of.tcp
        );
        assert!(
            100 * of.udp[1] <= 105 * of.udp[0],
            "a round trip over UDP costs too much: {:?}",
            of.udp
        );
    }
    let page = page(&costs);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src/device-costs.md");
    if std::env::var_os("CUBENET_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).expect("the page can be written");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        is_current(&committed, &page),
        "docs/src/device-costs.md is not current. If there is a reason, run this test once \
         with CUBENET_WRITE_DOCS=1 and commit the page with it. Now:\n{page}"
    );
}

/// Whether what was measured is what was committed: to the byte and the instruction, but for
/// flash and stack, which differ a little with the folder in which the compiler works.
fn is_current(committed: &str, measured: &str) -> bool {
    let same_length = committed.lines().count() == measured.lines().count();
    let mut lines = committed.lines().zip(measured.lines());
    same_length && lines.all(|(committed, measured)| is_same_line(committed, measured))
}

fn is_same_line(committed: &str, measured: &str) -> bool {
    let [committed, measured] = [committed, measured].map(|line| line.split('|').collect());
    let (committed, measured): (Vec<_>, Vec<_>) = (committed, measured);
    let columns = committed.len();
    let mut cells = committed.iter().zip(&measured).enumerate();
    columns == measured.len()
        && cells.all(|(column, (committed, measured))| {
            let allowed: usize = match (columns, column) {
                // Of the table of flash and memory, and of that of instructions and stack.
                (9, 2..=4) => 600,
                (11, 8..=9) => 64,
                _ => 0,
            };
            let number = |cell: &str| cell.trim().parse::<usize>().ok();
            match (number(committed), number(measured)) {
                (Some(committed), Some(measured)) => committed.abs_diff(measured) <= allowed,
                _ => committed == measured,
            }
        })
}
