//! `nsctl test --live`: what a `[[test]]` claims, shown by real connections.

mod common;

use common::in_sandbox;
use common::network::Network;
use nsctl::matrix::{MatrixError, Outside};
use nsctl::trial::{Shown, Verdict, live};
use nsctl::verify::Outcome;

const SHOP: &str = r#"schema = 1
network.name = "shop"

[host]
may_connect.web = ["http"]

[service.db]
ports = { sql = "tcp:5432", log = "udp:5514", many = "tcp:6000-6100" }

[service.web]
ports = { http = "tcp:8080" }
connect.db = ["sql", "log", "many"]

[service.cron]
outbound.direct = ["tcp:80"]

[service.off]
enabled = false

[[test]]
from = "web"
can = ["db:sql", "db:udp:5514", "db:tcp:6050-6200", "db"]
cannot = ["cron", "host", "wan", "metadata", "ip6:link-local", "db:tcp:5433"]

[[test]]
from = "host"
can = ["web"]
cannot = ["db"]

[[test]]
from = "cron"
can = ["wan"]
cannot = ["off", "lan"]

[[test]]
from = "wan"
cannot = ["web"]

[[never]]
from = ["cron"]
to = ["db"]
"#;

fn shown(network: &Network) -> Vec<Vec<Shown>> {
    let trials = network.nsctl.trials().unwrap();
    let shown = live(&network.nsctl, &Outside::default(), &trials).unwrap();
    assert_eq!(shown.iter().map(Vec::len).collect::<Vec<_>>(), [10, 2, 3, 1, 0], "one for each can and cannot");
    shown
}

fn tried(shown: &Shown) -> Vec<String> {
    let Shown::Tried(tried) = shown else { panic!("{shown:?}") };
    let row = |tried: &nsctl::trial::Tried| {
        let family = if tried.probe.address.is_ipv4() { 4 } else { 6 };
        format!("{family} {}:{} {:?}", tried.probe.protocol, tried.probe.port, tried.verdict)
    };
    tried.iter().map(row).collect()
}

#[test]
fn each_claim_is_tried_whole_or_said_not_to_be() {
    in_sandbox(|| {
        let network = Network::new("shop", SHOP);
        network.apply();
        let shown = shown(&network);
        let web = &shown[0];
        assert_eq!(tried(&web[0]), ["4 tcp:5432 AsClaimed", "6 tcp:5432 AsClaimed"]);
        assert_eq!(tried(&web[1]), ["4 udp:5514 AsClaimed", "6 udp:5514 AsClaimed"]);
        // Of what was asked for, both ends of what there is an edge to.
        let range = ["4 tcp:6050", "4 tcp:6100", "6 tcp:6050", "6 tcp:6100"].map(|one| format!("{one} AsClaimed"));
        assert_eq!(tried(&web[2]), range);
        assert_eq!(tried(&web[3]).len(), 2 * 4, "every edge, and of a range both ends");
        assert_eq!(tried(&web[4]).len(), 2 * 2, "an undeclared port of both protocols");
        for claim in shown.iter().flatten() {
            assert_eq!(claim.contrary().count(), 0, "{claim:?}");
        }
        for claim in web.iter().chain(&shown[1]) {
            assert_eq!(claim.unproven(), None, "{claim:?}");
        }
        let said: Vec<_> = shown[2].iter().chain(&shown[3]).map(|claim| claim.unproven().unwrap_or("-")).collect();
        assert_eq!(
            said,
            [
                "it takes somebody outside who answers: name an address with --wan",
                "off is switched off, and has no address",
                "there is nobody to try it with: name an address with --lan",
                "it would come from outside, where this machine is not",
            ]
        );
    });
}

/// Somebody else's rules are no drift, and `verify` of the graph alone would not see them.
#[test]
fn what_is_not_so_is_a_failure_and_only_that() {
    in_sandbox(|| {
        let network = Network::new("shop", SHOP);
        network.apply();
        let refuse = "add table inet other; add chain inet other in { type filter hook input priority -5; };
                      add rule inet other in tcp dport 5432 reject with tcp reset";
        network.nft("db", refuse);
        let shown = shown(&network);
        let contrary: Vec<_> = shown[0].iter().map(|claim| claim.contrary().count()).collect();
        assert_eq!(contrary, [2, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
        let first = shown[0][0].contrary().next().unwrap();
        assert!(matches!(first.seen, Outcome::Refused(_) | Outcome::Silent), "{first:?}");
        assert!(matches!(first.verdict, Verdict::Contrary(_)), "{first:?}");
    });
}

#[test]
fn what_is_not_applied_is_not_tried() {
    in_sandbox(|| {
        let network = Network::new("shop", SHOP);
        let trials = network.nsctl.trials().unwrap();
        let refused = live(&network.nsctl, &Outside::default(), &trials);
        assert!(matches!(refused, Err(MatrixError::NotApplied { .. })), "{refused:?}");
        network.apply();
        live(&network.nsctl, &Outside::default(), &trials).unwrap();
    });
}
