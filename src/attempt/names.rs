//! Whether the caller knows who it calls: its hosts file, and its resolver.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use netns_policy::topology::Place;

use super::dial::{self, Met};
use super::evidence::Scene;

/// What the caller's own files say of a name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lookup {
    /// The name.
    pub name: String,
    /// The hosts file.
    pub file: PathBuf,
    /// What it says; nothing when it is not there.
    pub addresses: Option<Vec<IpAddr>>,
    /// The resolvers, where the name is to be had from one or lies outside.
    pub resolvers: Vec<Resolver>,
}

/// A resolver of the caller.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Resolver {
    /// Its address.
    pub address: IpAddr,
    /// Whether it answers.
    pub met: Met,
    /// After how long.
    pub elapsed: Duration,
}

/// Looks `name` up in the files of a service. The host has files of its own, which are not ours to judge.
pub(super) fn lookup(scene: &Scene, name: &str) -> Option<Lookup> {
    let netns = match &scene.from {
        Place::Service(_) => scene.from.netns(&scene.planned.desired.network)?,
        Place::Host | Place::Relay | Place::Uplink => return None,
    };
    let directory = scene.linux.files(&netns);
    let file = directory.join("hosts");
    let outside = scene.to == Place::Uplink;
    let addresses = std::fs::read_to_string(&file).ok().map(|text| named(&text, name));
    let resolvers = if outside {
        let text = std::fs::read_to_string(directory.join("resolv.conf")).unwrap_or_default();
        nameservers(&text).into_iter().map(|address| ask(scene, &netns, address)).collect()
    } else {
        Vec::new()
    };
    Some(Lookup { name: name.to_owned(), file, addresses, resolvers })
}

impl Lookup {
    /// What a program in there meets that asks for the name, where that is not the address.
    pub fn fault(&self, outside: bool) -> Option<String> {
        let Self { name, file, addresses, resolvers } = self;
        match addresses {
            None => Some(format!("{} is not there: `nsctl apply` writes it", file.display())),
            Some(found) if found.is_empty() && !outside => {
                Some(format!("{} does not name {name}: it has only what the service may reach", file.display()))
            }
            _ if outside && resolvers.is_empty() => {
                Some("the service has no resolver, so it can reach addresses and no names (`dns`)".into())
            }
            _ if outside && resolvers.iter().all(|one| one.met != Met::Answer) => {
                let told: Vec<_> = resolvers.iter().map(|one| format!("{} {}", one.address, one.met)).collect();
                Some(format!("no resolver answers: {}", told.join(", ")))
            }
            _ => None,
        }
    }
}

fn ask(scene: &Scene, netns: &str, address: IpAddr) -> Resolver {
    let asked = scene.linux.inside(netns, move || dial::resolver(address));
    let (met, elapsed) = asked.map_or((Met::Untried, Duration::ZERO), |dialled| (dialled.met, dialled.elapsed));
    Resolver { address, met, elapsed }
}

/// The addresses that a hosts(5) has for `name`.
fn named(hosts: &str, name: &str) -> Vec<IpAddr> {
    let lines = hosts.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = words.next()?.parse().ok()?;
            words.any(|word| word == name).then_some(address)
        })
        .collect()
}

/// The resolvers of a resolv.conf(5).
fn nameservers(text: &str) -> Vec<IpAddr> {
    text.lines().filter_map(|line| line.strip_prefix("nameserver ")?.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_whole_word_of_a_line_that_is_no_comment() {
        let hosts = "127.0.0.1 localhost\n10.0.0.1 db sql\n#10.0.0.2 db\n10.0.0.3 db2 # db\nfd00::1\tdb\n";
        assert_eq!(named(hosts, "db"), ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        assert_eq!(named(hosts, "sql").len(), 1);
        assert!(named(hosts, "d").is_empty());
        assert_eq!(nameservers("# none\nnameserver 10.0.0.9\nsearch x\n").len(), 1);
    }
}
