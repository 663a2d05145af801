//! What is planned, as the operator and nft(8) would read it.

use std::fmt::Write as _;

use drawn::Made;
use netns_policy::address::{AddressPlan, Addresses};
use netns_policy::changes::Change;
use netns_policy::desired::{Desired, Route};
use netns_policy::observed::{Link, Namespace, Observed};
use netns_policy::plan::{Plan, Step};
use netns_policy::ruleset::compile::{Capabilities, LEG};
use netns_policy::topology::Place;

#[allow(dead_code, reason = "other tests use the rest of it")]
mod drawn;

const BITCOIN_NODE: &str = include_str!("../../examples/policies/bitcoin-node.toml");

/// Steps, and what they mean.
fn shown(plan: &Plan) -> String {
    let mut text = String::new();
    for change in &plan.changes {
        writeln!(text, "{change:?}").unwrap();
    }
    text.push('\n');
    for step in &plan.steps {
        writeln!(text, "{step}").unwrap();
    }
    text
}

fn golden(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("golden");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

/// What the kernel says once everything that is desired exists.
fn in_force(made: &Made) -> Observed {
    let desired = &made.desired;
    let mut observed = Observed { host: made.host.clone(), ..Observed::default() };
    let mut fabric = Namespace { rules: desired.fabric.clone(), generation: 7, ..Namespace::default() };
    for (place, wire) in &desired.wires {
        let made = Link { noarp: true, up: true, mtu: netns_policy::desired::INNER_MTU, ..Link::default() };
        let alias = Some(wire.alias.clone());
        let end = Link { index: wire.index, peer: Some(wire.index), alias, ..made };
        fabric.links.insert(wire.outer.to_string(), end.clone());
        let inner = Link { addresses: wire.addresses.iter().collect(), routes: wire.routes.clone(), ..end };
        match &wire.netns {
            Some(netns) => {
                let namespace = observed.namespaces.entry(netns.clone()).or_default();
                namespace.links.insert(wire.inner.to_string(), inner);
                namespace.rules = desired.locks[place].clone();
            }
            None => drop(observed.host_links.insert(wire.inner.to_string(), inner)),
        }
    }
    observed.fabric = Some(fabric);
    observed.host_rules = desired.locks[&Place::Host].clone();
    observed.host_route = desired.host_route.clone();
    observed.files = desired.files.clone();
    // What was there before is on record.
    let before = desired.sysctls.iter().map(|(path, _)| (path.clone(), "0".to_owned()));
    observed.host.before = before.collect();
    observed.host.sysctls.extend(desired.sysctls.iter().cloned());
    if let (Some(leg), Some(gateway)) = (&desired.leg, observed.namespaces.get_mut("node+uplink")) {
        let end = |index: u32, peer: u32, own: Addresses, other: Addresses| Link {
            index,
            peer: Some(peer),
            up: true,
            mtu: leg.mtu,
            addresses: own.iter().collect(),
            routes: other.iter().map(|ip| Route { to: ip.into(), mtu: None, source: None }).collect(),
            ..Link::default()
        };
        let mut out = end(3, 9, leg.gateway, leg.host);
        let any = ["0.0.0.0/0", "::/0"].map(|to| Route { to: to.parse().unwrap(), mtu: None, source: None });
        out.routes.extend(any);
        gateway.links.insert(LEG.into(), out);
        observed.host_links.insert(leg.host_link.to_string(), end(9, 3, leg.host, leg.gateway));
    }
    observed
}

/// The plan from one text to another.
fn plan(old: &Made, new: &str) -> Plan {
    let graph = drawn::graph(new);
    let addresses = AddressPlan::assign(&graph, old.addresses.book(), 0, false).unwrap();
    let observed = in_force(old);
    let (desired, _) = Desired::new(&graph, &addresses, &observed, Capabilities { netdev_reject: true }, 0);
    Plan::between(&observed, &desired)
}

#[test]
fn a_first_plan_names_everything_in_order() {
    let made = Made::of(BITCOIN_NODE);
    let bare = Observed { host: made.host.clone(), ..Observed::default() };
    golden("bitcoin_node", &shown(&Plan::between(&bare, &made.desired)));
}

#[test]
fn between_equal_states_there_is_no_step() {
    let made = Made::of(BITCOIN_NODE);
    let plan = plan(&made, BITCOIN_NODE);
    assert_eq!((shown(&plan).trim(), plan.is_empty()), ("", true));
}

#[test]
fn one_edge_is_the_panel_and_two_locks() {
    let made = Made::of(BITCOIN_NODE);
    let edge = "[service.mempool]\nunit  = \"mempool.service\"";
    assert!(BITCOIN_NODE.contains(edge));
    let more = BITCOIN_NODE.replace(edge, &format!("{edge}\nconnect.electrs = [\"electrum\"]"));
    golden("one_edge_added", &shown(&plan(&made, &more)));
    golden("one_edge_removed", &shown(&plan(&Made::of(&more), BITCOIN_NODE)));
}

/// What `plan` says of `new` where `old` is in force.
fn told(old: &str, new: &str) -> Vec<String> {
    plan(&Made::of(old), new).changes.iter().map(|change| format!("{change:?}")).collect()
}

#[test]
fn a_right_outside_that_comes_or_goes_is_an_edge_of_the_plan() {
    let wider = SMALL.replace("192.168.1.20/32 tcp:5000", "192.168.0.0/16 tcp:5000");
    let told = told(SMALL, &wider);
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(told[0].starts_with("RemoveEdge") && told[0].contains("192.168.1.20/32"), "{told:#?}");
    assert!(told[1].starts_with("AddEdge") && told[1].contains("192.168.0.0/16"), "{told:#?}");
}

#[test]
fn a_way_in_that_comes_or_goes_is_an_edge_of_the_plan_and_no_damage() {
    let base = "schema = 1\n[network]\nname = \"node\"\nlan = [\"192.168.1.0/24\"]\n[service.rtl]\n\
                ports = { http = \"tcp:3000\" }\n";
    let with = |way: &str| format!("{base}expose.{way}\n");
    let (lan, port) = ("lan = { ports = { \"8080\" = \"http\" } }", "port = { ports = { \"8080\" = \"http\" } }");
    let relay = "lan = { ports = { \"8080\" = \"http\" }, relay = true }";
    let words = |old: &str, new: &str| {
        let plan = plan(&Made::of(old), new);
        let word = |change: &Change| match change {
            Change::AddEdge(edge) => format!("+ {edge}"),
            Change::RemoveEdge(edge) => format!("- {edge}"),
            other => format!("{other:?}"),
        };
        plan.changes.iter().map(word).collect::<Vec<_>>()
    };
    assert_eq!(words(base, &with(lan)), ["+ lan -> rtl:tcp:3000"]);
    assert_eq!(words(&with(lan), base), ["- lan -> rtl:tcp:3000"]);
    assert_eq!(words(&with(lan), &with(port)), ["- lan -> rtl:tcp:3000", "+ port -> rtl:tcp:3000"]);
    let relayed = ["- lan -> rtl:tcp:3000", "+ +relay -> rtl:tcp:3000", "+ lan -> +relay:tcp:8080"];
    assert_eq!(words(&with(lan), &with(relay)), relayed);
    assert_eq!(words(&with(lan), &with(lan)), Vec::<String>::new());
    // The control: where no way in comes or goes, the same rules are missed.
    let (made, mut seen) = (Made::of(&with(lan)), Made::of(&with(lan)));
    let gateway = seen.desired.locks.get_mut(&Place::Uplink).unwrap().tables.values_mut().next().unwrap();
    gateway.chains.get_mut("to_service").unwrap().rules.clear();
    let told = Plan::between(&in_force(&seen), &made.desired).changes;
    assert!(matches!(&told[..], [Change::Repair { what }] if what.contains("uplink")), "{told:?}");
}

#[test]
fn another_address_is_told_as_one() {
    let told = told(SMALL, &SMALL.replace("[service.bravo]", "[service.bravo]\naddress4 = \"10.231.0.77\""));
    let renumbered: Vec<_> = told.iter().filter(|line| line.starts_with("Renumber")).collect();
    assert_eq!(renumbered.len(), 1, "{told:#?}");
    assert!(renumbered[0].contains("bravo") && renumbered[0].contains("10.231.0.77"), "{told:#?}");
}

#[test]
fn what_somebody_changed_of_how_the_gateway_forwards_is_set_again() {
    let made = Made::of(SMALL);
    let mut observed = in_force(&made);
    let knob = |value: &str| [("net/ipv4/ip_forward".to_owned(), value.to_owned())].into();
    observed.namespaces.get_mut("node+uplink").unwrap().sysctls = knob("0");
    observed.fabric.as_mut().unwrap().sysctls = knob("1");
    let steps = Plan::between(&observed, &made.desired).steps;
    let steps: Vec<_> = steps.iter().map(ToString::to_string).collect();
    let wanted = ["set net.ipv4.ip_forward = 0 in node+fabric", "set net.ipv4.ip_forward = 1 in node+uplink"];
    assert_eq!(steps, wanted);
}

#[test]
fn everything_goes_in_order() {
    let made = Made::of(BITCOIN_NODE);
    let network = "node".parse().unwrap();
    golden("down", &shown(&Plan::between(&in_force(&made), &Desired::nothing(&network))));
}

const SMALL: &str = r#"
schema = 1
[network]
name = "node"
pool6 = "fd6e:6f64:6500::/64"
lan = ["192.168.1.0/24"]
[service.alpha]
outbound = ["direct", "lan"]
dns = "direct"
connect.bravo = ["web", "big"]
[service.bravo]
outbound = { direct = ["tcp:443"], lan = ["192.168.1.20/32 tcp:5000"] }
ports = { web = "tcp:80", big = "tcp:1000-1200" }
limits = { flows = 100, new_per_second = 50 }
[host]
may_connect.bravo = ["web"]
"#;

#[test]
fn the_rules_of_a_small_policy_read_as_nft_lists_them() {
    let made = Made::of(SMALL);
    let links = made.desired.wires.values().map(|wire| (wire.index, wire.outer.to_string())).collect();
    golden("fabric", &made.desired.fabric.display(&links));
    for (place, lock) in &made.desired.locks {
        golden(&format!("lock_of_{place}"), &lock.display(&links));
    }
}

#[test]
fn services_hold_what_is_the_same_for_all_once() {
    let desired = Made::of(
        "schema = 1\nnetwork.name = \"n\"\n[service.a]\nconnect.b = [\"p\"]\n[service.b]\nports = { p = \"tcp:1\" }\n",
    )
    .desired;
    let tables: Vec<_> = ["a", "b"]
        .map(|name| &desired.locks[&Place::Service(name.parse().unwrap())])
        .iter()
        .map(|lock| lock.tables.values().next().unwrap())
        .collect();
    let rules: Vec<_> = tables.iter().map(|table| &*table.chains["input"].rules[0].0).collect();
    assert!(std::ptr::eq(rules[0], rules[1]), "each has a copy of its own of the same rule");
    let shut: Vec<_> = Plan::between(&Observed::default(), &desired).steps;
    let shut: Vec<_> = shut
        .iter()
        .filter_map(|step| match step {
            Step::CreateNetns { rules, .. } => Some(&*rules.ops),
            _ => None,
        })
        .collect();
    assert!(shut.len() == 2 && std::ptr::eq(shut[0], shut[1]), "each has a copy of its own of the same lock");
    let out = |table: &netns_policy::ruleset::Table| table.sets["out4"].elements.len();
    assert_eq!((out(tables[0]), out(tables[1])), (1, 0), "what differs is each one's own");
}
