//! A network of ours inside a sandbox, and sockets in its services.

use std::error::Error as _;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use netns_policy::plan::Plan;
use netns_policy::port::Protocol;
use netns_policy::topology::Place;
use nsctl::kernel::netns::Netns;
use nsctl::kernel::{Kernel as _, Linux};
use nsctl::{Applied, Error, Options, Orchestrator, Planned};

use super::witness;

/// How long a socket waits for something that ought to come.
pub const SOON: Duration = Duration::from_secs(5);
/// How long a socket waits for something that ought not to come: a refusal is there in no time, and silence is longer.
pub const NEVER: Duration = Duration::from_millis(60);

/// One policy, applied under a name of its own.
pub struct Network {
    /// The product.
    pub nsctl: Orchestrator,
    policy: PathBuf,
}

impl Network {
    /// With `policy` in a file under `/run/DIRECTORY`; nothing is applied yet.
    pub fn new(directory: &str, policy: &str) -> Self {
        let directory = Path::new("/run").join(directory);
        fs::create_dir_all(&directory).unwrap();
        let file = directory.join("policy.toml");
        let options = Options {
            policy: vec![file.clone()],
            state: directory.join("state"),
            etc_netns: None,
            ..Options::default()
        };
        let network = Self { nsctl: Orchestrator::new(options), policy: file };
        network.write(policy);
        network
    }

    /// With one of `examples/policies`.
    pub fn example(name: &str) -> Self {
        Self::new(name, &example(name))
    }

    /// Another policy, not applied yet.
    pub fn write(&self, policy: &str) {
        fs::write(&self.policy, policy).unwrap();
    }

    /// Writes `policy` and makes it so.
    pub fn change(&self, policy: &str) -> Applied {
        self.write(policy);
        self.apply()
    }

    /// Makes it so.
    pub fn apply(&self) -> Applied {
        self.nsctl.apply().unwrap_or_else(|error| panic!("cannot apply: {}", chain(&error)))
    }

    /// Takes it down.
    pub fn down(&self) {
        if let Err(error) = self.nsctl.down() {
            panic!("cannot take down: {}", chain(&error));
        }
    }

    /// What would be done now.
    pub fn planned(&self) -> Planned {
        self.nsctl.plan().unwrap_or_else(|error| panic!("cannot plan: {}", chain(&error)))
    }

    /// What would be done now, as steps.
    pub fn plan(&self) -> Plan {
        self.planned().plan
    }

    /// Whether there is nothing left of it.
    pub fn is_nothing(&self) -> bool {
        self.kernel().observe().unwrap().is_nothing()
    }

    /// The differences that `status` tells.
    pub fn drift(&self) -> Vec<String> {
        self.nsctl.status().unwrap().drift
    }

    /// The room that touches the kernel, for this network.
    pub fn kernel(&self) -> Linux {
        self.nsctl.kernel(&self.nsctl.network().unwrap()).unwrap()
    }

    /// The namespace's name of `fabric`, `uplink` or a service.
    pub fn netns_name(&self, place: &str) -> String {
        let network = self.nsctl.network().unwrap();
        match place {
            "fabric" | "uplink" => format!("{network}+{place}"),
            "+relay" => format!("{network}{place}"),
            service => format!("{network}-{service}"),
        }
    }

    /// The namespace of `host`, `fabric`, `uplink` or a service.
    pub fn netns(&self, place: &str) -> Netns {
        match place {
            "host" => Netns::current().unwrap(),
            place => super::netns(&self.netns_name(place)),
        }
    }

    /// The addresses of `host` on its wire, or of a service: IPv4, then IPv6 where there is.
    pub fn addresses(&self, place: &str) -> Vec<IpAddr> {
        let planned = self.nsctl.plan_offline().unwrap();
        let addresses = match place {
            "host" => planned.addresses.of(&Place::Host),
            service => planned.addresses.service(service),
        };
        addresses.unwrap_or_else(|| panic!("{place} has no address")).iter().collect()
    }

    /// The IPv4 address of `place`.
    pub fn v4(&self, place: &str) -> IpAddr {
        self.addresses(place)[0]
    }

    /// What a command prints inside `place`; it must succeed.
    #[allow(clippy::disallowed_methods, reason = "the witnesses of these tests")]
    pub fn witness(&self, place: &str, command: &str) -> String {
        let mut words = Vec::new();
        let netns = self.netns_name(place);
        if place != "host" {
            words.extend(["ip", "netns", "exec", &netns]);
        }
        words.extend(command.split_whitespace());
        witness(Command::new(words[0]).args(&words[1..]))
    }

    /// Loads an nft script inside `place`.
    #[allow(clippy::disallowed_methods, reason = "what a stranger does to our rules")]
    pub fn nft(&self, place: &str, script: &str) -> String {
        if place == "host" { super::nft_here(script) } else { super::nft(&self.netns_name(place), script) }
    }

    /// A listener in `place`.
    pub fn listen(&self, place: &str, address: IpAddr, port: u16) -> TcpListener {
        self.netns(place).run(move || TcpListener::bind((address, port))).unwrap()
    }

    /// A datagram socket in `place`.
    pub fn bind(&self, place: &str, address: IpAddr, port: u16) -> UdpSocket {
        self.netns(place).run(move || UdpSocket::bind((address, port))).unwrap()
    }

    /// A connection out of `place`, or why not.
    pub fn connect(&self, place: &str, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
        self.netns(place).run(move || Ok(TcpStream::connect_timeout(&to, patience))).unwrap()
    }

    /// Whether a listener that is put there for the occasion can be reached: by a TCP connection, or by a datagram.
    /// Where one of the two does not exist, it cannot.
    pub fn reaches(&self, from: &str, to: &str, (address, protocol, port): (IpAddr, Protocol, u16)) -> bool {
        let exists = |place: &str| place == "host" || Path::new("/run/netns").join(self.netns_name(place)).exists();
        if !exists(from) || !exists(to) {
            return false;
        }
        let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        match protocol {
            Protocol::Tcp => {
                let _listener = self.listen(to, any, port);
                self.connect(from, SocketAddr::new(address, port), NEVER).is_ok()
            }
            Protocol::Udp => {
                let listener = self.bind(to, any, port);
                listener.set_read_timeout(Some(NEVER)).unwrap();
                let sent = self.netns(from).run(move || UdpSocket::bind((any, 0))?.send_to(b"?", (address, port)));
                sent.is_ok() && listener.recv(&mut [0; 8]).is_ok()
            }
        }
    }
}

/// The text of one of `examples/policies`.
pub fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/policies").join(name).with_extension("toml");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// An error with all its causes, as the command prints it.
pub fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// `text` with the one place of `old` replaced; a policy that has it not is a mistake of the test.
pub fn replaced(text: &str, old: &str, new: &str) -> String {
    assert_eq!(text.matches(old).count(), 1, "`{old}` ought to be there once");
    text.replace(old, new)
}
