//! What the proof costs, and how that grows: `cargo bench --bench prove`.
//!
//! Policies of 17 to 1000 services with four edges each, once spread over all services and once to four of them alone;
//! one in eight may go out by itself. Each is compiled and proved once, on one thread, and what is told is the time of the
//! processor. The last column is the most
//! memory that this process has held so far, so that of the largest policy is its own.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;

use netns_policy::Source;
use netns_policy::address::{AddressBook, AddressPlan};
use netns_policy::desired::Desired;
use netns_policy::graph::AllowGraph;
use netns_policy::observed::Observed;
use netns_policy::prove::prove;
use netns_policy::ruleset::compile::Capabilities;
use nix::sys::resource::{UsageWho, getrusage};

const BITCOIN_NODE: &str = include_str!("../examples/policies/bitcoin-node.toml");

fn main() {
    // `cargo test --benches` wants to know that it runs, `cargo bench` what it costs.
    let all = std::env::args().any(|argument| argument == "--bench");
    let sizes: &[usize] = if all { &[60, 120, 250, 500, 1000] } else { &[60] };
    println!(
        "{:<14}{:>9}{:>8}{:>10}{:>12}{:>12}{:>11}",
        "policy", "services", "edges", "classes", "compile ms", "prove ms", "peak MiB"
    );
    measure("bitcoin-node", BITCOIN_NODE);
    for size in sizes {
        measure("spread", &synthetic(*size, |from, n| (from + 1 + n * n * 7) % size));
    }
    for size in sizes {
        measure("four servers", &synthetic(*size, |_, n| n));
    }
}

/// `size` services, of which each has up to four edges: to `target(itself, 0..4)`.
fn synthetic(size: usize, target: impl Fn(usize, usize) -> usize) -> String {
    let mut text = String::from("schema = 1\n[network]\nname = \"bench\"\npool4 = \"10.224.0.0/16\"\n");
    for service in 0..size {
        let outbound = if service % 8 == 0 { "direct" } else { "none" };
        write!(
            text,
            "[service.s{service}]\nports = {{ main = \"tcp:{}\" }}\noutbound = \"{outbound}\"\n",
            8000 + service % 50
        )
        .expect("writing to a string does not fail");
        let targets: BTreeSet<usize> = (0..4).map(|n| target(service, n)).filter(|to| *to != service).collect();
        for to in targets {
            writeln!(text, "connect.s{to} = [\"main\"]").expect("writing to a string does not fail");
        }
    }
    text
}

fn measure(name: &str, text: &str) {
    let checked = AllowGraph::parse(&[Source::toml("policy.toml", text)]);
    let graph = checked.unwrap_or_else(|errors| panic!("{:#}", errors.0[0])).graph;
    let addresses = AddressPlan::assign(&graph, &AddressBook::default(), 0, false).expect("there is room");
    let observed = Observed::default();
    let began = cpu_ms();
    let (desired, _) = Desired::new(&graph, &addresses, &observed, Capabilities::default(), 0);
    let compiled = cpu_ms() - began;
    let proof = prove(&graph, &addresses, &observed.host, &desired).unwrap_or_else(|found| panic!("{found}"));
    let proved = cpu_ms() - began - compiled;
    println!(
        "{name:<14}{:>9}{:>8}{:>10}{:>12.1}{:>12.1}{:>11.1}",
        graph.services().count(),
        graph.edges().len(),
        proof.classes(),
        compiled,
        proved,
        peak_mib()
    );
}

/// Time that this process has had the processor.
fn cpu_ms() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("it is this process");
    let ms = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
    ms(usage.user_time()) + ms(usage.system_time())
}

/// `VmHWM`, proc_pid_status(5).
fn peak_mib() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}
