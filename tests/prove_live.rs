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
[service.db]
ports = { sql = "tcp:5432", time = "udp:123" }
[service.web]
ports = { http = "tcp:80" }
outbound = "direct"
dns = "direct"
connect.db = ["sql", "time"]
limits = { flows = 100, new_per_second = 50 }
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
const CHANGES: [(&str, &str, &str); 7] = [
    ("db", "insert rule inet nsctl input udp dport 7 accept", "the lock of db at input"),
    ("db", "add element inet nsctl in4 { 10.231.0.9 . tcp . 22 }", "the lock of db at input"),
    ("web", "insert rule inet nsctl output accept", "the lock of web at output"),
    ("uplink", "insert rule inet nsctl forward accept", "the gateway uplink at forward"),
    ("uplink", "flush chain inet nsctl leaving", "the gateway uplink at postrouting"),
    ("host", "flush chain inet nsctl-p from_leg", "the table on the host at forward"),
    ("fabric", "flush map netdev nsctl replies6", "the fabric, behind the wire of"),
];

#[test]
fn what_the_kernel_holds_is_proved_and_a_change_of_it_is_refuted() {
    in_sandbox(|| {
        let network = Network::new("prove", POLICY);
        let applied = network.apply();
        let live = network.nsctl.prove_live().unwrap_or_else(|error| panic!("{}", chain(&error)));
        // The same rules make the same classes, but for what depends on which links exist.
        assert_eq!(live, applied.proof);
        for (place, change, word) in CHANGES {
            let command = match place {
                "host" => format!("nft '{change}'"),
                _ => format!("ip netns exec {} nft '{change}'", network.netns_name(place)),
            };
            witness(Command::new("sh").args(["-c", &command]));
            match network.nsctl.prove_live() {
                Err(Error::Refuted(found)) => {
                    assert!(found.gate.contains(word), "{change}: {found}");
                    assert!(found.packet.is_some(), "{change}: {found}");
                    println!("{change}: {found}: {}", found.class);
                }
                Err(error) => panic!("{change}: {}", chain(&error)),
                Ok(_) => panic!("{change}: not refuted"),
            }
            network.apply();
            assert!(network.nsctl.prove_live().is_ok(), "{change}: apply has mended it");
        }
        network.down();
    });
}
