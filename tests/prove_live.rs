//! What the kernel holds is proved, and refuted when somebody has changed it.

#![allow(clippy::disallowed_methods, reason = "nft(8) is the somebody else")]

mod common;

use std::process::Command;

use common::network::{Network, chain};
use common::{in_sandbox, witness};
use nsctl::Error;

const POLICY: &str = r#"
schema = 1
[network]
name = "p"
lan = ["192.168.7.0/24"]
[service.db]
ports = { sql = "tcp:5432", time = "udp:123" }
[service.web]
ports = { http = "tcp:80" }
outbound = "direct"
dns = "direct"
connect.db = ["sql", "time"]
limits = { flows = 100, new_per_second = 50 }
expose.lan = { ports = { "8080" = "http" } }
[service.tor]
role = "tor"
outbound = "direct"
dns = "direct"
ports = { socks = "tcp:9050", dns = "udp:9053" }
[service.shy]
dns = "tor"
outbound = { lan = ["192.168.7.0/24 tcp:22"] }
[host]
may_connect.db = ["sql"]
accepts = { backup = { port = "tcp:8000", from = ["web"] } }
"#;

/// Somebody else's change in a namespace, as arguments of nft(8), and a word that the refutation says.
const CHANGES: [(&str, &str, &str); 15] = [
    ("db", "insert rule inet nsctl input udp dport 7 accept", "the lock of db at input"),
    ("db", "add element inet nsctl in4 { 10.231.0.9 . tcp . 22 }", "the lock of db at input"),
    ("web", "insert rule inet nsctl output accept", "the lock of web at output"),
    ("uplink", "insert rule inet nsctl forward accept", "the gateway uplink at forward"),
    ("uplink", "flush chain inet nsctl leaving", "the gateway uplink at postrouting"),
    ("host", "flush chain inet nsctl-p from_leg", "the table on the host at forward"),
    ("host", "flush chain inet nsctl-p to_gateway", "the table on the host at prerouting"),
    ("host", "add element inet nsctl-p ports4 { 10.0.0.0/16 . tcp . 8080 }", "the table on the host at prerouting"),
    ("uplink", "flush chain inet nsctl to_service", "the gateway uplink at prerouting"),
    ("web", "flush set inet nsctl exposed4", "the lock of web at input"),
    ("fabric", "flush map netdev nsctl replies6", "the fabric, behind the wire of"),
    ("db", "add table inet nsctl { flags dormant; }", "the lock of db at"),
    ("uplink", "add table inet nsctl { flags dormant; }", "the gateway uplink at"),
    ("host", "add table inet nsctl-p { flags dormant; }", "the table on the host at"),
    ("fabric", "add table netdev nsctl { flags dormant; }", "the fabric, behind the wire of"),
];

/// The same, of what cannot be followed and so is no proof either: there is no packet to show.
const STRANGE: [(&str, &str, &str); 9] = [
    ("db", "insert rule inet nsctl input tcp dport vmap { 22 : accept }", "the lock of db at input"),
    ("host", "insert rule inet nsctl-p from_leg tcp dport vmap { 22 : return }", "the table on the host at forward"),
    (
        "web",
        "add set inet nsctl x { type ipv4_addr; flags timeout; }; insert rule inet nsctl output ip daddr != @x accept",
        "the lock of web at output",
    ),
    (
        "fabric",
        "add chain netdev nsctl x { type filter hook ingress devices = { db, web } priority -500; }; \
         add rule netdev nsctl x fwd to db",
        "the fabric, behind the wire of",
    ),
    (
        "fabric",
        "add table netdev evil; add chain netdev evil x { type filter hook ingress device web priority -500; }; \
         add rule netdev evil x fwd to db",
        "the fabric",
    ),
    ("fabric", "add chain netdev nsctl x { type filter hook ingress device lo priority -500; }", "the fabric"),
    ("db", "add chain inet nsctl x { type route hook output priority 0; }", "the lock of db at"),
    ("web", "add chain inet nsctl x { type filter hook ingress device net0 priority 0; }", "the lock of web at"),
    (
        "uplink",
        "add table netdev nsctl; add chain netdev nsctl x { type filter hook ingress device net0 priority 0; }",
        "the gateway uplink at",
    ),
];

#[test]
fn what_the_kernel_holds_is_proved_and_a_change_of_it_is_refuted() {
    in_sandbox(|| {
        let network = Network::new("prove", POLICY);
        let applied = network.apply();
        let live = network.nsctl.prove_live().unwrap_or_else(|error| panic!("{}", chain(&error)));
        // The same rules make the same classes, but for what depends on which links exist.
        assert_eq!(live, applied.proof);
        let changes = CHANGES.into_iter().map(|change| (change, true));
        for ((place, change, word), followed) in changes.chain(STRANGE.into_iter().map(|change| (change, false))) {
            let command = match place {
                "host" => format!("nft '{change}'"),
                _ => format!("ip netns exec {} nft '{change}'", network.netns_name(place)),
            };
            witness(Command::new("sh").args(["-c", &command]));
            match network.nsctl.prove_live() {
                Err(Error::Refuted(found)) => {
                    assert!(found.gate.contains(word), "{change}: {found}");
                    assert!(found.packet.is_some() == followed, "{change}: {found}");
                    println!("{change}: {found}: {}", found.class);
                }
                Err(error) => panic!("{change}: {}", chain(&error)),
                Ok(_) => panic!("{change}: not refuted"),
            }
            if change.contains("evil") {
                // What is of somebody else is not taken away.
                let fabric = network.netns_name(place);
                witness(Command::new("ip").args(["netns", "exec", &fabric, "nft", "delete table netdev evil"]));
            }
            network.apply();
            assert!(network.nsctl.prove_live().is_ok(), "{change}: apply has mended it");
        }
        network.down();
    });
}
