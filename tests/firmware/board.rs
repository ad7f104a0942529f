//! A board under QEMU, as a process that is ended with the test.

use cubenet_tests::have;
use cubenet_tests::system::processor_time;
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// The boards there are.
pub(crate) const BOARDS: [&str; 2] = ["lm3s6965evb", "mps2-an385"];

/// Longer than anything takes that does not hang.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../drivers/smoltcp/firmware")
}

/// The programs, built for this board; `None` if the tools for that are not there.
pub(crate) fn build(board: &str) -> Option<PathBuf> {
    static BUILT: OnceLock<Mutex<HashMap<String, Option<PathBuf>>>> = OnceLock::new();
    let built = BUILT.get_or_init(Mutex::default);
    let mut built = built.lock().expect("a build before this one failed");
    let entry = built.entry(board.to_owned());
    entry.or_insert_with(|| build_now(board)).clone()
}

fn build_now(board: &str) -> Option<PathBuf> {
    let qemu = have(
        "QEMU (qemu-system-arm)",
        Command::new("qemu-system-arm").arg("--version"),
    );
    let linker = have(
        "a linker (arm-none-eabi-ld)",
        Command::new("arm-none-eabi-ld").arg("-v"),
    );
    if !qemu || !linker {
        return None;
    }
    let mut build = Command::new(folder().join("build"));
    // A cargo that another cargo runs gets variables that are not meant for it.
    for (name, _) in std::env::vars_os() {
        let cargo = name.to_string_lossy().into_owned();
        if cargo.starts_with("CARGO") && cargo != "CARGO_HOME" || cargo.starts_with("RUST") {
            build.env_remove(name);
        }
    }
    let output = build
        .args([board, "--bins"])
        .output()
        .expect("it can be run");
    // 3: there is no library for the processor.
    let compiler = output.status.code() != Some(3);
    let text = String::from_utf8_lossy(&output.stderr);
    if !have(
        "library for microcontrollers (see the firmware's `build`)",
        &mut Command::new(if compiler { "true" } else { "false" }),
    ) {
        return None;
    }
    assert!(
        output.status.success(),
        "the firmware does not build:\n{text}"
    );
    Some(folder().join(format!("target/{board}/thumbv7m-none-eabi/release")))
}

/// A board that runs.
pub(crate) struct Board {
    process: Child,
    lines: Receiver<String>,
    /// Everything that it has printed.
    printed: Vec<String>,
    ports: HashMap<String, SocketAddr>,
}

impl Board {
    /// Starts a program on a board, by the script that users start it with.
    pub(crate) fn run(board: &str, elf: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(folder().join("run"));
        command.arg(board).arg(elf).args(arguments);
        let mut started = Board::start(&mut command);
        for _ in 0..3 {
            let line = started.line();
            // tcp 127.0.0.1:41234 -> 7
            let words: Vec<_> = line.split(' ').collect();
            let [transport, address, "->", port] = words[..] else {
                panic!("no port: {line}");
            };
            let address = address.parse().expect("an address");
            started.ports.insert(format!("{transport} {port}"), address);
        }
        started.wait_for("READY");
        started
    }

    /// Starts QEMU, or what starts it.
    pub(crate) fn start(command: &mut Command) -> Self {
        // What QEMU thinks of its boards is of no interest; the boards speak on their UART.
        let command = command
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .stdout(Stdio::piped());
        let mut process = command.spawn().expect("it can be run");
        let stdout = BufReader::new(process.stdout.take().expect("it was piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Board {
            process,
            lines,
            printed: Vec::new(),
            ports: HashMap::new(),
        }
    }

    fn line(&mut self) -> String {
        self.line_by(Instant::now() + PATIENCE)
    }

    fn line_by(&mut self, deadline: Instant) -> String {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = self.lines.recv_timeout(left);
        let line = line.unwrap_or_else(|_| {
            let last = self.printed.len().saturating_sub(20);
            panic!(
                "what was waited for did not come; the last lines: {:#?}",
                &self.printed[last..]
            )
        });
        self.printed.push(line.clone());
        line
    }

    /// Waits for a line that begins like this, and returns its rest.
    pub(crate) fn wait_for(&mut self, beginning: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let line = self.line_by(deadline);
            if let Some(rest) = line.strip_prefix(beginning) {
                return rest.trim().to_owned();
            }
        }
    }

    /// Where `port`, like `tcp 7`, can be reached.
    pub(crate) fn port(&self, port: &str) -> SocketAddr {
        self.ports[port]
    }

    /// The processes that `run` has started and not ended.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let run = self.process.id();
        let children = std::fs::read_to_string(format!("/proc/{run}/task/{run}/children"));
        let children = children.expect("it runs");
        let numbers = children.split_whitespace().map(str::parse);
        numbers.collect::<Result<_, _>>().expect("numbers")
    }

    /// The processor's time that they have taken, to 10 ms.
    pub(crate) fn processor_time(&self) -> Duration {
        let times = self.processes().into_iter().map(processor_time);
        times.sum::<Option<_>>().expect("they run")
    }

    /// Waits for its end, and says whether that was a good one.
    pub(crate) fn ended_well(&mut self) -> bool {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().expect("it is our child") {
                return status.success();
            }
            assert!(start.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // Asked, so that `run` ends QEMU; then not asked.
        let pid = self.process.id().to_string();
        let _ = Command::new("kill")
            .arg(&pid)
            .stderr(Stdio::null())
            .status();
        std::thread::sleep(Duration::from_millis(100));
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
