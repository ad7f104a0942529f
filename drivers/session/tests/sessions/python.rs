//! A client in another language, written from the book.

use crate::support::*;
use cubenet_session::Memory;
use cubenet_session::wire::End;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering::SeqCst;

#[test]
fn a_client_in_python_loses_its_connections_and_no_message() {
    if !cubenet_tests::have("Python", Command::new("python3").arg("--version")) {
        return;
    }
    let node = Node::start(Memory::new(), roomy());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sessions/client.py");
    let client = Command::new("python3")
        .arg(script)
        .args([&node.address.port().to_string(), "3000", "42"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&client.stdout);
    let errors = String::from_utf8_lossy(&client.stderr);
    assert!(client.status.success(), "{said}{errors}");
    assert!(said.starts_with("3000 messages over "), "{said}");
    assert!(!said.contains("over 1 connections"), "{said}");
    assert_eq!(node.wrong.load(SeqCst), 0);
    node.hears(&Heard::Opened);
    while node.heard.recv_timeout(PATIENCE).unwrap() != Heard::Ended(End::Client) {}
}
