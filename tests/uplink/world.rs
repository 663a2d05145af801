//! A machine with a way out, all of it in the sandbox of a test.
//!
//! ```text
//! host (the test)  eth0 ------- r0  router  r1 --(mtu 1400)-- i0  internet
//!       192.168.7.2/24     192.168.7.1    203.0.113.1       203.0.113.10, 10.9.9.9
//!       198.18.5.2/24      198.18.5.77 (a neighbour with a public address)
//!       2001:db8:7::2/64   2001:db8:7::1  2001:db8:9::1     2001:db8:9::10
//! ```

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use nix::mount::{MsFlags, mount};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt, socket, sockopt,
};
use nsctl::kernel::netns::Netns;
use nsctl::{Options, Orchestrator};

use super::common::ip;

const POLICY: &str = r#"
schema = 1
[network]
name = "node"
pool4 = "10.231.0.0/24"
pool6 = "fd6e:6f64:6500::/64"
[service.app]
outbound = "direct"
[service.shut]
"#;

pub struct World {
    pub router: Netns,
    pub internet: Netns,
    pub options: Options,
    directory: PathBuf,
}

impl World {
    /// Makes it in the sandbox of the caller.
    pub fn new() -> Self {
        let directory = PathBuf::from("/run/test");
        fs::create_dir_all(&directory).expect("a directory");
        let world = Self {
            router: Netns::unpinned().expect("a namespace"),
            internet: Netns::unpinned().expect("a namespace"),
            options: Options {
                policy: vec![directory.join("policy.toml")],
                state: directory.join("state"),
                run: directory.join("run"),
                netns: directory.join("netns"),
                etc_netns: None,
                renumber: false,
            },
            directory,
        };
        world.policy(POLICY);
        world.resolvers("nameserver 192.168.7.1\n");
        world.wires();
        world
    }

    pub fn policy(&self, text: &str) {
        fs::write(self.directory.join("policy.toml"), text).expect("a policy");
    }

    /// What the host's resolv.conf(5) says.
    pub fn resolvers(&self, text: &str) {
        let file = self.directory.join("resolv.conf");
        fs::write(&file, text).expect("a file");
        mount(Some(&file), "/etc/resolv.conf", None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("the host's file");
    }

    fn wires(&self) {
        let at = |netns: &Netns| format!("/proc/{}/fd/{}", std::process::id(), netns.file().as_raw_fd());
        let (router, internet) = (at(&self.router), at(&self.internet));
        ip(&format!("link add eth0 type veth peer name r0 netns {router}"));
        ip_in(&self.router, &format!("link add r1 mtu 1400 type veth peer name i0 mtu 1400 netns {internet}"));
        for line in [
            "addr add 192.168.7.2/24 dev eth0",
            "addr add 198.18.5.2/24 dev eth0",
            "addr add 2001:db8:7::2/64 dev eth0 nodad",
            "link set eth0 up",
            "route add default via 192.168.7.1",
        ] {
            ip(line);
        }
        for line in [
            "link set lo up",
            "addr add 192.168.7.1/24 dev r0",
            "addr add 198.18.5.77/24 dev r0",
            "addr add 2001:db8:7::1/64 dev r0 nodad",
            "addr add fe80::1/64 dev r0 nodad",
            "addr add 203.0.113.1/24 dev r1",
            "addr add 2001:db8:9::1/64 dev r1 nodad",
            "link set r0 up",
            "link set r1 up",
            "route add 10.9.9.9 via 203.0.113.10",
        ] {
            ip_in(&self.router, line);
        }
        for line in [
            "link set lo up",
            "addr add 203.0.113.10/24 dev i0",
            "addr add 10.9.9.9/32 dev i0",
            "addr add 2001:db8:9::10/64 dev i0 nodad",
            "link set i0 up",
            "route add 192.168.7.0/24 via 203.0.113.1",
            "route add 198.18.5.0/24 via 203.0.113.1",
            "route add 2001:db8:7::/64 via 2001:db8:9::1",
        ] {
            ip_in(&self.internet, line);
        }
        let forward = || {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        };
        self.router.run(forward).expect("the router forwards");
    }

    /// A guest of the host's, to whom the router knows the way.
    pub fn guest(&self, guest: &Netns) {
        let at = format!("/proc/{}/fd/{}", std::process::id(), guest.file().as_raw_fd());
        ip(&format!("link add guest type veth peer name g0 netns {at}"));
        for line in
            ["addr add 172.20.0.1/24 dev guest", "addr add 2001:db8:20::1/64 dev guest nodad", "link set guest up"]
        {
            ip(line);
        }
        for line in [
            "addr add 172.20.0.2/24 dev g0",
            "addr add 2001:db8:20::2/64 dev g0 nodad",
            "link set g0 up",
            "route add default via 172.20.0.1",
            "route add default via 2001:db8:20::1",
        ] {
            ip_in(guest, line);
        }
        ip_in(&self.router, "route add 172.20.0.0/24 via 192.168.7.2");
        ip_in(&self.router, "route add 2001:db8:20::/64 via 2001:db8:7::2");
    }

    /// The router says that it is one (RFC 4861), and the host gets its IPv6 default route by that.
    fn advertise(&self) -> io::Result<usize> {
        self.router.run(|| {
            let (family, protocol) = (AddressFamily::Inet6, SockProtocol::IcmpV6);
            let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
            setsockopt(&socket, sockopt::Ipv6MulticastHops, &255)?;
            let r0 = nix::net::if_::if_nametoindex("r0")?;
            setsockopt(&socket, sockopt::BindToDevice, &"r0".into())?;
            let all_nodes =
                SockaddrIn6::from(std::net::SocketAddrV6::new("ff02::1".parse().expect("constant"), 0, 0, r0));
            // Type 134, hop limit 64, no flags, 1800 seconds; no option.
            let advertisement = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
            Ok(sendto(socket.as_raw_fd(), &advertisement, &all_nodes, MsgFlags::empty())?)
        })
    }

    /// Waits until the host has its route from the router, advertising again meanwhile, and everybody has found their
    /// neighbours.
    pub fn settle(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.has_advertised_route() {
            // Before the wire is up there is nobody to tell.
            let told = self.advertise();
            assert!(Instant::now() < deadline, "no route: {told:?} {}", ip("-6 route show"));
            thread::sleep(Duration::from_millis(50));
        }
        for closed in ["203.0.113.10:1", "[2001:db8:9::10]:1"] {
            while connect(None, closed).is_err_and(|e| e.kind() != io::ErrorKind::ConnectionRefused) {
                assert!(Instant::now() < deadline, "the host itself does not reach {closed}");
            }
        }
    }

    pub fn has_advertised_route(&self) -> bool {
        ip("-6 route show default").contains("proto ra")
    }

    pub fn orchestrator(&self) -> Orchestrator {
        Orchestrator::new(self.options.clone())
    }

    pub fn service(&self, name: &str) -> Netns {
        Netns::open(&self.options.netns.join(format!("node-{name}"))).expect("the service's namespace")
    }
}

/// Runs ip(8) in another namespace.
pub fn ip_in(netns: &Netns, words: &str) -> String {
    let line = words.to_owned();
    netns.run(move || output(Command::new("ip").args(line.split_whitespace()))).expect(words)
}

/// Runs a line of sh(1) in the host's namespace.
pub fn sh(line: &str) -> String {
    output(Command::new("sh").args(["-ec", line])).expect(line)
}

fn output(command: &mut Command) -> io::Result<String> {
    let output = command.output()?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}

/// Listens in a namespace, or in the host's.
pub fn listen(netns: Option<&Netns>, at: &str) -> TcpListener {
    let address: SocketAddr = at.parse().expect("an address");
    match netns {
        Some(netns) => netns.run(move || TcpListener::bind(address)).expect(at),
        None => TcpListener::bind(address).expect(at),
    }
}

/// Connects from a namespace, or from the host's.
pub fn connect(netns: Option<&Netns>, to: &str) -> io::Result<TcpStream> {
    let address: SocketAddr = to.parse().expect("an address");
    let connect = move || TcpStream::connect_timeout(&address, Duration::from_secs(2));
    match netns {
        Some(netns) => netns.run(connect),
        None => connect(),
    }
}

/// Connects and says which address the listener saw.
pub fn seen_as(listener: &TcpListener, from: &Netns, to: &str) -> IpAddr {
    let _client = connect(Some(from), to).unwrap_or_else(|e| panic!("{to}: {e}\n{}", sh("nft list ruleset")));
    listener.accept().expect("a connection").1.ip()
}

/// The value of a sysctl of the host's namespace.
pub fn sysctl(path: &str) -> String {
    fs::read_to_string(Path::new("/proc/sys").join(path)).expect(path).trim().to_owned()
}
