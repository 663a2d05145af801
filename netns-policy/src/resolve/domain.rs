//! Domain names that a public certificate can be for.

/// Why `domain` cannot have a certificate, if so; a leading `*.` is allowed.
pub(crate) fn why_not(domain: &str) -> Option<&'static str> {
    let name = domain.strip_prefix("*.").unwrap_or(domain);
    if !name.is_ascii() {
        return Some("it is not ASCII: write the punycode form, xn--...");
    }
    if name.len() > 253 {
        return Some("it has more than 253 characters");
    }
    let labels: Vec<&str> = name.split('.').collect();
    if let Some(why) = labels.iter().find_map(|label| bad_label(label)) {
        return Some(why);
    }
    let last = labels.last().copied().unwrap_or_default();
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return Some("it is an address, not a name");
    }
    match last {
        _ if labels.len() < 2 => Some("it has no dot, so it is not a public name"),
        "onion" => Some("the onion service has its own exposure, `expose.onion`"),
        "local" | "localhost" | "internal" | "lan" | "home" | "invalid" | "test" => {
            Some("nobody gives certificates for names that are not public")
        }
        _ => None,
    }
}

fn bad_label(label: &str) -> Option<&'static str> {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if label.is_empty() {
        Some("it has an empty part")
    } else if label.len() > 63 {
        Some("a part of it has more than 63 characters")
    } else if label.bytes().any(|b| b.is_ascii_uppercase()) {
        Some("write it in lower case")
    } else if !label.bytes().all(legal) {
        Some("it has a character that is not a letter, a digit or a hyphen")
    } else if label.starts_with('-') || label.ends_with('-') {
        Some("a part of it begins or ends with a hyphen")
    } else {
        None
    }
}
