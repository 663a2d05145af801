//! Listings of nft(8) and our own, made comparable.

use std::collections::BTreeMap;

/// A listing with the numbers of counters blanked, and with three misprints of nft 1.0.6 put right: it reads an
/// interface index in a set of ranges in the wrong byte order, knows no type for a map's answer that is compared, and
/// does not say how a rule of family netdev rejects.
pub fn without_counts(listing: &str, links: &BTreeMap<u32, String>) -> String {
    let mut words = Vec::new();
    for word in listing.split(' ') {
        let counts = words.last().is_some_and(|before: &String| before == "packets" || before == "bytes");
        words.push(if counts { word.replace(|c: char| c.is_ascii_digit(), "") } else { word.to_owned() });
    }
    let listing = words.join(" ").replace(" [invalid type]", "");
    let listing = ["icmp", "icmpv6"]
        .iter()
        .fold(listing, |text, kind| text.replace(&format!("reject with {kind} admin-prohibited\n"), "reject\n"));
    let swapped = |text: String, (index, name): (&u32, &String)| {
        text.replace(&format!("{} . ", index.swap_bytes()), &format!("\"{name}\" . "))
    };
    links.iter().filter(|(index, _)| **index < 1 << 16).fold(listing, swapped)
}
