//! A change that closes the way by which the operator came in.

use std::net::IpAddr;

use crate::common::in_sandbox;
use crate::node::{NoHolder, Node};

/// The operator dials the host's sshd from `door`, as an onion service for it does.
const DOOR: &str = "[service.door]\n[host]\naccepts.ssh = { port = \"tcp:22\", from = [\"door\"] }\n";
/// The service is there still, and the edge is not.
const SHUT: &str = "[service.door]\n[host]\naccepts.ssh = { port = \"tcp:22\", from = [\"a\"] }\n";

fn connection(node: &Node, service: &str) -> String {
    let address: IpAddr = node.network.v4(service);
    format!("{address} 40000 {} 22", node.network.v4("host"))
}

#[test]
fn the_operator_s_own_way_in_is_not_closed_unawares() {
    in_sandbox(|| {
        let _guard = NoHolder;
        let node = Node::new(DOOR);
        node.run("apply --no-confirm").ok();
        let over = connection(&node, "door");
        // As an sshd that listens on one IPv6 socket for both writes it.
        let mapped = format!("::ffff:{over}");
        node.write(SHUT);
        node.run_with(("SSH_CONNECTION", &mapped), "apply").refused("E0920", &["door -> host:22"]);
        let over = ("SSH_CONNECTION", over.as_str());
        for (policy, what) in [(SHUT, "the edge goes"), ("", "the service goes")] {
            node.write(policy);
            for asked in ["apply", "apply --no-confirm"] {
                let said = node.run_with(over, asked);
                said.refused("E0920", &["you came in by door -> host:22", "--confirm"]);
                assert_eq!(node.current().unwrap().0, 1, "{what}");
            }
        }
        node.write(SHUT);
        node.run_with(over, "apply --confirm 5m").ok();
        assert!(node.store().pending().unwrap().is_some(), "it comes back if nobody says otherwise");
        // By the way that is closed now nobody comes to say so, and whoever else does may.
        node.run("rollback").ok();
        node.run("apply --no-confirm").ok();
    });
}

#[test]
fn a_change_that_has_nothing_to_do_with_it_is_not_stopped() {
    in_sandbox(|| {
        let _guard = NoHolder;
        let node = Node::new(DOOR);
        node.run("apply --no-confirm").ok();
        let over = connection(&node, "door");
        node.write(&format!("{DOOR}[service.more]\n"));
        node.run_with(("SSH_CONNECTION", &over), "apply --no-confirm").ok();
        // From somewhere else the same change is one like any other.
        node.write(SHUT);
        node.run_with(("SSH_CONNECTION", "192.0.2.7 50022 198.51.100.1 22"), "apply --no-confirm").ok();
    });
}

/// Who came in by what waits, and takes it back, closes it: that is asked for, and is no reason to refuse for ever.
#[test]
fn a_way_in_that_waits_can_be_taken_back_over_itself() {
    in_sandbox(|| {
        let _guard = NoHolder;
        let node = Node::new(SHUT);
        node.run("apply --no-confirm").ok();
        node.write(DOOR);
        node.run("apply --confirm 5m").ok();
        let over = connection(&node, "door");
        let over = ("SSH_CONNECTION", over.as_str());
        node.run_with(over, "rollback").refused("E0920", &["you came in by door -> host:22"]);
        node.run_with(over, "rollback --confirm 5m").ok();
        assert_eq!((node.current().unwrap().0, node.store().pending().unwrap()), (1, None));
    });
}
