//! The kernel, the clock, and what the caller may do.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use caps::{CapSet, Capability};

use super::Check;
use crate::kernel::cookie::Cookie;
use crate::kernel::netlink::Rtnl;
use crate::kernel::probe;
use crate::kernel::sysctl::Sysctl;

/// No machine that runs this has an earlier date: 1 January 2025.
const EARLIEST: Duration = Duration::from_secs(1_735_689_600);

/// Why each is asked for.
const CAPABILITIES: [(Capability, bool, &str); 3] = [
    (Capability::CAP_SYS_ADMIN, true, "no namespace can be entered"),
    (Capability::CAP_NET_ADMIN, true, "no link and no rule can be read or changed"),
    (Capability::CAP_SYS_PTRACE, false, "processes of other users cannot be looked at"),
];

pub(super) fn checks() -> Vec<Check> {
    let mut checks = capabilities();
    let powerless = checks.iter().any(|check| check.outcome == super::Outcome::Fail);
    checks.extend(kernel(powerless));
    checks.push(cookie());
    checks.extend(clock());
    checks.push(mounts());
    checks.push(bridges());
    checks
}

fn capabilities() -> Vec<Check> {
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let lacking = CAPABILITIES.iter().filter(|(capability, ..)| !has(*capability));
    let told = lacking.map(|(capability, needed, why)| {
        let seen = format!("without {capability}, {why}");
        let next = "run it as root, for example with sudo";
        if *needed { Check::fail("capabilities", seen, next) } else { Check::warn("capabilities", seen, next) }
    });
    super::or_ok(told.collect(), "capabilities", "CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_SYS_PTRACE")
}

fn kernel(powerless: bool) -> Vec<Check> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim_end();
    if powerless {
        let seen = format!("Linux {release}; what it can do was not tried");
        return vec![Check::warn("kernel", seen, "run it as root, for example with sudo")];
    }
    match probe::capabilities() {
        Err(lacks) => lacks
            .missing
            .iter()
            .map(|missing| {
                let seen =
                    format!("Linux {release} has no {}: needs {} ({})", missing.what, missing.needs, missing.cause);
                Check::fail("kernel", seen, missing.next.clone())
            })
            .collect(),
        Ok(can) => {
            let reject = if can.netdev_reject { "refuses" } else { "drops (no reject in family netdev)" };
            let v6 = if probe::has_ipv6() { "" } else { "; it has no IPv6" };
            vec![Check::ok(
                "kernel",
                format!("Linux {release}; everything that a network is made of works, and the panel {reject}{v6}"),
            )]
        }
    }
}

fn cookie() -> Check {
    match Cookie::here() {
        Ok(_) => Check::ok("cookie", "a namespace that was replaced is recognised (SO_NETNS_COOKIE)"),
        Err(error) => Check::warn(
            "cookie",
            format!("no SO_NETNS_COOKIE ({error}): a process in a namespace that was replaced is not noticed"),
            "use Linux 5.14 or newer, or restart services whenever their namespace was made anew",
        ),
    }
}

fn clock() -> Vec<Check> {
    let mut found = Vec::new();
    if Sysctl::at("kernel/random/boot_id").read().is_err() {
        found.push(Check::warn(
            "clock",
            "/proc/sys/kernel/random/boot_id cannot be read: records of an earlier start of the machine are not told apart",
            "mount /proc whole",
        ));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if now < EARLIEST {
        let seen = "the date is before 2025: certificates and expiries are judged wrongly";
        found.push(Check::warn("clock", seen, "set the clock, for example by `timedatectl set-ntp true`"));
    }
    super::or_ok(found, "clock", "the date is plausible, and this start of the machine has its id")
}

/// Pins that are made in a mount namespace of one's own are invisible to everybody else, and nothing says so.
fn mounts() -> Check {
    let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt"));
    match (of("self"), of("1")) {
        (Ok(own), Ok(first)) if own == first => {
            Check::ok("mounts", "namespaces that are pinned here are seen by the whole machine")
        }
        (Ok(_), Ok(_)) => Check::warn(
            "mounts",
            "this runs in a mount namespace of its own: namespaces that are made here may be invisible to services",
            "run nsctl without PrivateTmp=, ProtectSystem= and the like, and outside of containers",
        ),
        _ => Check::warn(
            "mounts",
            "whether this is the mount namespace of the machine cannot be seen",
            "compare: `readlink /proc/self/ns/mnt /proc/1/ns/mnt`",
        ),
    }
}

/// With br_netfilter, what only crosses a bridge is judged as if it were forwarded.
fn bridges() -> Check {
    let on = ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"]
        .into_iter()
        .filter(|knob| Sysctl::at(&format!("net/bridge/{knob}")).read().is_ok_and(|value| value != "0"))
        .collect::<Vec<_>>();
    if on.is_empty() {
        return Check::ok("bridges", "br_netfilter is not loaded, or off");
    }
    let links = Rtnl::open().and_then(|mut rtnl| rtnl.links()).unwrap_or_default();
    let bridges: Vec<&str> =
        links.iter().filter(|link| link.kind.as_deref() == Some("bridge")).map(|link| link.name.as_str()).collect();
    let knobs = on.iter().map(|knob| format!("net.bridge.{knob}")).collect::<Vec<_>>().join(", ");
    if bridges.is_empty() {
        return Check::ok("bridges", format!("{knobs} is on, and there is no bridge here; no wire of ours is on one"));
    }
    Check::warn(
        "bridges",
        format!(
            "{knobs} is on: what crosses {} is judged by every forward chain of the host, ours too",
            bridges.join(", ")
        ),
        "unless Docker or Kubernetes needs it: `sysctl -w net.bridge.bridge-nf-call-iptables=0 \
         net.bridge.bridge-nf-call-ip6tables=0`",
    )
}
