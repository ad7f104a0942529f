//! Network namespaces of a test's own.

use nix::sched::{CloneFlags, unshare};
use std::process::{Command, Stdio};

/// Runs `test` in a network namespace of its own, in which loopback is up. Says so if this
/// process may not make one, and fails if it has to.
pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let entered = || unshare(CloneFlags::CLONE_NEWNET).is_ok() && run("ip", "link set lo up");
    let thread = std::thread::Builder::new();
    let name = std::thread::current().name().map(str::to_owned);
    let thread = thread.name(name.unwrap_or_default());
    let ran = thread.spawn(move || {
        let entered = entered();
        let answer = if entered { "true" } else { "false" };
        if crate::have(
            "right to make network namespaces (be root)",
            &mut Command::new(answer),
        ) {
            test();
        }
    });
    if let Err(panic) = ran.expect("a thread starts").join() {
        std::panic::resume_unwind(panic);
    }
}

/// Does something with the namespace's interfaces and addresses.
pub fn ip(arguments: &str) {
    assert!(run("ip", arguments), "ip {arguments}");
}

/// Does something with the namespace's queues. Returns whether the kernel can.
pub fn tc(arguments: &str) -> bool {
    run("tc", arguments)
}

fn run(tool: &str, arguments: &str) -> bool {
    let mut command = Command::new(tool);
    command
        .args(arguments.split(' '))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
