//! The only room that touches the kernel: namespaces, links, addresses, routes, rules, sysctls, conntrack.

pub mod netns;
pub mod nft;
