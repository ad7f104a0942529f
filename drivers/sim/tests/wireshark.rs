//! Wireshark reads the captures of simulations, with the dissector in `docs/`. A tool that is absent
//! is said to be, and its test passes; with `CUBENET_REQUIRE_TOOLS` set it fails instead.

use cubenet_sim::{Conditions, Handler, Link, Message, Simulation, Transport};
use cubenet_tests::have;
use std::fs::File;
use std::io::BufWriter;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

struct Echo;

impl Handler for Echo {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        let _ = link.send(&message);
    }
}

/// A client sends messages of these lengths, each is echoed, and it closes.
fn talk(simulation: &Simulation, transport: Transport, lengths: &[usize]) {
    let server = simulation.network(SERVER).start().unwrap();
    server
        .listen(transport, (SERVER, 7_000), |_| Some(Echo))
        .unwrap();
    let network = simulation.network(CLIENT).start().unwrap();
    let client = network
        .connect(transport, (SERVER, 7_000), |_| Nothing)
        .unwrap();
    for len in lengths {
        client.send(vec![7; *len]).unwrap();
    }
    simulation.run_for(Duration::from_secs(20));
    client.close();
    simulation.run_for(Duration::from_secs(20));
}

struct Nothing;

impl Handler for Nothing {
    fn received(&mut self, _link: &mut dyn Link, _message: Message<'_>) {}
}

/// What `tshark` says of these fields of the packets that a filter shows, one line each.
fn tshark(capture: &Path, filter: &str, fields: &[&str]) -> Vec<String> {
    let dissector = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cubenet.lua");
    let mut command = Command::new("tshark");
    command
        .arg("-X")
        .arg(format!("lua_script:{}", dissector.display()));
    command
        .arg("-r")
        .arg(capture)
        .args(["-Y", filter, "-T", "fields"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(!errors.contains(".lua"), "the dissector failed: {errors}");
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(str::to_owned).collect()
}

/// Captures what a simulation sends while it talks.
fn capture(name: &str, conditions: Conditions, transport: Transport, lengths: &[usize]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let simulation = Simulation::builder().seed(1).conditions(conditions);
    let simulation = simulation.build().unwrap();
    let file = BufWriter::new(File::create(&path).unwrap());
    simulation.capture(file).unwrap();
    talk(&simulation, transport, lengths);
    simulation.end_capture().unwrap();
    path
}

fn have_tshark() -> bool {
    have("tshark", Command::new("tshark").arg("--version"))
}

#[test]
fn every_message_of_a_stream_is_shown_and_nothing_looks_wrong() {
    if !have_tshark() {
        return;
    }
    let lengths = [5, 0, 3_000, 60_000, 1];
    let calm = Conditions::default();
    let path = capture("stream.pcapng", calm, Transport::Tcp, &lengths);
    let shown = tshark(&path, "cubenet && tcp.srcport != 7000", &["cubenet.length"]);
    let shown = shown.join(",");
    assert_eq!(shown, "5,0,3000,60000,1");
    let back = tshark(&path, "cubenet && tcp.srcport == 7000", &["cubenet.length"]);
    assert_eq!(back.join(","), "5,0,3000,60000,1");
    // Sequence numbers, windows and checksums are those of a stream without faults.
    let wrong = tshark(
        &path,
        "tcp.analysis.flags && !tcp.analysis.window_update || _ws.malformed || tcp.checksum.status == \"Bad\"",
        &["frame.number", "_ws.col.Info"],
    );
    assert_eq!(wrong, [""; 0]);
    let flags = tshark(
        &path,
        "tcp.flags.syn == 1 || tcp.flags.fin == 1",
        &["tcp.flags.str"],
    );
    assert_eq!(
        flags.len(),
        4,
        "two handshakes' packets, two ends: {flags:?}"
    );
}

#[test]
fn every_datagram_is_shown_and_an_empty_one_closes() {
    if !have_tshark() {
        return;
    }
    let path = capture(
        "datagrams.pcapng",
        Conditions::default(),
        Transport::Udp,
        &[5, 1_400, 9_000],
    );
    let shown = tshark(
        &path,
        "cubenet.message && udp.dstport == 7000",
        &["udp.length"],
    );
    assert_eq!(shown, ["13", "1408", "9008"]);
    let closes = tshark(&path, "cubenet.close", &["udp.dstport"]);
    assert_eq!(closes, ["7000"]);
}

#[test]
fn what_is_lost_has_a_comment_and_its_like_comes_again() {
    if !have_tshark() {
        return;
    }
    let conditions = Conditions::new().with_loss(0.2);
    let lengths = [1_000; 50];
    let path = capture("losses.pcapng", conditions, Transport::Tcp, &lengths);
    let lost = tshark(
        &path,
        "frame.comment == \"lost on its way\"",
        &["frame.number"],
    );
    assert!(lost.len() > 10, "{}", lost.len());
    let again = tshark(&path, "tcp.analysis.retransmission", &["frame.number"]);
    assert!(again.len() > 5, "{}", again.len());
}
