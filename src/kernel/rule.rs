//! Policy routing rules: which table is asked for which packet.

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::address::family;
use super::netlink::{NetlinkError, Request, Rtnl};

/// A rule that sends packets to a table: `ip rule add [iif LINK] [from PREFIX] to PREFIX lookup TABLE`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IpRule {
    /// Rules are asked in this order, the smallest first.
    pub priority: u32,
    /// The destinations that it is for. It also says of which family the rule is: `0.0.0.0/0` or `::/0` for all.
    pub to: IpNetwork,
    /// The sources that it is for.
    pub from: Option<IpNetwork>,
    /// The name of the link that the packet came in by; `lo` for what this machine sends itself.
    pub iif: Option<String>,
    /// The table that it leads to.
    pub table: u32,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
}

impl IpRule {
    /// The rule `iif lo to PREFIX lookup TABLE`: only what this machine sends itself may use the table.
    pub fn for_own_traffic(to: IpNetwork, table: u32, priority: u32, protocol: u8) -> Self {
        Self { priority, to, from: None, iif: Some("lo".to_owned()), table, protocol }
    }

    /// The rule `to PREFIX lookup TABLE`: whoever sends it.
    pub fn for_everybody(to: IpNetwork, table: u32, priority: u32, protocol: u8) -> Self {
        Self { iif: None, ..Self::for_own_traffic(to, table, priority, protocol) }
    }

    /// Adds it. `EEXIST` when there is the same one.
    pub fn add(&self) -> Request {
        let message = RouteNetlinkMessage::NewRule(self.message());
        Request::new(message, NLM_F_CREATE | NLM_F_EXCL, format!("add the rule {}", self.described()))
    }

    /// Deletes it; one that is gone already is fine.
    pub fn delete(&self) -> Request {
        let message = RouteNetlinkMessage::DelRule(self.message());
        let request = Request::new(message, 0, format!("delete the rule {}", self.described()));
        request.pardon(Errno::ENOENT)
    }

    fn described(&self) -> String {
        format!("{} to {} lookup {}", self.priority, self.to, self.table)
    }

    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = family(self.to.ip());
        message.header.dst_len = self.to.prefix();
        message.header.action = RuleAction::ToTable;
        message.header.table = u8::try_from(self.table).unwrap_or(0);
        message.attributes = vec![
            RuleAttribute::Priority(self.priority),
            RuleAttribute::Table(self.table),
            RuleAttribute::Protocol(self.protocol.into()),
        ];
        if self.to.prefix() > 0 {
            message.attributes.push(RuleAttribute::Destination(self.to.network()));
        }
        if let Some(from) = self.from.filter(|from| from.prefix() > 0) {
            message.header.src_len = from.prefix();
            message.attributes.push(RuleAttribute::Source(from.network()));
        }
        message.attributes.extend(self.iif.clone().map(RuleAttribute::Iifname));
        message
    }

    /// None for a rule that does something else than leading to a table.
    fn from_message(message: RuleMessage) -> Option<Self> {
        let header = &message.header;
        let all = match header.family {
            AddressFamily::Inet => IpNetwork::new([0; 4].into(), 0).ok()?,
            AddressFamily::Inet6 => IpNetwork::new([0; 16].into(), 0).ok()?,
            _ => return None,
        };
        if header.action != RuleAction::ToTable {
            return None;
        }
        let mut rule = Self { priority: 0, to: all, from: None, iif: None, table: header.table.into(), protocol: 0 };
        for attribute in message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = priority,
                RuleAttribute::Table(table) => rule.table = table,
                RuleAttribute::Protocol(protocol) => rule.protocol = protocol.into(),
                RuleAttribute::Iifname(name) => rule.iif = Some(name),
                RuleAttribute::Destination(ip) => rule.to = IpNetwork::new(ip, header.dst_len).ok()?,
                RuleAttribute::Source(ip) => rule.from = Some(IpNetwork::new(ip, header.src_len).ok()?),
                _ => {}
            }
        }
        Some(rule)
    }
}

impl Rtnl {
    /// The rules of both families that lead to a table.
    ///
    /// Of other people's rules the conditions that ours do not have (marks, ports, users) are not shown.
    ///
    /// # Errors
    ///
    /// When the kernel refuses or the list does not hold still.
    pub fn rules(&mut self) -> Result<Vec<IpRule>, NetlinkError> {
        let mut rules = self.rules_of(AddressFamily::Inet)?;
        rules.extend(self.rules_of(AddressFamily::Inet6)?);
        Ok(rules)
    }

    fn rules_of(&mut self, family: AddressFamily) -> Result<Vec<IpRule>, NetlinkError> {
        let mut question = RuleMessage::default();
        question.header.family = family;
        self.dump("list rules", &RouteNetlinkMessage::GetRule(question), |message| match message {
            RouteNetlinkMessage::NewRule(message) => IpRule::from_message(message),
            _ => None,
        })
    }
}
