//! A small network, really made by `apply`, and who is where in it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use netns_policy::address::AddressPlan;
use netns_policy::packet::Ends;
use netns_policy::topology::Place;
use nsctl::internet::Internet;
use nsctl::kernel::netns::Netns;
use nsctl::{Options, Orchestrator};

/// a and c are clients of b on different ports, f is another server, d goes out, e is nobody's.
const POLICY: &str = r#"
schema = 1
[network]
name = "node"
[service.a]
connect.b = ["web", "dns"]
connect.f = ["dns"]
[service.b]
ports = { web = "tcp:80", dns = "udp:53", other = "tcp:81" }
[service.c]
connect.b = ["other"]
[service.d]
outbound = "direct"
[service.e]
[service.f]
ports = { dns = "udp:53" }
[host]
may_connect.b = ["web"]
"#;

pub const SERVICES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// Every place with a wire.
pub const PLACES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "host", "uplink"];

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ip {
    V4,
    V6,
}

pub const BOTH: [Ip; 2] = [Ip::V4, Ip::V6];

pub struct Arena {
    pub internet: Internet,
    pub nsctl: Orchestrator,
    addresses: AddressPlan,
}

impl Arena {
    pub fn make() -> Self {
        let directory = Path::new("/run/attack");
        fs::create_dir_all(directory).expect("/run is ours");
        let policy = directory.join("policy.toml");
        fs::write(&policy, POLICY).expect("/run is ours");
        let internet = Internet::make().expect("the sandbox has room for an internet");
        let state = directory.join("state");
        let options = Options { policy: vec![policy], state, etc_netns: None, ..Options::default() };
        let nsctl = Orchestrator::new(options);
        let applied = nsctl.apply().unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
        Self { internet, nsctl, addresses: applied.addresses }
    }

    /// The namespace of a service, of `host` (the sandbox's own), `uplink` or `fabric`.
    pub fn netns(&self, name: &str) -> Netns {
        let name = match name {
            "host" => return Netns::current().expect("/proc is mounted"),
            "uplink" | "fabric" => format!("node+{name}"),
            service => format!("node-{service}"),
        };
        let pin = self.nsctl.options().netns.join(&name);
        Netns::open(&pin).unwrap_or_else(|error| panic!("no namespace {name}: {error}"))
    }

    /// The link that is the wire of a place.
    pub fn link(place: &str) -> &'static str {
        if place == "host" { "node+host" } else { "net0" }
    }

    /// An address by the name of who has it, or as text.
    pub fn address(&self, ip: Ip, name: &str) -> IpAddr {
        let addresses = match name {
            "host" => self.addresses.of(&Place::Host),
            "uplink" => self.addresses.of(&Place::Uplink),
            "leg of the host" => Some(self.addresses.leg_host()),
            "leg of the uplink" => Some(self.addresses.leg_gateway()),
            service => self.addresses.service(service),
        };
        match (addresses, ip) {
            (Some(addresses), Ip::V4) => addresses.v4.into(),
            (Some(addresses), Ip::V6) => addresses.v6.expect("the policy has IPv6").into(),
            (None, _) => name.parse().unwrap_or_else(|_| panic!("{name} is nobody and no address")),
        }
    }

    pub fn ends(&self, ip: Ip, from: &str, to: &str) -> Ends {
        Ends::new(self.address(ip, from), self.address(ip, to)).expect("both are of one family")
    }

    /// An address of the pool that nobody has.
    pub fn nobody(&self, ip: Ip) -> IpAddr {
        match (ip, self.addresses.pool6()) {
            (Ip::V4, _) => IpAddr::from([10, 231, 1, 77]),
            (Ip::V6, Some(pool)) => Ipv6Addr::from(u128::from(pool.network()) + 0x77).into(),
            (Ip::V6, None) => panic!("the policy has IPv6"),
        }
    }

    /// Tries to connect from a place, with the patience of 300 ms.
    pub fn connect(&self, from: &str, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.netns(from).run(move || TcpStream::connect_timeout(&to, Duration::from_millis(300)))
    }

    pub fn listen(&self, place: &str, port: u16) -> TcpListener {
        let listener = self.netns(place).run(move || TcpListener::bind(("::", port)));
        let listener = listener.unwrap_or_else(|error| panic!("no listener on {place}:{port}: {error}"));
        listener.set_nonblocking(true).expect("it is a socket");
        listener
    }

    pub fn udp(&self, place: &str, port: u16) -> UdpSocket {
        let socket = self.netns(place).run(move || UdpSocket::bind(("::", port)));
        let socket = socket.unwrap_or_else(|error| panic!("no socket on {place}:{port}: {error}"));
        socket.set_nonblocking(true).expect("it is a socket");
        socket
    }
}

/// Listeners and sockets on every port that an attack may hope for, in every place where programs run.
pub struct Ears {
    udp: BTreeMap<(&'static str, u16), UdpSocket>,
    tcp: BTreeMap<(&'static str, u16), TcpListener>,
}

impl Ears {
    pub const UDP: [u16; 4] = [53, 80, 443, 9999];
    pub const TCP: [u16; 4] = [80, 81, 443, 9999];

    pub fn everywhere(arena: &Arena) -> Self {
        let places = || SERVICES.into_iter().chain(["host"]);
        let each = |ports: [u16; 4]| places().flat_map(move |place| ports.map(|port| (place, port)));
        Self {
            udp: each(Self::UDP).map(|key| (key, arena.udp(key.0, key.1))).collect(),
            tcp: each(Self::TCP).map(|key| (key, arena.listen(key.0, key.1))).collect(),
        }
    }

    /// The datagrams that sockets got since the last time.
    pub fn heard(&self) -> Vec<(&'static str, Vec<u8>)> {
        let mut bytes = [0; 2048];
        let mut heard = Vec::new();
        for ((place, _), socket) in &self.udp {
            while let Ok((len, _)) = socket.recv_from(&mut bytes) {
                heard.push((*place, bytes[..len].to_vec()));
            }
        }
        heard
    }

    /// The connections that were accepted since the last time.
    pub fn accepted(&self) -> Vec<(&'static str, u16)> {
        self.tcp.iter().filter(|(_, listener)| listener.accept().is_ok()).map(|(key, _)| *key).collect()
    }
}
