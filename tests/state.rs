//! The state directory and the pins: lost, stale, unreadable, half written.

mod common;

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use common::network::{Network, chain, replaced};
use common::{in_sandbox, ip, nft_here};
use netns_policy::plan::Plan;
use nix::mount::{MsFlags, mount};
use nsctl::Error;
use nsctl::internet::Internet;

const POLICY: &str = r#"
schema = 1
[network]
name = "node"
pool4 = "10.31.0.0/24"
[service.b]
outbound = "direct"
"#;

const RECORD: &str = "/run/node/state/node/sysctls.json";
const ADDRESSES: &str = "/run/node/state/node/addresses.json";
const UPLINK: &str = "net/ipv4/conf/eth0/forwarding";
const ALL6: &str = "net/ipv6/conf/all/forwarding";

fn sysctl(path: &str) -> String {
    fs::read_to_string(Path::new("/proc/sys").join(path)).unwrap().trim_end().to_owned()
}

fn set(path: &str, value: &str) {
    fs::write(Path::new("/proc/sys").join(path), value).unwrap();
}

/// A network on a machine that forwards nothing.
fn network() -> (Network, Internet) {
    set("net/ipv4/ip_forward", "0");
    set(ALL6, "0");
    let internet = Internet::make().unwrap();
    assert_eq!((sysctl(UPLINK), sysctl(ALL6)), ("0".into(), "0".into()));
    (Network::new("node", POLICY), internet)
}

/// The rules for whom forwarding was off before us, in both families.
fn is_guarded() -> bool {
    let chain = nft_here("list chain inet nsctl-node forward");
    let guards = chain.lines().filter(|line| line.contains("oifgroup != 28275") && line.contains("drop"));
    guards.count() == 2
}

fn is_as_before() -> bool {
    sysctl(UPLINK) == "0" && sysctl(ALL6) == "0"
}

#[test]
fn a_pin_that_was_never_finished_is_in_nobody_s_way() {
    in_sandbox(|| {
        let network = Network::new("node", "schema = 1\n[network]\nname = \"node\"\n[service.a]\n");
        fs::create_dir("/run/netns").unwrap();
        for name in ["node+fabric", "node-a", "node-gone"] {
            fs::write(Path::new("/run/netns").join(name), "").unwrap();
        }
        let planned = network.planned();
        assert!(planned.observed.foreign.is_empty() && planned.observed.namespaces.is_empty());
        network.apply();
        assert_eq!(network.plan(), Plan::default());
        assert!(!Path::new("/run/netns/node-gone").exists());

        fs::write("/run/netns/node-late", "").unwrap();
        fs::write("/run/netns/node-full", "somebody's").unwrap();
        fs::write("/run/netns/other", "").unwrap();
        network.down();
        let left = nsctl::kernel::netns::pinned(Path::new("/run/netns")).unwrap();
        assert_eq!(left, ["node-full", "other"], "what is no leftover of ours stays");
    });
}

#[test]
fn another_mount_namespace_does_not_take_a_pin_for_a_leftover() {
    in_sandbox(|| {
        let network = Network::new("node", "schema = 1\n[network]\nname = \"node\"\n[service.a]\n");
        network.apply();
        // Without the mounts, as a unit sees the directory that had its copy of the mount table before.
        fs::create_dir("/run/elsewhere").unwrap();
        let pins = Some("/run/netns");
        mount(pins, "/run/elsewhere", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let seen = Path::new("/run/elsewhere/node-a");
        assert_eq!(fs::metadata(seen).unwrap().len(), 0);
        nsctl::kernel::netns::remove_leftovers(Path::new("/run/elsewhere"), |_| true).unwrap();
        assert!(seen.exists());
        assert_eq!(network.plan(), Plan::default());
    });
}

#[test]
fn the_guard_outlives_the_record_of_what_forwarding_was() {
    in_sandbox(|| {
        let (network, _internet) = network();
        network.apply();
        assert!(is_guarded());
        fs::remove_file(RECORD).unwrap();
        assert_eq!(network.plan(), Plan::default(), "the guard in the kernel tells");
        network.apply();
        assert!(is_guarded() && Path::new(RECORD).exists(), "it is on record again");

        fs::remove_file(RECORD).unwrap();
        nft_here("delete table inet nsctl-node");
        network.apply();
        assert!(is_guarded(), "the leg tells that it was us");

        fs::remove_file(RECORD).unwrap();
        network.down();
        assert!(is_as_before());
    });
}

/// The other way round: what was on before us has no guard, and a lost record does not make one.
#[test]
fn who_forwarded_before_forwards_without_a_record_too() {
    in_sandbox(|| {
        let (network, _internet) = network();
        set("net/ipv4/ip_forward", "1");
        set(ALL6, "1");
        network.apply();
        fs::remove_file(RECORD).unwrap();
        network.apply();
        assert!(!nft_here("list chain inet nsctl-node forward").contains("oifgroup"));
        network.down();
        assert_eq!((sysctl(UPLINK), sysctl(ALL6)), ("1".into(), "1".into()));
    });
}

#[test]
fn a_record_from_before_the_machine_was_started_anew_says_nothing() {
    in_sandbox(|| {
        let (network, _internet) = network();
        fs::create_dir_all("/run/node/state/node").unwrap();
        let stale = format!(r#"{{"kernel/random/boot_id": "another", "{UPLINK}": "1", "{ALL6}": "1"}}"#);
        fs::write(RECORD, stale).unwrap();
        network.apply();
        assert!(is_guarded());
        assert!(fs::read_to_string(RECORD).unwrap().contains(&sysctl("kernel/random/boot_id")));
        network.down();
        assert!(is_as_before());
    });
}

#[test]
fn down_leaves_forwarding_to_whoever_switched_it_on_meanwhile() {
    in_sandbox(|| {
        let (network, _internet) = network();
        network.apply();
        set("net/ipv4/ip_forward", "1");
        network.apply();
        network.down();
        assert_eq!(sysctl(UPLINK), "1");
        assert!(network.is_nothing());
        network.apply();
        set("net/ipv4/ip_forward", "0");
        set(UPLINK, "1");
        network.down();
        assert_eq!(sysctl(UPLINK), "1", "it was on this time");
    });
}

#[test]
fn networks_that_are_not_there_do_not_count() {
    in_sandbox(|| {
        let (network, _internet) = network();
        for (name, record) in [("gone", format!(r#"{{"{UPLINK}": "1"}}"#)), ("broken", "no json".to_owned())] {
            let directory = Path::new("/run/node/state").join(name);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("sysctls.json"), record).unwrap();
        }
        network.apply();
        assert!(is_guarded());
        ip("netns add broken+fabric");
        network.apply();
        network.down();
        assert!(is_as_before());
    });
}

#[test]
fn services_keep_their_addresses_when_the_record_of_them_is_lost() {
    in_sandbox(|| {
        let pool = "schema = 1\n[network]\nname = \"node\"\npool4 = \"10.31.0.0/24\"\n";
        let network = Network::new("node", &format!("{pool}[service.b]\n"));
        network.apply();
        network.change(&format!("{pool}[service.a]\n[service.b]\n[service.c]\n"));
        let all = || ["a", "b", "c"].map(|name| network.addresses(name));
        let before = all();
        // One of them has given itself the address of another.
        ip(&format!("-n node-c address add {}/32 dev net0", before[0][0]));
        let record = fs::read_to_string(ADDRESSES).unwrap();
        fs::remove_file(ADDRESSES).unwrap();
        ip(&format!("-n node-c address del {}/32 dev net0", before[0][0]));
        assert_eq!(network.plan(), Plan::default());
        network.apply();
        assert_eq!(all(), before);
        assert_eq!(fs::read_to_string(ADDRESSES).unwrap(), record);
    });
}

#[test]
fn a_service_cannot_take_another_s_address_by_way_of_a_lost_record() {
    in_sandbox(|| {
        let pool = "schema = 1\n[network]\nname = \"node\"\npool4 = \"10.31.0.0/24\"\n";
        let network = Network::new("node", &format!("{pool}[service.a]\n[service.b]\n"));
        network.apply();
        let [a, b] = ["a", "b"].map(|name| network.v4(name));
        ip(&format!("-n node-b address del {b}/32 dev net0"));
        ip(&format!("-n node-b address add {a}/32 dev net0"));
        fs::remove_file(ADDRESSES).unwrap();
        network.apply();
        let after: Vec<IpAddr> = ["a", "b"].map(|name| network.v4(name)).to_vec();
        assert_ne!(after[0], after[1]);
        assert_eq!(network.plan(), Plan::default());
    });
}

#[test]
fn addresses_that_cannot_be_read_are_not_made_up() {
    in_sandbox(|| {
        let network = Network::new("node", POLICY);
        assert!(network.nsctl.plan_offline().is_ok(), "there is no record yet");
        fs::create_dir_all(ADDRESSES).unwrap();
        let refused = network.nsctl.plan_offline();
        assert!(matches!(&refused, Err(Error::Store(e)) if e.code() == "E0906"), "{refused:?}");
    });
}

#[test]
fn down_goes_on_without_a_record_that_it_understands() {
    in_sandbox(|| {
        let (network, _internet) = network();
        network.apply();
        fs::write(RECORD, "{").unwrap();
        let refused = network.nsctl.apply().unwrap_err();
        let Error::Store(error) = &refused else { panic!("{}", chain(&refused)) };
        assert!(error.help().contains("nsctl down"), "{}", error.help());
        let removed = network.nsctl.down().unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert!(removed.notes.iter().any(|note| note.contains("sysctls.json.broken")), "{:?}", removed.notes);
        assert!(network.is_nothing() && is_as_before());
        network.apply();
        assert!(is_guarded());
    });
}

#[test]
fn down_needs_no_disk_that_can_be_written() {
    in_sandbox(|| {
        let (network, _internet) = network();
        network.apply();
        let state = "/run/node/state";
        mount(Some(state), state, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, state, None::<&str>, read_only, None::<&str>).unwrap();
        let removed = network.nsctl.down().unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert!(!removed.notes.is_empty());
        assert!(is_as_before(), "it is set back all the same");
        assert!(network.kernel().network.as_str() == "node" && !Path::new("/run/netns/node+fabric").exists());
    });
}

/// What fixes the addresses of two services the other way round is one change.
#[test]
fn two_fixed_addresses_can_be_swapped() {
    in_sandbox(|| {
        let fixed = "schema = 1\n[network]\nname = \"node\"\npool4 = \"10.31.0.0/24\"\n\
            [service.a]\naddress4 = \"10.31.0.7\"\n[service.b]\naddress4 = \"10.31.0.8\"\n";
        let network = Network::new("node", fixed);
        network.apply();
        let other = replaced(&replaced(&replaced(fixed, "0.7", "0.x"), "0.8", "0.7"), "0.x", "0.8");
        network.change(&other);
        assert_eq!(network.plan(), Plan::default());
        assert_eq!(network.v4("a"), IpAddr::from([10, 31, 0, 8]));
    });
}
