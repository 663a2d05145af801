//! The only room that touches the kernel: namespaces, links, addresses, routes, rules, sysctls, conntrack.

pub mod address;
pub mod conntrack;
pub mod link;
pub mod netlink;
pub mod netns;
pub mod process;
pub mod route;
pub mod rule;
mod socket;
pub mod sysctl;
pub mod wire;
