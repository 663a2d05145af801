//! The live half: the same cases in real namespaces, connection by connection.
//!
//! # Invariants
//!
//! - One machine and one state directory for all steps of a case; everything of it is taken down at its end.
//! - What a probe could not settle is a failure.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use ipnetwork::IpNetwork;
use netns_policy::address::Addresses;
use netns_policy::port::Protocol;
use netns_policy::topology;
use nsctl::internet::Internet;
use nsctl::kernel::Kernel as _;
use nsctl::kernel::netns::Netns;
use nsctl::matrix;
use nsctl::verify::{self, Expected, Place, Probe};
use nsctl::{Applied, Error, Options, Orchestrator, Planned};

use super::Refused;
use super::case::{OUTSIDERS, Pair};
use super::outside::{LAN, METADATA, WAN};
use super::translate::NETWORK;

/// Where everything of the cases lies, in the sandbox's own /run.
const DIRECTORY: &str = "/run/conformance";

/// The place that holds every address outside; no service can have a `+` in its name.
const OUTSIDE: &str = "+outside";

/// The most connections that are held over a step.
const HELD: usize = 20;

const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 1);

/// The machine of the live half.
#[derive(Debug)]
pub struct Machine<'i> {
    nsctl: Orchestrator,
    policy: PathBuf,
    around: &'i Surroundings,
    /// The addresses of every service that ever was.
    known: BTreeMap<String, Addresses>,
    /// The policy in force.
    text: Option<String>,
    /// How many connections were tried.
    pub probes: usize,
}

/// What lies around the sandbox: the addresses that the cases speak of, with a way back to the services.
#[derive(Debug)]
pub struct Surroundings {
    internet: Internet,
    routed: RefCell<BTreeSet<IpNetwork>>,
}

impl Surroundings {
    /// Makes it; the sandbox's default route leads there.
    pub fn make() -> Self {
        let internet = Internet::with(parse(&WAN), parse(&LAN)).expect("an internet in the sandbox");
        Self { internet, routed: RefCell::default() }
    }

    /// Without a route to `pool` nobody outside could even try.
    fn route(&self, pool: IpNetwork) {
        if self.routed.borrow_mut().insert(pool) {
            self.internet.route(pool).expect("a route from outside to the sandbox");
        }
    }
}

impl<'i> Machine<'i> {
    pub fn new(id: &str, around: &'i Surroundings) -> Self {
        let directory = PathBuf::from(DIRECTORY).join(id);
        fs::create_dir_all(&directory).expect("/run is the sandbox's own");
        let policy = directory.join("policy.json");
        let options = Options {
            policy: vec![policy.clone()],
            state: directory.join("state"),
            etc_netns: None,
            ..Options::default()
        };
        Self { nsctl: Orchestrator::new(options), policy, around, known: BTreeMap::new(), text: None, probes: 0 }
    }

    /// Applies a policy that must hold; the addresses that changed are the lines that come back.
    pub fn apply(&mut self, policy: &str) -> Result<Vec<String>, Refused> {
        self.write(policy);
        let applied = self.nsctl.apply()?;
        self.text = Some(policy.to_owned());
        let mut lines = self.addresses(&applied);
        let left = self.nsctl.plan()?.plan.steps.len();
        lines.extend((left > 0).then(|| format!("a second apply has {left} steps")));
        Ok(lines)
    }

    /// Applies a policy that must be refused. The error, and what it changed all the same.
    pub fn apply_refused(&mut self, policy: &str) -> (Option<Refused>, Vec<String>) {
        self.write(policy);
        let refused = self.nsctl.apply().err().map(Refused::from);
        let mut lines = Vec::new();
        match self.text.clone() {
            Some(text) => {
                self.write(&text);
                match self.nsctl.plan() {
                    Ok(planned) if planned.plan.is_empty() => {}
                    Ok(planned) => lines.extend(planned.plan.steps.iter().map(|step| format!("changed: {step}"))),
                    Err(error) => lines.push(format!("the step before cannot be planned: {}", chain(&error))),
                }
            }
            None => lines.extend(self.anything()),
        }
        (refused, lines)
    }

    /// What `nsctl verify` finds wrong, which knows the policy and not the case.
    pub fn verified(&self) -> Vec<String> {
        let internet = &self.around.internet;
        let netns = Some(internet.netns().try_clone().expect("a descriptor is free"));
        let outside = matrix::Outside { wan: internet.wan(), lan: internet.lan(), netns };
        let report =
            matrix::verify(&self.nsctl, &outside, &|_, _| {}).unwrap_or_else(|error| panic!("{}", chain(&error)));
        let wrong = report.mismatches.iter().map(|wrong| format!("{}: {}", wrong.probe, wrong.seen));
        wrong.chain(report.unproven.iter().map(|open| format!("{}: {}", open.probe, open.reason))).collect()
    }

    fn write(&self, policy: &str) {
        fs::write(&self.policy, policy).expect("/run is the sandbox's own");
    }

    fn addresses(&mut self, applied: &Applied) -> Vec<String> {
        let mut lines = Vec::new();
        for service in applied.checked.graph.services() {
            let name = service.name.to_string();
            let Some(now) = applied.addresses.service(&name) else { continue };
            match self.known.insert(name.clone(), now) {
                Some(before) if before != now => lines.push(format!("{name} had {before:?}, now it has {now:?}")),
                _ => {}
            }
        }
        pools(applied.checked.graph.network()).into_iter().for_each(|pool| self.around.route(pool));
        lines
    }

    /// Everything that differs from `pairs`, a line for each.
    pub fn differences(&mut self, pairs: &[Pair]) -> Result<Vec<String>, Refused> {
        if self.text.is_none() {
            let open = pairs.iter().filter(|pair| pair.open);
            return Ok(open.map(|pair| format!("{} -> {}: nothing is in force", pair.from, pair.to)).collect());
        }
        let planned = self.nsctl.plan()?;
        let view = View { planned: &planned, known: &self.known };
        let mut lines = Vec::new();
        let mut probes = Vec::new();
        for pair in pairs {
            let made = view.probes(pair);
            if pair.open && !made.iter().any(|probe| probe.expected == Expected::Open) {
                lines.push(format!("{} -> {} must be open, but there is no address to try", pair.from, pair.to));
            }
            probes.extend(made);
        }
        probes.sort_by_key(|probe| format!("{probe}"));
        probes.dedup();
        let places = self.places(&planned, &probes)?;
        let report = verify::run(&places, &probes, &verify::Options::default(), &|_, _| {})
            .map_err(|error| Refused::Other(chain(&error)))?;
        self.probes += report.probes;
        for wrong in report.mismatches {
            let note = wrong.note.map(|note| format!(" ({note})")).unwrap_or_default();
            lines.push(format!("{} must be {:?}: {}{note}", wrong.probe, wrong.probe.expected, wrong.seen));
        }
        for open in report.unproven {
            lines.push(format!("{} must be {:?}, unproven: {}", open.probe, open.probe.expected, open.reason));
        }
        Ok(lines)
    }

    /// One place for each service, those that are gone included, for the host and for the outside.
    fn places(&self, planned: &Planned, probes: &[Probe]) -> Result<Vec<Place>, Refused> {
        let used: BTreeSet<&str> = probes.iter().flat_map(|probe| [probe.from.as_str(), probe.to.as_str()]).collect();
        let place = |name: &str| -> io::Result<Place> {
            let addresses = self.known.get(name).iter().flat_map(|own| own.iter()).collect();
            Ok(Place { name: name.to_owned(), netns: self.netns(planned, name)?, addresses, link: "net0".into() })
        };
        used.into_iter().map(|name| place(name).map_err(|error| Refused::Other(format!("{name}: {error}")))).collect()
    }

    fn netns(&self, planned: &Planned, name: &str) -> io::Result<Netns> {
        match name {
            "host" => Netns::current(),
            OUTSIDE => self.around.internet.netns().try_clone(),
            service if planned.checked.graph.service(service).is_some() => {
                Netns::open(&self.nsctl.options().netns.join(format!("{NETWORK}-{service}")))
            }
            // Nobody is there any more: whoever answers at its address is somebody else.
            _ => Netns::unpinned(),
        }
    }

    /// Opens a connection on edges that the next step takes away, and on one that it keeps.
    pub fn hold(&self, now: &[Pair], next: &[Pair]) -> Result<Vec<Held>, Refused> {
        if self.text.is_none() {
            return Ok(Vec::new());
        }
        let planned = self.nsctl.plan()?;
        let next: BTreeSet<&Pair> = next.iter().collect();
        let open = now.iter().filter(|pair| pair.open && pair.protocol == Protocol::Tcp);
        let (kept, revoked): (Vec<&Pair>, Vec<&Pair>) = open.partition(|pair| next.contains(pair));
        let chosen = revoked.into_iter().take(HELD).map(|pair| (pair, false)).chain(kept.first().map(|p| (*p, true)));
        let view = View { planned: &planned, known: &self.known };
        let mut held = Vec::new();
        for (pair, kept) in chosen {
            for probe in view.probes(pair).into_iter().filter(|probe| probe.expected == Expected::Open) {
                let made = self.connect(&planned, &probe, kept);
                held.push(made.map_err(|error| Refused::Other(format!("{probe} could not be held open: {error}")))?);
            }
        }
        Ok(held)
    }

    fn connect(&self, planned: &Planned, probe: &Probe, kept: bool) -> io::Result<Held> {
        let to = SocketAddr::new(probe.address, probe.port);
        let listener = self.netns(planned, &probe.to)?.run(move || TcpListener::bind(to))?;
        let dial = move || TcpStream::connect_timeout(&to, Duration::from_secs(2));
        let client = self.netns(planned, &probe.from)?.run(dial)?;
        let (server, _) = listener.accept()?;
        let mut held = Held { what: probe.to_string(), kept, client, server };
        if held.carries()? { Ok(held) } else { Err(io::Error::other("it carries nothing")) }
    }

    /// Takes everything down; what is left is a line.
    pub fn down(&self) -> Vec<String> {
        if self.text.is_none() {
            return Vec::new();
        }
        match self.nsctl.down() {
            Ok(_) => self.anything(),
            Err(error) => vec![format!("down: {}", chain(&error))],
        }
    }

    fn anything(&self) -> Vec<String> {
        let network = NETWORK.parse().expect("the constant is a name");
        let observed = self.nsctl.kernel(&network).and_then(|kernel| Ok(kernel.observe()?));
        match observed {
            Ok(observed) if observed.is_nothing() => Vec::new(),
            Ok(_) => vec!["something of the network is there though no policy is in force".into()],
            Err(error) => vec![format!("the kernel cannot be asked: {}", chain(&error))],
        }
    }
}

/// What a policy in force makes of a pair.
struct View<'a> {
    planned: &'a Planned,
    known: &'a BTreeMap<String, Addresses>,
}

impl View<'_> {
    /// The connections that show whether a pair is as it must be. A service that is not there opens none.
    fn probes(&self, pair: &Pair) -> Vec<Probe> {
        if !OUTSIDERS.contains(&pair.from.as_str()) && self.planned.checked.graph.service(&pair.from).is_none() {
            return Vec::new();
        }
        let own: Vec<IpAddr> = self.known.get(&pair.to).iter().flat_map(|own| own.iter()).collect();
        match pair.to.as_str() {
            "host" => self.to_host(pair),
            "wan" => self.all(pair, &parse(&WAN)),
            "lan" => self.all(pair, &parse(&LAN)),
            "metadata" => self.all(pair, &parse(&METADATA)),
            _ => {
                let mut probes = self.all(pair, &own);
                if self.has_ipv6() && !OUTSIDERS.contains(&pair.from.as_str()) {
                    probes.push(probe(pair, LINK_LOCAL.into(), false));
                }
                probes
            }
        }
    }

    fn all(&self, pair: &Pair, addresses: &[IpAddr]) -> Vec<Probe> {
        let meant = addresses.iter().filter(|address| address.is_ipv4() || self.has_ipv6());
        meant.map(|address| probe(pair, *address, pair.open)).collect()
    }

    /// Every address of the host: on its own wire it may be open, at all others it never is.
    fn to_host(&self, pair: &Pair) -> Vec<Probe> {
        let desired = &self.planned.desired;
        let wire = desired.wires.get(&topology::Place::Host).map(|wire| wire.addresses);
        let wire: Vec<IpAddr> = wire.iter().flat_map(Addresses::iter).collect();
        let leg = desired.leg.iter().flat_map(|leg| leg.host.iter());
        let others = self.planned.observed.host.addresses.iter().copied().chain(leg);
        let on_wire = wire.iter().map(|address| probe(pair, *address, pair.open));
        let others = others.filter(|address| !wire.contains(address)).map(|address| probe(pair, address, false));
        on_wire.chain(others).collect()
    }

    fn has_ipv6(&self) -> bool {
        self.planned.checked.graph.network().pool6.is_some()
    }
}

fn probe(pair: &Pair, address: IpAddr, open: bool) -> Probe {
    let place = |name: &str| match name {
        "wan" | "lan" | "metadata" => OUTSIDE.to_owned(),
        name => name.to_owned(),
    };
    let expected = if open { Expected::Open } else { Expected::Closed };
    let Pair { from, to, protocol, port, .. } = pair;
    Probe { from: place(from), to: place(to), address, protocol: *protocol, port: *port, expected }
}

fn parse(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("the constants are addresses")).collect()
}

fn pools(network: &netns_policy::graph::Network) -> Vec<IpNetwork> {
    [Some(IpNetwork::V4(network.pool4)), network.pool6.map(IpNetwork::V6)].into_iter().flatten().collect()
}

/// A connection that is held over a step.
#[derive(Debug)]
pub struct Held {
    what: String,
    kept: bool,
    client: TcpStream,
    server: TcpStream,
}

impl Held {
    /// Whether a byte passes each way.
    fn carries(&mut self) -> io::Result<bool> {
        self.client.set_nodelay(true)?;
        self.server.set_nodelay(true)?;
        for (from, to) in [(&self.client, &self.server), (&self.server, &self.client)] {
            let (mut from, mut to) = (from, to);
            to.set_read_timeout(Some(Duration::from_secs(1)))?;
            from.write_all(&[1])?;
            let mut byte = [0];
            to.read_exact(&mut byte)?;
        }
        Ok(true)
    }

    /// Speaks at both ends, whatever comes of it.
    fn speak(&mut self) {
        for mut end in [&self.client, &self.server] {
            // A connection that was reset says so here.
            end.write_all(b"after").ok();
        }
    }

    /// How many bytes either end has got.
    fn heard(&mut self) -> usize {
        let heard = |mut end: &TcpStream| {
            end.set_nonblocking(true).ok();
            end.read(&mut [0; 64]).unwrap_or(0)
        };
        heard(&self.client) + heard(&self.server)
    }
}

/// Whether what was held over a step is as it must be: no byte passes where the edge is gone, and the rest goes on.
pub fn judge(held: &mut [Held]) -> Vec<String> {
    if held.is_empty() {
        return Vec::new();
    }
    held.iter_mut().for_each(Held::speak);
    // Long enough for a retransmission or two of what was said.
    thread::sleep(Duration::from_millis(500));
    let wrong = |held: &mut Held| match (held.kept, held.heard()) {
        (true, 10) | (false, 0) => None,
        (true, heard) => Some(format!("{}: its edge is still there, but {heard} of 10 bytes pass", held.what)),
        (false, heard) => Some(format!("{}: its edge is gone, but {heard} bytes pass", held.what)),
    };
    held.iter_mut().filter_map(wrong).collect()
}

/// An error with everything behind it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        match error {
            Error::Policy(errors) => errors.into(),
            Error::Address(error) => error.into(),
            other => Self::Other(chain(&other)),
        }
    }
}
