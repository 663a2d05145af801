//! What the cases mean by the parties that are no services.

/// Hosts on the internet.
pub const WAN: [&str; 2] = ["203.0.113.10", "2001:db8:ffff::10"];

/// A host on the local network.
pub const LAN: [&str; 1] = ["192.168.77.5"];

/// Cloud metadata.
pub const METADATA: [&str; 1] = ["169.254.169.254"];
