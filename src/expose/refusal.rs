//! Why a way in is not opened or taken back, and the next move.

use std::path::Path;

use netns_policy::Checked;
use netns_policy::exposure::Exposure;

use super::choice::service_of;
use super::{Closing, Opening, Side, Which};
use crate::orchestrator::Error;
use crate::own::Own;

pub(super) fn usage(message: String, help: String) -> Error {
    Error::Usage { message, help: Some(help) }
}

pub(super) fn not_ours() -> Error {
    usage("the file of nsctl does not hold tables where it ought to".into(), "mend it by hand".into())
}

pub(super) fn other_relay(wanted: &Opening) -> Error {
    let (service, side) = (&wanted.service, wanted.side.word());
    usage(
        format!(
            "the other ways of {service} by `{side}` are {} a relay",
            if wanted.relay.is_some() { "without" } else { "with" }
        ),
        format!("they share one table: expose this one likewise, or `nsctl unexpose {service} --{side}` first"),
    )
}

pub(super) fn exposed_already(own: &Own, there: &Exposure) -> Error {
    let is_ours = Path::new(&there.at.file) == own.path();
    let (service, way) = (&there.service, there.way.word());
    let help = if is_ours {
        format!("a port of a service is exposed once; `nsctl unexpose {service} --{way}` takes the other one back")
    } else {
        "a port of a service is exposed once; take the other one out there".to_owned()
    };
    let outside = there.way.external().unwrap_or_default();
    usage(
        format!(
            "{service}:{} is exposed already, by port {outside} of the machine (`{way}`, {})",
            there.port_name, there.at
        ),
        help,
    )
}

/// Why there is nothing to take back: a person wrote it, or nobody.
pub(super) fn not_written_here(own: &Own, policy: Option<&Checked>, unwanted: &Closing) -> Error {
    let name = &unwanted.service;
    let message = format!("{} has no such way into {name}", own.path().display());
    let Some(policy) = policy else {
        return usage(message, "`nsctl check` says why the policy is refused".into());
    };
    if let Err(error) = service_of(&policy.graph, name) {
        return error;
    }
    let is_meant = |exposure: &&Exposure| {
        let side = Side::ALL.into_iter().find(|side| side.word() == exposure.way.word());
        exposure.service.as_str() == name
            && side.map_or(unwanted.which == Which::Only, |side| {
                unwanted.which.means(side, exposure.way.external().unwrap_or_default())
            })
    };
    let written: Vec<String> = policy
        .graph
        .written_exposures()
        .iter()
        .filter(is_meant)
        .map(|exposure| format!("{exposure} at {}", exposure.at))
        .collect();
    let help = if written.is_empty() {
        "`nsctl exposed` lists every way in".to_owned()
    } else {
        format!("a person wrote {}: take it out there, then run `nsctl apply`", written.join(", "))
    };
    usage(message, help)
}
