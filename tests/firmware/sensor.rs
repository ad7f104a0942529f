//! The sensor, whose server is killed and started again.

use crate::board::{BOARDS, Board, build, folder};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

struct Collector {
    process: Child,
    tcp: String,
    udp: String,
    heartbeats: std::thread::JoinHandle<usize>,
}

impl Collector {
    fn start(file: &Path, tcp: &str, udp: &str) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_collector"))
            .arg(file)
            .args([tcp, udp])
            .stdout(Stdio::piped())
            .spawn()
            .expect("it can be run");
        let stdout = process.stdout.take().expect("it was piped");
        let mut lines = BufReader::new(stdout).lines();
        let ports = lines.next().expect("it says where it listens").unwrap();
        let (tcp, udp) = ports.split_once(' ').expect("two ports");
        let heartbeats = std::thread::spawn(move || lines.map_while(Result::ok).count());
        Collector {
            process,
            tcp: tcp.to_owned(),
            udp: udp.to_owned(),
            heartbeats,
        }
    }

    /// Kills it, and says how many signs of life it had.
    fn kill(mut self) -> usize {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it is our child");
        self.heartbeats.join().expect("it has read")
    }
}

#[test]
fn a_sensor_loses_no_reading_when_its_server_is_killed() {
    for name in BOARDS {
        let Some(programs) = build(name) else {
            return;
        };
        let file = std::env::temp_dir().join(format!("cubenet-{name}-{}", std::process::id()));
        let mut collector = Collector::start(&file, "0", "0");
        let (tcp, udp) = (collector.tcp.clone(), collector.udp.clone());
        let arguments = [tcp.as_str(), udp.as_str(), "400", "10"];
        let mut board = Board::run(name, &programs.join("sensor"), &arguments);
        let mut heartbeats = 0;
        for pause in [300, 0, 700, 100] {
            std::thread::sleep(Duration::from_millis(600));
            heartbeats += collector.kill();
            std::thread::sleep(Duration::from_millis(pause));
            collector = Collector::start(&file, &tcp, &udp);
        }
        let done = board.wait_for("DONE");
        assert!(board.ended_well(), "{name} ends with status 0");
        heartbeats += collector.kill();
        let readings = std::fs::read_to_string(&file).expect("it was written");
        std::fs::remove_file(&file).expect("it is ours");
        let mut readings: Vec<u32> = readings
            .lines()
            .map(|line| line.parse().expect("a number"))
            .collect();
        let count = readings.len();
        readings.sort_unstable();
        readings.dedup();
        assert!(readings.into_iter().eq(1..=400), "{name}: {done}");
        assert!(heartbeats >= 3, "{name}: {heartbeats} signs of life");
        println!("{name}: {done}; {count} arrived, {heartbeats} signs of life");
    }
}

#[test]
fn a_panic_ends_the_board_with_its_message() {
    for name in BOARDS {
        let Some(programs) = build(name) else {
            return;
        };
        // A sensor without the address of its server.
        let mut command = Command::new(folder().join("run"));
        let mut board = Board::start(command.arg(name).arg(programs.join("sensor")));
        let message = board.wait_for("argument 1 has to be");
        assert!(message.contains("TCP port"), "{message}");
        assert!(!board.ended_well(), "{name} ends with status 1");
    }
}

#[test]
fn a_sensor_without_its_gateway_goes_on_connecting() {
    for name in BOARDS {
        let Some(programs) = build(name) else {
            return;
        };
        // The cable leads nowhere: ARP requests stay unanswered. The board's clock runs ahead
        // while it sleeps, so that minutes pass in seconds.
        let model = if name == "mps2-an385" {
            "lan9118"
        } else {
            "stellaris"
        };
        let mut qemu = Command::new("qemu-system-arm");
        qemu.args(["-M", name, "-nographic", "-monitor", "none"]);
        qemu.args(["-serial", "stdio", "-icount", "shift=10,sleep=off"]);
        qemu.args(["-nic", &format!("hubport,hubid=0,model={model}")]);
        let sensor = "enable=on,target=native,arg=sensor,arg=7,arg=9,arg=400,arg=10";
        qemu.args(["-semihosting-config", sensor, "-kernel"]);
        let mut board = Board::start(qemu.arg(programs.join("sensor")));
        board.wait_for("READY");
        // Two seconds each, and up to 1.6 of back-off: more than three minutes.
        for _ in 0..60 {
            let failure = board.wait_for("cannot connect to tcp 10.0.2.2:7: ");
            assert!(failure.contains("did not answer"), "{failure}");
        }
    }
}
