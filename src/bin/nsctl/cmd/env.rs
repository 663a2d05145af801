//! `nsctl env`: what a service must know to live in its namespace.

use std::collections::BTreeMap;
use std::process::ExitCode;

use netns_policy::desired::neighbours;
use netns_policy::topology::Place;
use nsctl::{Error, Orchestrator};
use serde_json::json;

use super::service_of;
use crate::args::Args;
use crate::output;

pub fn env(args: &Args, nsctl: &Orchestrator, name: &str) -> Result<ExitCode, Error> {
    let planned = nsctl.look_offline()?;
    let graph = &planned.checked.graph;
    let service = service_of(graph, name)?;
    let own = planned.addresses.service(name).unwrap_or_else(|| planned.addresses.leg_host());
    let mut lines = BTreeMap::from([("NSCTL_ADDRESS4".to_owned(), own.v4.to_string())]);
    lines.extend(own.v6.map(|v6| ("NSCTL_ADDRESS6".to_owned(), v6.to_string())));
    for (neighbour, addresses) in neighbours(graph, &planned.addresses, service) {
        let upper = neighbour.to_uppercase().replace('-', "_");
        lines.insert(format!("NSCTL_{upper}_ADDRESS4"), addresses.v4.to_string());
        lines.extend(addresses.v6.map(|v6| (format!("NSCTL_{upper}_ADDRESS6"), v6.to_string())));
    }
    let netns = Place::Service(service.name.clone()).netns(&graph.network().name).unwrap_or_default();
    let pin = nsctl.options().netns.join(&netns);
    let files = nsctl.options().run.join(graph.network().name.as_str()).join(&netns);
    let unit = [
        format!("NetworkNamespacePath={}", pin.display()),
        format!("BindReadOnlyPaths={}:/etc/hosts", files.join("hosts").display()),
        format!("BindReadOnlyPaths={}:/etc/resolv.conf", files.join("resolv.conf").display()),
        format!("BindReadOnlyPaths={}:/etc/nsswitch.conf", files.join("nsswitch.conf").display()),
        "InaccessiblePaths=-/run/nscd".to_owned(),
        // The socket alone: on many a host /etc/resolv.conf is a link into its directory.
        "InaccessiblePaths=-/run/systemd/resolve/io.systemd.Resolve".to_owned(),
        "CapabilityBoundingSet=~CAP_NET_ADMIN CAP_SYS_ADMIN".to_owned(),
        "RestrictNamespaces=yes".to_owned(),
    ];
    if args.json {
        output::answer(&json!({ "service": name, "netns": netns, "environment": lines, "unit": unit }));
        return Ok(ExitCode::SUCCESS);
    }
    for (key, value) in &lines {
        output::line(format_args!("{key}={value}"));
    }
    let drop_in = service.unit.as_deref().unwrap_or("NAME.service");
    output::line(format_args!("\n# /etc/systemd/system/{drop_in}.d/50-nsctl.conf"));
    output::line("[Service]");
    unit.iter().for_each(output::line);
    Ok(ExitCode::SUCCESS)
}
