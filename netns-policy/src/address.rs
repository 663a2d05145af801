//! Who has which address.
//!
//! # Invariants
//!
//! - Sticky: adding, removing, renaming (`was`) or reordering services never renumbers another.
//! - An address that was given up is not given to somebody else for [`KEEP_SECONDS`], unless the policy fixes it.
//! - A name is not enough to come by an address: what the operator's service had, or that of a fragment, is not given to
//!   one that another fragment defines under that name.
//! - Peers and the fabric's own ends have sub-prefixes of both pools that no service ever gets, from the first
//!   release on, so that later features renumber nobody.
//!
//! ```text
//! pool4  |0 services .......... |1/2 peers ... |3/4 services ...... |last 16: ours|
//! pool6  host bits 0... services   10... peers   11... ours
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::graph::{AllowGraph, Network, Service};
use crate::name::ServiceName;
use crate::topology::Place;

/// How long the address of a removed service stays reserved: 30 days.
pub const KEEP_SECONDS: u64 = 30 * 24 * 3600;

/// The smallest pools there are.
const LONGEST4: u8 = 26;
const LONGEST6: u8 = 112;

/// The kernel counts to 2^31 - 1; so many wires nobody ever made.
const LAST_INDEX: u32 = 1 << 30;

/// Why addresses cannot be given out.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AddressError {
    /// Two services ask for one address, or a fixed address is taken or reserved.
    #[error("{address} is not free for {service}: it belongs to {owner}")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who asks.
        service: String,
        /// Who has it.
        owner: String,
    },
    /// A fixed address outside the pool.
    #[error("{address} of {service} is not in {pool}")]
    Outside {
        /// The address.
        address: IpAddr,
        /// Who asks.
        service: String,
        /// The pool.
        pool: String,
    },
    /// More services than addresses.
    #[error("{pool} has no address left for {service}")]
    Exhausted {
        /// The pool.
        pool: String,
        /// Who asks.
        service: String,
    },
    /// A prefix with fewer than 64 addresses.
    #[error("{pool} is too small: a pool has at least 64 addresses (a /26)")]
    TooSmall {
        /// The pool.
        pool: String,
    },
    /// Another pool than the recorded one.
    #[error("the pool changes from {from} to {to}: {services} services would get another address")]
    PoolChanged {
        /// As recorded.
        from: String,
        /// As written now.
        to: String,
        /// How many services are recorded.
        services: usize,
    },
}

impl AddressError {
    /// The stable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Exhausted { .. } | Self::TooSmall { .. } => "E0502",
            Self::Outside { .. } | Self::Taken { .. } => "E0506",
            Self::PoolChanged { .. } => "E0505",
        }
    }

    /// The next move.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Exhausted { .. } | Self::TooSmall { .. } => "write a larger pool, such as 10.231.0.0/22",
            Self::Outside { .. } => "fix an address inside the pool, or leave it out to get one",
            Self::PoolChanged { .. } => "write the old pool again, or accept other addresses with --renumber",
            Self::Taken { .. } => "fix another address, or leave it out to get one",
        }
    }
}

/// What is recorded in the state directory, so that the next plan gives the same answers.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AddressBook {
    /// The IPv4 pool these are from.
    pub pool4: Option<Ipv4Network>,
    /// The IPv6 pool these are from.
    pub pool6: Option<Ipv6Network>,
    /// By name of the service; `NAME@FRAGMENT` and `NAME@`, of the operator, when another one has the name by now.
    pub services: BTreeMap<String, Entry>,
    /// The next interface index of a wire; it only ever rises, because an index that was used may still stand in an
    /// element of a map.
    pub next_index: u32,
}

impl AddressBook {
    /// The book in a file of the state directory.
    ///
    /// # Errors
    ///
    /// What is no such book, or one that was never written here: an address outside its pool or in the part that is not
    /// for services, or one with two owners. Whoever is given such an address would be taken for somebody else.
    pub fn from_json(text: &[u8]) -> Result<Self, serde_json::Error> {
        let book: Self = serde_json::from_slice(text)?;
        match book.flaw() {
            Some(flaw) => Err(serde::de::Error::custom(flaw)),
            None => Ok(book),
        }
    }

    fn flaw(&self) -> Option<String> {
        if self.next_index > LAST_INDEX {
            return Some(format!("no link has an index of {} and more", self.next_index));
        }
        let mut owned = BTreeSet::new();
        for (name, entry) in &self.services {
            let v4 = IpAddr::V4(entry.address4);
            let v6 = entry.address6.map(IpAddr::V6);
            if !self.pool4.is_some_and(|pool| is_for_services4(pool, entry.address4)) {
                return Some(format!("{v4} of {name} is not for services in the recorded pool"));
            }
            let in_pool6 = |address| self.pool6.is_some_and(|pool| is_for_services6(pool, address));
            if let Some(address) = entry.address6.filter(|address| !in_pool6(*address)) {
                return Some(format!("{address} of {name} is not for services in the recorded pool"));
            }
            for address in std::iter::once(v4).chain(v6) {
                if !owned.insert(address) {
                    return Some(format!("{address} of {name} belongs to another service too"));
                }
            }
        }
        None
    }

    /// The book that is made up when none is recorded, from the addresses that services were `seen` to have: who runs
    /// already keeps them.
    ///
    /// A service may have given itself others: it is in the book only where exactly one of its IPv4 addresses is one
    /// that services get, and nobody else has it too.
    pub fn of_seen(network: &Network, seen: &BTreeMap<String, BTreeSet<IpAddr>>) -> Self {
        let usable = |addresses: &BTreeSet<IpAddr>| -> (Vec<Ipv4Addr>, Vec<Ipv6Addr>) {
            let own4 = addresses.iter().copied().filter_map(v4);
            let own6 = addresses.iter().copied().filter_map(v6);
            let pool6 = |address: &Ipv6Addr| network.pool6.is_some_and(|pool| is_for_services6(pool, *address));
            (own4.filter(|address| is_for_services4(network.pool4, *address)).collect(), own6.filter(pool6).collect())
        };
        let alone = |address: IpAddr| seen.values().filter(|addresses| addresses.contains(&address)).count() == 1;
        let entries = seen.iter().filter_map(|(name, addresses)| {
            let (own4, own6) = usable(addresses);
            let [address4] = own4[..] else { return None };
            let address6 = <[Ipv6Addr; 1]>::try_from(own6).ok().map(|[one]| one).filter(|one| alone((*one).into()));
            alone(address4.into()).then(|| (name.clone(), Entry { address4, address6, retired: None, owner: None }))
        });
        let services: BTreeMap<_, _> = entries.collect();
        if services.is_empty() {
            return Self::default();
        }
        Self { pool4: Some(network.pool4), pool6: network.pool6, services, next_index: 0 }
    }
}

/// The recorded addresses of one service.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// IPv4.
    pub address4: Ipv4Addr,
    /// IPv6, if the policy has a pool for it, or once had.
    pub address6: Option<Ipv6Addr>,
    /// Seconds since 1970 at which the service was first missing from the policy.
    pub retired: Option<u64>,
    /// Who defines the service; unknown when it was not written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
}

/// Who defines a service.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// The fragment of this name.
    Fragment(String),
    /// The operator.
    Operator,
}

impl Owner {
    fn of(service: &Service) -> Self {
        match &service.fragment {
            Some(fragment) => Self::Fragment(fragment.to_string()),
            None => Self::Operator,
        }
    }
}

/// An IPv4 and perhaps an IPv6 address of one end.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Addresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6, unless the policy says `ipv6 = false`.
    pub v6: Option<Ipv6Addr>,
}

impl Addresses {
    /// Both families that there are.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        [Some(IpAddr::V4(self.v4)), self.v6.map(IpAddr::V6)].into_iter().flatten()
    }
}

/// Every address of one policy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AddressPlan {
    services: BTreeMap<ServiceName, Addresses>,
    pool4: Ipv4Network,
    pool6: Option<Ipv6Network>,
    book: AddressBook,
}

/// Offsets into the last sixteen addresses of the pool.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Own {
    Uplink = 1,
    Host = 2,
    LegHost = 3,
    LegGateway = 4,
    Resolver = 5,
    Relay = 6,
}

impl AddressPlan {
    /// Gives every service of `graph` its address: the fixed one, else the recorded one, else a free one.
    /// `now` is in seconds since 1970; `renumber` accepts another pool than the recorded one.
    ///
    /// # Errors
    ///
    /// See [`AddressError`]; then nothing is recorded.
    pub fn assign(graph: &AllowGraph, book: &AddressBook, now: u64, renumber: bool) -> Result<Self, AddressError> {
        let network = graph.network();
        let (pool4, pool6) = (network.pool4, network.pool6);
        if pool4.prefix() > LONGEST4 {
            return Err(AddressError::TooSmall { pool: pool4.to_string() });
        }
        let mut book = book.clone();
        keep_pool(&mut book, pool4, pool6, renumber)?;
        for service in graph.services() {
            rename(&mut book, service);
        }
        for service in graph.services() {
            part(&mut book, service, now);
        }
        retire(&mut book, graph, now);

        let mut free4 = Free::new(&book, graph, |e| Some(IpAddr::V4(e.address4)));
        let mut free6 = Free::new(&book, graph, |e| e.address6.map(IpAddr::V6));
        let mut services = BTreeMap::new();
        for service in graph.services() {
            let recorded = book.services.get(service.name.as_str()).cloned();
            let v4 = match (service.address4, &recorded) {
                (Some(fixed), _) => fixed4(pool4, fixed, service, &free4)?,
                (None, Some(entry)) => entry.address4,
                (None, None) => free4.first(candidates4(pool4).map(IpAddr::V4)).and_then(v4).ok_or_else(|| {
                    AddressError::Exhausted { pool: pool4.to_string(), service: service.name.to_string() }
                })?,
            };
            free4.take(IpAddr::V4(v4), &service.name);
            let v6 = match pool6 {
                None => None,
                Some(pool) => Some(address6(pool, service, recorded.as_ref(), &free6)?),
            };
            if let Some(v6) = v6 {
                free6.take(IpAddr::V6(v6), &service.name);
            }
            // Switching IPv6 off for a while forgets nothing.
            let kept6 = v6.or(recorded.and_then(|entry| entry.address6));
            let entry = Entry { address4: v4, address6: kept6, retired: None, owner: Some(Owner::of(service)) };
            book.services.insert(service.name.to_string(), entry);
            services.insert(service.name.clone(), Addresses { v4, v6 });
        }
        let given = |entry: &Entry| services.values().any(|own| own.v4 == entry.address4 || same6(*own, entry));
        book.services.retain(|_, entry| entry.retired.is_none() || !given(entry));
        Ok(Self { services, pool4, pool6, book })
    }

    /// The addresses of a service.
    pub fn service(&self, name: &str) -> Option<Addresses> {
        self.services.get(name).copied()
    }

    /// The addresses on the wire of `place`.
    pub fn of(&self, place: &Place) -> Option<Addresses> {
        match place {
            Place::Host => Some(self.own(Own::Host)),
            Place::Relay => Some(self.own(Own::Relay)),
            Place::Service(name) => self.service(name.as_str()),
            Place::Uplink => Some(self.own(Own::Uplink)),
        }
    }

    /// The host's end of the uplink's leg.
    pub fn leg_host(&self) -> Addresses {
        self.own(Own::LegHost)
    }

    /// The gateway's end of the uplink's leg.
    pub fn leg_gateway(&self) -> Addresses {
        self.own(Own::LegGateway)
    }

    /// The address in the uplink at which services with `dns = "direct"` find a resolver.
    pub fn resolver(&self) -> Addresses {
        self.own(Own::Resolver)
    }

    /// The IPv4 pool.
    pub fn pool4(&self) -> Ipv4Network {
        self.pool4
    }

    /// The IPv6 pool.
    pub fn pool6(&self) -> Option<Ipv6Network> {
        self.pool6
    }

    /// The sub-prefixes that are kept for peers: a quarter of each pool.
    pub fn peers(&self) -> (Ipv4Network, Option<Ipv6Network>) {
        let quarter = 1u32 << (30 - self.pool4.prefix());
        let start = Ipv4Addr::from(u32::from(self.pool4.network()) + 2 * quarter);
        let v4 = Ipv4Network::new(start, self.pool4.prefix() + 2).expect("a pool is at most a /26");
        let v6 = self.pool6.map(|pool| {
            let start = u128::from(pool.network()) | (2u128 << (126 - pool.prefix()));
            Ipv6Network::new(start.into(), pool.prefix() + 2).expect("a pool is at most a /112")
        });
        (v4, v6)
    }

    /// What is to be recorded once this plan is applied.
    pub fn book(&self) -> &AddressBook {
        &self.book
    }

    fn own(&self, own: Own) -> Addresses {
        let last = u32::from(self.pool4.broadcast());
        let v4 = Ipv4Addr::from(last - 15 + own as u32);
        let v6 = self
            .pool6
            .map(|pool| Ipv6Addr::from(u128::from(pool.network()) | (3u128 << (126 - pool.prefix())) | own as u128));
        Addresses { v4, v6 }
    }
}

/// Which addresses are taken, and by whom.
struct Free {
    taken: BTreeMap<IpAddr, String>,
}

impl Free {
    fn new(book: &AddressBook, graph: &AllowGraph, of: impl Fn(&Entry) -> Option<IpAddr>) -> Self {
        let recorded = book.services.iter().filter_map(|(name, entry)| Some((of(entry)?, name.clone())));
        let mut free = Self { taken: recorded.collect() };
        // A fixed address is taken before anybody without one is asked, wherever it stands in the file.
        for service in graph.services() {
            for address in fixed(service) {
                if free.owner(address).is_none_or(|owner| yields(book, graph, owner, address)) {
                    free.take(address, &service.name);
                }
            }
        }
        free
    }

    fn first(&self, mut candidates: impl Iterator<Item = IpAddr>) -> Option<IpAddr> {
        candidates.find(|address| !self.taken.contains_key(address))
    }

    fn owner(&self, address: IpAddr) -> Option<&str> {
        self.taken.get(&address).map(String::as_str)
    }

    fn take(&mut self, address: IpAddr, name: &ServiceName) {
        self.taken.insert(address, name.to_string());
    }
}

fn fixed(service: &Service) -> impl Iterator<Item = IpAddr> {
    [service.address4.map(IpAddr::V4), service.address6.map(IpAddr::V6)].into_iter().flatten()
}

/// Whether the recorded owner leaves `address` to a service for which it is fixed: it has gone, or another is fixed for
/// itself.
fn yields(book: &AddressBook, graph: &AllowGraph, owner: &str, address: IpAddr) -> bool {
    let gone = book.services.get(owner).is_some_and(|entry| entry.retired.is_some());
    let elsewhere = |other: IpAddr| other.is_ipv4() == address.is_ipv4() && other != address;
    gone || graph.service(owner).is_some_and(|owner| fixed(owner).any(elsewhere))
}

fn same6(own: Addresses, entry: &Entry) -> bool {
    own.v6.is_some() && own.v6 == entry.address6
}

fn keep_pool(
    book: &mut AddressBook,
    pool4: Ipv4Network,
    pool6: Option<Ipv6Network>,
    renumber: bool,
) -> Result<(), AddressError> {
    let changed4 = book.pool4.filter(|old| *old != pool4).map(|old| (old.to_string(), pool4.to_string()));
    let changed6 = match (book.pool6, pool6) {
        (Some(old), Some(new)) if old != new => Some((old.to_string(), new.to_string())),
        _ => None,
    };
    if let Some((from, to)) = changed4.or(changed6) {
        let services = book.services.values().filter(|entry| entry.retired.is_none()).count();
        if services > 0 && !renumber {
            return Err(AddressError::PoolChanged { from, to, services });
        }
        book.services.clear();
    }
    book.pool4 = Some(pool4);
    // Switching IPv6 off for a while forgets nothing.
    book.pool6 = pool6.or(book.pool6);
    Ok(())
}

fn rename(book: &mut AddressBook, service: &Service) {
    let Some(was) = &service.was else { return };
    let in_use = |name: &str| book.services.get(name).map(|entry| entry.retired.is_none());
    let moves = match (in_use(service.name.as_str()), in_use(was.as_str())) {
        (None, Some(_)) => true,
        // The new name was somebody's who has gone.
        (Some(false), Some(in_use)) => in_use,
        _ => false,
    };
    if moves && let Some(mut entry) = book.services.remove(was.as_str()) {
        // That one is the other is the operator's word, whoever defines it.
        entry.owner = Some(Owner::of(service));
        let gone = book.services.insert(service.name.to_string(), entry);
        // The address of the one who has gone stays reserved, under the name that is free now.
        book.services.extend(gone.map(|gone| (was.to_string(), gone)));
    }
}

/// Parts a service that a fragment defines from the record of somebody else who had its name, which stays reserved
/// under a name that no service has; and gives it back what it had itself, if that is kept there.
fn part(book: &mut AddressBook, service: &Service, now: u64) {
    let (name, owner) = (service.name.as_str(), Owner::of(service));
    let kept_as = |owner: Option<&Owner>| match owner {
        Some(Owner::Fragment(fragment)) => format!("{name}@{fragment}"),
        Some(Owner::Operator) | None => format!("{name}@"),
    };
    let is_its_own = |entry: &Entry| match &entry.owner {
        Some(recorded) => *recorded == owner,
        // Who is there was there before owners were written down.
        None => entry.retired.is_none(),
    };
    // The operator may take what a package had, who has no address of an own to come back to.
    let is_free = service.fragment.is_none() && !book.services.contains_key(&kept_as(Some(&owner)));
    if let Some(entry) = book.services.get(name).filter(|entry| !is_free && !is_its_own(entry)).cloned() {
        let retired = entry.retired.or(Some(now));
        book.services.remove(name);
        book.services.insert(kept_as(entry.owner.as_ref()), Entry { retired, ..entry });
    }
    if !book.services.contains_key(name) {
        let own = book.services.remove(&kept_as(Some(&owner)));
        book.services.extend(own.map(|own| (name.to_owned(), own)));
    }
}

fn retire(book: &mut AddressBook, graph: &AllowGraph, now: u64) {
    book.services.retain(|name, entry| {
        if graph.service(name).is_some() {
            return true;
        }
        let since = *entry.retired.get_or_insert(now);
        now.saturating_sub(since) < KEEP_SECONDS
    });
}

fn fixed4(pool: Ipv4Network, fixed: Ipv4Addr, service: &Service, free: &Free) -> Result<Ipv4Addr, AddressError> {
    let outside =
        || AddressError::Outside { address: fixed.into(), service: service.name.to_string(), pool: pool.to_string() };
    if !pool.contains(fixed) {
        return Err(outside());
    }
    let reserved = !is_for_services4(pool, fixed);
    check_owner(fixed.into(), reserved, service, free)?;
    Ok(fixed)
}

fn check_owner(address: IpAddr, reserved: bool, service: &Service, free: &Free) -> Result<(), AddressError> {
    let owner = match free.owner(address) {
        _ if reserved => "the fabric or the peers",
        Some(owner) if owner != service.name.as_str() => owner,
        _ => return Ok(()),
    };
    Err(AddressError::Taken { address, service: service.name.to_string(), owner: owner.to_owned() })
}

fn address6(
    pool: Ipv6Network,
    service: &Service,
    recorded: Option<&Entry>,
    free: &Free,
) -> Result<Ipv6Addr, AddressError> {
    if let Some(fixed) = service.address6 {
        if !pool.contains(fixed) {
            let service = service.name.to_string();
            return Err(AddressError::Outside { address: fixed.into(), service, pool: pool.to_string() });
        }
        check_owner(fixed.into(), !is_for_services6(pool, fixed), service, free)?;
        return Ok(fixed);
    }
    if let Some(address) = recorded.and_then(|entry| entry.address6) {
        return Ok(address);
    }
    free.first(candidates6(pool, &service.name).map(IpAddr::V6))
        .and_then(v6)
        .ok_or_else(|| AddressError::Exhausted { pool: pool.to_string(), service: service.name.to_string() })
}

/// Addresses a service may have, lowest first: all but the first, the peers' quarter and the last sixteen.
fn candidates4(pool: Ipv4Network) -> impl Iterator<Item = Ipv4Addr> {
    let (first, last) = (u32::from(pool.network()), u32::from(pool.broadcast()));
    let quarter = (last - first) / 4 + 1;
    (first + 1..first + 2 * quarter)
        .chain(first + 3 * quarter..(last - 15).max(first + 3 * quarter))
        .map(Ipv4Addr::from)
}

/// Whether an address is one of [`candidates4`].
fn is_for_services4(pool: Ipv4Network, address: Ipv4Addr) -> bool {
    if !pool.contains(address) || pool.prefix() > LONGEST4 {
        return false;
    }
    let (first, last) = (u32::from(pool.network()), u32::from(pool.broadcast()));
    let (at, quarter) = (u32::from(address) - first, (last - first) / 4 + 1);
    (1..2 * quarter).contains(&at) || (3 * quarter..=last - first - 16).contains(&at)
}

fn is_for_services6(pool: Ipv6Network, address: Ipv6Addr) -> bool {
    if pool.prefix() > LONGEST6 {
        return false;
    }
    let top_bit = 1u128 << (127 - pool.prefix());
    pool.contains(address) && u128::from(address) & top_bit == 0 && address != pool.network()
}

/// How many services a pool has addresses for.
pub(crate) fn room(pool: Ipv4Network) -> usize {
    candidates4(pool).size_hint().0
}

/// Suffixes that follow from the name, so that two machines with one policy agree without talking.
fn candidates6(pool: Ipv6Network, name: &ServiceName) -> impl Iterator<Item = Ipv6Addr> {
    let mask = (1u128 << (127 - pool.prefix())) - 1;
    let base = u128::from(pool.network());
    let name = name.to_string();
    (0u32..64).filter_map(move |attempt| {
        let digest = Sha256::digest(format!("{name}/{attempt}"));
        let suffix = digest.iter().take(16).fold(0u128, |all, byte| all << 8 | u128::from(*byte)) & mask;
        (suffix != 0).then(|| Ipv6Addr::from(base | suffix))
    })
}

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn v6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(address),
    }
}
