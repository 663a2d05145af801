//! `nsctl expose` and `unexpose`: ways in on a port of the machine, written down and taken back.
//!
//! A way in is written into the one file that is ours ([`Own`]), as `[extend.SERVICE.expose.lan]` or `.port`. It is for the
//! service as it is defined now: where a fragment defines it, its name stands beside, and nobody else inherits the way by
//! taking the service's name.
//!
//! # Invariants
//!
//! - The policy with the change is checked before anything is written; a file that a person wrote is never changed.
//! - What cannot be applied is not left written.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use netns_policy::Checked;
use netns_policy::diagnostic::Warning;
use netns_policy::exposure::Exposure;
use netns_policy::graph::{AllowGraph, Location};
use netns_policy::name::FragmentName;

use crate::orchestrator::{Applied, Error, How, Options, Orchestrator};
use crate::own::{Own, Written};

mod choice;
mod entry;
pub mod listed;
mod refusal;

use choice::{is_free, port_of, service_of};
use entry::{Entry, Unwritable};
use refusal::{exposed_already, not_ours, not_written_here, other_relay, usage};

/// The two ways that stand on a port of the machine.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Side {
    /// `expose.lan`: from the prefixes of `[network] lan`.
    Lan,
    /// `expose.port`: from everywhere.
    Port,
}

impl Side {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Lan, Self::Port];

    /// The word for it in the language.
    pub fn word(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Port => "port",
        }
    }
}

/// How a relay hands a connection on to the service.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Handover {
    /// As it is.
    Bare,
    /// Behind a header of the PROXY protocol, version 2, which names the client.
    ProxyV2,
}

/// A way in that is wanted.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The service.
    pub service: String,
    /// From where.
    pub side: Side,
    /// The port of the machine; the service's own number when left out.
    pub outside: Option<u16>,
    /// The name of the service's port; left out where there is only one.
    pub port: Option<String>,
    /// Through a relay, or straight to the service.
    pub relay: Option<Handover>,
}

/// Ways in that are to go.
#[derive(Clone, Debug)]
pub struct Closing {
    /// The service.
    pub service: String,
    /// Which of its ways.
    pub which: Which,
}

/// Which ways in of a service.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Which {
    /// The only one.
    Only,
    /// Those of this side, or the one of them on that port of the machine.
    Of(Side, Option<u16>),
    /// All on ports of the machine.
    All,
}

/// A way in on a port of the machine.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Entrance {
    /// From where: `lan` or `port`.
    pub way: String,
    /// The port of the machine.
    pub outside: u16,
    /// The service.
    pub service: String,
    /// The name of its port.
    pub port: String,
}

impl fmt::Display for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<7} :{} -> {}:{}", self.way, self.outside, self.service, self.port)
    }
}

/// What a change is.
#[derive(Debug)]
pub struct Changed {
    /// The file of ours that says it.
    pub path: PathBuf,
    /// Whether commands with the same `--policy` read that file.
    pub is_heard: bool,
    /// Ways that come.
    pub opened: Vec<Entrance>,
    /// Ways that go.
    pub closed: Vec<Entrance>,
    /// Ways of the service that stay because a person wrote them, and where.
    pub left: Vec<(Entrance, Location)>,
    /// The file, when it was written.
    pub written: Option<Written>,
    /// Whether the file says, or would say, anything else than before.
    pub differs: bool,
    /// What is doubtful of the policy with it, and was not before.
    pub warnings: Vec<Warning>,
}

/// An apply that failed, and what became of the change.
#[derive(Debug)]
pub struct NotApplied {
    /// Why it failed.
    pub error: Error,
    /// Whether the file is as it was.
    pub file: Result<(), Error>,
}

/// Writes a way in down, unless `dry_run`.
///
/// # Errors
///
/// When there is no such service or port, when the port of the machine is taken, when the policy would be refused with it,
/// when the file cannot be written. Nothing is changed then.
pub fn open(options: &Options, into: Option<&Path>, wanted: &Opening, dry_run: bool) -> Result<Changed, Error> {
    let mut own = Own::open(options, into, dry_run)?;
    let before = own.policy_before()?;
    let service = service_of(&before.graph, &wanted.service)?.clone();
    let (name, ports) = port_of(&service, wanted)?;
    if let Some(there) = on_host(&before.graph).find(|there| there.service == service.name && there.ports == ports) {
        let is_it = there.way.word() == wanted.side.word()
            && wanted.outside.is_none_or(|outside| there.way.external() == Some(outside));
        // What our file says of a relay is known; a person's has to be as it is wanted.
        let ours = Entry::all(&own.document, service.name.as_str());
        let ours = ours.iter().find(|entry| entry.side == wanted.side && there.way.external() == Some(entry.outside));
        if !is_it || ours.map_or(wanted.relay.is_some(), |entry| entry.relay != wanted.relay) {
            return Err(exposed_already(&own, there));
        }
        // It is as it is wanted, whoever wrote it.
    } else {
        let outside = wanted.outside.unwrap_or_else(|| ports.lo());
        is_free(&before.graph, wanted, (outside, &name), ports.protocol())?;
        let entry = Entry { side: wanted.side, outside, port: name, relay: wanted.relay };
        let fragment = service.fragment.as_ref().map(FragmentName::as_str);
        entry.write_down(&mut own.document, service.name.as_str(), fragment).map_err(|why| match why {
            Unwritable::NotOurs => not_ours(),
            Unwritable::OtherRelay => other_relay(wanted),
        })?;
    }
    Ok(Changed { left: Vec::new(), ..finish(own, Some(before), Vec::new(), dry_run)? })
}

/// Takes ways in out of our file, unless `dry_run`. Works on a policy that is refused, too.
///
/// # Errors
///
/// When nothing of it stands in our file, with the place where it does stand; when the policy would be refused without it;
/// when the file cannot be written. Nothing is changed then.
pub fn close(options: &Options, into: Option<&Path>, unwanted: &Closing, dry_run: bool) -> Result<Changed, Error> {
    let mut own = Own::open(options, into, dry_run)?;
    let before = own.policy_before().ok();
    let name = unwanted.service.as_str();
    let ours: Vec<Entry> = Entry::all(&own.document, name);
    let meant: Vec<&Entry> = ours.iter().filter(|entry| unwanted.which.means(entry.side, entry.outside)).collect();
    if meant.is_empty() {
        return Err(not_written_here(&own, before.as_ref(), unwanted));
    }
    if unwanted.which == Which::Only && meant.len() > 1 {
        let all: Vec<String> = meant.iter().map(|entry| format!("--{} {}", entry.side.word(), entry.outside)).collect();
        let help = format!("say which: {}; or --all", all.join(", "));
        return Err(usage(format!("{name} is exposed in {} ways", meant.len()), help));
    }
    let taken = meant.iter().map(|entry| entry.entrance(name)).collect();
    for entry in meant {
        entry.take_out(&mut own.document, name);
    }
    let unwanted = unwanted.clone();
    let mut changed = finish(own, before, taken, dry_run)?;
    changed.left.retain(|(left, _)| {
        let side = Side::ALL.into_iter().find(|side| side.word() == left.way);
        left.service == unwanted.service && side.is_some_and(|side| unwanted.which.means(side, left.outside))
    });
    Ok(changed)
}

/// Closes every way in of every service, or lets them be open again that are written, unless `dry_run`.
///
/// # Errors
///
/// As for [`open`].
pub fn switch(options: &Options, into: Option<&Path>, is_off: bool, dry_run: bool) -> Result<Changed, Error> {
    let mut own = Own::open(options, into, dry_run)?;
    let before = own.policy_before().ok();
    entry::close_all(&mut own.document, is_off).ok_or_else(not_ours)?;
    Ok(Changed { left: Vec::new(), ..finish(own, before, Vec::new(), dry_run)? })
}

impl Which {
    fn means(self, side: Side, outside: u16) -> bool {
        match self {
            Self::Only | Self::All => true,
            Self::Of(of, number) => of == side && number.is_none_or(|number| number == outside),
        }
    }
}

/// Applies what was written, and puts it back when that fails.
///
/// # Errors
///
/// As [`Orchestrator::apply`]. What had been begun is taken back as far as the kernel lets it.
///
/// What services spoil in their own namespaces is in the report, and no reason to open a way again.
pub fn make_so(nsctl: &Orchestrator, written: Option<Written>, how: &How) -> Result<Applied, Box<NotApplied>> {
    nsctl.apply_but_for(how).map_err(|error| {
        let file = written.map_or(Ok(()), Written::put_back);
        if file.is_ok() && !matches!(error, Error::Policy(_) | Error::Read(_)) {
            // A step may have been done already. What cannot be taken back now, the next apply finds.
            nsctl.apply_but_for(&How::default()).ok();
        }
        Box::new(NotApplied { error, file })
    })
}

fn on_host(graph: &AllowGraph) -> impl Iterator<Item = &Exposure> {
    graph.written_exposures().iter().filter(|exposure| Side::ALL.iter().any(|side| side.word() == exposure.way.word()))
}

fn entrance(exposure: &Exposure) -> Entrance {
    Entrance {
        way: exposure.way.word().to_owned(),
        outside: exposure.way.external().unwrap_or_default(),
        service: exposure.service.to_string(),
        port: exposure.port_name.to_string(),
    }
}

/// Checks the policy as it would be, tells the ways that come and go, and writes the file unless `dry_run`.
fn finish(own: Own, before: Option<Checked>, taken: Vec<Entrance>, dry_run: bool) -> Result<Changed, Error> {
    let after = own.policy_after()?;
    let ways = |graph: &AllowGraph| -> BTreeSet<Entrance> { on_host(graph).map(entrance).collect() };
    let doubted: BTreeSet<String> =
        before.iter().flat_map(|checked| &checked.warnings).map(ToString::to_string).collect();
    let (old, new) = (before.map(|checked| ways(&checked.graph)), ways(&after.graph));
    // Of a policy that was refused nobody knows what was open; what was taken out of the file is known.
    let closed = old.as_ref().map_or(taken, |old| old.difference(&new).cloned().collect());
    let opened = old.map_or_else(Vec::new, |old| new.difference(&old).cloned().collect());
    let is_left = |exposure: &&Exposure| Path::new(&exposure.at.file) != own.path();
    let left = on_host(&after.graph).filter(is_left).map(|there| (entrance(there), there.at.clone())).collect();
    let (path, is_heard, differs) = (own.path().to_owned(), own.is_heard(), own.differs());
    let mut warnings = after.warnings;
    warnings.retain(|warning| !doubted.contains(&warning.to_string()));
    let written = if !dry_run && differs { Some(own.write()?) } else { None };
    Ok(Changed { path, is_heard, opened, closed, left, written, differs, warnings })
}

/// The addresses at which the machine can be reached from outside, as far as they can be read: neither loopback nor
/// link-local, and none of the network's own.
pub fn machine_addresses(graph: &AllowGraph) -> Vec<IpAddr> {
    let Ok(addresses) = crate::kernel::netlink::Rtnl::open().and_then(|mut rtnl| rtnl.addresses()) else {
        return Vec::new();
    };
    let network = graph.network();
    let is_ours = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => network.pool4.contains(ip),
        IpAddr::V6(ip) => network.pool6.is_some_and(|pool| pool.contains(ip)),
    };
    let is_near = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local(),
    };
    let mut all: Vec<IpAddr> = addresses.iter().map(|one| one.address.ip()).collect();
    all.retain(|ip| !is_near(*ip) && !is_ours(*ip));
    all.sort();
    all.dedup();
    all
}
