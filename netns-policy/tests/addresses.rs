//! Addresses stay: whatever happens to others, and for a month after their owner has gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netns_policy::Source;
use netns_policy::address::{AddressBook, AddressError, AddressPlan, Addresses, KEEP_SECONDS};
use netns_policy::graph::AllowGraph;
use netns_policy::topology::Place;
use proptest::prelude::*;

const HOUR: u64 = 3600;

/// What a file says about one service.
#[derive(Clone, Debug, Default)]
struct Service {
    was: Option<String>,
    address4: Option<Ipv4Addr>,
    address6: Option<Ipv6Addr>,
}

/// What happens between two applies.
#[derive(Clone, Debug)]
enum Event {
    Add(u8),
    Remove(prop::sample::Index),
    Rename(prop::sample::Index, u8),
    Fix(prop::sample::Index, u32),
    Loosen(prop::sample::Index),
    Shuffle,
    Ipv6(bool),
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let any_one = any::<prop::sample::Index>;
    prop_oneof![
        4 => (0u8..40).prop_map(Event::Add),
        2 => any_one().prop_map(Event::Remove),
        2 => (any_one(), 40u8..60).prop_map(|(one, name)| Event::Rename(one, name)),
        1 => (any_one(), 0u32..64).prop_map(|(one, host)| Event::Fix(one, host)),
        1 => any_one().prop_map(Event::Loosen),
        1 => Just(Event::Shuffle),
        1 => any::<bool>().prop_map(Event::Ipv6),
        1 => (0u64..40 * 24).prop_map(|hours| Event::Wait(hours * HOUR)),
    ]
}

fn name(number: u8) -> String {
    format!("service-{number}")
}

/// A policy file, its services in this order.
fn text(pool4: &str, pool6: Option<&str>, services: &[(String, Service)]) -> String {
    let mut text = format!("schema = 1\n[network]\nname = \"node\"\npool4 = \"{pool4}\"\n");
    match pool6 {
        Some(pool6) => writeln!(text, "pool6 = \"{pool6}\"").unwrap(),
        None => text.push_str("ipv6 = false\n"),
    }
    for (name, service) in services {
        writeln!(text, "[service.{name}]").unwrap();
        let lines = [
            service.was.as_ref().map(|was| format!("was = \"{was}\"")),
            service.address4.map(|fixed| format!("address4 = \"{fixed}\"")),
            service.address6.map(|fixed| format!("address6 = \"{fixed}\"")),
        ];
        lines.iter().flatten().for_each(|line| writeln!(text, "{line}").unwrap());
    }
    text
}

fn graph(text: &str) -> AllowGraph {
    match AllowGraph::parse(&[Source::toml("policy.toml", text)]) {
        Ok(checked) => checked.graph,
        Err(errors) => panic!("{:#}\n{text}", errors.0[0]),
    }
}

/// Too many services for the pool are refused by the check of the policy already; those that have gone but keep their
/// addresses, by the plan. To the tests both are one.
fn assign(text: &str, book: &AddressBook, now: u64) -> Result<AddressPlan, AddressError> {
    match AllowGraph::parse(&[Source::toml("policy.toml", text)]) {
        Err(errors) if errors.0.iter().all(|error| error.code() == "E0502") => {
            Err(AddressError::Exhausted { pool: String::new(), service: String::new() })
        }
        _ => AddressPlan::assign(&graph(text), book, now, false),
    }
}

const POOL4: &str = "10.231.0.0/26";
const POOL6: &str = "fd6e:6f64:6500::/64";

/// Everything that is nobody's to have: the peers' ranges and our own.
fn reserved(plan: &AddressPlan, address: IpAddr) -> bool {
    let (peers4, peers6) = plan.peers();
    let peers = match address {
        IpAddr::V4(address) => peers4.contains(address),
        IpAddr::V6(address) => peers6.is_some_and(|peers| peers.contains(address)),
    };
    let own = [plan.of(&Place::Host).unwrap(), plan.of(&Place::Uplink).unwrap()];
    let own = own.into_iter().chain([plan.leg_host(), plan.leg_gateway(), plan.resolver()]);
    let ours = own.flat_map(|own| own.iter().collect::<Vec<_>>()).any(|own| own == address);
    let last_sixteen = match address {
        IpAddr::V4(address) => u32::from(address) > u32::from(plan.pool4().broadcast()) - 16,
        IpAddr::V6(address) => {
            let top = plan.pool6().map(|pool| u128::from(pool.network()) | (3u128 << (126 - pool.prefix())));
            top.is_some_and(|top| u128::from(address) >= top)
        }
    };
    peers || ours || last_sixteen
}

fn all(plan: &AddressPlan, services: &[(String, Service)]) -> BTreeMap<String, Addresses> {
    services.iter().map(|(name, _)| (name.clone(), plan.service(name).expect("every service has one"))).collect()
}

struct History {
    services: Vec<(String, Service)>,
    ipv6: bool,
    now: u64,
    book: AddressBook,
    had: BTreeMap<String, Addresses>,
    /// Given up when, and whose it was.
    given_up: BTreeMap<IpAddr, (u64, String)>,
}

impl History {
    fn happen(&mut self, event: &Event) {
        let count = self.services.len();
        match event {
            Event::Add(number) if self.is_free(*number) => {
                self.services.push((name(*number), Service::default()));
            }
            Event::Remove(one) if count > 1 => drop(self.services.remove(one.index(count))),
            Event::Rename(one, number) if self.is_free(*number) => {
                let (old, service) = &mut self.services[one.index(count)];
                service.was = Some(std::mem::replace(old, name(*number)));
            }
            Event::Fix(one, host) => {
                let base: u32 = u32::from(Ipv4Addr::new(10, 231, 0, 0));
                let fixed = Ipv4Addr::from(base + (*host).clamp(1, 62));
                if self.services.iter().all(|(_, service)| service.address4 != Some(fixed)) {
                    self.services[one.index(count)].1.address4 = Some(fixed);
                }
            }
            Event::Loosen(one) => self.services[one.index(count)].1.address4 = None,
            Event::Shuffle => self.services.reverse(),
            Event::Ipv6(on) => self.ipv6 = *on,
            Event::Wait(seconds) => self.now += seconds,
            Event::Add(_) | Event::Remove(_) | Event::Rename(..) => {}
        }
    }

    /// Whether no service has the name, or says that it had it.
    fn is_free(&self, number: u8) -> bool {
        self.services.iter().all(|(known, service)| *known != name(number) && service.was != Some(name(number)))
    }

    /// Whose addresses the service inherits.
    fn before(&self, name: &str, service: &Service) -> Option<Addresses> {
        let by_was = || service.was.as_ref().and_then(|was| self.had.get(was));
        self.had.get(name).or_else(by_was).copied()
    }

    fn check(&mut self, plan: &AddressPlan) -> Result<(), TestCaseError> {
        let has = all(plan, &self.services);
        let mut seen = BTreeSet::new();
        for (name, service) in &self.services {
            let own = has[name];
            for address in own.iter() {
                prop_assert!(seen.insert(address), "{} has two owners", address);
                prop_assert!(!reserved(plan, address), "{} of {} is reserved", address, name);
                let given_up = self.given_up.get(&address);
                let held = given_up.filter(|(since, _)| self.now - since < KEEP_SECONDS);
                let back = |by: &str| by == name || service.was.as_deref() == Some(by);
                prop_assert!(
                    held.is_none_or(|(_, by)| back(by) || service.address4.is_some()),
                    "{} is still held",
                    address
                );
            }
            match (self.before(name, service), service.address4) {
                (_, Some(fixed)) => prop_assert_eq!(own.v4, fixed),
                (Some(before), None) => prop_assert_eq!(own.v4, before.v4, "{} was renumbered", name),
                (None, None) => {}
            }
            if let Some(v6) = self.before(name, service).and_then(|before| before.v6).filter(|_| self.ipv6) {
                prop_assert_eq!(own.v6, Some(v6));
            }
            prop_assert_eq!(own.v6.is_some(), self.ipv6);
        }
        // Who had it and came back, or lost it to a fixed address, holds it no longer.
        let back = |by: &String| self.services.iter().any(|(name, s)| name == by || s.was.as_ref() == Some(by));
        self.given_up.retain(|address, (_, by)| !seen.contains(address) && !back(by));
        for (name, before) in &self.had {
            let renamed = self.services.iter().any(|(_, service)| service.was.as_ref() == Some(name));
            if !has.contains_key(name) && !renamed {
                before.iter().for_each(|address| drop(self.given_up.insert(address, (self.now, name.clone()))));
            }
        }
        // Switching IPv6 off for a while forgets nothing.
        let remember = |(name, own): (String, Addresses)| {
            let v6 = own.v6.or(self.had.get(&name).and_then(|had| had.v6));
            (name, Addresses { v6, ..own })
        };
        self.had = has.into_iter().map(remember).collect();
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nobody_is_renumbered_and_no_two_share(events in prop::collection::vec(event(), 1..25)) {
        let mut history = History {
            services: vec![(name(0), Service::default())],
            ipv6: true,
            now: 1_700_000_000,
            book: AddressBook::default(),
            had: BTreeMap::new(),
            given_up: BTreeMap::new(),
        };
        for event in events {
            history.happen(&event);
            let text = text(POOL4, history.ipv6.then_some(POOL6), &history.services);
            match assign(&text, &history.book, history.now) {
                Ok(plan) => {
                    history.check(&plan).map_err(|e| TestCaseError::fail(format!("{event:?}: {e}\n{text}")))?;
                    let json = serde_json::to_string(plan.book()).unwrap();
                    let book: AddressBook = serde_json::from_str(&json).unwrap();
                    prop_assert_eq!(&book, plan.book());
                    history.book = book;
                }
                // A fixed address that somebody has, or is held for somebody, or is reserved: nothing is recorded.
                Err(AddressError::Taken { service, .. }) => {
                    history.services.iter_mut().filter(|(name, _)| *name == service).for_each(|(_, s)| s.address4 = None);
                }
                Err(error) => prop_assert!(matches!(error, AddressError::Exhausted { .. }), "{}", error),
            }
        }
    }

    #[test]
    fn every_pool_keeps_its_parts_apart(prefix4 in 8u8..=26, prefix6 in 48u8..=112, count in 1usize..20) {
        let services: Vec<_> = (0..count).map(|n| (format!("s{n}"), Service::default())).collect();
        let text = text(&format!("10.0.0.0/{prefix4}"), Some(&format!("fd00:1:2::/{prefix6}")), &services);
        let plan = assign(&text, &AddressBook::default(), 0).unwrap();
        let has = all(&plan, &services);
        prop_assert_eq!(has.values().flat_map(|own| own.iter().collect::<Vec<_>>()).collect::<BTreeSet<_>>().len(), 2 * count);
        let (peers4, peers6) = plan.peers();
        prop_assert_eq!((peers4.prefix(), peers6.unwrap().prefix()), (prefix4 + 2, prefix6 + 2));
        let own = [plan.of(&Place::Host).unwrap(), plan.of(&Place::Uplink).unwrap(), plan.leg_host(), plan.leg_gateway(), plan.resolver()];
        let distinct: BTreeSet<IpAddr> = own.iter().flat_map(|own| own.iter().collect::<Vec<_>>()).collect();
        prop_assert_eq!(distinct.len(), 10);
        for address in has.values().chain(&own).flat_map(|own| own.iter().collect::<Vec<_>>()) {
            let (inside, peer) = match address {
                IpAddr::V4(address) => (plan.pool4().contains(address), peers4.contains(address)),
                IpAddr::V6(address) => (plan.pool6().unwrap().contains(address), peers6.unwrap().contains(address)),
            };
            prop_assert!(inside && !peer, "{}", address);
        }
        prop_assert!(!has.values().any(|own| own.iter().any(|address| reserved(&plan, address))));
    }

    /// Two machines that never spoke agree about IPv6, in whatever order their services came.
    #[test]
    fn the_ipv6_suffix_follows_from_the_name(numbers in prop::collection::btree_set(0u8..40, 2..10), prefix in 48u8..=96) {
        let services: Vec<_> = numbers.iter().map(|n| (name(*n), Service::default())).collect();
        let pool6 = format!("fd00:7::/{prefix}");
        let here = assign(&text("10.231.0.0/22", Some(&pool6), &services), &AddressBook::default(), 0).unwrap();
        let mut book = AddressBook::default();
        for end in 1..=services.len() {
            let some = &services[services.len() - end..];
            book = assign(&text("10.9.0.0/22", Some(&pool6), some), &book, 0).unwrap().book().clone();
        }
        let there = assign(&text("10.9.0.0/22", Some(&pool6), &services), &book, 0).unwrap();
        for (name, _) in &services {
            prop_assert_eq!(here.service(name).unwrap().v6, there.service(name).unwrap().v6);
        }
    }
}

fn named(names: &[&str]) -> Vec<(String, Service)> {
    names.iter().map(|name| ((*name).to_owned(), Service::default())).collect()
}

#[test]
fn an_address_is_kept_for_thirty_days_and_then_free() {
    let both = assign(&text(POOL4, None, &named(&["a", "b"])), &AddressBook::default(), 0).unwrap();
    let gone = both.service("a").unwrap().v4;
    let one = assign(&text(POOL4, None, &named(&["b"])), both.book(), 100).unwrap();
    let next = |now| assign(&text(POOL4, None, &named(&["b", "c"])), one.book(), now).unwrap().service("c").unwrap().v4;
    assert_ne!(next(100 + KEEP_SECONDS - 1), gone);
    assert_eq!(next(100 + KEEP_SECONDS), gone);
    let back = assign(&text(POOL4, None, &named(&["a", "b"])), one.book(), 100 + KEEP_SECONDS - 1).unwrap();
    assert_eq!(back.service("a").unwrap().v4, gone);
}

#[test]
fn another_pool_is_refused_unless_asked_for() {
    let services = named(&["a", "b"]);
    let first = assign(&text(POOL4, Some(POOL6), &services), &AddressBook::default(), 0).unwrap();
    for other in [text("10.7.0.0/26", Some(POOL6), &services), text(POOL4, Some("fd77::/64"), &services)] {
        let refused = assign(&other, first.book(), 0).unwrap_err();
        assert!(matches!(refused, AddressError::PoolChanged { services: 2, .. }), "{refused}");
        let moved = AddressPlan::assign(&graph(&other), first.book(), 0, true).unwrap();
        assert_ne!(moved.service("a"), first.service("a"));
    }
}

#[test]
fn a_pool_that_is_used_up_is_an_error() {
    let names: Vec<String> = (0..60).map(|n| format!("s{n:02}")).collect();
    let room = |count: usize| named(&names[..count].iter().map(String::as_str).collect::<Vec<_>>());
    // Of 64 addresses the first is nobody's, a quarter the peers', and the last sixteen are ours.
    assert!(assign(&text(POOL4, None, &room(31)), &AddressBook::default(), 0).is_ok());
    let refused = assign(&text(POOL4, None, &room(32)), &AddressBook::default(), 0).unwrap_err();
    assert_eq!(refused.code(), "E0502");
    // Those that have gone keep theirs for a while.
    let full = assign(&text(POOL4, None, &room(31)), &AddressBook::default(), 0).unwrap();
    let refused = assign(&text(POOL4, None, &named(&["one-more"])), full.book(), 0).unwrap_err();
    assert_eq!(refused.to_string(), "10.231.0.0/26 has no address left for one-more");
}

#[test]
fn a_fixed_address_must_be_free() {
    let fixed = |name: &str, address: &str| {
        (name.to_owned(), Service { address4: Some(address.parse().unwrap()), ..Service::default() })
    };
    let first = assign(&text(POOL4, None, &named(&["a"])), &AddressBook::default(), 0).unwrap();
    let taken = first.service("a").unwrap().v4.to_string();
    for address in [taken.as_str(), "10.231.0.33", "10.231.0.50"] {
        let services = [named(&["a"]), vec![fixed("b", address)]].concat();
        let refused = assign(&text(POOL4, None, &services), first.book(), 0).unwrap_err();
        assert!(matches!(refused, AddressError::Taken { .. }), "{address}: {refused}");
    }
    // Whoever has none yet makes way, wherever it stands in the file.
    let services = [named(&["a"]), vec![fixed("b", "10.231.0.1")]].concat();
    let plan = assign(&text(POOL4, None, &services), &AddressBook::default(), 0).unwrap();
    assert_eq!(plan.service("b").unwrap().v4.to_string(), "10.231.0.1");
    assert_ne!(plan.service("a").unwrap().v4.to_string(), "10.231.0.1");
}

fn fixed(name: &str, host: Option<u8>) -> (String, Service) {
    let address4 = host.map(|host| Ipv4Addr::new(10, 31, 0, host));
    (name.to_owned(), Service { address4, ..Service::default() })
}

fn with(services: &[(&str, Option<u8>)], book: &AddressBook, now: u64) -> Result<AddressPlan, AddressError> {
    let services: Vec<_> = services.iter().map(|(name, host)| fixed(name, *host)).collect();
    assign(&text("10.31.0.0/24", Some("fd00:1:2::/48"), &services), book, now)
}

#[test]
fn two_fixed_addresses_swap_but_nobody_loses_one_that_is_not_fixed() {
    let first = with(&[("a", Some(7)), ("b", Some(8))], &AddressBook::default(), 0).unwrap();
    let swapped = with(&[("a", Some(8)), ("b", Some(7))], first.book(), 1).unwrap();
    assert_eq!(swapped.service("a").unwrap().v4, Ipv4Addr::new(10, 31, 0, 8));
    assert_eq!(swapped.service("b").unwrap().v4, Ipv4Addr::new(10, 31, 0, 7));
    let clash = with(&[("a", Some(8)), ("b", None)], first.book(), 1);
    assert!(matches!(clash, Err(AddressError::Taken { .. })), "{clash:?}");
}

#[test]
fn an_address_that_is_kept_for_who_has_gone_goes_to_who_fixes_it() {
    let first = with(&[("a", Some(7)), ("b", None)], &AddressBook::default(), 0).unwrap();
    let gone = with(&[("b", None)], first.book(), 1).unwrap();
    assert!(gone.book().services.contains_key("a"));
    let fixed = with(&[("b", None), ("c", Some(7))], gone.book(), 2).unwrap();
    assert_eq!(fixed.service("c").unwrap().v4, Ipv4Addr::new(10, 31, 0, 7));
    assert!(!fixed.book().services.contains_key("a"), "nothing is recorded twice");
}

#[test]
fn ipv6_that_is_switched_off_for_a_while_comes_back_as_it_was() {
    let service = |fixed: Option<&str>| {
        let address6 = fixed.map(|fixed| fixed.parse().unwrap());
        [("a".to_owned(), Service { address6, ..Service::default() })]
    };
    let pool = Some("fd00:1:2::/48");
    let first = assign(&text("10.31.0.0/24", pool, &service(Some("fd00:1:2::7"))), &AddressBook::default(), 0).unwrap();
    let off = assign(&text("10.31.0.0/24", None, &service(None)), first.book(), 1).unwrap();
    assert_eq!(off.service("a").unwrap().v6, None);
    let on = assign(&text("10.31.0.0/24", pool, &service(None)), off.book(), 2).unwrap();
    assert_eq!(on.service("a"), first.service("a"));
}

#[test]
fn a_book_that_was_never_written_here_is_refused() {
    let book = |pool4: &str, a: &str, b: &str, six: &str| {
        format!(
            r#"{{"pool4":{pool4},"pool6":"fd54:5ea5:3846::/64","next_index":16,"services":{{
                "a":{{"address4":"{a}","address6":{six},"retired":null}},
                "b":{{"address4":"{b}","address6":null,"retired":7}}}}}}"#
        )
    };
    let read = |text: String| AddressBook::from_json(text.as_bytes()).map_err(|error| error.to_string());
    let pool = "\"10.231.0.0/22\"";
    assert!(read(book(pool, "10.231.0.1", "10.231.0.2", "\"fd54:5ea5:3846::1\"")).is_ok());
    for (text, flaw) in [
        (book(pool, "10.231.0.1", "10.231.0.1", "null"), "10.231.0.1 of b belongs to another service too"),
        (book(pool, "10.231.3.242", "10.231.0.1", "null"), "10.231.3.242 of a is not for services"),
        (book(pool, "10.231.2.1", "10.231.0.1", "null"), "10.231.2.1 of a is not for services"),
        (book(pool, "192.168.1.1", "10.231.0.1", "null"), "192.168.1.1 of a is not for services"),
        (book("null", "10.231.0.1", "10.231.0.2", "null"), "10.231.0.1 of a is not for services"),
        (book(pool, "10.231.0.1", "10.231.0.2", "\"fd55::1\""), "fd55::1 of a is not for services"),
        (
            book(pool, "10.231.0.1", "10.231.0.2", "\"fd54:5ea5:3846:0:c000::2\""),
            "fd54:5ea5:3846:0:c000::2 of a is not",
        ),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.starts_with(flaw), "{error}");
    }
    let tiny = r#"{"pool4":"10.0.0.0/32","pool6":"fd54::/128","next_index":1,"services":{"a":{"address4":"10.0.0.0","address6":"fd54::","retired":null}}}"#;
    assert!(read(tiny.to_owned()).is_err());
    let far = book(pool, "10.231.0.1", "10.231.0.2", "null").replace(":16,", ":4294967295,");
    assert!(read(far).unwrap_err().starts_with("no link has an index of 4294967295"));
}
