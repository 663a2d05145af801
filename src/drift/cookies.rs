//! Which namespaces we have made since the machine started, so that one which was replaced is known again.
//!
//! # Invariants
//!
//! - `cookies.json` in the run directory is written whole, and is of no use after a reboot: what another boot wrote is
//!   not read.
//! - It is a record of what was, never of what is: what it lacks costs a message, and nothing is made or removed by it.
//! - Bounded: the last 16 of each name, and no more than 4,096 names.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use netns_policy::plan::{Plan, Step};
use serde::{Deserialize, Serialize};

use super::extra;
use crate::file;
use crate::kernel::cookie::Cookie;
use crate::kernel::{Linux, netns};
use crate::store::write_whole;

/// How many namespaces of one name are remembered.
const FORMER: usize = 16;
/// How many names are remembered.
const NAMES: usize = 4096;
/// How much of the file is read.
const LIMIT: u64 = 4 << 20;

/// The namespaces that were made, by name, the last one last.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Cookies {
    /// Of which start of the machine (`/proc/sys/kernel/random/boot_id`).
    boot: String,
    /// By the name of the namespace.
    netns: BTreeMap<String, Vec<Cookie>>,
}

impl Cookies {
    /// What is recorded of this network; nothing where that cannot be read.
    pub fn read(linux: &Linux) -> Self {
        let boot = boot();
        let recorded = file::read(&path(linux), LIMIT).ok().and_then(|text| serde_json::from_slice::<Self>(&text).ok());
        recorded.filter(|cookies| cookies.boot == boot).unwrap_or(Self { boot, netns: BTreeMap::new() })
    }

    /// Whether none is recorded.
    pub fn is_empty(&self) -> bool {
        self.netns.is_empty()
    }

    /// The name under which a namespace was made.
    pub fn name_of(&self, cookie: Cookie) -> Option<&str> {
        self.netns.iter().find(|(_, cookies)| cookies.contains(&cookie)).map(|(name, _)| name.as_str())
    }

    fn add(&mut self, name: &str, cookie: Cookie) {
        if self.netns.len() >= NAMES && !self.netns.contains_key(name) {
            return;
        }
        let cookies = self.netns.entry(name.to_owned()).or_default();
        if !cookies.contains(&cookie) {
            cookies.push(cookie);
            let old = cookies.len().saturating_sub(FORMER);
            cookies.drain(..old);
        }
    }
}

/// Records the namespaces that a turn has made, and those that no turn has recorded yet. That this fails fails no turn.
pub(crate) fn record(linux: &Linux, plan: &Plan) {
    let mut cookies = Cookies::read(linux);
    let before = cookies.clone();
    let made = plan.steps.iter().filter_map(|step| match step {
        Step::CreateFabric { netns, .. } | Step::CreateNetns { netns, .. } => Some(netns.clone()),
        _ => None,
    });
    let all = netns::pinned(&linux.netns_directory).unwrap_or_default();
    let ours = all.into_iter().filter(|name| netns_policy::topology::is_netns_of(&linux.network, name));
    let unrecorded = ours.filter(|name| !before.netns.contains_key(name));
    for name in made.chain(unrecorded) {
        if let Ok(cookie) = linux.inside(&name, Cookie::here) {
            cookies.add(&name, cookie);
        }
    }
    if cookies != before {
        let path = path(linux);
        let text = serde_json::to_vec_pretty(&cookies).expect("names and numbers");
        path.parent().map(fs::create_dir_all);
        write_whole(&path, &text, 0o600).ok();
    }
}

/// Forgets them all, unless a process lives on in one of them: the next `apply` has to know it again.
pub(crate) fn forget(linux: &Linux) {
    let path = path(linux);
    if path.exists() && extra::strays(linux, &Cookies::read(linux)).is_empty() {
        fs::remove_file(&path).ok();
        // Empty directories go with it, as they go with the last service.
        path.parent().map(fs::remove_dir);
        fs::remove_dir(&linux.run_directory).ok();
    }
}

fn path(linux: &Linux) -> PathBuf {
    linux.run_directory.join(linux.network.as_str()).join("cookies.json")
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookie(n: u64) -> Cookie {
        serde_json::from_value(n.into()).unwrap()
    }

    #[test]
    fn the_last_namespaces_of_a_name_are_remembered_and_older_ones_are_not() {
        let mut cookies = Cookies::default();
        (1..=20).for_each(|n| cookies.add("shop-web", cookie(n)));
        assert_eq!(cookies.name_of(cookie(20)), Some("shop-web"));
        assert_eq!(cookies.name_of(cookie(5)), Some("shop-web"));
        assert_eq!(cookies.name_of(cookie(4)), None);
    }

    #[test]
    fn no_more_names_are_remembered_than_are_read() {
        let mut cookies = Cookies::default();
        (0..5000).for_each(|n| cookies.add(&format!("shop-{n}"), cookie(n + 1)));
        assert_eq!(cookies.netns.len(), NAMES);
        let text = serde_json::to_vec_pretty(&cookies).unwrap();
        assert!((text.len() as u64) * (FORMER as u64) < LIMIT * 4, "{}", text.len());
    }
}
