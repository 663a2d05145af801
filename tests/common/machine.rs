//! What others see of the machine, to be compared before and after.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::{ip, nft_here};

/// All of the machine that we could have changed, as others see it.
#[derive(Debug, Eq, PartialEq)]
pub struct Machine(Vec<(String, String)>);

impl Machine {
    /// As it is.
    pub fn now() -> Self {
        let asked = ["-d link", "rule", "-6 rule", "route show table all", "-6 route show table all", "address"];
        let mut all: Vec<_> = asked.iter().map(|asked| (format!("ip {asked}"), ip(asked))).collect();
        all.push(("nft list ruleset".into(), nft_here("list ruleset")));
        for directory in ["/run/netns", "/run/nsctl"] {
            let names = fs::read_dir(directory).into_iter().flatten().map(|e| e.unwrap().file_name());
            all.push((directory.into(), format!("{:?}", names.collect::<BTreeSet<_>>())));
        }
        for knobs in ["ipv4", "ipv6", "netfilter"] {
            sysctls(&Path::new("/proc/sys/net").join(knobs), &mut all);
        }
        Self(all)
    }

    /// Whether it is as it was then.
    pub fn assert_unchanged(&self, when: &str) {
        for (now, before) in Self::now().0.iter().zip(&self.0) {
            assert_eq!(now, before, "{when}");
        }
    }
}

fn sysctls(directory: &Path, all: &mut Vec<(String, String)>) {
    let mut paths: Vec<_> = fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            sysctls(&path, all);
        } else if !path.ends_with("nf_conntrack_count") {
            all.push((path.display().to_string(), fs::read_to_string(&path).unwrap_or_default()));
        }
    }
}
