//! A policy in force in a sandbox, with everything around it that frames are sent from and looked for at.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Command;

use netns_policy::address::AddressPlan;
use netns_policy::graph::AllowGraph;
use netns_policy::packet::{IPV4, IPV6, Packet};
use netns_policy::ruleset::decide::walk::{WAN, World};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, sendto,
    setsockopt, socket, sockopt,
};
use nix::unistd::Pid;
use nsctl::internet::Internet;
use nsctl::kernel::netns::Netns;

use crate::common::network::Network;
use crate::raw;
use crate::witness::{Behind, MARK, Witness};

/// Addresses on the internet, a resolver among them.
pub const PUBLIC: [&str; 4] = ["203.0.113.10", "9.9.9.9", "2001:db8:ffff::10", "2620:fe::fe"];
/// Addresses that policies call `lan`, or may.
pub const LOCAL: [&str; 6] = ["192.168.1.20", "192.168.1.60", "192.168.1.200", "10.9.3.4", "172.20.0.1", "fd99::5"];

/// The machine and what lies around it; policies come and go.
pub struct Stage {
    network: Network,
    internet: Internet,
}

impl Stage {
    pub fn build() -> Self {
        keep_order();
        let internet = Internet::with(addresses(&PUBLIC), addresses(&LOCAL));
        let internet = internet.expect("the sandbox has room for an internet");
        Self { network: Network::new("differential", "schema = 1\n"), internet }
    }

    /// Puts a policy in force, in the place of the one before.
    pub fn play(&self, policy: &str) -> Scene<'_> {
        self.network.change(policy);
        let planned = self.network.planned();
        let left = &planned.plan.steps;
        assert!(left.is_empty(), "the kernel holds something else than was desired: {left:?}\n{policy}");
        let world = World::of(&planned.desired, &planned.observed.host);
        let mut wires = BTreeMap::new();
        for name in world.places.keys() {
            let netns = self.network.netns(name);
            let (link, links): (_, &'static [&'static str]) = match name.as_str() {
                "host" => ("node+host", &["node+host", "node+leg"]),
                "uplink" => ("net0", &["net0", "up0"]),
                _ => ("net0", &["net0"]),
            };
            wires.insert(name.clone(), Wire::open(netns, link, Behind::Lock(links)));
        }
        if world.leg.is_some() {
            if !wires.contains_key("host") {
                // It has no wire of its own, but the leg ends there.
                let netns = Netns::current().expect("/proc is mounted");
                wires.insert("host".into(), Wire::deaf(netns, Behind::Lock(&["node+leg"])));
            }
            let netns = self.internet.netns().try_clone().expect("a descriptor is free");
            wires.insert(WAN.into(), Wire::open(netns, "eth0", Behind::Link("eth0")));
        }
        let scene = Scene {
            network: &self.network,
            policy: policy.to_owned(),
            graph: planned.checked.graph,
            addresses: planned.addresses,
            world,
            wires,
        };
        scene.forget();
        scene
    }
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("the constants are addresses")).collect()
}

/// One CPU carries every packet, in the order in which they are sent: an answer on another one could overtake what it
/// answers.
fn keep_order() {
    let mut cpus = CpuSet::new();
    cpus.set(0).expect("there is a first CPU");
    // Where a first CPU is not ours, packets are waited for all the same.
    sched_setaffinity(Pid::from_raw(0), &cpus).ok();
}

/// One policy in force.
pub struct Scene<'s> {
    network: &'s Network,
    pub policy: String,
    pub graph: AllowGraph,
    pub addresses: AddressPlan,
    pub world: World,
    wires: BTreeMap<String, Wire>,
}

/// One namespace: its way in, and what has come.
struct Wire {
    netns: Netns,
    raw: Option<raw::Sender>,
    program: Programs,
    witness: Witness,
}

impl Wire {
    fn open(netns: Netns, link: &'static str, behind: Behind) -> Self {
        Self { raw: Some(raw::Sender::open(&netns, link)), ..Self::deaf(netns, behind) }
    }

    fn deaf(netns: Netns, behind: Behind) -> Self {
        let witness = Witness::post(&netns, behind);
        let program = Programs::open(&netns);
        Self { raw: None, program, witness, netns }
    }
}

impl Scene<'_> {
    /// Every namespace as if no packet had ever been there.
    pub fn forget(&self) {
        for (name, wire) in &self.wires {
            let flushed = wire.netns.run(|| {
                let output = Command::new("conntrack").arg("-F").output()?;
                if output.status.success() { Ok(()) } else { Err(io::Error::other(format!("{output:?}"))) }
            });
            flushed.unwrap_or_else(|error| panic!("{name}: {error}"));
            wire.witness.take();
        }
    }

    /// Runs a line of nft(8) in a namespace: `fabric`, or one of the world's places.
    pub fn nft(&self, place: &str, script: &str) -> String {
        self.network.nft(place, script)
    }

    /// Deletes the rules of a chain in whose listing by nft(8) `word` stands; there are some.
    pub fn forget_rule(&self, place: &str, family: &str, chain: &str, word: &str) {
        let listing = self.network.witness(place, &format!("nft -a list chain {family} nsctl {chain}"));
        let handles =
            listing.lines().filter(|line| line.contains(word)).filter_map(|line| line.rsplit_once("# handle "));
        let handles: Vec<&str> = handles.map(|(_, handle)| handle).collect();
        assert!(!handles.is_empty(), "no rule with {word}:\n{listing}");
        handles
            .iter()
            .for_each(|handle| drop(self.nft(place, &format!("delete rule {family} nsctl {chain} handle {handle}"))));
    }

    /// Puts a frame on the wire of a place, past its lock.
    pub fn put(&self, place: &str, frame: &[u8]) -> io::Result<()> {
        let raw = self.wires[place].raw.as_ref().unwrap_or_else(|| panic!("{place} has no wire"));
        Ok(raw.send(frame)?)
    }

    /// Sends a datagram as a program of that place, which its lock is asked about.
    pub fn say(&self, place: &str, packet: &Packet) -> io::Result<()> {
        self.wires[place].program.send(packet)
    }

    /// What has arrived since the last time, and where.
    pub fn arrivals(&self) -> Vec<(String, Vec<u8>)> {
        let of = |(name, wire): (&String, &Wire)| {
            wire.witness.take().into_iter().map(|datagram| (name.clone(), datagram)).collect::<Vec<_>>()
        };
        self.wires.iter().flat_map(of).collect()
    }

    /// Where programs are.
    pub fn has_programs(&self, place: &str) -> bool {
        !["uplink", WAN].contains(&place)
    }

    /// The addresses of the machine itself in its own network.
    pub fn machine(&self) -> Vec<IpAddr> {
        addresses(&["198.51.100.2", "2001:db8:1::2"])
    }
}

/// Sockets of a program that writes its IP headers itself. What it sends passes the lock like everything else that is
/// sent here, and belongs to no socket that would answer.
struct Programs {
    v4: OwnedFd,
    v6: OwnedFd,
}

impl Programs {
    fn open(netns: &Netns) -> Self {
        let open = |family| {
            let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
            setsockopt(&socket, sockopt::Mark, &MARK)?;
            Ok::<_, io::Error>(socket)
        };
        let opened = netns.run(move || Ok(Self { v4: open(AddressFamily::Inet)?, v6: open(AddressFamily::Inet6)? }));
        opened.expect("root in a namespace may open raw sockets")
    }

    fn send(&self, packet: &Packet) -> io::Result<()> {
        let view = packet.in_stack().ok_or(io::ErrorKind::InvalidInput)?;
        let to = view.ends().ok_or(io::ErrorKind::InvalidInput)?.to();
        match (view.protocol, to) {
            (IPV4, IpAddr::V4(to)) => send(&self.v4, view.network, &SockaddrIn::from(SocketAddrV4::new(to, 0))),
            (IPV6, IpAddr::V6(to)) => send(&self.v6, view.network, &SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, 0))),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

fn send(socket: &OwnedFd, datagram: &[u8], to: &dyn SockaddrLike) -> io::Result<()> {
    let sent = sendto(socket.as_raw_fd(), datagram, to, MsgFlags::empty())?;
    assert_eq!(sent, datagram.len());
    Ok(())
}
