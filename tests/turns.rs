//! Turns on a kernel in memory: whatever is there, and wherever a turn is cut off, the next one finishes it, and
//! nothing is open meanwhile that neither the old nor the new policy allows.

use std::collections::BTreeSet;
use std::net::IpAddr;

use drawn::Policy;
use fake::{Fake, Machine};
use netns_policy::address::{AddressBook, AddressPlan};
use netns_policy::desired::Desired;
use netns_policy::graph::{AllowGraph, Edge, Origin, Target};
use netns_policy::packet::build::flag;
use netns_policy::packet::{Ends, Packet};
use netns_policy::plan::{Plan, Step};
use netns_policy::port::Protocol;
use netns_policy::ruleset::compile::Capabilities;
use netns_policy::ruleset::decide::walk::{Connections, Fate, Sender, WAN, World};
use netns_policy::ruleset::expect::outside::Premises;
use nsctl::kernel::Kernel as _;
use nsctl::reconcile::turn;
use proptest::prelude::*;

#[path = "../netns-policy/tests/drawn/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod drawn;
mod fake;

/// A policy with its addresses, as it is written in a network's history.
struct Generation {
    graph: AllowGraph,
    addresses: AddressPlan,
}

impl Generation {
    fn new(policy: &Policy, book: &AddressBook) -> Self {
        let graph = drawn::graph(&policy.text());
        let addresses = AddressPlan::assign(&graph, book, 0, false).unwrap();
        Self { graph, addresses }
    }

    /// What is to be done, and what is recorded before it is done.
    fn plan(&self, machine: &Machine, book: &AddressBook) -> (Plan, AddressBook) {
        let capabilities = Capabilities { netdev_reject: true };
        let (desired, next_index) =
            Desired::new(&self.graph, &self.addresses, &machine.observed, capabilities, book.next_index);
        let plan = Plan::between(&machine.observed, &desired);
        (plan, AddressBook { next_index, ..self.addresses.book().clone() })
    }

    /// One turn to the end; then there is nothing left to do.
    fn finish(&self, machine: &mut Machine, book: &mut AddressBook) -> Result<(), TestCaseError> {
        let (plan, next) = self.plan(machine, book);
        *book = next;
        carry_out(machine, &plan)?;
        let (left, _) = self.plan(machine, book);
        prop_assert!(left.is_empty(), "{:#?} are left", left.steps.iter().map(ToString::to_string).collect::<Vec<_>>());
        prop_assert_eq!(left.changes, vec![]);
        Ok(())
    }

    fn allows(&self, flow: &Flow) -> bool {
        self.graph.allows(&flow.from, &flow.to, flow.protocol, flow.port).is_some()
    }
}

fn carry_out(machine: &mut Machine, plan: &Plan) -> Result<(), TestCaseError> {
    let kernel = Fake::new(machine.clone(), usize::MAX);
    let report = turn(&kernel, plan);
    if let Some(failed) = report.failed {
        let said: Vec<String> = plan.steps.iter().map(ToString::to_string).collect();
        prop_assert!(false, "{failed}: {:?}\nafter {} of\n{said:#?}", failed.source, report.done.len());
    }
    *machine = kernel.machine.into_inner();
    Ok(())
}

/// A connection that somebody may try to open.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Flow {
    from: Origin,
    to: Target,
    protocol: Protocol,
    port: u16,
}

fn flip(edge: &Edge) -> (Origin, Target) {
    let from = match &edge.to {
        Target::Host => Origin::Host,
        Target::Service(name) => Origin::Service(name.clone()),
    };
    let to = match &edge.from {
        Origin::Host => Target::Host,
        Origin::Service(name) => Target::Service(name.clone()),
    };
    (from, to)
}

/// Flows that are worth trying: along every edge, against it, and next to it.
fn flows(graphs: [&AllowGraph; 2]) -> BTreeSet<Flow> {
    let edges = graphs.into_iter().flat_map(AllowGraph::edges);
    edges
        .flat_map(|edge| {
            let ports = [edge.ports.lo(), edge.ports.hi(), edge.ports.hi() + 1];
            let (protocol, straight, back) = (edge.ports.protocol(), (edge.from.clone(), edge.to.clone()), flip(edge));
            [straight, back].into_iter().flat_map(move |(from, to)| {
                ports.map(|port| Flow { from: from.clone(), to: to.clone(), protocol, port })
            })
        })
        .collect()
}

/// Whether the flow can be opened, by root or by a program, in either family.
fn opens(world: &World, flow: &Flow, sender: Sender) -> bool {
    let (from, to) = (flow.from.to_string(), flow.to.to_string());
    let (Some(client), Some(server)) = (world.places.get(&from), world.places.get(&to)) else { return false };
    let pairs = client.addresses.iter().flat_map(|a| server.addresses.iter().map(move |b| (*a, *b)));
    pairs.filter_map(|(a, b)| Ends::new(a, b)).any(|ends| {
        let packet = match flow.protocol {
            Protocol::Tcp => Packet::tcp(ends, 40_000, flow.port, flag::SYN),
            Protocol::Udp => Packet::udp(ends, 40_000, flow.port, b"text"),
        };
        world.carry(&from, &packet, sender, &Connections::new()).is_delivered()
    })
}

const FAR: [&str; 6] = ["9.9.9.9", "192.168.1.20", "192.168.1.200", "10.9.0.1", "203.0.113.3", "2620:fe::9"];

/// What leaves that no generation lets out.
fn leaves(world: &World, generations: [&Generation; 2], machine: &Machine) -> Option<String> {
    let services = generations.into_iter().flat_map(|generation| generation.graph.services());
    let far = FAR.iter().map(|text| text.parse::<IpAddr>().unwrap());
    let tried = services.flat_map(|s| far.clone().flat_map(move |to| [443, 5000].map(|port| (s, to, port))));
    for (service, to, port) in tried {
        let name = service.name.as_str();
        let Some(place) = world.places.get(name) else { continue };
        let Some(ends) = place.addresses.iter().find_map(|own| Ends::new(*own, to)) else { continue };
        let syn = Packet::tcp(ends, 40_000, port, flag::SYN);
        let allowed = generations.iter().any(|generation| {
            let host = &machine.observed.host;
            let premises = Premises { graph: &generation.graph, addresses: &generation.addresses, host };
            let known = generation.graph.service(name);
            known.is_some_and(|service| premises.reaches(service, to, Some((Protocol::Tcp, port))))
        });
        let out = world.carry(name, &syn, Sender::Root, &Connections::new());
        if out.fate == Fate::Delivered(WAN) && !allowed {
            return Some(format!("{name} -> {to}:{port}"));
        }
    }
    None
}

fn nothing_more_is_open(machine: &Machine, old: &Generation, new: &Generation) -> Result<(), TestCaseError> {
    let world = machine.world();
    for flow in flows([&old.graph, &new.graph]) {
        for sender in [Sender::Program, Sender::Root] {
            let open = opens(&world, &flow, sender);
            prop_assert!(!open || old.allows(&flow) || new.allows(&flow), "{flow:?} is open to {sender:?}");
        }
    }
    prop_assert_eq!(leaves(&world, [old, new], machine), None);
    Ok(())
}

/// Of the flows of both, those that the new policy allows can be opened and no others.
fn opens_exactly(machine: &Machine, old: &Generation, new: &Generation) -> Result<(), TestCaseError> {
    let world = machine.world();
    for flow in flows([&old.graph, &new.graph]) {
        prop_assert_eq!(opens(&world, &flow, Sender::Program), new.allows(&flow), "{:?}", flow);
    }
    Ok(())
}

/// Connections that both allow, on single ports: long ranges that grow are made anew.
fn kept(old: &Generation, new: &Generation) -> Vec<Flow> {
    let both = |flow: &Flow| {
        let in_both = [old, new].map(|g| g.graph.allows(&flow.from, &flow.to, flow.protocol, flow.port).cloned());
        in_both.iter().all(|edge| edge.as_ref().is_some_and(|edge| edge.ports.count() <= 64))
    };
    // Where IPv6 is switched on, every wire is made anew.
    let same_families = old.addresses.pool6().is_some() >= new.addresses.pool6().is_some();
    flows([&old.graph, &new.graph]).into_iter().filter(|flow| same_families && both(flow)).collect()
}

/// Two policies, and whether the kernel is an old one: often the second is the first with changes.
fn two_policies() -> impl Strategy<Value = (Policy, Policy, bool)> {
    let changes = prop::collection::vec(prop::bool::weighted(0.3), 6);
    (drawn::policy(4), drawn::policy(4), prop::bool::weighted(0.3), changes, any::<bool>()).prop_map(
        |(a, b, apart, changes, old_kernel)| {
            let b = if apart { b } else { a.with_some_of(&b, &changes) };
            (a, b, old_kernel)
        },
    )
}

/// A machine with the first policy in force, and the second, ready to come.
fn before(
    a: &Policy,
    b: &Policy,
    old_kernel: bool,
) -> Result<(Machine, AddressBook, Generation, Generation), TestCaseError> {
    let (mut machine, mut book) = (Machine::bare(drawn::host(), old_kernel), AddressBook::default());
    let old = Generation::new(a, &book);
    old.finish(&mut machine, &mut book)?;
    let new = Generation::new(b, &book);
    Ok((machine, book, old, new))
}

/// Steps say which rules they were made for, so that doing one again is refused rather than done twice.
fn is_for_one_generation(step: &Step) -> bool {
    matches!(step, Step::Rules { .. })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_turn_cut_off_anywhere_is_safe_and_the_next_one_finishes_it((a, b, old_kernel) in two_policies()) {
        let (mut machine, book, old, new) = before(&a, &b, old_kernel)?;
        opens_exactly(&machine, &old, &old)?;
        let (plan, book) = new.plan(&machine, &book);
        let kept = kept(&old, &new);
        for (done, step) in plan.steps.iter().enumerate() {
            machine.apply(step).map_err(|e| TestCaseError::fail(format!("step {done}, {step}: {e:?}")))?;
            nothing_more_is_open(&machine, &old, &new)
                .map_err(|e| TestCaseError::fail(format!("after step {done}, {step}: {e}")))?;
            let world = machine.world();
            for flow in &kept {
                prop_assert!(opens(&world, flow, Sender::Program), "{:?} is cut by step {}, {}", flow, done, step);
            }
            let (mut next, mut book) = (machine.clone(), book.clone());
            new.finish(&mut next, &mut book)?;
            opens_exactly(&next, &old, &new)?;
        }
        prop_assert!(new.plan(&machine, &book).0.is_empty());
    }

    #[test]
    fn down_removes_everything_from_any_state((a, b, old_kernel) in two_policies()) {
        let (mut machine, book, old, new) = before(&a, &b, old_kernel)?;
        let (plan, _) = new.plan(&machine, &book);
        let sysctls = drawn::host().sysctls;
        for step in &plan.steps {
            machine.apply(step).map_err(|e| TestCaseError::fail(format!("{step}: {e:?}")))?;
            let mut next = machine.clone();
            let down = Plan::between(&next.observed, &Desired::nothing(&new.graph.network().name));
            for step in &down.steps {
                next.apply(step).map_err(|e| TestCaseError::fail(format!("{step}: {e:?}")))?;
                nothing_more_is_open(&next, &old, &new)?;
            }
            prop_assert!(next.observed.is_nothing(), "{:#?}", next.observed);
            prop_assert_eq!(&next.observed.host.sysctls, &sysctls);
            prop_assert!(Plan::between(&next.observed, &Desired::nothing(&new.graph.network().name)).is_empty());
        }
    }

    #[test]
    fn a_step_done_twice_is_done_once((a, b, old_kernel) in two_policies()) {
        let (mut machine, book, _, new) = before(&a, &b, old_kernel)?;
        let (plan, _) = new.plan(&machine, &book);
        for step in &plan.steps {
            machine.apply(step).map_err(|e| TestCaseError::fail(format!("{step}: {e:?}")))?;
            let mut again = machine.clone();
            let done = again.apply(step);
            prop_assert!(done.is_ok() || is_for_one_generation(step), "{}: {:?}", step, done);
            if !is_for_one_generation(step) {
                let (once, twice) = (machine.world(), again.world());
                for flow in flows([&new.graph, &new.graph]) {
                    let open = [&once, &twice].map(|world| opens(world, &flow, Sender::Root));
                    prop_assert_eq!(open[0], open[1], "{:?} after {}", flow, step);
                }
            }
        }
    }
}

#[test]
fn a_turn_stops_where_the_kernel_refuses_and_says_so() {
    let graph = drawn::graph("schema = 1\n[network]\nname = \"node\"\n[service.alpha]\n[service.bravo]\n");
    let addresses = AddressPlan::assign(&graph, &AddressBook::default(), 0, false).unwrap();
    let generation = Generation { graph, addresses };
    let machine = Machine::bare(drawn::host(), false);
    let (plan, _) = generation.plan(&machine, &AddressBook::default());
    for n in 0..plan.steps.len() {
        let kernel = Fake::new(machine.clone(), n);
        let report = turn(&kernel, &plan);
        assert_eq!(report.done, plan.steps[..n]);
        assert_eq!(report.failed.unwrap().step, plan.steps[n]);
        let observed = kernel.observe().unwrap();
        assert_eq!(observed.fabric.is_some(), n > 0);
    }
}
