//! Links as the kernel has them, and what is done to many of them at once.
//!
//! # Invariants
//!
//! - Links are named by index, never by a name that could have been given to another link meanwhile.
//! - Many links go down by group in one message: deleting them one by one costs an RCU grace period (20 ms) each.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, Prop,
};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use nix::errno::Errno;

use super::netlink::{NetlinkError, Request, Rtnl};
use super::netns::Netns;

pub use netlink_packet_route::link::{In6AddrGenMode as AddrGenMode, State as OperState};

/// The index of `lo`: the first link of every namespace, made with it.
pub const LOOPBACK: u32 = 1;

/// A link, as the kernel describes it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name, up to 15 bytes.
    pub name: String,
    /// Its other names, up to 127 bytes each.
    pub altnames: Vec<String>,
    /// Free text (`ip link set alias`).
    pub alias: Option<String>,
    /// Its Ethernet address; none for a tunnel.
    pub mac: Option<[u8; 6]>,
    /// The largest packet it takes.
    pub mtu: u32,
    /// The group by which it can be deleted with others; 0 is everybody's.
    pub group: u32,
    /// Whether it was set up (`IFF_UP`).
    pub up: bool,
    /// Whether it does without ARP and neighbour discovery (`IFF_NOARP`).
    pub no_arp: bool,
    /// Whether the far end is up too (`IFF_LOWER_UP`).
    pub lower_up: bool,
    /// Whether packets pass (RFC 2863).
    pub state: OperState,
    /// `veth`, `bridge`, `wireguard` and so on; none for `lo` and for hardware.
    pub kind: Option<String>,
    /// The index of the other end of a veth pair, in the namespace `peer_netns`.
    pub peer: Option<u32>,
    /// The id that this namespace gave to the one of the other end; none when it is this one.
    pub peer_netns: Option<i32>,
    /// How it gets its IPv6 link-local address; none where the kernel has no IPv6.
    pub addr_gen_mode: Option<AddrGenMode>,
}

/// Links that the kernel puts into every namespace when a module is loaded (`net.core.fb_tunnels_only_for_init_net` is 0), by
/// name and kind.
const FALLBACK: [(&str, &str); 9] = [
    ("erspan0", "erspan"),
    ("gre0", "gre"),
    ("gretap0", "gretap"),
    ("ip6_vti0", "vti6"),
    ("ip6gre0", "ip6gre"),
    ("ip6tnl0", "ip6tnl"),
    ("ip_vti0", "vti"),
    ("sit0", "sit"),
    ("tunl0", "ipip"),
];

impl Link {
    /// Whether the kernel has made it, in this namespace as in every other. It says yes to a request to delete one, and
    /// does nothing.
    pub fn is_fallback(&self) -> bool {
        let kind = self.kind.as_deref();
        FALLBACK.iter().any(|(name, of)| *name == self.name && kind == Some(*of))
    }

    fn from_message(message: LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            altnames: Vec::new(),
            alias: None,
            mac: None,
            mtu: 0,
            group: 0,
            up: flags.contains(LinkFlags::Up),
            no_arp: flags.contains(LinkFlags::Noarp),
            lower_up: flags.contains(LinkFlags::LowerUp),
            state: OperState::Unknown,
            kind: None,
            peer: None,
            peer_netns: None,
            addr_gen_mode: None,
        };
        message.attributes.into_iter().for_each(|attribute| link.take(attribute));
        link
    }

    fn take(&mut self, attribute: LinkAttribute) {
        match attribute {
            LinkAttribute::IfName(name) => self.name = name,
            LinkAttribute::PropList(props) => self.altnames.extend(props.into_iter().filter_map(|prop| match prop {
                Prop::AltIfName(name) => Some(name),
                _ => None,
            })),
            LinkAttribute::IfAlias(alias) => self.alias = Some(alias),
            LinkAttribute::Address(bytes) => self.mac = bytes.try_into().ok(),
            LinkAttribute::Mtu(mtu) => self.mtu = mtu,
            LinkAttribute::Group(group) => self.group = group,
            LinkAttribute::OperState(state) => self.state = state,
            LinkAttribute::Link(peer) => self.peer = Some(peer),
            LinkAttribute::LinkNetNsId(id) => self.peer_netns = Some(id),
            LinkAttribute::LinkInfo(infos) => self.kind = infos.iter().find_map(kind),
            LinkAttribute::AfSpecUnspec(families) => self.addr_gen_mode = families.iter().find_map(addr_gen_mode),
            _ => {}
        }
    }
}

fn kind(info: &LinkInfo) -> Option<String> {
    match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    }
}

fn addr_gen_mode(family: &AfSpecUnspec) -> Option<AddrGenMode> {
    let AfSpecUnspec::Inet6(attributes) = family else { return None };
    attributes.iter().find_map(|attribute| match attribute {
        AfSpecInet6::AddrGenMode(mode) => Some(*mode),
        _ => None,
    })
}

impl Rtnl {
    /// Every link of the namespace, without its statistics.
    ///
    /// # Errors
    ///
    /// When the kernel refuses or the list does not hold still.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        self.dump("list links", &RouteNetlinkMessage::GetLink(question(0)), into_link)
    }

    /// The link with this index, or none.
    ///
    /// # Errors
    ///
    /// When the kernel refuses for another reason than that there is none.
    pub fn link(&mut self, index: u32) -> Result<Option<Link>, NetlinkError> {
        Ok(self.links_at(&[index])?.pop().flatten())
    }

    /// The link with this name, or none. Whatever else is in the namespace is not read.
    ///
    /// # Errors
    ///
    /// When the kernel refuses for another reason than that there is none, or the link cannot be made sense of.
    pub fn link_named(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let operation = "read a link by its name";
        let mut message = question(0);
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.ask(operation, &[RouteNetlinkMessage::GetLink(message)], into_link)?.pop().transpose() {
            // An altname is found too, and is not what is meant.
            Ok(link) => Ok(link.filter(|link| link.name == name)),
            Err(refusal) if refusal.errno == Errno::ENODEV => Ok(None),
            Err(refusal) => Err(NetlinkError::Refused { operation: operation.into(), refusal }),
        }
    }

    /// The links with these indexes, in this order.
    fn links_at(&mut self, indexes: &[u32]) -> Result<Vec<Option<Link>>, NetlinkError> {
        let operation = "read links";
        let questions: Vec<_> = indexes.iter().map(|index| RouteNetlinkMessage::GetLink(question(*index))).collect();
        let answers = self.ask(operation, &questions, into_link)?;
        answers
            .into_iter()
            .map(|answer| match answer {
                Ok(link) => Ok(Some(link)),
                Err(refusal) if refusal.errno == Errno::ENODEV => Ok(None),
                Err(refusal) => Err(NetlinkError::Refused { operation: operation.into(), refusal }),
            })
            .collect()
    }

    /// The id that this socket's namespace gave to `netns`, which is how [`Link::peer_netns`] names it; none when it has not met it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn netns_id(&mut self, netns: &Netns) -> Result<Option<i32>, NetlinkError> {
        let operation = "look up the id of a namespace";
        let mut question = NsidMessage::default();
        question.attributes.push(NsidAttribute::Fd(netns.file().as_raw_fd() as u32));
        let answer = self.ask(operation, &[RouteNetlinkMessage::GetNsId(question)], into_netns_id)?.pop();
        match answer.transpose() {
            Ok(id) => Ok(id.filter(|id| *id >= 0)),
            Err(refusal) => Err(NetlinkError::Refused { operation: operation.into(), refusal }),
        }
    }

    /// Sets all of these up.
    ///
    /// # Errors
    ///
    /// The first refusal.
    pub fn set_up(&mut self, indexes: &[u32]) -> Result<(), NetlinkError> {
        self.pipeline(indexes.iter().map(|index| set_up(*index)).collect())
    }

    /// Sets all of these down.
    ///
    /// # Errors
    ///
    /// The first refusal.
    pub fn set_down(&mut self, indexes: &[u32]) -> Result<(), NetlinkError> {
        self.pipeline(indexes.iter().map(|index| set_down(*index)).collect())
    }

    /// Lets the kernel settle the carrier of each of these at once.
    ///
    /// After a bring-up of hundreds the kernel works the carrier changes off in portions, and until a wire's turn comes
    /// (1.7 to 3.7 s after 300) it drops packets. Asking for one link by index makes it settle that link before it answers;
    /// a dump does not. Kernels before about 6.8 answer without settling: see [`Rtnl::wait_until_up`].
    ///
    /// # Errors
    ///
    /// When the kernel refuses; links that are gone are passed over.
    pub fn settle(&mut self, indexes: &[u32]) -> Result<(), NetlinkError> {
        self.links_at(indexes).map(drop)
    }

    /// Settles these, and waits until packets pass on all of them.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::NotUp`] with those that are missing or not up when `patience` is over.
    pub fn wait_until_up(&mut self, indexes: &[u32], patience: Duration) -> Result<(), NetlinkError> {
        match self.still_down(indexes, patience)? {
            pending if pending.is_empty() => Ok(()),
            pending => Err(NetlinkError::NotUp { indexes: pending }),
        }
    }

    /// Like [`Rtnl::wait_until_up`], and says which are missing or not up when `patience` is over.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn still_down(&mut self, indexes: &[u32], patience: Duration) -> Result<Vec<u32>, NetlinkError> {
        let deadline = Instant::now() + patience;
        let mut pending = indexes.to_vec();
        let mut pause = Duration::from_millis(1);
        loop {
            let up: BTreeSet<u32> = self.links_at(&pending)?.into_iter().flatten().filter_map(up).collect();
            pending.retain(|index| !up.contains(index));
            if pending.is_empty() || Instant::now() + pause > deadline {
                return Ok(pending);
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Deletes the links with these indexes, one after the other; those that are gone already are passed over.
    ///
    /// # Errors
    ///
    /// The first refusal.
    pub fn delete_links(&mut self, indexes: &[u32]) -> Result<(), NetlinkError> {
        self.pipeline(indexes.iter().map(|index| delete_by_index(*index)).collect())
    }

    /// Deletes every link of the group, and with it the other ends, in one message. An empty group is done already.
    ///
    /// # Errors
    ///
    /// `EPERM` for group 0, in which every other link of the machine is.
    pub fn delete_group(&mut self, group: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Group(group));
        let request =
            Request::new(RouteNetlinkMessage::DelLink(message), 0, format!("delete the links of group {group}"));
        self.pipeline(vec![request.pardon(Errno::ENODEV)])
    }
}

/// The link's index, when packets pass on it.
///
/// `lo` and tunnels cannot tell and stay `Unknown` for ever. A veth is `Unknown` only until the kernel has settled its carrier,
/// which before 6.8 can be seen: it says so together with `IFF_LOWER_UP`, and drops packets.
fn up(link: Link) -> Option<u32> {
    let passes = match link.state {
        OperState::Up => true,
        OperState::Unknown => link.up && link.lower_up && link.kind.as_deref() != Some("veth"),
        _ => false,
    };
    passes.then_some(link.index)
}

fn into_link(message: RouteNetlinkMessage) -> Option<Link> {
    match message {
        RouteNetlinkMessage::NewLink(message) => Some(Link::from_message(message)),
        _ => None,
    }
}

fn into_netns_id(message: RouteNetlinkMessage) -> Option<i32> {
    let RouteNetlinkMessage::NewNsId(message) = message else { return None };
    message.attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(id) => Some(*id),
        _ => None,
    })
}

/// A question for the link with this index; 0 asks for all.
fn question(index: u32) -> LinkMessage {
    let mut message = at(index);
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    message
}

/// A message about the link with this index that changes nothing yet.
pub(super) fn at(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// Sets the link with this index up.
pub fn set_up(index: u32) -> Request {
    set_flags(index, LinkFlags::Up, LinkFlags::Up, format!("set link {index} up"))
}

/// Sets the link with this index down.
pub fn set_down(index: u32) -> Request {
    set_flags(index, LinkFlags::empty(), LinkFlags::Up, format!("set link {index} down"))
}

/// Sets the MTU of the link with this index.
pub fn set_mtu(index: u32, mtu: u32) -> Request {
    let mut message = at(index);
    message.attributes.push(LinkAttribute::Mtu(mtu));
    Request::new(RouteNetlinkMessage::SetLink(message), 0, format!("set the MTU of link {index} to {mtu}"))
}

fn set_flags(index: u32, flags: LinkFlags, mask: LinkFlags, operation: String) -> Request {
    let mut message = at(index);
    message.header.flags = flags;
    message.header.change_mask = mask;
    Request::new(RouteNetlinkMessage::SetLink(message), 0, operation)
}

/// Deletes whichever link has this name or altname; for a name that is ours to have, whoever took it.
pub fn delete_by_name(name: &str) -> Request {
    let mut message = at(0);
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    Request::new(RouteNetlinkMessage::DelLink(message), 0, format!("delete the link {name}")).pardon(Errno::ENODEV)
}

/// Deletes the link with this index, and the other end of its pair; one that is gone already is fine.
pub fn delete_by_index(index: u32) -> Request {
    Request::new(RouteNetlinkMessage::DelLink(at(index)), 0, format!("delete link {index}")).pardon(Errno::ENODEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_of_the_kernels_own_is_told_from_one_that_somebody_made() {
        let link = |name: &str, kind: &str| {
            let mut link = Link::from_message(LinkMessage::default());
            (link.name, link.kind) = (name.to_owned(), Some(kind.to_owned()));
            link
        };
        assert!(link("sit0", "sit").is_fallback() && link("tunl0", "ipip").is_fallback());
        assert!(!link("sit1", "sit").is_fallback() && !link("sit0", "dummy").is_fallback());
    }
}
