//! Whatever single thing is taken from a network, or put into it, is named in words of its own: tried one by one, on a
//! kernel in memory.

use fake::{Fake, Machine};
use netns_policy::address::{AddressBook, AddressPlan};
use netns_policy::desired::Desired;
use netns_policy::diagnostic::Source;
use netns_policy::graph::AllowGraph;
use netns_policy::network::HostNetwork;
use netns_policy::observed::{Link, Namespace, Observed};
use netns_policy::plan::Plan;
use netns_policy::ruleset::compile::Capabilities;
use netns_policy::ruleset::{Expr, Rule, Ruleset, Verdict};
use nsctl::drift::{Drift, Extra, drift, undone};
use nsctl::reconcile::turn;
use nsctl::{Checked, Planned};

#[allow(dead_code, reason = "other tests send packets through it")]
mod fake;

const POLICY: &str = r#"
schema = 1
network = { name = "node", lan = ["192.168.1.0/24"] }
[service.a]
ports = { one = "tcp:80", many = "udp:1000-2000" }
[service.b]
connect.a = ["one", "many"]
outbound = "direct"
limits = { flows = 100 }
[service.c]
connect.a = ["one"]
outbound = { lan = ["192.168.1.20/32 tcp:5000"] }
[host]
may_connect.a = ["one"]
accepts.metrics = { port = "tcp:9100", from = ["d"] }
[service.d]
"#;

fn planned(machine: &Machine, book: &AddressBook) -> Planned {
    let checked = AllowGraph::parse(&[Source::toml("policy.toml", POLICY)])
        .unwrap_or_else(|errors| panic!("{:#?}", errors.iter().map(ToString::to_string).collect::<Vec<_>>()));
    let addresses = AddressPlan::assign(&checked.graph, book, 0, false).unwrap();
    let observed = machine.observed.clone();
    let capabilities = Capabilities { netdev_reject: true };
    let (desired, next_index) = Desired::new(&checked.graph, &addresses, &observed, capabilities, book.next_index);
    let plan = Plan::between(&observed, &desired);
    let book = AddressBook { next_index, ..addresses.book().clone() };
    let checked = Checked {
        graph: checked.graph,
        asks: checked.asks,
        warnings: checked.warnings,
        files: Vec::new(),
        editable: Vec::new(),
        sources: Vec::new(),
    };
    Planned { checked, addresses, book, observed, desired, plan, proof: None }
}

fn applied() -> (Machine, AddressBook) {
    let mut host = HostNetwork { mtu: 1500, ..HostNetwork::default() };
    host.uplinks4.insert("eth0".into());
    for knob in ["net/ipv4/conf/eth0/forwarding", "net/ipv4/conf/node+leg/forwarding", "net/ipv4/ip_forward"] {
        host.sysctls.insert(knob.into(), "0".into());
    }
    let machine = Machine::bare(host, false);
    let first = planned(&machine, &AddressBook::default());
    let kernel = Fake::new(machine, usize::MAX);
    assert!(turn(&kernel, &first.plan).failed.is_none());
    let machine = kernel.machine.into_inner();
    let again = planned(&machine, &first.book);
    assert_eq!(undone(&again), []);
    assert_eq!(drift(&again, &Extra::default()), []);
    (machine, first.book)
}

/// A change, and what it is called here.
type Damage = (String, Box<dyn Fn(&mut Observed)>);

fn damages(whole: &Observed) -> Vec<Damage> {
    let mut all: Vec<Damage> = Vec::new();
    let mut add = |what: String, change: Box<dyn Fn(&mut Observed)>| all.push((what, change));
    add("no fabric".into(), Box::new(|observed| observed.fabric = None));
    add("no host route".into(), Box::new(|observed| observed.host_route = None));
    for path in whole.host.sysctls.keys() {
        let path = path.clone();
        add(format!("another {path}"), Box::new(move |o| drop(o.host.sysctls.insert(path.clone(), "7".into()))));
    }
    for service in whole.files.keys() {
        let (service, other) = (service.clone(), service.clone());
        add(format!("no files of {service}"), Box::new(move |o| drop(o.files.remove(&service))));
        let changed = move |o: &mut Observed| o.files.get_mut(&other).unwrap().resolv_conf = "x".into();
        add("another resolv.conf".into(), Box::new(changed));
    }
    for name in whole.namespaces.keys() {
        let name = name.clone();
        add(format!("no {name}"), Box::new(move |observed| drop(observed.namespaces.remove(&name))));
    }
    for place in places(whole) {
        let links = links(whole, &place);
        for link in links.keys() {
            let change = |what: &str, change: fn(&mut Link)| -> Damage {
                let (place, link) = (place.clone(), link.clone());
                (
                    format!("{what} {link} of {place:?}"),
                    Box::new(move |o| change(links_mut(o, &place).get_mut(&link).unwrap())),
                )
            };
            all.push(change("down", |link| link.up = false));
            all.push(change("MTU of", |link| link.mtu = 1400));
            all.push(change("no addresses of", |link| link.addresses.clear()));
            all.push(change("no routes of", |link| link.routes.clear()));
            all.push(change("no alias of", |link| link.alias = None));
            all.push(change("no peer of", |link| link.peer = None));
            let (place, link) = (place.clone(), link.clone());
            all.push((format!("no {link} of {place:?}"), Box::new(move |o| drop(links_mut(o, &place).remove(&link)))));
        }
        all.extend(rules(whole, &place));
    }
    all
}

/// The fabric, each namespace, and nothing for the host.
fn places(whole: &Observed) -> Vec<Option<String>> {
    let fabric = Some("+fabric".to_owned());
    [None, fabric].into_iter().chain(whole.namespaces.keys().cloned().map(Some)).collect()
}

fn namespace<'a>(observed: &'a Observed, name: &str) -> &'a Namespace {
    if name == "+fabric" { observed.fabric.as_ref().unwrap() } else { &observed.namespaces[name] }
}

fn namespace_mut<'a>(observed: &'a mut Observed, name: &str) -> &'a mut Namespace {
    if name == "+fabric" { observed.fabric.as_mut().unwrap() } else { observed.namespaces.get_mut(name).unwrap() }
}

type LinkMap = std::collections::BTreeMap<String, Link>;

fn links<'a>(observed: &'a Observed, place: &Option<String>) -> &'a LinkMap {
    place.as_ref().map_or(&observed.host_links, |name| &namespace(observed, name).links)
}

fn links_mut<'a>(observed: &'a mut Observed, place: &Option<String>) -> &'a mut LinkMap {
    match place {
        Some(name) => &mut namespace_mut(observed, name).links,
        None => &mut observed.host_links,
    }
}

fn rules_mut<'a>(observed: &'a mut Observed, place: &Option<String>) -> &'a mut Ruleset {
    match place {
        Some(name) => &mut namespace_mut(observed, name).rules,
        None => &mut observed.host_rules,
    }
}

fn rules(whole: &Observed, place: &Option<String>) -> Vec<Damage> {
    let mut all: Vec<Damage> = Vec::new();
    let rules = place.as_ref().map_or(&whole.host_rules, |name| &namespace(whole, name).rules);
    for (id, table) in &rules.tables {
        let with = |change: Box<dyn Fn(&mut netns_policy::ruleset::Table)>| -> Box<dyn Fn(&mut Observed)> {
            let (id, place) = (id.clone(), place.clone());
            Box::new(move |o| change(rules_mut(o, &place).tables.get_mut(&id).unwrap()))
        };
        let (at, gone) = (place.clone(), id.clone());
        all.push((format!("no table of {place:?}"), Box::new(move |o| drop(rules_mut(o, &at).tables.remove(&gone)))));
        all.push((format!("dormant table of {place:?}"), with(Box::new(|table| table.dormant = true))));
        for (name, chain) in table.chains.iter() {
            let n = name.clone();
            all.push((format!("no chain {n} of {place:?}"), with(Box::new(move |t| drop(t.chains.remove(&n))))));
            for rule in 0..chain.rules.len() {
                let n = name.clone();
                let change = Box::new(move |t: &mut netns_policy::ruleset::Table| {
                    t.chains.get_mut(&n).unwrap().rules.remove(rule);
                });
                all.push((format!("no rule {rule} of {name} of {place:?}"), with(change)));
            }
            let n = name.clone();
            let change = Box::new(move |t: &mut netns_policy::ruleset::Table| {
                let accept = Rule::from(vec![Expr::Verdict(Verdict::Accept)]);
                t.chains.get_mut(&n).unwrap().rules.insert(0, accept);
            });
            all.push((format!("a rule more in {name} of {place:?}"), with(change)));
            let n = name.clone();
            let change = Box::new(move |t: &mut netns_policy::ruleset::Table| {
                if let Some(hook) = &mut t.chains.get_mut(&n).unwrap().hook {
                    hook.policy_accept = !hook.policy_accept;
                }
            });
            all.push((format!("another policy of {name} of {place:?}"), with(change)));
        }
        for (name, set) in table.sets.iter() {
            let n = name.clone();
            all.push((format!("no set {n} of {place:?}"), with(Box::new(move |t| drop(t.sets.remove(&n))))));
            for key in set.elements.keys() {
                let key = key.clone();
                let (n, gone) = (name.clone(), key.clone());
                let change = Box::new(move |t: &mut netns_policy::ruleset::Table| {
                    t.sets.get_mut(&n).unwrap().elements.remove(&gone);
                });
                all.push((format!("no element of {name} of {place:?}"), with(change)));
                let n = name.clone();
                let change = Box::new(move |t: &mut netns_policy::ruleset::Table| {
                    let elements = &mut t.sets.get_mut(&n).unwrap().elements;
                    let answer = elements.get(&key).cloned().flatten();
                    let mut more = key.clone();
                    let last = more.from.len() - 1;
                    more.from[last.saturating_sub(2)] ^= 1;
                    elements.insert(more, answer);
                });
                all.push((format!("an element more in {name} of {place:?}"), with(change)));
            }
        }
    }
    all
}

#[test]
fn whatever_is_changed_is_named_in_words_of_its_own() {
    let (whole, book) = applied();
    let (mut told, mut quiet) = (0, Vec::new());
    for (what, damage) in damages(&whole.observed) {
        let mut machine = whole.clone();
        damage(&mut machine.observed);
        let planned = planned(&machine, &book);
        let said = undone(&planned);
        assert_eq!(said.is_empty(), planned.plan.is_empty(), "{what}: {said:#?} of {:#?}", planned.plan.steps);
        let nameless = said.iter().find(|one| matches!(one, Drift::Undone { .. }));
        assert_eq!(nameless, None, "{what} has no words");
        for one in &said {
            let (kind, text) = (one.kind(), one.to_string());
            assert!(!kind.is_empty() && text != kind, "{one:?} has no words");
            assert!(one.repairable(), "{what}: a turn does it: {text}");
        }
        // What does not work is told besides: the edges.
        let edge = |one: &&Drift| matches!(one, Drift::MissingEdge { .. } | Drift::MissingRight { .. });
        let (edges, others): (Vec<_>, Vec<_>) = said.iter().partition(|one| edge(one));
        let single = ["no element ", "no rule ", "no chain ", "no set ", "no table ", "an element ", "a rule "];
        if single.iter().any(|kind| what.starts_with(kind)) {
            let alone = others.len() == 1 || (others.is_empty() && edges.len() == 1);
            assert!(alone, "{what} is one thing: {said:#?}");
        }
        if said.is_empty() { quiet.push(what) } else { told += 1 }
    }
    // Aliases and routes that nobody asks of, and policies of chains that have none.
    let meant = |what: &&String| {
        ["no alias ", "no routes ", "no addresses ", "another policy "].iter().any(|w| what.starts_with(w))
    };
    assert!(quiet.iter().all(|what| meant(&what)), "{quiet:#?}");
    assert!(told > 1000, "{told}");
}
