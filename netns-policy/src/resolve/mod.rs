//! From the files as written to the graph: merged, looked up, checked.
//!
//! Sources are taken in the order of their names, whatever order they come in, so that equal sets of files give equal
//! graphs and equal findings. What they are called decides nothing but which of two places is named first. Every mistake
//! of every file is reported in one go; a file that cannot be read excuses what seems to be missing, and nothing else.

mod asks;
mod domain;
mod edges;
mod extend;
pub(crate) mod merge;
mod names;
mod network;
mod obligations;
mod services;
mod sockets;
mod tor;
mod ways;

use std::collections::BTreeMap;

use crate::ask::Ask;
use crate::diagnostic::{PolicyErrors, Source, Warning};
use crate::graph::{AllowGraph, Defaults, Location, Written};
use crate::lint;
use crate::syntax::findings::{At, Draft, Findings, Texts};
use crate::syntax::{self, File};
use crate::trial::Trial;

use self::merge::Policy;
use self::names::Names;

/// A policy that holds: its graph, what fragments ask for, and what is legal in it but doubtful.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The graph.
    pub graph: AllowGraph,
    /// What fragments ask for, answered or not, ordered by service and target. Asks open nothing.
    pub asks: Vec<Ask>,
    /// Ordered by file and position.
    pub warnings: Vec<Warning>,
}

impl AllowGraph {
    /// The graph of the policy that these files make together.
    ///
    /// What the parts of the language mean where more than one reading is possible:
    ///
    /// - `connect."@tag"` means every enabled service with the tag but the client itself. Of these, services that do not
    ///   have the port are passed over; when none has it, that is a mistake.
    /// - A service with `enabled = false` is checked like any other, and no edge or exposure of it is in the graph.
    /// - `tcp:8332` in an edge opens that port whether the target declares it or not. `tcp:rpc` is the port `rpc`, which
    ///   then must be one of TCP.
    /// - `hops` in `[[never]]` counts the edges of a chain, the way in included: with `hops = 1` only what is itself
    ///   exposed breaks it. Without `hops` any length does. No chain leads through a service in `except`.
    /// - In a `[[test]]`, `can` holds when there is an edge to the target on one of the ports named (any, when none is),
    ///   `cannot` when there is none.
    /// - A policy is a set of files, merged by union. A setting may stand in two of them if both say the same; a service,
    ///   a peer, a port of the host and a fragment may not. `[extend.NAME]` adds to a service what any file may add.
    /// - A file with `fragment = "NAME"`, and every file of [`Trust::Vendor`](crate::Trust::Vendor), may define services
    ///   and ask for edges by `wants`. It opens nothing: see [`Checked::asks`].
    ///
    /// ```
    /// use netns_policy::{Source, graph::AllowGraph};
    ///
    /// let policy = r#"
    ///     schema = 1
    ///     network.name = "node"
    ///     [service.electrs]
    ///     connect.bitcoind = ["rpc"]
    ///     [service.bitcoind]
    ///     ports = { rpc = "tcp:8332" }
    /// "#;
    /// let checked = AllowGraph::parse(&[Source::toml("policy.toml", policy)])?;
    /// assert_eq!(checked.graph.edges()[0].to_string(), "electrs -> bitcoind:rpc");
    /// # Ok::<(), netns_policy::PolicyErrors>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Every mistake in them, ordered by file and position, at most [`PolicyErrors::MOST`].
    pub fn parse(sources: &[Source]) -> Result<Checked, PolicyErrors> {
        let mut out = Findings::default();
        let (texts, files) = read(&ordered(sources), &mut out);
        let mut spans = Spans { texts, spans: BTreeMap::new() };
        let policy = Policy::merge(files, &mut out);
        let resolved = resolve(&policy, &mut spans, &mut out);
        let refused = out.has_errors();
        let (errors, warnings) = out.finish(&spans.texts);
        match resolved {
            Some((graph, asks)) if !refused => Ok(Checked { graph, asks, warnings }),
            _ => Err(PolicyErrors(errors)),
        }
    }
}

/// Every obligation of a policy in which nothing else is wrong.
pub(crate) fn trials(sources: &[Source]) -> Result<Vec<Trial>, PolicyErrors> {
    let mut out = Findings::default();
    let (texts, files) = read(&ordered(sources), &mut out);
    let mut spans = Spans { texts, spans: BTreeMap::new() };
    let policy = Policy::merge(files, &mut out);
    let resolved = resolve(&policy, &mut spans, &mut out);
    let (mut errors, _) = out.finish(&spans.texts);
    match resolved {
        Some((graph, _)) if errors.iter().all(|error| obligations::BROKEN.contains(&error.code())) => {
            Ok(obligations::trials(&policy, &Names::new(&policy), &graph, &mut spans))
        }
        _ => {
            errors.truncate(PolicyErrors::MOST);
            Err(PolicyErrors(errors))
        }
    }
}

/// In the order of their names, so that equal sets of files are told of in equal words. A policy is a set of files: to
/// name one twice says nothing more.
fn ordered(sources: &[Source]) -> Vec<&Source> {
    let mut sources: Vec<&Source> = sources.iter().collect();
    let key = |source: &Source| (source.name.clone(), source.format as u8, source.trust as u8);
    sources.sort_by(|a, b| key(a).cmp(&key(b)).then_with(|| a.text.cmp(&b.text)));
    sources.dedup_by(|b, a| key(a) == key(b) && a.text == b.text);
    sources
}

fn read(sources: &[&Source], out: &mut Findings) -> (Texts, Vec<File>) {
    if sources.is_empty() {
        out.add(
            Draft::new("E0111", At::top(0), "there is no policy")
                .help("an empty policy would allow nothing, and is not one"),
        );
        return (Texts::new([("policy".to_owned(), String::new())]), Vec::new());
    }
    let mut texts = Vec::new();
    let mut files = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let (text, file) = syntax::read(index, source, out);
        texts.push((source.name.clone(), text));
        files.extend(file);
    }
    (Texts::new(texts), files)
}

fn resolve(policy: &Policy, spans: &mut Spans, out: &mut Findings) -> Option<(AllowGraph, Vec<Ask>)> {
    let names = Names::new(policy);
    services::check_unique(policy, &names, out);
    let network = network::network(policy, out);
    let services = services::services(policy, spans, out);
    let peers = services::peers(policy, spans);
    let edges = edges::edges(policy, &names, spans, out);
    let sockets = sockets::sockets(policy, &names, spans, out);
    let exposures = ways::exposures(policy, spans, out);
    let nevers = obligations::nevers(policy, &names, spans, out);
    let disabled = policy.services.iter().filter(|service| !service.is_enabled());
    let disabled = disabled.filter_map(|service| service.name.clone()).collect();
    let denied = policy.defaults.denied.map(|denied| denied.value).unwrap_or_default();
    let defaults = Defaults { denied, log: policy.defaults.log.is_none_or(|log| log.value) };
    let tests = obligations::tests(policy, &names);
    let written = Written { nevers, disabled, sockets, tests };
    // Without a network there is an error already; what the rest allows is checked all the same.
    let sound = network.is_some();
    let network = network.unwrap_or_else(network::nameless);
    let graph = {
        let exposes_nothing = policy.exposes_nothing;
        AllowGraph { network, defaults, services, peers, edges, exposures, exposes_nothing, written }
    };
    obligations::check_nevers(&graph, spans, out);
    obligations::check_tests(policy, &names, &graph, out);
    let asks = asks::asks(policy, &names, &graph, spans, out);
    lint::lint(policy, &graph, spans, out);
    sound.then_some((graph, asks))
}

/// Locations handed out, and the spans they came from: for findings about the finished graph.
#[derive(Debug)]
pub(crate) struct Spans {
    texts: Texts,
    spans: BTreeMap<Location, At>,
}

impl Spans {
    pub(crate) fn location(&mut self, at: At) -> Location {
        let location = self.texts.location(at);
        self.spans.insert(location.clone(), at);
        location
    }

    pub(crate) fn at(&self, location: &Location) -> At {
        self.spans.get(location).copied().unwrap_or(At::top(0))
    }
}
