//! What follows from exposures on ports of the host: relays, the switch that closes all, addresses that stay.

use drawn::Made;
use netns_policy::Source;
use netns_policy::address::{AddressBook, AddressPlan};
use netns_policy::explain::explain;
use netns_policy::explain::stands::stands_of_way_in;
use netns_policy::graph::AllowGraph;
use netns_policy::relay::{Relay, relays};
use netns_policy::topology::Place;

#[allow(dead_code, reason = "other tests use the rest of it")]
mod drawn;
#[allow(dead_code, reason = "other tests use the rest of it")]
mod planted;

fn with_switch(text: &str) -> String {
    format!("{text}\n[expose]\nall = \"off\"\n")
}

#[test]
fn a_worker_is_told_where_to_listen_whom_to_call_and_who_may_come() {
    let made = Made::of(planted::RELAYED);
    let told = relays(&made.graph, &made.addresses);
    let own = made.addresses.of(&Place::Relay).unwrap();
    assert!(made.world.places.contains_key("+relay"));
    let [bravo, charlie] = &told[..] else { panic!("{told:?}") };
    let bravo_at = made.addresses.service("bravo").unwrap();
    let expected = Relay {
        service: "bravo".parse().unwrap(),
        port_name: "web".parse().unwrap(),
        listen: own.iter().map(|own| (own, 8080).into()).collect(),
        to: bravo_at.iter().map(|own| (own, 80).into()).collect(),
        proxy: false,
        sources: ["192.168.1.0/24", "fd99::/64"].map(|prefix| prefix.parse().unwrap()).into(),
    };
    assert_eq!(*bravo, expected);
    assert!(charlie.proxy);
    assert_eq!(charlie.listen[0].port(), 8081);
    assert_eq!(charlie.sources.iter().map(ToString::to_string).collect::<Vec<_>>(), ["0.0.0.0/0", "::/0"]);
}

#[test]
fn the_switch_closes_everything_and_forgets_nothing() {
    for text in [planted::ENTERED, planted::RELAYED] {
        let (on, off) = (Made::of(text), Made::of(&with_switch(text)));
        assert!(!on.graph.exposures().is_empty() && off.graph.exposures().is_empty());
        assert_eq!(off.graph.written_exposures(), on.graph.exposures());
        assert!(off.graph.exposes_nothing() && !on.graph.exposes_nothing());
        assert_eq!(relays(&off.graph, &off.addresses), []);
        let told = |made: &Made| explain(&made.graph, "lan", "bravo", "web").unwrap();
        assert!(told(&on).is_yes() && !told(&off).is_yes());
        assert!(told(&off).to_string().contains("every exposure is off"), "{}", told(&off));
        // What is compiled is what is compiled without any of them.
        let without: String = text.lines().filter(|line| !line.starts_with("expose.")).collect::<Vec<_>>().join("\n");
        let without = Made::of(&without);
        assert_eq!((off.desired.fabric, off.desired.locks), (without.desired.fabric, without.desired.locks));
    }
}

#[test]
fn the_switch_is_part_of_the_canonical_form_and_no_fragment_has_it() {
    let (on, off) = (Made::of(planted::ENTERED).graph, Made::of(&with_switch(planted::ENTERED)).graph);
    assert_ne!(on.hash(), off.hash());
    let again = AllowGraph::parse(&[Source::json("policy.json", off.canonical())]).unwrap().graph;
    assert!(again.means_the_same_as(&off) && again.exposes_nothing());
    let fragment = Source::toml("fragment.toml", "schema = 1\nfragment = \"f\"\n[expose]\nall = \"off\"\n");
    let codes = AllowGraph::parse(&[Source::toml("policy.toml", planted::ENTERED), fragment]).unwrap_err();
    assert!(codes.0.iter().all(|error| error.code() == "E0303") && codes.0.len() == 1, "{codes:?}");
}

#[test]
fn what_a_test_expects_of_an_exposure_does_not_stop_the_switch() {
    let expecting = format!("{}\n[[test]]\nfrom = \"lan\"\ncan = [\"bravo:web\"]\n", planted::ENTERED);
    assert!(AllowGraph::parse(&[Source::toml("policy.toml", with_switch(&expecting))]).is_ok());
}

#[test]
fn a_relay_changes_nobodys_address() {
    let plain = planted::RELAYED.replace(", relay = true, proxy = \"v2\"", "").replace(", relay = true", "");
    let assign = |text: &str, book: &AddressBook| AddressPlan::assign(&drawn::graph(text), book, 0, false).unwrap();
    let before = assign(&plain, &AddressBook::default());
    let after = assign(planted::RELAYED, before.book());
    for service in ["bravo", "charlie", "delta"] {
        assert_eq!(before.service(service), after.service(service));
    }
    let others = [Place::Host, Place::Uplink].map(|place| after.of(&place).unwrap());
    let others = others.into_iter().chain([after.leg_host(), after.leg_gateway(), after.resolver()]);
    assert!(others.into_iter().all(|other| other != after.of(&Place::Relay).unwrap()));
}

/// Whatever stands anywhere because of a way in is told of one, and of one alone.
#[test]
fn every_element_that_lets_somebody_in_belongs_to_one_way_in() {
    for text in [planted::ENTERED, planted::RELAYED] {
        let made = Made::of(text);
        let lets_in = |set: &str| matches!(set.trim_end_matches(['4', '6']), "exposed" | "ports");
        let told = made.graph.exposures().iter().flat_map(|exposure| stands_of_way_in(&made.desired, exposure));
        let told: Vec<_> = told.filter(|stand| lets_in(&stand.set)).map(|stand| (stand.place, stand.id)).collect();
        let locks = made.desired.locks.iter().map(|(place, rules)| (place.to_string(), rules));
        let rulesets = locks.chain([("fabric".to_owned(), &made.desired.fabric)]);
        let mut there = 0;
        for (place, rules) in rulesets {
            for ((_, table), inner) in &rules.tables {
                for (set, elements) in inner.sets.iter().filter(|(set, _)| lets_in(set)) {
                    for key in elements.elements.keys() {
                        let id = (place.clone(), (table.clone(), set.clone(), key.clone()));
                        assert_eq!(told.iter().filter(|told| **told == id).count(), 1, "{id:?}");
                        there += 1;
                    }
                }
            }
        }
        assert!(there > 20 && there == told.len(), "{there} elements, {} told", told.len());
    }
}
