//! A service that is to be removed while a process runs in it.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::in_sandbox;
use crate::node::{NEW_EDGE, Node, until};

/// Without `c`.
const SMALLER: &str = "connect.a = [\"x\"]\n";
const DEAF: &str = "trap '' TERM; while true; do sleep 0.1; done";

/// A process in a service; `ip netns exec` becomes it.
fn inside(service: &str, command: &[&str]) -> Child {
    let netns = format!("node-{service}");
    let mut inside = Command::new("ip");
    inside.args(["netns", "exec", &netns]).args(command);
    let child = inside.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let comm = format!("/proc/{}/comm", child.id());
    let is_it = || std::fs::read_to_string(&comm).is_ok_and(|name| name.trim() == command[0]);
    until("it runs", Duration::from_secs(5), is_it);
    // A shell has set its trap by then.
    std::thread::sleep(Duration::from_millis(200));
    child
}

#[test]
fn a_service_in_which_a_process_runs_is_not_removed() {
    in_sandbox(|| {
        let node = Node::up();
        let mut sleeper = inside("c", &["sleep", "1000"]);
        node.write(SMALLER);
        let named = format!("1 process is still in node-c: sleep (pid {})", sleeper.id());
        node.run("apply --no-confirm").refused("E0907", &[&named, "nothing was changed", "--stop"]);
        assert_eq!(node.store().generations().unwrap().len(), 1, "no generation is made of it");
        assert!(node.network.netns("c").run(|| Ok(())).is_ok() && sleeper.try_wait().unwrap().is_none());
        node.run("down").refused("E0907", &[&named]);
        assert!(node.current().is_some() && node.open().contains(&("b", "a", 7001)));

        // The control: it was for the process.
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        node.run("apply --no-confirm").ok();
        assert!(!std::path::Path::new("/run/netns/node-c").exists());
    });
}

#[test]
fn a_process_in_a_service_that_stays_is_left_alone() {
    in_sandbox(|| {
        let node = Node::up();
        let mut sleeper = inside("b", &["sleep", "1000"]);
        node.write(SMALLER);
        node.run("apply --no-confirm --stop").ok();
        assert!(sleeper.try_wait().unwrap().is_none());
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
    });
}

#[test]
fn with_stop_a_process_is_asked_to_end_and_nobody_is_killed() {
    use std::os::unix::process::ExitStatusExt as _;
    in_sandbox(|| {
        let node = Node::up();
        let mut sleeper = inside("c", &["sleep", "1000"]);
        node.write(SMALLER);
        // Whoever is asked and ends at once costs no time; it is reaped here meanwhile.
        let reaper = std::thread::spawn(move || sleeper.wait().unwrap());
        let since = Instant::now();
        node.run("apply --no-confirm --stop").ok();
        assert!(since.elapsed() < Duration::from_secs(9), "{:?}", since.elapsed());
        assert_eq!(reaper.join().unwrap().signal(), Some(15));
        assert!(!std::path::Path::new("/run/netns/node-c").exists());

        node.write(crate::node::NEW);
        node.run("apply --no-confirm").ok();
        assert!(node.open().contains(&NEW_EDGE));
        let mut deaf = inside("c", &["sh", "-c", DEAF]);
        // It may be closing its books: it is waited for, and left alone.
        node.run("down --stop=1s").refused("E0907", &["nothing was changed"]);
        assert!(deaf.try_wait().unwrap().is_none() && node.open().contains(&NEW_EDGE));
        deaf.kill().unwrap();
        deaf.wait().unwrap();
        node.run("down --stop").ok();
        assert!(node.network.is_nothing());
    });
}
