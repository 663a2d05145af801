//! From what was read to what it means. Nothing here looks at anything.

use std::fmt;
use std::net::IpAddr;

use netns_policy::port::Protocol;
use netns_policy::topology::Place;

use super::{Met, Stranger};

/// Everything that is known of one attempt.
#[derive(Debug)]
pub(super) struct Evidence<'a> {
    pub(super) gap: Option<Gap>,
    pub(super) allowed: bool,
    pub(super) loopback: bool,
    pub(super) outside: bool,
    pub(super) protocol: Protocol,
    pub(super) met: Met,
    /// The caller's own lock counted a refusal of exactly this target.
    pub(super) own_refused: bool,
    /// The caller's own lock counted something beyond its limits.
    pub(super) limited: bool,
    /// An element of the panel for this right counted.
    pub(super) panel_passed: bool,
    /// The panel refused something that came out of the caller's wire.
    pub(super) panel_refused: bool,
    /// The lock at the other end counted something that it did not let in; of the gateway, out.
    pub(super) there_refused: bool,
    /// Connection tracking of the caller knows the attempt; nothing where it cannot be asked.
    pub(super) left: Option<bool>,
    /// Connection tracking at the other end knows it.
    pub(super) entered: Option<bool>,
    pub(super) audience: Audience,
    /// What of the host stops what leaves, each with the cure.
    pub(super) blocked: Vec<String>,
    pub(super) from: String,
    pub(super) to: String,
    pub(super) strangers: &'a [Stranger],
}

/// What is missing of the way, before anything is tried.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Gap {
    /// There is no fabric.
    NotApplied,
    /// No right of the policy gives this place a wire.
    Unwired(Place),
    /// The namespace is not there.
    Namespace(Place),
    /// The wire is not there.
    Wire(Place),
    /// One end of it is down.
    Down(Place, &'static str),
    /// It is not as it was made.
    Changed(Place),
}

/// Who hears what comes to the target's port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Audience {
    /// Nobody.
    Nobody {
        /// How many processes live in the namespace.
        inside: Option<usize>,
        /// Processes of the service's unit that do not.
        astray: Vec<i32>,
        /// Somebody listens on the port where this command runs.
        on_host: bool,
    },
    /// Somebody on loopback only.
    Loopback(Vec<IpAddr>),
    /// Somebody in the other family only.
    OtherFamily(Vec<IpAddr>),
    /// Somebody on another address only.
    OtherAddress(Vec<IpAddr>),
    /// Somebody on `::`, which may or may not mean IPv4 as well.
    PerhapsBoth,
    /// Somebody.
    Listens,
    /// It cannot be asked.
    Unknown,
}

/// What became of an attempt.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// A connection was made, or a datagram answered. With `false` the policy does not allow it.
    Connected(bool),
    /// Something is missing of the way.
    Missing(Gap),
    /// The caller's own lock refused it. With `true` the policy allows it.
    OwnLock(bool),
    /// The caller is beyond its `limits`.
    Limit,
    /// The panel refused it. With `true` the policy allows it.
    Panel(bool),
    /// The lock of the target did not let it in; of the gateway, out. With `true` the policy allows it.
    FarLock(bool),
    /// It arrived, and nobody listens there as it ought to.
    Unheard(Audience),
    /// Rules of others stopped it.
    Stranger(Vec<Stranger>),
    /// It arrived at a program that did not answer.
    Unanswered,
    /// It left the machine, and nothing came back.
    Gone,
    /// It left the machine, and somebody outside refused it.
    RefusedOutside,
    /// Rules or routes of the host stopped it, each with the cure.
    Blocked(Vec<String>),
    /// There is no way to such an address from there. With `true` the policy allows it.
    NoRoute(bool),
    /// Nothing that was read explains it. Where it was seen last, and whose rules stand behind.
    Lost(&'static str),
}

pub(super) fn judge(evidence: &Evidence) -> Verdict {
    let e = evidence;
    if let Some(gap) = &e.gap {
        return Verdict::Missing(gap.clone());
    }
    match e.met {
        Met::Answer => return Verdict::Connected(e.allowed),
        Met::Nothing(_) => return Verdict::NoRoute(e.allowed),
        Met::Refusal(_) | Met::Silence | Met::Untried => {}
    }
    if e.loopback {
        return at_the_target(e);
    }
    if e.own_refused && !e.panel_passed {
        return Verdict::OwnLock(e.allowed);
    }
    if e.limited && !e.panel_passed {
        return Verdict::Limit;
    }
    if e.panel_passed {
        return if e.outside { beyond_the_gateway(e) } else { at_the_target(e) };
    }
    if e.panel_refused {
        return Verdict::Panel(e.allowed);
    }
    // A reset that is the first answer ends what connection tracking knew, so only silence says where it stopped.
    match (e.met, e.left) {
        (Met::Silence, Some(true)) => stopped(e, "fabric", &["ingress"], "after it left the caller's namespace"),
        (_, Some(false)) => {
            let hooks = ["output", "postrouting", "egress"];
            stopped(e, &e.from, &hooks, "before it left the caller's namespace")
        }
        _ => stopped(e, "fabric", &["ingress"], "before the panel"),
    }
}

fn at_the_target(e: &Evidence) -> Verdict {
    let inward = ["ingress", "prerouting", "input"];
    if e.met == Met::Silence && e.entered == Some(false) {
        let stopped = [stopping(e, "fabric", &["egress"]), stopping(e, &e.to, &inward)].concat();
        return match () {
            // Its counter may have risen for somebody else: where it has no reason to refuse, others have.
            () if e.there_refused && (stopped.is_empty() || !e.allowed) => Verdict::FarLock(e.allowed),
            () if !stopped.is_empty() => Verdict::Stranger(stopped),
            () => Verdict::Lost("before it came into the target's namespace"),
        };
    }
    match (&e.audience, e.met) {
        (Audience::Listens | Audience::PerhapsBoth, Met::Silence) if e.protocol == Protocol::Udp => Verdict::Unanswered,
        (Audience::Listens | Audience::PerhapsBoth, Met::Silence) => {
            let back = on_the_way_back(e);
            if back.is_empty() { Verdict::Unanswered } else { Verdict::Stranger(back) }
        }
        (Audience::PerhapsBoth, Met::Refusal(_)) => Verdict::Unheard(Audience::OtherFamily(vec![[0u16; 8].into()])),
        (Audience::Listens | Audience::PerhapsBoth, _) => stopped(e, &e.to, &inward, "at the target, which listens"),
        (Audience::Unknown, Met::Refusal(_)) => Verdict::Lost("at the target, whose listeners cannot be asked"),
        // Nobody there would have said so at once.
        (Audience::Nobody { .. }, Met::Silence) => {
            let back = on_the_way_back(e);
            if back.is_empty() { Verdict::Unheard(e.audience.clone()) } else { Verdict::Stranger(back) }
        }
        (audience, _) => Verdict::Unheard(audience.clone()),
    }
}

/// Strangers that an answer meets.
fn on_the_way_back(e: &Evidence) -> Vec<Stranger> {
    let (outward, inward) = (["output", "postrouting", "egress"], ["ingress", "prerouting", "input"]);
    let places = [(e.to.as_str(), &outward[..]), ("fabric", &["ingress", "egress"]), (e.from.as_str(), &inward)];
    places.iter().flat_map(|(place, hooks)| stopping(e, place, hooks)).collect()
}

fn beyond_the_gateway(e: &Evidence) -> Verdict {
    match (e.met, e.entered) {
        _ if e.there_refused => Verdict::FarLock(e.allowed),
        _ if !e.blocked.is_empty() => Verdict::Blocked(e.blocked.clone()),
        (Met::Refusal(_), _) => Verdict::RefusedOutside,
        (_, Some(false)) => {
            stopped(e, "uplink", &["ingress", "prerouting", "forward", "postrouting"], "in the gateway")
        }
        _ => Verdict::Gone,
    }
}

/// Strangers that stand there, else that it was lost there.
fn stopped(e: &Evidence, place: &str, hooks: &[&str], place_in_words: &'static str) -> Verdict {
    let strangers = stopping(e, place, hooks);
    if strangers.is_empty() { Verdict::Lost(place_in_words) } else { Verdict::Stranger(strangers) }
}

fn stopping(e: &Evidence, place: &str, hooks: &[&str]) -> Vec<Stranger> {
    let stands = |one: &&Stranger| one.place == place && one.stops_by.is_some() && hooks.contains(&one.hook);
    e.strangers.iter().filter(stands).cloned().collect()
}

impl Verdict {
    /// One word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Connected(true) => "connected",
            Self::Connected(false) => "connected-without-a-right",
            Self::Missing(Gap::NotApplied) => "not-applied",
            Self::Missing(Gap::Unwired(_)) => "no-wire",
            Self::Missing(Gap::Namespace(_)) => "no-namespace",
            Self::Missing(Gap::Wire(_) | Gap::Changed(_)) => "wire-broken",
            Self::Missing(Gap::Down(..)) => "wire-down",
            Self::OwnLock(_) => "own-lock",
            Self::Limit => "limit",
            Self::Panel(_) => "panel",
            Self::FarLock(_) => "far-lock",
            Self::Unheard(Audience::Loopback(_)) => "loopback-only",
            Self::Unheard(Audience::OtherFamily(_)) => "other-family",
            Self::Unheard(Audience::OtherAddress(_)) => "other-address",
            Self::Unheard(_) => "nobody-listens",
            Self::Stranger(_) => "foreign-chain",
            Self::Unanswered => "unanswered",
            Self::Gone => "gone",
            Self::RefusedOutside => "refused-outside",
            Self::Blocked(_) => "blocked",
            Self::NoRoute(_) => "no-route",
            Self::Lost(_) => "lost",
        }
    }

    /// Whether the target was reached.
    pub fn is_connected(&self) -> bool {
        matches!(self, Self::Connected(_))
    }

    /// The next move.
    pub fn next(&self, from: &str, to: &str, at: &str) -> Option<String> {
        let apply = || "`nsctl apply` makes it as the policy says".to_owned();
        let next = match self {
            Self::Connected(true) => return None,
            Self::Connected(false) => {
                "`nsctl status` tells what is not as the policy says; `nsctl apply` repairs it".into()
            }
            Self::Missing(Gap::Unwired(_)) => return None,
            Self::Missing(Gap::Namespace(place)) => format!("`nsctl apply` makes it; then restart {place}"),
            Self::Missing(_) | Self::OwnLock(true) | Self::Panel(true) | Self::FarLock(true) => apply(),
            Self::OwnLock(false) | Self::Panel(false) | Self::FarLock(false) | Self::NoRoute(false) => {
                format!("if it ought to be allowed, the policy of {from} has to say so; `nsctl why` tells what it says")
            }
            Self::Limit => format!("wait, or raise `limits` of {from}"),
            Self::Unheard(Audience::Nobody { inside: Some(0), .. }) => {
                format!("start {to} in its namespace: `nsctl env {to}`")
            }
            Self::Unheard(Audience::Nobody { astray, .. }) if !astray.is_empty() => {
                format!("give its unit the settings that `nsctl env {to}` prints, and restart it")
            }
            Self::Unheard(Audience::Nobody { .. }) => format!("let {to} listen on {at}"),
            Self::Unheard(Audience::OtherFamily(_)) => {
                format!("let {to} listen on {at} too, or its callers use the other family")
            }
            Self::Unheard(_) => format!("let {to} listen on {at}, or on every address"),
            Self::Stranger(strangers) => look(strangers.first()?),
            Self::Unanswered => format!("ask {to}: it got the packet"),
            Self::Gone | Self::RefusedOutside => "look outside: routers and firewalls behind this machine".into(),
            Self::Blocked(cures) => cures.first().cloned().unwrap_or_default(),
            Self::NoRoute(true) => format!("`nsctl exec {from} -- ip route` shows what it has"),
            Self::Lost(_) => "watch the wires: `ip netns exec ...+fabric tcpdump -ni any` (docs/fabric.md)".into(),
        };
        Some(next)
    }
}

/// How to look at a chain.
fn look(stranger: &Stranger) -> String {
    let inside = stranger.netns.as_ref().map(|netns| format!("ip netns exec {netns} ")).unwrap_or_default();
    format!("`{inside}nft list chain {}`; its keeper has to let it pass", stranger.chain)
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |all: &[IpAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let right = |allowed: &bool| if *allowed { ", although the policy allows it" } else { "" };
        match self {
            Self::Connected(true) => f.write_str("connected"),
            Self::Connected(false) => f.write_str("connected, although the policy does not allow it"),
            Self::Missing(gap) => gap.fmt(f),
            Self::OwnLock(allowed) => write!(f, "refused by the caller's own lock{}", right(allowed)),
            Self::Limit => f.write_str("refused by the caller's own lock: it is beyond its limits"),
            Self::Panel(allowed) => write!(f, "refused by the panel{}", right(allowed)),
            Self::FarLock(allowed) => write!(f, "refused by the lock at the other end{}", right(allowed)),
            Self::Unheard(Audience::Loopback(at)) => write!(f, "it arrived, and the listener is on {} only", list(at)),
            Self::Unheard(Audience::OtherFamily(at)) => {
                write!(f, "it arrived, and the listener has not this family: it is on {}", list(at))
            }
            Self::Unheard(Audience::OtherAddress(at)) => {
                write!(f, "it arrived, and the listener is on {} only", list(at))
            }
            Self::Unheard(audience) => write!(f, "it arrived, and nobody listens there{}", Absence(audience)),
            Self::Stranger(strangers) => {
                let named: Vec<_> = strangers.iter().map(ToString::to_string).collect();
                let one_of = if named.len() > 1 { "one of " } else { "" };
                write!(f, "stopped by rules that are not ours: {one_of}{}", named.join(", "))
            }
            Self::Unanswered => f.write_str("it arrived where somebody listens, and was not answered"),
            Self::Gone => f.write_str("it left this machine, and nothing came back"),
            Self::RefusedOutside => f.write_str("it left this machine, and was refused outside"),
            Self::Blocked(cures) => write!(f, "stopped on the host: {}", cures.join(", ")),
            Self::NoRoute(allowed) => write!(f, "there is no route to such an address from there{}", right(allowed)),
            Self::Lost(place) => write!(f, "lost {place}, and nothing that was read says why"),
        }
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotApplied => f.write_str("nothing of the network is there"),
            Self::Unwired(place) => write!(f, "{place} has no wire: no line of the policy needs one"),
            Self::Namespace(place) => write!(f, "the namespace of {place} is not there"),
            Self::Wire(place) => write!(f, "the wire of {place} is not there"),
            Self::Down(place, end) => write!(f, "the wire of {place} is down: {end}"),
            Self::Changed(place) => write!(f, "the wire of {place} is not as it was made"),
        }
    }
}

/// Why nobody listens, as far as processes tell.
struct Absence<'a>(&'a Audience);

impl fmt::Display for Absence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Audience::Nobody { inside, astray, on_host } = self.0 else { return Ok(()) };
        if *inside == Some(0) {
            f.write_str("; no process lives in the namespace")?;
        }
        if !astray.is_empty() {
            let processes = if astray.len() == 1 { "process of its unit lives" } else { "processes of its unit live" };
            write!(f, "; {} {processes} in another namespace", astray.len())?;
        }
        if *on_host {
            f.write_str("; on the host somebody listens on that port")?;
        }
        Ok(())
    }
}
