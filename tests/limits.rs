//! What a service may do less than its edges say, and where it asks for names: `limits` and `dns = "tor"`, by real
//! sockets.

mod common;

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use common::in_sandbox;
use common::network::Network;

const PATIENCE: Duration = Duration::from_secs(2);

const POLICY: &str = r#"
schema = 1
network.name = "l"
[service.few]
connect.b = ["p"]
limits = { flows = 5 }
[service.slow]
connect.b = ["p"]
limits = { new_per_second = 5 }
[service.free]
connect.b = ["p"]
[service.asking]
dns = "tor"
[service.b]
ports = { p = "tcp:80" }
[service.tor]
role = "tor"
ports = { socks = "tcp:9050", dns = "udp:9053" }
"#;

#[test]
fn beyond_its_limits_a_service_is_refused_and_another_is_not() {
    in_sandbox(|| {
        let network = Network::new("l", POLICY);
        network.apply();
        let to = SocketAddr::new(network.v4("b"), 80);
        let _listener = network.listen("b", to.ip(), to.port());
        let open = |from: &str, tries: usize| -> Vec<TcpStream> {
            (0..tries).filter_map(|_| network.connect(from, to, PATIENCE).ok()).collect()
        };
        let (few, free) = (open("few", 20), open("free", 20));
        assert_eq!((few.len(), free.len()), (5, 20));
        // A limit that is counted by the second lets more through while the tries go on, but never all of so many.
        let slow = open("slow", 200).len();
        assert!((5..200).contains(&slow), "{slow}");
    });
}

#[test]
fn a_question_to_the_tor_services_port_53_is_answered_by_its_port_dns() {
    in_sandbox(|| {
        let network = Network::new("l", POLICY);
        network.apply();
        let tor = network.v4("tor");
        let answering = network.bind("tor", tor, 9053);
        let asking = network.bind("asking", network.v4("asking"), 0);
        for socket in [&answering, &asking] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        asking.send_to(b"question", (tor, 53)).unwrap();
        let mut bytes = [0; 16];
        let (len, from) = answering.recv_from(&mut bytes).unwrap();
        assert_eq!(&bytes[..len], b"question");
        answering.send_to(b"answer", from).unwrap();
        let (len, from) = asking.recv_from(&mut bytes).unwrap();
        assert_eq!((&bytes[..len], from), (&b"answer"[..], SocketAddr::new(tor, 53)));
        // Who has no such `dns` finds nothing there.
        let other = network.bind("free", network.v4("free"), 0);
        assert!(other.send_to(b"question", (tor, 53)).is_err());
    });
}
