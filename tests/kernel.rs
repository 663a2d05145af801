//! Every step of a plan on a real kernel: one by one, twice, cut off anywhere, and taken back.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, TcpListener};
use std::path::Path;

use common::machine::Machine;
use common::network::{Network, chain, replaced};
use common::{in_sandbox, ip};
use netns_policy::observed::Observed;
use netns_policy::plan::{Plan, Site, Step};
use netns_policy::port::Protocol::{Tcp, Udp};
use netns_policy::ruleset::delta::Op;
use nsctl::Error;
use nsctl::internet::Internet;
use nsctl::kernel::nft::NftError;
use nsctl::kernel::sysctl::Sysctl;
use nsctl::kernel::{Kernel, KernelError};
use nsctl::store::{Store, StoreError};

const LONG: &str = "a-service-with-a-name-that-no-link-could-ever-bear";

/// One of everything: edges of both protocols, a large range, the host both ways, both ways out, a resolver, long names.
const POLICY: &str = r#"
schema = 1
[network]
name = "small"
pool4 = "10.77.0.0/24"
pool6 = "fd00:77::/64"
lan = ["192.168.1.0/24"]
resolvers = ["203.0.113.10"]
[service.db]
ports = { sql = "tcp:5432", time = "udp:123", many = "tcp:2000-2199" }
[service.web]
outbound = "direct"
dns = "direct"
ports = { http = "tcp:80" }
connect.db = ["sql", "many"]
[service.a-service-with-a-name-that-no-link-could-ever-bear]
outbound = "lan"
connect.db = ["time"]
connect.web = ["http"]
[host]
may_connect.web = ["http"]
accepts = { backup = { port = "tcp:8000", from = ["db"] } }
"#;

fn without_ipv6() -> String {
    replaced(POLICY, "pool6 = \"fd00:77::/64\"", "ipv6 = false")
}

type Attempt = (&'static str, &'static str, netns_policy::port::Protocol, u16);

/// What the policy allows.
const DECLARED: [Attempt; 7] = [
    ("web", "db", Tcp, 5432),
    ("web", "db", Tcp, 2199),
    (LONG, "db", Udp, 123),
    (LONG, "web", Tcp, 80),
    ("host", "web", Tcp, 80),
    ("db", "host", Tcp, 8000),
    ("web", "db", Tcp, 2000),
];

/// What it does not: other ports, other protocols, the way back, other services, the host.
const UNDECLARED: [Attempt; 8] = [
    ("web", "db", Tcp, 2200),
    ("web", "db", Udp, 123),
    ("db", "web", Tcp, 80),
    (LONG, "db", Tcp, 5432),
    ("host", "db", Tcp, 5432),
    ("web", "host", Tcp, 8000),
    ("db", LONG, Udp, 9),
    ("host", LONG, Udp, 9),
];

/// Those of `attempts` that reach somebody.
fn open(network: &Network, attempts: &[Attempt]) -> Vec<(Attempt, IpAddr)> {
    let all =
        attempts.iter().flat_map(|attempt| network.addresses(attempt.1).into_iter().map(move |at| (*attempt, at)));
    all.filter(|((from, to, protocol, port), at)| network.reaches(from, to, (*at, *protocol, *port))).collect()
}

fn assert_closed(network: &Network, when: &str) {
    let open = open(network, &UNDECLARED);
    assert!(open.is_empty(), "open {when}: {open:?}");
}

fn assert_whole(network: &Network) {
    let families = network.addresses("db").len();
    assert_eq!(open(network, &DECLARED).len(), families * DECLARED.len(), "of {:?}", network.drift());
    assert_closed(network, "at the end");
    assert_eq!(network.plan(), Plan::default());
}

/// A step without the generation, which moves on by itself.
fn essence(step: &Step) -> Step {
    let mut step = step.clone();
    if let Step::Rules { generation, .. } = &mut step {
        *generation = 0;
    }
    step
}

/// Carries out the first `n` steps as a turn does, and stops as if the machine had.
fn cut_off_after(network: &Network, n: usize) -> usize {
    let planned = network.planned();
    let store = Store::new(&network.nsctl.options().state, &planned.desired.network);
    store.record_addresses(&planned.book).unwrap();
    let kernel = network.kernel();
    for step in planned.plan.steps.iter().take(n) {
        do_step(&store, &kernel, step);
    }
    planned.plan.steps.len()
}

fn do_step(store: &Store, kernel: &impl Kernel, step: &Step) {
    if let Step::SetSysctl { path, .. } = step {
        let mut before = store.sysctls().unwrap();
        before.entry(path.clone()).or_insert(Sysctl::at(path).read().unwrap());
        store.record_sysctls(&before).unwrap();
    }
    kernel.apply(step).unwrap_or_else(|error| panic!("cannot {step}: {error:?}"));
}

fn step_by_step(policy: &str) {
    let _internet = Internet::make().unwrap();
    let network = Network::new("one-by-one", policy);
    let mut left = network.plan().steps;
    assert!(left.len() > 20, "{} steps are not one of everything", left.len());
    // The addresses are not recorded, so that wires which do not exist yet have the same indexes in every plan.
    let store = Store::new(&network.nsctl.options().state, &network.planned().desired.network);
    while !left.is_empty() {
        let step = left.remove(0);
        do_step(&store, &network.kernel(), &step);
        let again: Vec<Step> = network.plan().steps.iter().map(essence).collect();
        assert!(!again.contains(&essence(&step)), "asked for again: {step}");
        for asked in &again {
            assert!(
                left.iter().any(|step| essence(step) == *asked),
                "after `{step}` asked for anew: {asked}\n{asked:?}"
            );
        }
        assert_closed(&network, &format!("after `{step}`"));
    }
    assert_whole(&network);
    network.down();
    assert!(network.is_nothing());
}

#[test]
fn each_step_done_is_not_asked_for_again_and_opens_nothing() {
    in_sandbox(|| step_by_step(POLICY));
}

#[test]
fn each_step_done_is_not_asked_for_again_and_opens_nothing_without_ipv6() {
    in_sandbox(|| step_by_step(&without_ipv6()));
}

#[test]
fn each_step_can_be_done_twice() {
    in_sandbox(|| {
        let _internet = Internet::make().unwrap();
        let network = Network::new("twice", POLICY);
        let planned = network.planned();
        let store = Store::new(&network.nsctl.options().state, &planned.desired.network);
        store.record_addresses(&planned.book).unwrap();
        for step in &planned.plan.steps {
            do_step(&store, &network.kernel(), step);
            let before = without_generations(network.kernel().observe().unwrap());
            let second = network.kernel().apply(step);
            let after = without_generations(network.kernel().observe().unwrap());
            assert_closed(&network, &format!("after a second `{step}`"));
            match (step, second) {
                // Rules are looked at before they are changed, and whoever changed them in between goes first.
                (Step::Rules { .. }, Err(KernelError::Nft(NftError::GenerationChanged))) => assert_eq!(after, before),
                // The generation of a fabric that the same turn made is not known: its chains have their rule twice
                // then, which does no harm and is put right by the next turn.
                (Step::Rules { at: Site::Fabric, generation: 0, .. }, Ok(())) => {}
                (_, Ok(())) => assert_eq!(after, before, "a second `{step}` changes something"),
                (_, Err(error)) => panic!("a second `{step}` fails: {error:?}"),
            }
        }
        network.apply();
        assert_whole(&network);
    });
}

/// Generations and counters move on by themselves; a wire of the host that is made anew has a new index there.
fn without_generations(mut observed: Observed) -> Observed {
    observed.host_generation = 0;
    observed.counters.clear();
    let namespaces = observed.namespaces.values_mut().chain(&mut observed.fabric);
    namespaces.for_each(|namespace| namespace.generation = 0);
    observed
}

#[test]
fn a_first_turn_cut_off_anywhere_is_finished_by_the_next_or_taken_down() {
    in_sandbox(|| {
        let _internet = Internet::make().unwrap();
        let network = Network::new("cut", POLICY);
        let before = Machine::now();
        for n in 0.. {
            let steps = cut_off_after(&network, n);
            network.apply();
            assert_eq!(network.plan(), Plan::default(), "cut off after step {n}");
            assert_eq!(open(&network, &DECLARED[..4]).len(), 8, "cut off after step {n}");
            network.down();
            cut_off_after(&network, n);
            network.down();
            before.assert_unchanged(&format!("cut off after step {n} and taken down"));
            if n >= steps {
                break;
            }
        }
    });
}

#[test]
fn a_change_cut_off_anywhere_opens_nothing_and_is_finished_by_the_next() {
    in_sandbox(|| {
        let _internet = Internet::make().unwrap();
        let network = Network::new("change", POLICY);
        // An edge, a service, the host's edges and a way out go; an edge, a service and a way out come.
        let next = replaced(POLICY, "connect.db = [\"sql\", \"many\"]", "connect.db = [\"time\"]");
        let next = replaced(&next, "may_connect.web = [\"http\"]", "may_connect.db = [\"sql\"]");
        let next = replaced(&next, "outbound = \"lan\"\nconnect.db = [\"time\"]\n", "");
        let next = replaced(&next, "[host]", "[service.new]\nports = { x = \"tcp:1\" }\noutbound = \"lan\"\n[host]");
        let never: Vec<Attempt> = UNDECLARED
            .into_iter()
            .filter(|(from, to, protocol, _)| (*from, *to, *protocol) != ("web", "db", Udp) && *from != "host")
            .chain([("new", "db", Tcp, 5432), ("new", "web", Tcp, 80), ("web", "new", Tcp, 1), ("host", "new", Tcp, 1)])
            .collect();
        for n in 0.. {
            network.change(POLICY);
            network.write(&next);
            let steps = cut_off_after(&network, n);
            let open = open(&network, &never);
            assert!(open.is_empty(), "open after step {n}: {open:?}");
            network.apply();
            assert_eq!(network.plan(), Plan::default(), "cut off after step {n}");
            assert!(network.reaches("web", "db", (network.v4("db"), Udp, 123)), "cut off after step {n}");
            assert!(!network.reaches("web", "db", (network.v4("db"), Tcp, 5432)), "cut off after step {n}");
            if n >= steps {
                break;
            }
        }
    });
}

#[test]
fn one_edge_is_three_steps_of_a_constant_size_and_touches_nobody() {
    in_sandbox(|| {
        let small = Network::new("small", &POLICY.replace("outbound = \"direct\"\ndns = \"direct\"\n", ""));
        let large = Network::example("umbrel");
        let edges = [
            (
                &small,
                "web",
                "db",
                replaced(
                    &fs::read_to_string("/run/small/policy.toml").unwrap(),
                    "[\"sql\", \"many\"]",
                    "[\"sql\", \"many\", \"time\"]",
                ),
            ),
            (
                &large,
                "electrs",
                "bitcoin",
                replaced(
                    &common::network::example("umbrel"),
                    "connect.bitcoin = [\"p2p\", \"p2p-whitebind\", \"rpc\"]\n\n[service.elements]",
                    "connect.bitcoin = [\"p2p\", \"p2p-whitebind\", \"rpc\", \"zmq-rawtx\"]\n\n[service.elements]",
                ),
            ),
        ];
        for (network, from, to, more) in edges {
            let less = fs::read_to_string(&network.nsctl.options().policy[0]).unwrap();
            network.apply();
            let lives = [from, to].map(|place| Lives::in_(network, place));
            let links = || [from, to, "fabric"].map(|place| network.witness(place, "ip -d link"));
            let before = links();
            for policy in [&more, &less] {
                let steps = network.change(policy).report.done;
                let sites: BTreeSet<String> = steps.iter().map(site).collect();
                assert_eq!(sites, [from, to, "fabric"].map(str::to_owned).into(), "{steps:#?}");
                // There and back in the panel, out of one lock and into the other; for both families.
                assert_eq!(elements(&steps), 2 * (2 + 1 + 1), "{steps:#?}");
                assert_eq!(links(), before);
            }
            lives.iter().for_each(Lives::assert_same);
            network.down();
        }
    });
}

/// Where a step changes elements; a step of any other kind is given as it is.
fn site(step: &Step) -> String {
    match step {
        Step::Rules { at: Site::Fabric, .. } => "fabric".into(),
        Step::Rules { at: Site::Place(place), .. } => place.to_string(),
        other => other.to_string(),
    }
}

fn elements(steps: &[Step]) -> usize {
    let deltas = steps.iter().filter_map(|step| if let Step::Rules { delta, .. } = step { Some(delta) } else { None });
    let of = |op: &Op| match op {
        Op::AddElements(elements) | Op::DeleteElements(elements) => elements.of.elements.len(),
        other => panic!("more than elements: {other:?}"),
    };
    deltas.flat_map(|delta| &delta.ops).map(of).sum()
}

/// Somebody who lives in a service: a listener on its loopback.
struct Lives {
    listener: TcpListener,
    place: String,
    netns: String,
    inode: u64,
}

impl Lives {
    fn in_(network: &Network, place: &str) -> Self {
        let listener = network.listen(place, IpAddr::from([127, 0, 0, 1]), 7);
        let netns = network.netns_name(place);
        Self { listener, place: place.into(), inode: inode(&netns), netns }
    }

    fn assert_same(&self) {
        assert_eq!(inode(&self.netns), self.inode, "{} has another namespace", self.place);
        let to = self.listener.local_addr().unwrap();
        let client = common::netns(&self.netns).run(move || std::net::TcpStream::connect(to));
        let (_, from) = self.listener.accept().unwrap();
        assert_eq!(client.unwrap().local_addr().unwrap(), from, "{}", self.place);
    }
}

fn inode(netns: &str) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(Path::new("/run/netns").join(netns)).unwrap().ino()
}

#[test]
fn a_second_apply_has_nothing_to_do_and_down_leaves_nothing() {
    in_sandbox(|| {
        let _internet = Internet::make().unwrap();
        let before = Machine::now();
        for name in ["bitcoin-node", "nix-bitcoin", "umbrel"] {
            let network = Network::example(name);
            network.apply();
            assert_eq!(network.plan(), Plan::default(), "{name}");
            assert_eq!(network.apply().report.done, [], "{name}");
            assert_ne!(Machine::now(), before, "{name}");
            network.down();
            before.assert_unchanged(name);
        }
    });
}

#[test]
fn a_namespace_of_somebody_else_is_an_error_and_nothing_is_changed() {
    in_sandbox(|| {
        ip("netns add small-web");
        let before = Machine::now();
        let network = Network::new("foreign", POLICY);
        for refused in [network.nsctl.apply().map(drop), network.nsctl.plan().map(drop)] {
            assert!(matches!(&refused, Err(Error::Foreign { netns }) if netns == "small-web"), "{refused:?}");
        }
        network.down();
        before.assert_unchanged("after a refusal");
        ip("netns delete small-web");
        network.apply();
        assert!(network.plan().is_empty());
    });
}

#[test]
fn of_two_that_change_a_network_at_once_the_second_is_told_so() {
    in_sandbox(|| {
        let network = Network::new("busy", POLICY);
        let store = Store::new(&network.nsctl.options().state, &"small".parse().unwrap());
        let guard = store.lock().unwrap();
        for refused in [network.nsctl.apply().map(drop), network.nsctl.down().map(drop)] {
            assert!(matches!(refused, Err(Error::Store(StoreError::Busy { .. }))), "{refused:?}");
        }
        assert!(network.is_nothing());
        drop(guard);
        let both = std::thread::scope(|scope| {
            let two = [(), ()].map(|()| scope.spawn(|| network.nsctl.apply().map(drop)));
            two.map(|one| one.join().unwrap())
        });
        for one in &both {
            assert!(
                matches!(one, Ok(()) | Err(Error::Moved { .. } | Error::Store(StoreError::Busy { .. }))),
                "{:?}",
                one.as_ref().map_err(chain)
            );
        }
        assert!(both.iter().any(Result::is_ok));
        assert!(network.plan().is_empty());
    });
}
