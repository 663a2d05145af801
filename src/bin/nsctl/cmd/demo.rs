//! `nsctl demo`: everything on a bitcoin node of 17 services, in namespaces that are gone when it ends.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use netns_policy::explain::explain;
use netns_policy::ruleset::Ruleset;
use netns_policy::ruleset::delta::Delta;
use nsctl::internet::Internet;
use nsctl::kernel::Kernel as _;
use nsctl::kernel::netns::Netns;
use nsctl::kernel::nft::NftSocket;
use nsctl::matrix::Outside;
use nsctl::sandbox::Sandbox;
use nsctl::{Error, Options, Orchestrator};
use serde_json::json;

use crate::args::Args;
use crate::output;

const POLICY: &str = include_str!("../../../../examples/policies/bitcoin-node.toml");

/// The edge that is revoked under a live connection.
const EDGE: (&str, &str, u16) = ("spark-wallet", "clightning", 9835);
const LINE: &str = "connect.clightning = [\"grpc\"]";

pub fn demo(args: &Args) -> Result<ExitCode, Error> {
    let started = Instant::now();
    let sandbox = Sandbox::enter().map_err(|e| Error::Sandbox(Box::new(e)))?;
    let internet = Internet::make().map_err(inside)?;
    let demo = Demo::new(args, internet).map_err(inside)?;
    demo.say(format_args!(
        "in a sandbox of its own ({} namespaces): nothing of this machine is touched",
        if sandbox.has_user_namespace() { "user, mount and network" } else { "mount and network" }
    ));
    let facts = demo.run()?;
    let seconds = started.elapsed().as_secs_f64();
    demo.say(format_args!("done in {seconds:.1} s; nothing is left"));
    if args.json {
        output::answer(&json!({ "seconds": seconds, "steps": facts }));
    }
    Ok(ExitCode::SUCCESS)
}

fn inside(source: io::Error) -> Error {
    Error::Demo { what: source.to_string() }
}

struct Demo<'a> {
    args: &'a Args,
    internet: Internet,
    policy: PathBuf,
    options: Options,
}

impl<'a> Demo<'a> {
    fn new(args: &'a Args, internet: Internet) -> io::Result<Self> {
        let directory = Path::new("/run/nsctl-demo");
        fs::create_dir_all(directory)?;
        let policy = directory.join("bitcoin-node.toml");
        fs::write(&policy, POLICY)?;
        let state = directory.join("state");
        let options = Options { policy: vec![policy.clone()], state, etc_netns: None, ..Options::default() };
        Ok(Self { args, internet, policy, options })
    }

    fn say(&self, text: impl std::fmt::Display) {
        if !self.args.json {
            output::line(text);
        }
    }

    fn heading(&self, text: &str) {
        self.say(format_args!("\n== {text}"));
    }

    fn run(&self) -> Result<Vec<serde_json::Value>, Error> {
        let nsctl = Orchestrator::new(self.options.clone());
        let mut facts = Vec::new();

        self.heading("apply: 17 services, each in a namespace of its own");
        let begun = Instant::now();
        let applied = nsctl.apply()?;
        let ms = begun.elapsed().as_millis();
        let services = applied.checked.graph.services().count();
        self.say(format_args!("{services} services and {} edges in {ms} ms", applied.checked.graph.edges().len()));
        expect(nsctl.plan()?.plan.is_empty(), "a second apply has something to do")?;
        self.say("a second apply has nothing to do");
        facts.push(json!({ "step": "apply", "services": services, "ms": u64::try_from(ms).unwrap_or(u64::MAX) }));

        self.heading("graph: who may open a connection to whom");
        if !self.args.json {
            super::graph::text(&applied.checked.graph);
        }

        self.heading("verify: really connect every pair, stand-ins listening everywhere");
        self.verify(&nsctl, &mut facts, "verify")?;

        self.heading("why");
        self.why(&nsctl, "spark-wallet", "clightning", "grpc")?;
        self.why(&nsctl, "spark-wallet", "bitcoind", "rpc")?;

        self.heading("revoke an edge under a live connection");
        self.revoke(&nsctl, &mut facts)?;

        self.heading("empty the fabric's rules by force, as a foreign `nft flush ruleset` would");
        self.flush(&nsctl, &mut facts)?;

        self.heading("down");
        let removed = nsctl.down()?;
        let observed = nsctl.kernel(&removed.network)?.observe()?;
        expect(observed.is_nothing(), "something is left after down")?;
        self.say("no namespace, link, table, route or file of it is left");
        facts.push(json!({ "step": "down", "left": 0 }));
        Ok(facts)
    }

    fn verify(&self, nsctl: &Orchestrator, facts: &mut Vec<serde_json::Value>, step: &str) -> Result<(), Error> {
        let netns = self.internet.netns().try_clone().map_err(inside)?;
        let outside = Outside { wan: self.internet.wan(), lan: self.internet.lan(), netns: Some(netns) };
        let report = super::verify::run(nsctl, &outside)?;
        if !self.args.json {
            super::verify::show(self.args, &report);
        }
        facts.push(json!({
            "step": step, "probes": report.probes, "mismatches": report.mismatches.len(),
            "unproven": report.unproven.len(),
        }));
        expect(report.mismatches.is_empty(), "a connection is not as the graph says")
    }

    fn why(&self, nsctl: &Orchestrator, from: &str, to: &str, port: &str) -> Result<(), Error> {
        let graph = nsctl.check()?.graph;
        let explanation =
            explain(&graph, from, to, port).map_err(|e| Error::Demo { what: format!("cannot explain: {e}") })?;
        self.say(format_args!("$ nsctl why {from} {to}:{port}\n{explanation}"));
        Ok(())
    }

    fn revoke(&self, nsctl: &Orchestrator, facts: &mut Vec<serde_json::Value>) -> Result<(), Error> {
        let talk = self.talk(nsctl)?;
        expect(talk.goes_on(), "the declared connection carries nothing")?;
        self.say(format_args!("{} talks to {}:grpc; now its edge is taken out of the policy", EDGE.0, EDGE.1));
        let begun = Instant::now();
        self.write(&without_edge()?)?;
        let _ = nsctl.apply()?.report;
        let before = talk.exchanges();
        thread::sleep(Duration::from_millis(300));
        let after = talk.exchanges() - before;
        expect(after == 0, "a revoked connection goes on")?;
        self.say(format_args!(
            "applied in {} ms: {after} exchanges since, the connection is {}",
            begun.elapsed().as_millis() - 300,
            if talk.is_dead() { "reset" } else { "silent" }
        ));
        talk.end();
        self.write(POLICY)?;
        let _ = nsctl.apply()?.report;
        let again = self.talk(nsctl)?;
        expect(again.goes_on(), "an edge that was added back carries nothing")?;
        again.end();
        self.say("the edge is added back, and a new connection passes");
        facts.push(json!({ "step": "revoke", "exchanges_after": after }));
        Ok(())
    }

    fn flush(&self, nsctl: &Orchestrator, facts: &mut Vec<serde_json::Value>) -> Result<(), Error> {
        let talk = self.talk(nsctl)?;
        expect(talk.goes_on(), "the declared connection carries nothing before the flush")?;
        self.say("declared traffic passes");
        let pin = self.options.netns.join("node+fabric");
        let fabric = Netns::open(&pin).map_err(inside)?;
        fabric.run(empty_rules).map_err(inside)?;
        thread::sleep(Duration::from_millis(50));
        let before = talk.exchanges();
        thread::sleep(Duration::from_millis(300));
        let during = talk.exchanges() - before;
        let undeclared = connect(nsctl, "spark-wallet", "bitcoind", 8332, Duration::from_millis(300))?.is_ok();
        let declared = connect(nsctl, EDGE.0, EDGE.1, EDGE.2, Duration::from_millis(300))?.is_ok();
        expect(during == 0 && !undeclared && !declared, "a packet passed a fabric without rules")?;
        self.say(format_args!("rules gone: {during} exchanges, no new connection, declared or not"));
        let drift = nsctl.status()?.drift;
        self.say(format_args!("drift seen: {}, first: {}", drift.len(), drift.first().map_or("", String::as_str)));
        let _ = nsctl.apply()?.report;
        expect(talk.goes_on(), "declared traffic does not pass after the repair")?;
        self.say("repaired by apply: the same connection goes on");
        talk.end();
        self.verify(nsctl, facts, "verify after the repair")?;
        facts.push(json!({ "step": "flush", "exchanges_during": during, "drift": drift.len() }));
        Ok(())
    }

    fn write(&self, policy: &str) -> Result<(), Error> {
        fs::write(&self.policy, policy).map_err(inside)
    }

    fn talk(&self, nsctl: &Orchestrator) -> Result<Talk, Error> {
        Talk::begin(nsctl).map_err(inside)
    }
}

fn expect(holds: bool, otherwise: &str) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error::Demo { what: otherwise.to_owned() }) }
}

/// The policy without the edge of `spark-wallet`, and without the test that asks for it.
fn without_edge() -> Result<String, Error> {
    let at = POLICY.find("[service.spark-wallet]").unwrap_or(0);
    let (head, tail) = POLICY.split_at(at);
    let cut = tail.replacen(LINE, "", 1);
    expect(cut != tail, "the example has no edge to revoke")?;
    let text = format!("{head}{cut}");
    let untested = text.replace("can    = [\"clightning:grpc\"]\n", "");
    expect(untested != text, "the example has no test for the edge")?;
    Ok(untested)
}

/// What `nft flush ruleset` does, for what is ours.
fn empty_rules() -> io::Result<()> {
    let socket = NftSocket::open()?;
    let all = socket.dump(|_, _| true)?.ruleset;
    socket.commit(&Delta::between(&all, &Ruleset::default()), None).map_err(io::Error::other)
}

fn address_of(nsctl: &Orchestrator, service: &str) -> io::Result<IpAddr> {
    let planned = nsctl.plan_offline().map_err(io::Error::other)?;
    let addresses = planned.addresses.service(service).ok_or(io::ErrorKind::NotFound)?;
    Ok(addresses.v4.into())
}

fn netns_of(nsctl: &Orchestrator, service: &str) -> io::Result<Netns> {
    Netns::open(&nsctl.options().netns.join(format!("node-{service}")))
}

/// Tries one connection; the outer error is the demo's own.
fn connect(
    nsctl: &Orchestrator,
    from: &str,
    to: &str,
    port: u16,
    patience: Duration,
) -> Result<io::Result<TcpStream>, Error> {
    let to = SocketAddr::new(address_of(nsctl, to).map_err(inside)?, port);
    let tried = netns_of(nsctl, from).map_err(inside)?.run(move || Ok(TcpStream::connect_timeout(&to, patience)));
    tried.map_err(inside)
}

/// A client and a server that exchange a byte every two milliseconds.
struct Talk {
    exchanges: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    dead: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Talk {
    fn begin(nsctl: &Orchestrator) -> io::Result<Self> {
        let address = SocketAddr::new(address_of(nsctl, EDGE.1)?, EDGE.2);
        let listener = netns_of(nsctl, EDGE.1)?.run(move || TcpListener::bind(address))?;
        let client =
            netns_of(nsctl, EDGE.0)?.run(move || TcpStream::connect_timeout(&address, Duration::from_secs(3)))?;
        let (server, _) = listener.accept()?;
        let (exchanges, stop, dead) = (Arc::default(), Arc::default(), Arc::default());
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(Duration::from_millis(100)))?;
            stream.set_nodelay(true)?;
        }
        let talk = Self { exchanges, stop, dead, threads: Vec::new() };
        let threads = vec![talk.speak(client), talk.answer(server)];
        Ok(Self { threads, ..talk })
    }

    fn speak(&self, mut stream: TcpStream) -> JoinHandle<()> {
        let (exchanges, stop, dead) = (self.exchanges.clone(), self.stop.clone(), self.dead.clone());
        thread::spawn(move || {
            let mut byte = [0];
            let mut asked = false;
            while !stop.load(Ordering::Relaxed) && !dead.load(Ordering::Relaxed) {
                if !asked && stream.write_all(&byte).is_err() {
                    dead.store(true, Ordering::Relaxed);
                }
                match stream.read(&mut byte) {
                    Ok(1) => {
                        exchanges.fetch_add(1, Ordering::Relaxed);
                        asked = false;
                        thread::sleep(Duration::from_millis(2));
                    }
                    Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => asked = true,
                    _ => dead.store(true, Ordering::Relaxed),
                }
            }
        })
    }

    fn answer(&self, mut stream: TcpStream) -> JoinHandle<()> {
        let stop = self.stop.clone();
        thread::spawn(move || {
            let mut byte = [0];
            while !stop.load(Ordering::Relaxed) {
                match stream.read(&mut byte) {
                    Ok(1) if stream.write_all(&byte).is_ok() => {}
                    Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                    _ => break,
                }
            }
        })
    }

    fn exchanges(&self) -> u64 {
        self.exchanges.load(Ordering::Relaxed)
    }

    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// Whether something is exchanged within the next seconds: TCP takes its time to try again.
    fn goes_on(&self) -> bool {
        let before = self.exchanges();
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if self.exchanges() > before + 5 {
                return true;
            }
            thread::sleep(Duration::from_millis(10));
        }
        false
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().ok();
        }
    }
}
