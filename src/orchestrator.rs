//! The verbs of the library.

pub mod history;

mod apply;
mod down;
mod error;
mod how;
pub mod mend;
mod pool;
mod recording;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use netns_policy::address::{AddressBook, AddressPlan};
use netns_policy::ask::Ask;
use netns_policy::changes::Change;
use netns_policy::desired::{Desired, HostRoute, Leg, Wire};
use netns_policy::diagnostic::{Source, Warning};
use netns_policy::graph::{AllowGraph, Service};
use netns_policy::name::NetworkName;
use netns_policy::network::HostNetwork;
use netns_policy::observed::Observed;
use netns_policy::plan::Plan;
use netns_policy::port::Protocol;
use netns_policy::prove::{Proof, prove, prove_observed};
use netns_policy::ruleset::compile::Capabilities;
use netns_policy::topology::{Place, fabric_netns, is_netns_of};
use netns_policy::trial::Trial;
use thiserror::Error;

use crate::clock;
use crate::held;
use crate::kernel::listener::listeners;
use crate::kernel::probe::{self};
use crate::kernel::{Kernel, KernelError, Linux, netns};
use crate::own;
use crate::policy::{self, Editable, Found, ReadErrors};
use crate::report::Report;
use crate::status::Status;
use crate::store::{Number, Pending, Store};

pub use down::Removed;
pub use error::{Error, Occupied};
pub use how::{Confirm, Holder, How, Running};

use pool::pool_is_free;

/// How often a turn is begun anew because another program changed rules of ours while it ran.
const TURNS: usize = 4;

/// Where things are. [`Options::default`] is what the command uses.
#[derive(Clone, Debug)]
pub struct Options {
    /// Policy files and directories; empty means [`policy::DEFAULT_PATHS`].
    pub policy: Vec<PathBuf>,
    /// The state directory.
    pub state: PathBuf,
    /// The run directory, for the services' hosts files.
    pub run: PathBuf,
    /// Where namespaces are pinned.
    pub netns: PathBuf,
    /// Where ip-netns(8) looks for files; `None` where that is not ours to write.
    pub etc_netns: Option<PathBuf>,
    /// Accept that services get other addresses because the pool changed.
    pub renumber: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            policy: Vec::new(),
            state: "/var/lib/nsctl".into(),
            run: "/run/nsctl".into(),
            netns: netns::default_directory(),
            etc_netns: Some("/etc/netns".into()),
            renumber: false,
        }
    }
}

/// A policy that passed every check.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The allow-graph.
    pub graph: AllowGraph,
    /// What fragments ask for, answered or not.
    pub asks: Vec<Ask>,
    /// Legal, but doubtful.
    pub warnings: Vec<Warning>,
    /// The files that it was read from, and those that they mask.
    pub files: Vec<Found>,
    /// Who else can edit these files: [`Orchestrator::apply`] refuses them.
    pub editable: Vec<Editable>,
    /// Their texts: what a generation keeps.
    pub sources: Vec<Source>,
}

impl Checked {
    /// What these texts say.
    fn of(sources: Vec<Source>) -> Result<Self, Error> {
        let checked = AllowGraph::parse(&sources)?;
        let (files, editable) = (Vec::new(), Vec::new());
        Ok(Self { graph: checked.graph, asks: checked.asks, warnings: checked.warnings, files, editable, sources })
    }
}

/// A plan with what it was made from.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The policy.
    pub checked: Checked,
    /// Who has which address.
    pub addresses: AddressPlan,
    /// What is to be recorded with it.
    pub book: AddressBook,
    /// What exists.
    pub observed: Observed,
    /// What ought to exist.
    pub desired: Desired,
    /// What to do.
    pub plan: Plan,
    /// That `desired` does what the policy says; `None` where nobody asked.
    pub proof: Option<Proof>,
}

/// What the rules of one policy on one kernel follow from: with the same they are the same.
type Basis = (BTreeMap<Place, Wire>, Option<Leg>, Option<HostRoute>, HostNetwork);

impl Planned {
    fn basis(&self) -> Basis {
        let Desired { wires, leg, host_route, .. } = &self.desired;
        // Sysctls make no rule, and a first turn sets some.
        let nothing = BTreeMap::new();
        let host = HostNetwork { sysctls: nothing.clone(), before: nothing, ..self.observed.host.clone() };
        (wires.clone(), leg.clone(), host_route.clone(), host)
    }

    /// The policy, its proof and what it was made for. All else is gone when the next look is taken: two looks at a large
    /// network fill the memory.
    fn into_basis(self) -> (Checked, Option<Proof>, Basis) {
        let basis = self.basis();
        (self.checked, self.proof, basis)
    }
}

/// What `apply` did.
#[derive(Debug)]
pub struct Applied {
    /// The policy.
    pub checked: Checked,
    /// Who has which address.
    pub addresses: AddressPlan,
    /// What it meant to the operator: services and edges that came and went.
    pub changes: Vec<Change>,
    /// What was done.
    pub report: Report,
    /// What works otherwise than the operator may think.
    pub notes: Vec<Note>,
    /// That what was made does what the policy says.
    pub proof: Proof,
    /// The generation that is in force now.
    pub generation: Number,
    /// The one that was in force before; the same when the policy is the same.
    pub before: Option<Number>,
    /// Until when it waits to be confirmed, if it does.
    pub pending: Option<Pending>,
}

/// Something that the operator should know, though nothing failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Note {
    /// An exposure whose worker does not exist yet: nothing is open for it.
    NotServed {
        /// The exposure, as `onion -> electrs:electrum`.
        exposure: String,
    },
    /// Somebody else's rules on the host stop what services send outside.
    Blocked(crate::uplink::Blocked),
    /// There is no default route yet, so nothing leads outside.
    NoUplink,
    /// There is a default route for IPv6 alone.
    NoIpv4Uplink,
    /// A service wants a resolver and the host has none that can be reached from a namespace.
    NoResolver,
}

impl Note {
    /// The stable code, where somebody has something to mend.
    pub fn code(&self) -> Option<&'static str> {
        matches!(self, Self::Blocked(_)).then_some("W0902")
    }
}

/// The library: load a policy, plan, apply, look, take down.
///
/// Each verb looks at the kernel anew and keeps nothing in memory; two of them can be used at once from two processes
/// (the one that comes second to change something is told [`StoreError::Busy`](crate::store::StoreError::Busy)).
#[derive(Clone, Debug)]
pub struct Orchestrator {
    options: Options,
}

impl Orchestrator {
    /// With these paths. Touches nothing.
    pub fn new(options: Options) -> Self {
        Self { options }
    }

    /// The paths in use.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Reads and checks the policy: syntax, names, invariants, tests. Needs no privilege.
    ///
    /// # Errors
    ///
    /// [`Error::Read`] and [`Error::Policy`].
    pub fn check(&self) -> Result<Checked, Error> {
        let policy::Read { sources, files, editable, .. } = own::read(&self.options)?;
        Ok(Checked { files, editable, ..Checked::of(sources)? })
    }

    /// The policy, if it is nobody's to change but root's and the caller's.
    fn check_guarded(&self) -> Result<Checked, Error> {
        let mut checked = self.check()?;
        match std::mem::take(&mut checked.editable) {
            editable if editable.is_empty() => Ok(checked),
            editable => Err(ReadErrors(editable.into_iter().map(Into::into).collect()).into()),
        }
    }

    /// The same, and compiles the policy for an empty machine and proves that its rules do what it says. Reads neither
    /// the kernel nor a record.
    ///
    /// # Errors
    ///
    /// As [`Orchestrator::check`]; [`Error::Unproved`].
    pub fn check_and_prove(&self) -> Result<(Checked, Proof), Error> {
        let checked = self.check()?;
        let proof = proved_alone(&checked.graph, &AddressBook::default())?;
        Ok((checked, proof))
    }

    /// Every `[[test]]` and `[[never]]` with its outcome, of a policy that may break them. Needs no privilege.
    ///
    /// # Errors
    ///
    /// As [`Orchestrator::check`], but for broken tests and invariants.
    pub fn trials(&self) -> Result<Vec<Trial>, Error> {
        Ok(AllowGraph::trials(&own::read(&self.options)?.sources)?)
    }

    /// What [`Orchestrator::apply`] would do, with the proof that it is what the policy says. Changes nothing.
    ///
    /// # Errors
    ///
    /// When the policy is wrong, the kernel cannot be asked (`EPERM` without CAP_NET_ADMIN and CAP_SYS_ADMIN) or lacks
    /// something, or a namespace of that name is somebody else's; [`Error::Unproved`].
    pub fn plan(&self) -> Result<Planned, Error> {
        let mut planned = self.look()?;
        planned.proof = Some(proved(&planned)?);
        Ok(planned)
    }

    /// The same without a proof, for who only looks.
    ///
    /// # Errors
    ///
    /// As [`Orchestrator::plan`].
    pub fn look(&self) -> Result<Planned, Error> {
        self.looked(self.check()?)
    }

    /// Proves of the compiled rules that they do what the policy says, as they are for an empty machine with the
    /// recorded addresses.
    ///
    /// # Errors
    ///
    /// As [`Orchestrator::plan_offline`].
    pub fn prove(&self) -> Result<Proof, Error> {
        let graph = self.check()?.graph;
        proved_alone(&graph, &self.store(&graph.network().name).addresses()?)
    }

    /// Reads the rules that the kernel holds and proves that they do what the policy says.
    ///
    /// # Errors
    ///
    /// As [`Orchestrator::plan`]; [`Error::Refuted`].
    pub fn prove_live(&self) -> Result<Proof, Error> {
        let Planned { checked, addresses, observed, desired, .. } = self.look()?;
        prove_observed(&checked.graph, &addresses, &observed, &desired).map_err(Error::Refuted)
    }

    /// What would be done on a machine on which nothing exists yet. Asks no kernel, and needs no privilege but to read
    /// the record of the addresses where there is one: others than those would be wrong.
    ///
    /// # Errors
    ///
    /// When the policy is wrong or the recorded addresses cannot be read.
    pub fn plan_offline(&self) -> Result<Planned, Error> {
        let mut planned = self.look_offline()?;
        planned.proof = Some(proved(&planned)?);
        Ok(planned)
    }

    /// The same without a proof, for who only looks.
    ///
    /// # Errors
    ///
    /// As [`Orchestrator::plan_offline`].
    pub fn look_offline(&self) -> Result<Planned, Error> {
        let checked = self.check()?;
        let store = self.store(&checked.graph.network().name);
        let book = store.addresses()?;
        self.planned_on(checked, &book, Observed::default(), Capabilities::default())
    }

    /// Pins that were never finished.
    fn remove_leftovers(&self, network: &NetworkName) -> Result<(), Error> {
        let directory = &self.options.netns;
        netns::remove_leftovers(directory, |name| is_netns_of(network, name)).map_err(|source| {
            KernelError::File { action: "remove what is left of a pin in", path: directory.clone(), source }.into()
        })
    }

    /// Services, addresses, edges with their counters, drift: of the generation in force, whatever the files say by now;
    /// of the files where none is.
    ///
    /// # Errors
    ///
    /// As [`Orchestrator::plan`]; a policy that is wrong is no error where a generation is in force.
    pub fn status(&self) -> Result<Status, Error> {
        let InForceNow { planned, number, pending, files } = self.look_in_force()?;
        let mut status = Status::of(&planned, &self.extra(&planned)?);
        status.files = files;
        status.generation = number;
        status.held = held::read(&self.options.run, &planned.desired.network).iter().map(held::word).collect();
        status.pending = pending.as_ref().map(Into::into);
        let linux = self.kernel(&planned.desired.network)?;
        for service in planned.checked.graph.services() {
            status.warnings.extend(self.unreachable(&linux, &planned, service)?);
        }
        Ok(status)
    }

    /// The policy in force, as far as the caller may read the record; else that of the files.
    ///
    /// # Errors
    ///
    /// As [`Orchestrator::check`].
    pub fn in_force_or_files(&self) -> Result<Checked, Error> {
        let kept = || {
            let store = self.store(&self.recorded_network(None).ok()?);
            history::kept(&store, store.current().ok()??).ok()
        };
        kept().map_or_else(|| self.check(), Ok)
    }

    /// Whether the files mean what is in force; `true` too where nothing is.
    ///
    /// # Errors
    ///
    /// As [`Orchestrator::check`]; when the record cannot be read.
    pub fn files_are_in_force(&self) -> Result<bool, Error> {
        let graph = self.check()?.graph;
        let store = self.store(&graph.network().name);
        Ok(match store.current()? {
            Some(number) => store.meta(number)?.hash == graph.hash(),
            None => true,
        })
    }

    /// The kernel beside the generation in force; beside the files where none is.
    ///
    /// # Errors
    ///
    /// As [`Orchestrator::look`]; a policy that is wrong is no error where a generation is in force.
    pub(crate) fn look_in_force(&self) -> Result<InForceNow, Error> {
        let files = self.check();
        let network = match &files {
            Ok(checked) => checked.graph.network().name.clone(),
            Err(_) => match self.networks()?.as_slice() {
                [only] => only.clone(),
                _ => return Err(files.expect_err("it is one")),
            },
        };
        let (number, pending) = self.in_force_now(&network)?;
        // What they mean, not how they are written.
        let now = files.as_ref().map(|checked| checked.graph.hash()).map_err(|_| ());
        let planned = match number {
            Some(number) => self.look_at(number, &network)?,
            None => self.looked(files?)?,
        };
        let files = number.map(|_| match now {
            Ok(now) if now == planned.checked.graph.hash() => "the same",
            Ok(_) => "changed",
            Err(()) => "refused",
        });
        Ok(InForceNow { planned, number, pending, files })
    }

    /// The kernel beside a generation that is kept, without a proof.
    ///
    /// # Errors
    ///
    /// As [`Orchestrator::look`]; when the generation is not kept.
    pub fn look_at(&self, number: Number, network: &NetworkName) -> Result<Planned, Error> {
        self.looked(history::kept(&self.store(network), number)?)
    }

    fn looked(&self, checked: Checked) -> Result<Planned, Error> {
        let capabilities = probe::capabilities()?;
        let store = self.store(&checked.graph.network().name);
        self.planned(checked, &store, capabilities)
    }

    /// Declared ports on which something listens, but on loopback only: nobody else can ever reach it there.
    fn unreachable(&self, linux: &Linux, planned: &Planned, service: &Service) -> Result<Vec<String>, Error> {
        let place = Place::Service(service.name.clone());
        let Some(netns) = place.netns(&planned.desired.network) else { return Ok(Vec::new()) };
        if service.ports.values().all(|ports| ports.protocol() != Protocol::Tcp)
            || !planned.observed.namespaces.contains_key(&netns)
        {
            return Ok(Vec::new());
        }
        // What cannot be read in there is nobody's warning.
        let listening = linux.inside(&netns, listeners).unwrap_or_default();
        let only_loopback = service.ports.iter().filter(|(_, ports)| {
            let mut here = listening.iter().filter(|one| ports.covers(Protocol::Tcp, one.port)).peekable();
            here.peek().is_some() && here.all(|one| one.address.to_canonical().is_loopback())
        });
        let address = planned.addresses.service(service.name.as_str()).map(|own| own.v4.to_string());
        let address = address.unwrap_or_default();
        Ok(only_loopback
            .map(|(name, ports)| {
                let port = format!("{}:{name} ({ports})", service.name);
                format!("{port} listens on loopback only, where nobody reaches it: let it bind {address} or 0.0.0.0")
            })
            .collect())
    }

    /// Which network is meant: the policy's, else the only one that is recorded or exists.
    ///
    /// # Errors
    ///
    /// [`Error::NoNetwork`]; what is wrong with the policy, where one is named or would say which network is meant.
    pub fn network(&self) -> Result<NetworkName, Error> {
        match self.check() {
            Ok(checked) => Ok(checked.graph.network().name.clone()),
            // A named policy that is wrong is an error; that there is none is not.
            Err(e) if !self.options.policy.is_empty() => Err(e),
            Err(refused) => match (self.networks()?.as_slice(), refused) {
                ([only], _) => Ok(only.clone()),
                (known, Error::Read(errors)) if errors.is_missing() => Err(Error::NoNetwork { known: known.to_vec() }),
                (_, refused) => Err(refused),
            },
        }
    }

    /// The networks that have state, and those whose fabric is there although their state is not.
    fn networks(&self) -> Result<Vec<NetworkName>, Error> {
        let directory = &self.options.netns;
        let pins = netns::pinned(directory);
        let pins = pins.map_err(|source| KernelError::File { action: "read", path: directory.clone(), source })?;
        let there = pins.iter().filter_map(|pin| pin.strip_suffix("+fabric")?.parse().ok());
        let known: BTreeSet<NetworkName> = Store::networks(&self.options.state)?.into_iter().chain(there).collect();
        Ok(known.into_iter().collect())
    }

    /// The kernel as this network sees it.
    ///
    /// # Errors
    ///
    /// When the state directory cannot be read.
    pub fn kernel(&self, network: &NetworkName) -> Result<Linux, Error> {
        self.linux(network, &self.store(network))
    }

    fn store(&self, network: &NetworkName) -> Store {
        Store::new(&self.options.state, network)
    }

    fn linux(&self, network: &NetworkName, store: &Store) -> Result<Linux, Error> {
        Ok(self.linux_with(network, store.sysctls()?))
    }

    fn linux_with(&self, network: &NetworkName, before: BTreeMap<String, String>) -> Linux {
        Linux {
            network: network.clone(),
            netns_directory: self.options.netns.clone(),
            run_directory: self.options.run.clone(),
            etc_netns: self.options.etc_netns.clone(),
            before,
        }
    }

    fn planned(&self, checked: Checked, store: &Store, capabilities: Capabilities) -> Result<Planned, Error> {
        ipv6_is_there(&checked.graph, probe::has_ipv6())?;
        let linux = self.linux(&checked.graph.network().name, store)?;
        let observed = linux.observe()?;
        let mut book = store.addresses()?;
        if book == AddressBook::default() {
            // None yet, or lost: who runs already keeps what it has.
            book = AddressBook::of_seen(checked.graph.network(), &addresses_seen(&observed, &linux.network));
        }
        self.planned_on(checked, &book, observed, capabilities)
    }

    /// What is left to do. Another host network or other indexes make other rules, and those want a proof of their own.
    fn planned_again(&self, done: Planned, store: &Store, capabilities: Capabilities) -> Result<Planned, Error> {
        let (checked, proof, basis) = done.into_basis();
        let mut next = self.planned(checked, store, capabilities)?;
        let same = next.basis() == basis;
        next.proof = if same { proof } else { Some(proved(&next)?) };
        Ok(next)
    }

    fn planned_on(
        &self,
        checked: Checked,
        book: &AddressBook,
        observed: Observed,
        capabilities: Capabilities,
    ) -> Result<Planned, Error> {
        let graph = &checked.graph;
        let network = graph.network();
        // A pool that is in use stays so, whatever somebody's link or route says by now.
        if observed.fabric.is_none() || book.pool4 != Some(network.pool4) || book.pool6 != network.pool6 {
            pool_is_free(graph, &observed)?;
        }
        let addresses = AddressPlan::assign(graph, book, clock::now(), self.options.renumber)?;
        let (desired, next_index) = Desired::new(graph, &addresses, &observed, capabilities, book.next_index);
        if let Some(netns) = observed.foreign.union(&observed.neighbours).find(|netns| wants(&desired, netns)) {
            return Err(Error::Foreign { netns: netns.clone() });
        }
        if let Some(link) = observed.foreign_links.iter().find(|link| wants_link(&desired, link)) {
            return Err(Error::ForeignLink { link: link.clone() });
        }
        let plan = Plan::between(&observed, &desired);
        let book = AddressBook { next_index, ..addresses.book().clone() };
        Ok(Planned { addresses, book, observed, desired, plan, checked, proof: None })
    }

    fn notes(&self, planned: &Planned) -> Vec<Note> {
        let graph = &planned.checked.graph;
        let unserved = graph.exposures().iter().filter(|exposure| !exposure.way.is_on_host());
        let exposures = unserved.map(|exposure| Note::NotServed { exposure: exposure.to_string() });
        exposures.chain(crate::uplink::notes(planned, &self.options.netns)).collect()
    }
}

impl Applied {
    /// It, if no service spoils what was done in its namespace.
    ///
    /// # Errors
    ///
    /// [`Error::Spoiled`].
    pub fn whole(mut self) -> Result<Self, Error> {
        if self.report.spoiled.is_empty() {
            return Ok(self);
        }
        let spoiled = std::mem::take(&mut self.report.spoiled);
        Err(Error::Spoiled { report: Box::new(self.report), spoiled })
    }
}

/// What is, beside what is in force.
pub(crate) struct InForceNow {
    pub(crate) planned: Planned,
    pub(crate) number: Option<Number>,
    pub(crate) pending: Option<Pending>,
    /// What the files say by now: `the same`, `changed`, `refused`.
    pub(crate) files: Option<&'static str>,
}

/// Whether another network is there: its fabric has a pin.
pub(crate) fn is_up(pins: &Path, network: &NetworkName) -> bool {
    let pin = pins.join(fabric_netns(network));
    pin.exists() && !netns::is_leftover(&pin)
}

/// The addresses at the inner ends of the services' wires, by service. The fabric, where no process lives, says which
/// those are.
fn addresses_seen(observed: &Observed, network: &NetworkName) -> BTreeMap<String, BTreeSet<IpAddr>> {
    let seen = observed.namespaces.iter().filter_map(|(netns, namespace)| {
        let name = netns.strip_prefix(network.as_str())?.strip_prefix('-')?;
        let place = Place::Service(name.parse().ok()?);
        let link = namespace.links.get(place.inner_link(network).as_str())?;
        observed.fabric_knows(network, name).then(|| (name.to_owned(), link.addresses.clone()))
    });
    seen.collect()
}

/// For an empty machine, and without a plan for it, which would hold every rule once more.
fn proved_alone(graph: &AllowGraph, book: &AddressBook) -> Result<Proof, Error> {
    let addresses = AddressPlan::assign(graph, book, clock::now(), false)?;
    let nothing = Observed::default();
    let (desired, _) = Desired::new(graph, &addresses, &nothing, Capabilities::default(), book.next_index);
    prove(graph, &addresses, &nothing.host, &desired).map_err(Error::Unproved)
}

fn proved(planned: &Planned) -> Result<Proof, Error> {
    let Planned { checked, addresses, observed, desired, .. } = planned;
    // A thread has its own part of the heap, which is given back when it ends: at 1,000 services a quarter of all memory
    // would lie in pieces otherwise.
    let proof =
        std::thread::scope(|scope| scope.spawn(|| prove(&checked.graph, addresses, &observed.host, desired)).join());
    proof.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(Error::Unproved)
}

fn wants(desired: &Desired, netns: &str) -> bool {
    desired.fabric_netns() == netns || desired.wires.values().any(|wire| wire.netns.as_deref() == Some(netns))
}

fn wants_link(desired: &Desired, link: &str) -> bool {
    let leg = desired.leg.as_ref().is_some_and(|leg| leg.host_link.as_str() == link);
    leg || desired.wires.get(&Place::Host).is_some_and(|wire| wire.inner.as_str() == link)
}

/// Found before anything is made, not by the first address that the kernel refuses.
fn ipv6_is_there(graph: &AllowGraph, has_ipv6: bool) -> Result<(), Error> {
    if graph.network().pool6.is_some() && !has_ipv6 { Err(Error::NoIpv6) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use netns_policy::diagnostic::Source;

    use super::*;

    #[test]
    fn only_a_policy_with_an_ipv6_pool_needs_a_kernel_with_ipv6() {
        let graph = |ipv6: bool| {
            let text = format!("schema = 1\n[network]\nname = \"n\"\nipv6 = {ipv6}\n[service.a]\n");
            AllowGraph::parse(&[Source::toml("policy.toml", text)]).expect("it is a policy").graph
        };
        assert!(matches!(ipv6_is_there(&graph(true), false), Err(Error::NoIpv6)));
        for (wanted, there) in [(true, true), (false, true), (false, false)] {
            ipv6_is_there(&graph(wanted), there).expect("it has what it needs");
        }
    }
}
