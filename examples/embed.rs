//! The library in one file: load a policy, plan, apply, look, use it, take it down.
//!
//! ```text
//! cargo run --example embed
//! ```
//!
//! You will see what is planned, that a client reaches a server by the one edge there is, that the edge has counted
//! what passed, and that nothing is left. There is nothing to undo: it runs in a sandbox of its own, with an empty /run
//! and a network without a link, which is gone with the process. On a machine, leave the sandbox out, keep
//! `Options::default()` but for the policy, and call `down` to undo what `apply` did.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use nsctl::kernel::netns::Netns;
use nsctl::sandbox::Sandbox;
use nsctl::{Options, Orchestrator};

const POLICY: &str = r#"
    schema = 1
    network.name = "shop"
    [service.web]
    connect.db = ["sql"]
    [service.db]
    ports = { sql = "tcp:5432" }
"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // While there is one thread only: a process enters a sandbox as a whole.
    let _sandbox = Sandbox::enter()?;
    fs::write("/run/policy.toml", POLICY)?;
    let nsctl = Orchestrator::new(Options {
        policy: vec!["/run/policy.toml".into()],
        state: "/run/state".into(),
        etc_netns: None,
        ..Options::default()
    });

    for step in &nsctl.plan()?.plan.steps {
        println!("will {step}");
    }
    let applied = nsctl.apply()?;
    println!("{} steps done; now {} are to do", applied.report.done.len(), nsctl.plan()?.plan.steps.len());

    let status = nsctl.status()?;
    let address = status.services.iter().find(|service| service.name == "db").ok_or("no db")?.address4;
    println!("web asked db, and db said: {}", ask(&nsctl, address)?);
    for edge in nsctl.status()?.edges {
        println!("{} -> {}: {} bytes passed", edge.from, edge.to, if edge.bytes > 0 { "some" } else { "no" });
    }

    let removed = nsctl.down()?;
    println!("{} is gone: {} steps are to do again", removed.network, nsctl.plan()?.plan.steps.len());
    Ok(())
}

/// A connection from `web` to `db`. Sockets are made inside the namespaces, and can be used from anywhere.
fn ask(nsctl: &Orchestrator, db: Ipv4Addr) -> io::Result<String> {
    let netns = |service: &str| Netns::open(&nsctl.options().netns.join(format!("shop-{service}")));
    let listener = netns("db")?.run(move || TcpListener::bind((db, 5432)))?;
    let server = std::thread::spawn(move || listener.accept()?.0.write_all(b"hello"));
    let mut said = String::new();
    netns("web")?.run(move || TcpStream::connect((db, 5432)))?.read_to_string(&mut said)?;
    server.join().expect("it does not panic")?;
    Ok(said)
}
