//! A change that waits to be confirmed: who goes back, when, and whom it listens to.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nsctl::kernel::Kernel as _;
use nsctl::orchestrator::history::Settled;
use nsctl::store::Number;
use nsctl::{Confirm, Error, How};

use crate::common::in_sandbox;
use crate::node::{NEW, NEW_EDGE, NoHolder, Node, OLD, OLD_EDGE, holders, until};

const CONNECTION: &str = "SSH_CONNECTION";
const FIRST: (&str, &str) = (CONNECTION, "192.0.2.7 50022 198.51.100.1 22");
const SECOND: (&str, &str) = (CONNECTION, "192.0.2.7 50023 198.51.100.1 22");

/// With [`NEW`] applied, and waiting for so long.
fn waiting(within: &str) -> Node {
    let node = Node::up();
    node.write(NEW);
    let said = node.run(&format!("apply --confirm {within}")).ok();
    assert!(said.out.contains("it goes back in "), "{}", said.out);
    assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]));
    node
}

fn kill_holders() {
    let all = holders();
    assert_eq!(all.len(), 1, "one waits");
    all.iter().for_each(|pid| kill(*pid, Signal::SIGKILL).unwrap());
    until("it is dead", Duration::from_secs(5), || holders().is_empty());
}

#[track_caller]
fn assert_is_old(node: &Node) {
    assert_eq!((node.current(), node.open()), (Some(Number(1)), BTreeSet::from([OLD_EDGE])));
    assert_eq!(node.store().pending().unwrap(), None);
}

#[test]
fn what_is_not_confirmed_goes_back_by_itself_when_the_command_has_ended_long_ago() {
    in_sandbox(|| {
        let _guard = NoHolder;
        let node = waiting("5s");
        let holder = holders();
        assert_eq!(holder.len(), 1);
        let leads = || nix::unistd::getsid(Some(holder[0])).is_ok_and(|session| session == holder[0]);
        until("it has a session of its own, whose end alone is its end", Duration::from_secs(3), leads);
        until("it goes back", Duration::from_secs(15), || node.store().pending().unwrap().is_none());
        assert_is_old(&node);
        until("the holder ends", Duration::from_secs(5), || holders().is_empty());
        let listed = node.json("generations");
        assert_eq!(listed["generations"][1]["state"], "was in force");
        // And it can be tried again.
        node.run("apply --no-confirm").ok();
        assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]));
    });
}

#[test]
fn what_was_confirmed_from_a_new_connection_stays() {
    in_sandbox(|| {
        let _guard = NoHolder;
        let node = Node::up();
        node.write(NEW);
        node.run_with(FIRST, "apply --confirm 6s").ok();
        let refused = node.run_with(FIRST, "confirm");
        refused.refused(
            "E0919",
            &["generation 2 was applied over this very connection", "port 50022", "open another one"],
        );
        assert!(node.store().pending().unwrap().is_some());
        assert_eq!(node.run_with(SECOND, "confirm").ok().out, "generation 2 stays\n");
        until("the holder ends", Duration::from_secs(10), || holders().is_empty());
        std::thread::sleep(Duration::from_secs(6));
        assert_eq!((node.current(), node.open()), (Some(Number(2)), BTreeSet::from([NEW_EDGE])));
        node.run_with(SECOND, "confirm").refused("E0919", &["no generation waits to be confirmed"]);
    });
}

/// At a console nobody can be locked out, and there is one console.
#[test]
fn what_was_applied_at_a_console_is_confirmed_there() {
    in_sandbox(|| {
        let _guard = NoHolder;
        let node = waiting("5m");
        node.run_by("unshare --pid --fork", "confirm").ok();
        assert_eq!(node.current(), Some(Number(2)));
    });
}

#[test]
fn a_change_over_ssh_waits_unasked_behind_sudo_too() {
    in_sandbox(|| {
        let _guard = NoHolder;
        let node = Node::up();
        node.write(NEW);
        let within = |text: &str| -> f64 {
            let applied: serde_json::Value = serde_json::from_str(text).unwrap();
            applied["confirm_within"].as_f64().unwrap_or(0.0)
        };
        let back = || drop(node.run("rollback 1 --no-confirm").ok());

        let said = node.run_with(FIRST, "apply --json").ok();
        assert!((100.0..=120.0).contains(&within(&said.out)), "{}", said.out);
        assert_eq!(node.store().pending().unwrap().unwrap().session.unwrap().client_port, 50022);
        back();
        // sudo(8) takes it out of the environment; an ancestor has it still.
        let said = node.run_behind(FIRST, "env -u SSH_CONNECTION", "apply --json").ok();
        assert!((100.0..=120.0).contains(&within(&said.out)), "{}", said.out);
        // Going back is a change like any other, but for what waits already.
        node.run_with(SECOND, "confirm").ok();
        let said = node.run_with(FIRST, "rollback 1 --json").ok();
        assert!((100.0..=120.0).contains(&within(&said.out)), "{}", said.out);
        let pending = node.store().pending().unwrap().unwrap();
        assert_eq!((pending.generation, pending.back), (Number(1), Some(Number(2))));
        node.run_with(SECOND, "confirm").ok();
        assert_eq!(node.open(), BTreeSet::from([OLD_EDGE]));
        // The controls: told not to, without a connection, and where it is said that there is none.
        let said = node.run_behind(FIRST, "env SSH_CONNECTION=", "apply --json").ok();
        assert_eq!(within(&said.out), 0.0);
        back();
        let said = node.run_with(FIRST, "apply --json --no-confirm").ok();
        assert_eq!(within(&said.out), 0.0);
        back();
        // In a process namespace of its own nobody is above it, however this test is run.
        let said = node.run_by("unshare --pid --fork", "apply --json").ok();
        assert_eq!(within(&said.out), 0.0);
        assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]));
    });
}

#[test]
fn while_one_waits_nothing_else_is_applied() {
    in_sandbox(|| {
        let _guard = NoHolder;
        let node = waiting("5m");
        node.run("apply --no-confirm").refused("E0905", &["generation 2 waits to be confirmed", "nsctl rollback"]);
        assert_eq!(node.json("generations")["generations"][1]["state"], "waits to be confirmed");
        // What the daemon and the holder ask again and again changes nothing yet.
        let network = "node".parse().unwrap();
        assert!(matches!(node.network.nsctl.expire(&network), Ok(Settled::Waits(_, left)) if left.as_secs() > 200));
        node.run("rollback").ok();
        assert_is_old(&node);
    });
}

#[test]
fn when_the_holder_is_dead_whoever_comes_next_goes_back() {
    in_sandbox(|| {
        let _guard = NoHolder;
        let node = waiting("5s");
        kill_holders();
        std::thread::sleep(Duration::from_secs(6));
        assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]), "the control: nobody has gone back");
        let said = node.run("apply --no-confirm");
        said.refused("E0905", &["generation 2 was not confirmed in time, and generation 1 is in force again"]);
        assert_is_old(&node);

        // And the daemon.
        node.run("apply --confirm 5s").ok();
        kill_holders();
        let network = "node".parse().unwrap();
        std::thread::sleep(Duration::from_secs(6));
        let settled = node.network.nsctl.expire(&network).unwrap();
        assert_eq!(settled, Settled::WentBack { from: Number(2), to: Some(Number(1)), rebooted: false });
        assert_is_old(&node);
        assert_eq!(node.network.nsctl.expire(&network).unwrap(), Settled::Nothing);
    });
}

#[test]
fn a_confirmation_that_comes_too_late_is_told_so() {
    in_sandbox(|| {
        let _guard = NoHolder;
        let node = waiting("5s");
        kill_holders();
        std::thread::sleep(Duration::from_secs(6));
        node.run("confirm")
            .refused("E0905", &["generation 2 was not confirmed in time", "generation 1 is in force again"]);
        assert_is_old(&node);
    });
}

#[test]
fn the_first_generation_ever_is_taken_down_when_nobody_confirms_it() {
    in_sandbox(|| {
        let _guard = NoHolder;
        let node = Node::new(NEW);
        node.run("apply --confirm 5s").ok();
        assert_eq!((node.current(), node.open()), (Some(Number(1)), BTreeSet::from([NEW_EDGE])));
        until("it goes back", Duration::from_secs(20), || node.store().pending().unwrap().is_none());
        assert_eq!(node.current(), None);
        assert!(node.network.is_nothing());
        node.run("apply --no-confirm").ok();
        assert_eq!((node.current(), node.open()), (Some(Number(1)), BTreeSet::from([NEW_EDGE])));
    });
}

/// `CLOCK_BOOTTIME` is the one clock of the deadline: moved on in a time namespace (time_namespaces(7)) it is over, while
/// `CLOCK_MONOTONIC` does not count, and `CLOCK_REALTIME` cannot: the deadline is one of some seconds since the start.
#[test]
fn the_time_since_the_machine_was_started_is_what_counts() {
    in_sandbox(|| {
        let _guard = NoHolder;
        let node = waiting("10m");
        kill_holders();
        let uptime = fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let deadline = node.store().pending().unwrap().unwrap().deadline as f64 / 1e3;
        assert!((uptime + 500.0..uptime + 601.0).contains(&deadline), "{deadline} at {uptime}");

        let monotonic = node.run_by("unshare --time --monotonic 86400 --fork", "apply --no-confirm");
        monotonic.refused("E0905", &["generation 2 waits to be confirmed"]);
        let shortly = node.run_by("unshare --time --boottime 300 --fork", "apply --no-confirm");
        shortly.refused("E0905", &["generation 2 waits to be confirmed"]);
        assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]));
        let late = node.run_by("unshare --time --boottime 700 --fork", "apply --no-confirm");
        late.refused("E0905", &["generation 2 was not confirmed in time"]);
        assert_is_old(&node);
    });
}

/// Another run of the machine: another id there, and the clock begins anew.
fn reboot(node: &Node) {
    let netns = fs::read_dir("/run/netns").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    netns.for_each(|name| drop(crate::common::ip(&format!("netns del {name}"))));
    crate::common::nft_here("flush ruleset");
    fs::remove_dir_all("/run/nsctl").unwrap();
    let boot = "/run/boot_id";
    fs::write(boot, "11111111-2222-3333-4444-555555555555\n").unwrap();
    mount(Some(boot), "/proc/sys/kernel/random/boot_id", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    let left = node.network.kernel().observe().unwrap();
    assert!(left.is_nothing(), "nothing is left of it: {left:?}");
}

#[test]
fn what_waits_when_the_machine_is_started_anew_goes_back() {
    in_sandbox(|| {
        let _guard = NoHolder;
        let node = waiting("24h");
        kill_holders();
        node.run("apply --no-confirm").refused("E0905", &["generation 2 waits to be confirmed"]);
        reboot(&node);
        let said = node.run("apply --no-confirm");
        said.refused(
            "E0905",
            &["was not confirmed before the machine was started anew", "generation 1 is in force again"],
        );
        assert_is_old(&node);
        node.run("apply --no-confirm").ok();
        assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]));
    });
}

#[test]
fn at_boot_the_generation_before_that_which_waits_comes_up() {
    in_sandbox(|| {
        let _guard = NoHolder;
        let node = waiting("24h");
        kill_holders();
        reboot(&node);
        node.run("apply --boot").ok();
        assert_is_old(&node);
    });
}

#[test]
fn at_boot_the_generation_in_force_comes_up_whatever_the_files_say() {
    in_sandbox(|| {
        let node = Node::up();
        reboot(&node);
        node.write("not a policy");
        node.run("apply --boot").ok();
        node.write(NEW);
        assert_is_old(&node);
        assert_eq!(node.store().generations().unwrap(), [Number(1)]);
    });
}

#[test]
fn at_the_first_boot_the_files_are_applied() {
    in_sandbox(|| {
        let node = Node::new(NEW);
        node.run("apply --boot").ok();
        assert_eq!((node.current(), node.open()), (Some(Number(1)), BTreeSet::from([NEW_EDGE])));
    });
}

/// The holder is asked once a half second: what it was started for has gone, and what came in its place is another's.
#[test]
fn a_holder_minds_its_own_change_only() {
    in_sandbox(|| {
        let _guard = NoHolder;
        let node = waiting("5m");
        let first: BTreeSet<Pid> = holders().into_iter().collect();
        node.run("rollback").ok();
        node.write(&format!("{NEW}# other\n"));
        node.run("apply --confirm 5m").ok();
        until("the first holder ends", Duration::from_secs(10), || holders().iter().all(|pid| !first.contains(pid)));
        assert_eq!(holders().len(), 1);
        node.run("confirm").ok();
        until("the second holder ends", Duration::from_secs(10), || holders().is_empty());
        assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]));
    });
}

#[test]
fn what_was_taken_down_while_it_waited_stays_down() {
    in_sandbox(|| {
        let _guard = NoHolder;
        let node = waiting("5s");
        node.run("down").ok();
        until("the holder ends", Duration::from_secs(10), || holders().is_empty());
        std::thread::sleep(Duration::from_secs(5));
        assert!(node.network.is_nothing() && node.current().is_none());
        node.run("apply --no-confirm").ok();
    });
}

#[test]
fn where_nobody_can_be_started_who_goes_back_nothing_is_changed() {
    in_sandbox(|| {
        let node = Node::up();
        node.write(NEW);
        let nobody = |_: &_, _: &_| Err(std::io::ErrorKind::WouldBlock.into());
        let confirm = Confirm::Within(Duration::from_secs(300));
        let refused = node.network.nsctl.apply_with(&How { confirm, hold: Some(&nobody), ..How::default() });
        assert!(matches!(refused, Err(Error::Hold { .. })), "{refused:?}");
        assert_is_old(&node);
        // Without a second one the daemon is asked alone.
        node.network.nsctl.apply_with(&How { confirm, ..How::default() }).unwrap();
        assert!(node.store().pending().unwrap().is_some() && holders().is_empty());
        node.run("rollback").ok();
    });
}

/// The first generation of all has nothing before it: nobody confirmed it, so a start of the machine does not either.
#[test]
fn a_first_generation_that_waits_does_not_come_into_force_by_a_reboot() {
    in_sandbox(|| {
        let _guard = NoHolder;
        let node = Node::new(NEW);
        node.run("apply --confirm 1h").ok();
        assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]));
        kill_holders();
        let mut pending = node.store().pending().unwrap().unwrap();
        pending.boot = Some("another".into());
        node.store().record_pending(&pending).unwrap();
        node.run("apply --boot").refused("E0905", &["before the machine was started anew", "all is taken down"]);
        assert!(node.network.is_nothing() && node.current().is_none());
        // The control: whoever asks for it gets it.
        node.run("apply --no-confirm").ok();
        assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]));
    });
}

/// Whoever may be locked out has no use for a reason why not.
#[test]
fn going_back_is_not_kept_off_by_a_port_that_somebody_took_meanwhile() {
    in_sandbox(|| {
        let _guard = NoHolder;
        let exposed = format!("{OLD}[service.a.expose.port]\nports = {{ \"8443\" = \"x\" }}\n");
        let node = Node::new(&exposed);
        node.run("apply").ok();
        node.write(OLD);
        node.run("apply --confirm 1h").ok();
        let held = std::net::TcpListener::bind("0.0.0.0:8443").unwrap();
        node.write(&exposed);
        node.run("rollback").ok();
        assert_eq!(node.current(), Some(Number(1)));
        drop(held);
    });
}
