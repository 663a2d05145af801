//! The promise held against hand-written rules, and against those rules damaged.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::graph::{Cause, Defaults, Edge, Location, Network, Outbound, Service};
use crate::name::ServiceName;
use crate::port::Ports;
use crate::ruleset::decide::walk::World;
use crate::ruleset::{Expr, Family, Table};
use recipe::{address4, address6};

#[path = "../../../tests/recipe/mod.rs"]
#[allow(dead_code, reason = "the integration tests use the rest of it")]
mod recipe;

const PLACES: [&str; 4] = ["host", "a", "b", "c"];

fn at() -> Location {
    Location { file: "test".into(), line: 1, column: 1 }
}

fn service(name: &str) -> Service {
    Service {
        name: name.parse().unwrap(),
        fragment: None,
        unit: None,
        ports: Default::default(),
        private: Default::default(),
        tags: Default::default(),
        outbound: Outbound::default(),
        dns: Default::default(),
        limits: Default::default(),
        is_tor: false,
        sockets: Default::default(),
        was: None,
        address4: None,
        address6: None,
        at: at(),
    }
}

fn party(name: &str) -> Origin {
    name.parse::<ServiceName>().map_or(Origin::Host, Origin::Service)
}

fn graph(edges: &[recipe::Edge<'_>]) -> AllowGraph {
    let edge = |(from, to, protocol, port): &recipe::Edge<'_>| Edge {
        from: party(from),
        to: target(&party(to)),
        ports: Ports::new(*protocol, *port, *port).unwrap(),
        port_name: None,
        cause: Cause::Written,
        at: at(),
    };
    AllowGraph {
        written: Default::default(),
        network: Network {
            name: "node".parse().unwrap(),
            pool4: "10.203.0.0/16".parse().unwrap(),
            pool6: None,
            lan: vec![],
            resolvers: vec![],
        },
        defaults: Defaults { denied: Default::default(), log: true },
        services: PLACES[1..].iter().map(|name| (name.parse().unwrap(), service(name))).collect(),
        peers: Default::default(),
        edges: edges.iter().map(edge).collect(),
        exposures: vec![],
        exposes_nothing: false,
    }
}

fn address(name: &str, ip: Ip) -> Option<IpAddr> {
    match ip {
        Ip::V4 => address4(&PLACES, name).map(IpAddr::from),
        Ip::V6 => address6(&PLACES, name).map(IpAddr::from),
    }
}

/// The first class in which rules and promise differ.
fn difference(graph: &AllowGraph, world: &World) -> Option<PacketClass> {
    classes(graph).find(|class| !class.holds(graph, &address, world))
}

const EDGES: [recipe::Edge<'static>; 4] = [
    ("a", "b", Protocol::Tcp, 80),
    ("a", "b", Protocol::Udp, 53),
    ("c", "b", Protocol::Tcp, 81),
    ("host", "a", Protocol::Tcp, 22),
];

#[test]
fn the_recipe_keeps_the_promise_in_every_class() {
    let graph = graph(&EDGES);
    assert_eq!(difference(&graph, &recipe::world(&PLACES, &EDGES)), None);
    let (yes, no): (Vec<_>, Vec<_>) = classes(&graph).partition(|class| expected(&graph, &address, class));
    assert!(yes.len() >= 80 && no.len() > 10_000, "{} expected, {} refused: too few classes", yes.len(), no.len());
}

#[test]
fn every_kind_that_can_pass_is_expected_somewhere() {
    let graph = graph(&EDGES);
    let passing = |like: fn(&Kind) -> bool| {
        let some = classes(&graph).find(|class| like(&class.kind) && expected(&graph, &address, class));
        some.is_some()
    };
    assert!(passing(|kind| *kind == Kind::Syn));
    assert!(passing(|kind| *kind == Kind::UdpNew));
    assert!(passing(|kind| *kind == Kind::Reply(Protocol::Udp)));
    assert!(passing(|kind| *kind == Kind::Data(Protocol::Tcp)));
    assert!(passing(|kind| *kind == Kind::Echo));
    assert!(passing(|kind| *kind == Kind::EchoReply));
    assert!(passing(|kind| *kind == Kind::Behind(Extension::Destination)));
    assert!(passing(|kind| matches!(kind, Kind::SpoofedSource { .. })));
    assert!(passing(|kind| matches!(kind, Kind::IcmpError(error) if error.about_server)));
    assert!(passing(|kind| matches!(kind, Kind::IcmpError(error) if !error.about_server)));
}

fn panel(world: &mut World) -> &mut Table {
    world.fabric.tables.get_mut(&(Family::Netdev, "panel".into())).unwrap()
}

fn lock<'a>(world: &'a mut World, place: &str) -> &'a mut Table {
    world.places.get_mut(place).unwrap().lock.tables.get_mut(&(Family::Inet, "lock".into())).unwrap()
}

/// Deletes the nth rule of a chain.
fn without(table: &mut Table, chain: &str, number: usize) {
    table.chains.get_mut(chain).unwrap().rules.remove(number);
}

fn later_fragments_pass(world: &mut World, number: usize) {
    drop(panel(world).chains.get_mut("panel").unwrap().rules[number].0.remove(2));
}

/// One damage, and its name.
type Damage = (&'static str, fn(&mut World));

const DAMAGES: [Damage; 16] = [
    ("a panel that accepts the opposite direction", |world| {
        let sets = &mut panel(world).sets;
        let reply = sets["rp4"].elements.clone();
        sets.get_mut("fw4").unwrap().elements.extend(reply);
        lock(world, "a").chains.get_mut("input").unwrap().hook.as_mut().unwrap().policy_accept = true;
        lock(world, "b").chains.get_mut("output").unwrap().rules.clear();
    }),
    ("no reply map", |world| panel(world).sets.get_mut("rp4").unwrap().elements.clear()),
    ("one edge too few", |world| drop(panel(world).sets.get_mut("fw6").unwrap().elements.pop_first())),
    ("no lock at the receiver", |world| {
        lock(world, "a").chains.get_mut("input").unwrap().hook.as_mut().unwrap().policy_accept = true;
    }),
    ("established is not accepted", |world| without(lock(world, "a"), "input", 1)),
    ("new is accepted from anybody", |world| {
        let rule = recipe::rule(recipe::ct(8).into_iter().chain([recipe::ACCEPT]));
        lock(world, "a").chains.get_mut("input").unwrap().rules.insert(0, rule);
    }),
    ("tags pass", |world| {
        without(panel(world), "panel", 0);
        without(panel(world), "panel", 0);
    }),
    ("routing headers pass", |world| without(panel(world), "p6", 0)),
    ("errors about the client's packets do not pass", |world| without(panel(world), "p4", 4)),
    ("errors about the server's packets do not pass", |world| without(panel(world), "p4", 5)),
    ("redirects pass", |world| {
        let five = recipe::key(&[&[5]]);
        panel(world).sets.get_mut("errors4").unwrap().elements.insert(five.clone(), None);
        lock(world, "a").sets.get_mut("errors4").unwrap().elements.insert(five, None);
    }),
    ("later IPv4 fragments pass", |world| later_fragments_pass(world, 2)),
    ("later IPv6 fragments pass", |world| later_fragments_pass(world, 3)),
    ("echo is refused", |world| panel(world).sets.get_mut("ic6").unwrap().elements.clear()),
    ("an edge leads to the wrong wire", |world| {
        let elements = &mut panel(world).sets.get_mut("fw4").unwrap().elements;
        *elements.first_entry().unwrap().get_mut() = Some(14_u32.to_ne_bytes().into());
    }),
    ("the port is read at the wrong place", |world| {
        for expr in &mut panel(world).chains.get_mut("p4").unwrap().rules[0].0 {
            if let Expr::Payload { base: crate::ruleset::Base::Transport, offset, .. } = expr {
                *offset = 0;
            }
        }
    }),
];

#[test]
fn every_damage_is_found() {
    let graph = graph(&EDGES);
    for (name, damage) in DAMAGES {
        let mut world = recipe::world(&PLACES, &EDGES);
        damage(&mut world);
        assert_ne!(world, recipe::world(&PLACES, &EDGES), "{name}: changed nothing");
        assert!(difference(&graph, &world).is_some(), "{name}: not found");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// For any graph, the recipe delivers exactly what is promised.
    #[test]
    fn a_packet_arrives_if_and_only_if_the_graph_has_the_edge(
        edges in prop::collection::btree_set((0usize..4, 0usize..4, any::<bool>(), 1u16..5), 0..6),
    ) {
        let protocol = |tcp| if tcp { Protocol::Tcp } else { Protocol::Udp };
        let edges: Vec<recipe::Edge<'_>> = edges
            .into_iter()
            .filter(|(from, to, ..)| from != to)
            .map(|(from, to, tcp, port)| (PLACES[from], PLACES[to], protocol(tcp), port))
            .collect();
        let graph = graph(&edges);
        prop_assert_eq!(difference(&graph, &recipe::world(&PLACES, &edges)), None);
    }
}
