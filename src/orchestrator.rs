//! The verbs of the library.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ipnetwork::IpNetwork;
use netns_policy::address::{AddressBook, AddressError, AddressPlan};
use netns_policy::ask::Ask;
use netns_policy::changes::Change;
use netns_policy::desired::{Desired, HostRoute, Leg, Wire};
use netns_policy::diagnostic::{PolicyErrors, Warning};
use netns_policy::graph::{AllowGraph, Service};
use netns_policy::layout::LayoutError;
use netns_policy::name::NetworkName;
use netns_policy::network::HostNetwork;
use netns_policy::observed::Observed;
use netns_policy::plan::{Plan, Step};
use netns_policy::port::Protocol;
use netns_policy::prove::{Counterexample, Proof, prove, prove_observed};
use netns_policy::ruleset::compile::Capabilities;
use netns_policy::topology::{Place, fabric_netns, is_netns_of};
use netns_policy::trial::Trial;
use thiserror::Error;

use crate::kernel::listener::listeners;
use crate::kernel::nft::NftError;
use crate::kernel::probe::{self, ProbeError};
use crate::kernel::sysctl::Sysctl;
use crate::kernel::{Kernel, KernelError, Linux, netns};
use crate::own;
use crate::policy::{self, Editable, Found, ReadErrors};
use crate::reconcile;
use crate::report::{Report, StepError};
use crate::rewrite::RewriteError;
use crate::status::Status;
use crate::store::{Guard, Store, StoreError};

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

/// Why a verb failed.
#[derive(Debug, Error)]
pub enum Error {
    /// Addresses cannot be given out.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A namespace with a name of ours that we did not make.
    #[error("the namespace {netns} exists and is not ours")]
    Foreign {
        /// Its name.
        netns: String,
    },
    /// A link of the host with a name of ours that we did not make.
    #[error("the link {link} exists and is not ours")]
    ForeignLink {
        /// Its name.
        link: String,
    },
    /// The policy has an IPv6 pool and the kernel no IPv6.
    #[error("the policy gives the network IPv6 addresses, and this kernel has no IPv6")]
    NoIpv6,
    /// The demonstration did not show what it promises.
    #[error("the demo failed: {what}")]
    Demo {
        /// What was seen.
        what: String,
    },
    /// The kernel cannot be asked.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// There is no policy, and neither what is recorded nor what exists says which network is meant.
    #[error("which network? there is no policy, and {} networks are known", known.len())]
    NoNetwork {
        /// The networks that are known.
        known: Vec<NetworkName>,
    },
    /// The policy file of ours cannot be changed.
    #[error(transparent)]
    Own(#[from] crate::own::OwnError),
    /// The policy is wrong.
    #[error("the policy is refused")]
    Policy(#[from] PolicyErrors),
    /// The kernel lacks something.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The policy cannot be read.
    #[error(transparent)]
    Read(#[from] ReadErrors),
    /// A policy file cannot be laid out.
    #[error(transparent)]
    Layout(LayoutError),
    /// A file of the operator's cannot be rewritten.
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    /// There is no sandbox to be had.
    #[error(transparent)]
    Sandbox(Box<crate::sandbox::SandboxError>),
    /// The host reaches somebody else at addresses of the pool: taking them would cut it off from there.
    #[error("the pool {pool} overlaps {taken}, which is a network of this host")]
    PoolTaken {
        /// The pool.
        pool: IpNetwork,
        /// The prefix or address of the host.
        taken: IpNetwork,
        /// One of that size which overlaps nothing.
        free: Option<IpNetwork>,
    },
    /// A step failed; what was done until then is in the report.
    #[error("the turn was cut short after {} of its steps", report.done.len())]
    Step {
        /// What was done.
        report: Box<Report>,
        /// What failed.
        #[source]
        source: Box<StepError>,
    },
    /// Everything is done but what services spoil in their own namespaces.
    #[error("everything is done but what services spoil in their own namespaces: {}", steps_of(spoiled))]
    Spoiled {
        /// What was done.
        report: Box<Report>,
        /// What was spoiled, again and again.
        spoiled: Vec<StepError>,
    },
    /// The state directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The caller may not do this.
    #[error("{verb} needs {capability}")]
    Unprivileged {
        /// What was to be done.
        verb: &'static str,
        /// What is missing.
        capability: &'static str,
    },
    /// The caller asked for something that there is not.
    #[error("{message}")]
    Usage {
        /// What is wrong with it.
        message: String,
        /// What to ask for instead.
        help: Option<String>,
    },
    /// The connections cannot be tried.
    #[error(transparent)]
    Verify(Box<crate::matrix::MatrixError>),
    /// The compiled rules would do another thing than the policy says: a mistake of ours, and nothing is changed.
    #[error("the compiled rules do not do what the policy says")]
    Unproved(#[source] Box<Counterexample>),
    /// The rules that the kernel holds do another thing than the policy says.
    #[error("the rules in the kernel do not do what the policy says")]
    Refuted(#[source] Box<Counterexample>),
    /// A file that was asked for cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What was made is not what was to be made.
    #[error("{} steps are still to do after the turn, the first: {first}", left)]
    Unfinished {
        /// How many.
        left: usize,
        /// The first.
        first: Box<Step>,
    },
}

impl From<LayoutError> for Error {
    fn from(error: LayoutError) -> Self {
        match error {
            LayoutError::Policy(errors) => Self::Policy(errors),
            other => Self::Layout(other),
        }
    }
}

fn steps_of(spoiled: &[StepError]) -> String {
    let said = spoiled.iter().map(|failed| match &failed.source {
        // A step about many: whose wires they are.
        source @ KernelError::Spoiled { .. } => format!("{} ({source})", failed.step),
        _ => failed.step.to_string(),
    });
    said.collect::<Vec<_>>().join(", ")
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
/// (the one that comes second to change something is told [`StoreError::Busy`]).
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
        let checked = AllowGraph::parse(&sources)?;
        Ok(Checked { graph: checked.graph, asks: checked.asks, warnings: checked.warnings, files, editable })
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
        let checked = self.check()?;
        let capabilities = probe::capabilities()?;
        let store = self.store(&checked.graph.network().name);
        self.planned(checked, &store, capabilities)
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

    /// Makes it so, once it is proved that it is what the policy says. A second call does nothing.
    ///
    /// # Errors
    ///
    /// As [`Orchestrator::plan`]; [`Error::Read`] when others can edit the policy ([`Editable`]); [`Error::Step`] when the
    /// kernel refuses a step: then nothing is open that neither the old nor the new policy allows, and the next call goes
    /// on from there.
    pub fn apply(&self) -> Result<Applied, Error> {
        let checked = self.check_guarded()?;
        let capabilities = probe::capabilities()?;
        let store = self.store(&checked.graph.network().name);
        let _guard = store.lock()?;
        self.remove_leftovers(&checked.graph.network().name)?;
        let mut planned = self.planned(checked, &store, capabilities)?;
        planned.proof = Some(proved(&planned)?);
        if self.adopt_sysctls(&planned, &store)? {
            planned = self.planned_again(planned, &store, capabilities)?;
        }
        let changes = planned.plan.changes.clone();
        let mut report = Report::default();
        for turn in 1.. {
            self.carry_out(&planned, &store, &mut report, turn == TURNS)?;
            planned = self.planned_again(planned, &store, capabilities)?;
            match planned.plan.steps.first() {
                None => break,
                // Somebody inside spoils it each time; everybody else is served.
                Some(_) if turn == TURNS && !report.spoiled.is_empty() => {
                    let spoiled = std::mem::take(&mut report.spoiled);
                    return Err(Error::Spoiled { report: Box::new(report), spoiled });
                }
                Some(step) if turn == TURNS => {
                    if let Some(spoiled) = reconcile::undone_inside(&planned.plan) {
                        return Err(Error::Spoiled { report: Box::new(report), spoiled });
                    }
                    return Err(Error::Unfinished { left: planned.plan.steps.len(), first: Box::new(step.clone()) });
                }
                Some(_) => {}
            }
        }
        let notes = self.notes(&planned);
        let proof = planned.proof.expect("every turn is planned with its proof");
        Ok(Applied { checked: planned.checked, addresses: planned.addresses, changes, report, notes, proof })
    }

    /// Removes all that is ours; the recorded addresses stay, so that the services get them again.
    ///
    /// # Errors
    ///
    /// [`Error::NoNetwork`] when neither a policy nor the state says which; [`Error::Step`] as for apply.
    pub fn down(&self) -> Result<Removed, Error> {
        self.remove(self.network()?)
    }

    /// Removes all that is ours of this network, as [`Orchestrator::down`] does. Asks for no policy.
    ///
    /// # Errors
    ///
    /// [`Error::Step`] as for apply.
    pub fn remove(&self, network: NetworkName) -> Result<Removed, Error> {
        let store = self.store(&network);
        let mut notes = Vec::new();
        let _guard = lock_for_down(&store, &mut notes)?;
        self.remove_leftovers(&network)?;
        let mut linux = self.linux_with(&network, sysctls_for_down(&store, &mut notes));
        let mut report = Report::default();
        let mut first = None;
        for turn in 1.. {
            let observed = linux.observe()?;
            let plan = Plan::between(&observed, &Desired::nothing(&network));
            first.get_or_insert_with(|| plan.clone());
            match plan.steps.first() {
                None => break,
                Some(step) if turn > TURNS => {
                    return Err(Error::Unfinished { left: plan.steps.len(), first: Box::new(step.clone()) });
                }
                Some(_) => {
                    let recording = Recording::lenient(&linux, &store);
                    run(&recording, &plan, &mut report, turn == TURNS)?;
                    notes.extend(recording.failed.take());
                }
            }
            // What was set back is no longer to be set back, whether that could be recorded or not.
            for step in &report.done {
                if let Step::RestoreSysctl { path, .. } = step {
                    linux.before.remove(path);
                }
            }
        }
        crate::drift::cookies::forget(&linux);
        notes.dedup();
        Ok(Removed { network, plan: first.unwrap_or_default(), report, notes })
    }

    /// Pins that were never finished.
    fn remove_leftovers(&self, network: &NetworkName) -> Result<(), Error> {
        let directory = &self.options.netns;
        netns::remove_leftovers(directory, |name| is_netns_of(network, name)).map_err(|source| {
            KernelError::File { action: "remove what is left of a pin in", path: directory.clone(), source }.into()
        })
    }

    /// Services, addresses, edges with their counters, drift.
    ///
    /// # Errors
    ///
    /// As [`Orchestrator::plan`].
    pub fn status(&self) -> Result<Status, Error> {
        let planned = self.look()?;
        let mut status = Status::of(&planned, &self.extra(&planned)?);
        let linux = self.kernel(&planned.desired.network)?;
        for service in planned.checked.graph.services() {
            status.warnings.extend(self.unreachable(&linux, &planned, service)?);
        }
        Ok(status)
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
        pool_is_free(graph, &observed)?;
        let addresses = AddressPlan::assign(graph, book, now(), self.options.renumber)?;
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

    /// What another network has set already is not as it was before us: its record of that becomes ours too, so that
    /// whichever goes last sets it back. Says whether there was something.
    fn adopt_sysctls(&self, planned: &Planned, store: &Store) -> Result<bool, Error> {
        let mut before = store.sysctls()?;
        let others = store.sysctls_of_others(|other| is_up(&self.options.netns, other))?;
        let desired = &planned.desired;
        let shared = desired.sysctls.iter().filter_map(|(path, _)| Some((path, others.get(path)?)));
        // With what the kernel tells of a record that was lost.
        let shared = shared.chain(&planned.observed.host.before);
        let missing: Vec<_> = shared.filter(|(path, _)| !before.contains_key(*path)).collect();
        let some = !missing.is_empty();
        before.extend(missing.into_iter().map(|(path, value)| (path.clone(), value.clone())));
        if some {
            store.record_sysctls(&before)?;
        }
        Ok(some)
    }

    fn carry_out(&self, planned: &Planned, store: &Store, report: &mut Report, last: bool) -> Result<(), Error> {
        if store.addresses()? != planned.book {
            // Before anything is made with them: an index that was used once must never be given out again.
            store.record_addresses(&planned.book)?;
        }
        let linux = self.linux(&planned.desired.network, store)?;
        let done = run(&Recording::strict(&linux, store), &planned.plan, report, last);
        crate::drift::cookies::record(&linux, &planned.plan);
        done
    }

    fn notes(&self, planned: &Planned) -> Vec<Note> {
        let graph = &planned.checked.graph;
        let exposures = graph.exposures().iter().map(|exposure| Note::NotServed { exposure: exposure.to_string() });
        exposures.chain(crate::uplink::notes(planned, &self.options.netns)).collect()
    }
}

/// What `down` did.
#[derive(Debug)]
pub struct Removed {
    /// The network that was taken down.
    pub network: NetworkName,
    /// What was planned.
    pub plan: Plan,
    /// What was done.
    pub report: Report,
    /// What the operator should know of how it was done.
    pub notes: Vec<String>,
}

/// Whether another network is there: its fabric has a pin.
fn is_up(pins: &Path, network: &NetworkName) -> bool {
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
    let addresses = AddressPlan::assign(graph, book, now(), false)?;
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

/// Taking down must not depend on a disk that takes no more writes.
fn lock_for_down(store: &Store, notes: &mut Vec<String>) -> Result<Option<Guard>, Error> {
    let error = match store.lock() {
        Ok(guard) => return Ok(Some(guard)),
        Err(busy @ StoreError::Busy { .. }) => return Err(busy.into()),
        Err(error) => error,
    };
    notes.push(format!("{}: what was removed is not recorded", told(&error)));
    match store.lock_as_it_is() {
        Ok(guard) => Ok(Some(guard)),
        Err(busy @ StoreError::Busy { .. }) => Err(busy.into()),
        Err(_) => Ok(None),
    }
}

fn sysctls_for_down(store: &Store, notes: &mut Vec<String>) -> BTreeMap<String, String> {
    let error = match store.sysctls() {
        Ok(before) => return before,
        Err(error) => error,
    };
    let aside = match (&error, store.set_sysctls_aside()) {
        (StoreError::Corrupt { .. }, Ok(aside)) => format!("; it is {} now", aside.display()),
        _ => String::new(),
    };
    notes.push(format!(
        "{}{aside}: only forwarding that our rules tell of is set back; see `sysctl -a -r forwarding`",
        told(&error)
    ));
    BTreeMap::new()
}

/// With its cause, in one line.
fn told(error: &StoreError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn pool_is_free(graph: &AllowGraph, observed: &Observed) -> Result<(), Error> {
    let network = graph.network();
    let pools = [Some(IpNetwork::V4(network.pool4)), network.pool6.map(IpNetwork::V6)];
    let host = &observed.host;
    let taken: Vec<IpNetwork> =
        host.on_link.iter().copied().chain(host.addresses.iter().map(|a| (*a).into())).collect();
    let all: Vec<IpNetwork> = taken.iter().chain(&network.lan).copied().collect();
    for pool in pools.into_iter().flatten() {
        if let Some(taken) = taken.iter().find(|taken| overlap(**taken, pool)) {
            return Err(Error::PoolTaken { pool, taken: *taken, free: free_pool(pool, &all) });
        }
    }
    Ok(())
}

/// A pool as large as this one, in 10.0.0.0/8, that overlaps none of `taken`; the one we use unasked comes first.
fn free_pool(like: IpNetwork, taken: &[IpNetwork]) -> Option<IpNetwork> {
    let length = like.prefix();
    let candidates = (231..=255u8).chain(0..231).filter(|_| like.is_ipv4() && length >= 16);
    let mut candidates =
        candidates.filter_map(|second| IpNetwork::new(std::net::Ipv4Addr::new(10, second, 0, 0).into(), length).ok());
    candidates.find(|pool| !taken.iter().any(|taken| overlap(*taken, *pool)))
}

fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
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

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// One turn. What a sysctl was is recorded before it is set, and forgotten after it was set back.
fn run(recording: &Recording, plan: &Plan, report: &mut Report, last: bool) -> Result<(), Error> {
    let mut turn = reconcile::turn(recording, plan);
    report.done.append(&mut turn.done);
    report.spoiled = turn.spoiled;
    match turn.failed {
        None => Ok(()),
        // Somebody else changed rules in a namespace of ours: look again, and do what is left.
        Some(StepError { source: KernelError::Nft(NftError::GenerationChanged), .. }) if !last => Ok(()),
        Some(failed) => Err(Error::Step { report: Box::new(std::mem::take(report)), source: Box::new(failed) }),
    }
}

struct Recording<'a> {
    linux: &'a Linux,
    store: &'a Store,
    /// Whether to go on where nothing can be recorded.
    lenient: bool,
    /// What could not be recorded, if that is no failure.
    failed: RefCell<Vec<String>>,
}

impl<'a> Recording<'a> {
    fn strict(linux: &'a Linux, store: &'a Store) -> Self {
        Self { linux, store, lenient: false, failed: RefCell::default() }
    }

    fn lenient(linux: &'a Linux, store: &'a Store) -> Self {
        Self { lenient: true, ..Self::strict(linux, store) }
    }

    fn record(&self, change: impl FnOnce(&mut BTreeMap<String, String>)) -> Result<(), KernelError> {
        let recorded = self.store.sysctls().and_then(|mut before| {
            change(&mut before);
            self.store.record_sysctls(&before)
        });
        match recorded {
            Err(error) if self.lenient => {
                self.failed.borrow_mut().push(format!("{}: what was set back stays recorded", told(&error)));
                Ok(())
            }
            recorded => recorded.map_err(failed_to_record),
        }
    }

    fn restore(&self, step: &Step, path: &str, value: &str) -> Result<(), KernelError> {
        let others = match self.store.sysctls_of_others(|other| is_up(&self.linux.netns_directory, other)) {
            Err(_) if self.lenient => BTreeMap::new(),
            others => others.map_err(failed_to_record)?,
        };
        // Another network needs it still, and will set it back to the same.
        if !others.contains_key(path) && !self.is_needed_by_the_host(path, value) {
            self.linux.apply(step)?;
        }
        self.record(|before| {
            before.remove(path);
        })
    }

    /// Somebody has switched IPv4 forwarding on for every link meanwhile, so ours is no longer what makes it so.
    fn is_needed_by_the_host(&self, path: &str, value: &str) -> bool {
        let of_link = path.starts_with("net/ipv4/conf/") && path.ends_with("/forwarding") && value == "0";
        let on = Sysctl::ip_forward().read().is_ok_and(|value| value == "1");
        of_link && on && self.store.found_ip_forward_off().unwrap_or(true)
    }
}

fn failed_to_record(error: StoreError) -> KernelError {
    KernelError::File { action: "record", path: "sysctls.json".into(), source: io::Error::other(error) }
}

impl Kernel for Recording<'_> {
    fn observe(&self) -> Result<Observed, KernelError> {
        self.linux.observe()
    }

    fn apply(&self, step: &Step) -> Result<(), KernelError> {
        match step {
            Step::SetSysctl { path, .. } => {
                let value = Sysctl::at(path).read().ok();
                self.record(|before| {
                    if let Some(value) = value {
                        before.entry(path.clone()).or_insert(value);
                    }
                })?;
                self.linux.apply(step)
            }
            Step::RestoreSysctl { path, value } => self.restore(step, path, value),
            _ => self.linux.apply(step),
        }
    }
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
