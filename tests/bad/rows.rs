//! Every row: what is bad, and which codes say so. The numbers stay; README.md says where a row is told otherwise than
//! one may expect.

/// One kind of bad input.
pub struct Row {
    /// Its number, 1 to 105.
    pub number: u16,
    /// What is bad about it.
    pub title: &'static str,
    /// The codes that may be said of its cases, separated by blanks.
    codes: &'static str,
}

/// All of them.
pub const ROWS: [Row; 105] = [
    Row { number: 1, title: "the policy is missing", codes: "E0001" },
    Row { number: 2, title: "a directory, a FIFO or a device where a file belongs", codes: "E0002" },
    Row { number: 3, title: "a link that leaves the policy directory", codes: "E0003" },
    Row { number: 4, title: "others can write to the file", codes: "E0004" },
    Row { number: 5, title: "the file is somebody else's", codes: "E0005" },
    Row { number: 6, title: "others can write to a directory above it", codes: "E0006" },
    Row { number: 7, title: "the state directory is a link, or somebody else's", codes: "E0007" },
    Row { number: 8, title: "a file of 100 MB", codes: "E0008" },
    Row { number: 9, title: "5,000 fragments, or too much in them", codes: "E0009" },
    Row { number: 10, title: "the file changes while it is read", codes: "E0010" },
    Row { number: 11, title: "not UTF-8", codes: "E0101" },
    Row { number: 12, title: "NUL and other control characters", codes: "E0102" },
    Row { number: 13, title: "a carriage return alone", codes: "E0103" },
    Row { number: 14, title: "a byte order mark", codes: "" },
    Row { number: 15, title: "an invisible change of direction", codes: "E0105" },
    Row { number: 16, title: "nesting deeper than 32", codes: "E0106" },
    Row { number: 17, title: "neither TOML nor JSON", codes: "E0107" },
    Row { number: 18, title: "a key twice", codes: "E0108" },
    Row { number: 19, title: "an unknown key", codes: "E0109" },
    Row { number: 20, title: "a value of the wrong type", codes: "E0110" },
    Row { number: 21, title: "an empty policy", codes: "E0111 E0116" },
    Row { number: 22, title: "a schema that is not known", codes: "E0112" },
    Row { number: 23, title: "YAML, KDL", codes: "E0113" },
    Row { number: 24, title: "a.toml and a.json", codes: "E0114" },
    Row { number: 25, title: "a date, a float, null where a text belongs", codes: "E0110" },
    Row { number: 26, title: "an edge to an unknown service", codes: "E0201" },
    Row { number: 27, title: "a service in two files", codes: "E0301" },
    Row { number: 28, title: "an edge to oneself", codes: "E0203" },
    Row { number: 29, title: "an unknown port", codes: "E0204" },
    Row { number: 30, title: "a port of the other protocol", codes: "E0205" },
    Row { number: 31, title: "not a port", codes: "E0206" },
    Row { number: 32, title: "a range backwards", codes: "E0207" },
    Row { number: 33, title: "tags that hold each other", codes: "E0109 E0212" },
    Row { number: 34, title: "an unknown tag", codes: "E0209" },
    Row { number: 35, title: "a tag named like a service", codes: "E0210" },
    Row { number: 36, title: "a reserved word as a name", codes: "E0211" },
    Row { number: 37, title: "not a name", codes: "E0212" },
    Row { number: 38, title: "a name too long", codes: "E0213" },
    Row { number: 39, title: "a letter that looks like another", codes: "E0214" },
    Row { number: 40, title: "two names that look alike", codes: "W0215" },
    Row { number: 41, title: "two names that are one but for case or hyphens", codes: "E0216 E0212" },
    Row { number: 42, title: "two names for one link", codes: "E0217" },
    Row { number: 43, title: "a namespace or a link of that name is somebody else's", codes: "E0218" },
    Row { number: 44, title: "two ports of a service overlap", codes: "W0219" },
    Row { number: 45, title: "an edge to a service without ports", codes: "E0220" },
    Row { number: 46, title: "too many services, too many edges", codes: "E0221" },
    Row { number: 47, title: "an edge twice", codes: "W0222" },
    Row { number: 48, title: "a tag that selects nobody", codes: "W0223" },
    Row { number: 49, title: "a number where there is a name", codes: "W0224" },
    Row { number: 50, title: "a unit twice", codes: "E0225" },
    Row { number: 51, title: "a service alone", codes: "W0226" },
    Row { number: 52, title: "services that start after each other", codes: "E0109" },
    Row { number: 53, title: "two files with two pools", codes: "E0307" },
    Row { number: 54, title: "a fragment of a package opens an edge", codes: "E0303" },
    Row { number: 55, title: "a fragment of a package goes out, or is exposed", codes: "E0303" },
    Row { number: 56, title: "an include", codes: "E0304" },
    Row { number: 57, title: "an extension of an unknown service", codes: "E0306" },
    Row { number: 58, title: "an edge that must never be", codes: "E0401" },
    Row { number: 59, title: "a path that must never be", codes: "E0402" },
    Row { number: 60, title: "a test that fails", codes: "E0403" },
    Row { number: 61, title: "a test that says nothing", codes: "E0404 E0201" },
    Row { number: 62, title: "the pool is a network of the host", codes: "E0501" },
    Row { number: 63, title: "the pool is too small", codes: "E0502" },
    Row { number: 64, title: "a prefix with host bits", codes: "E0503" },
    Row { number: 65, title: "not a pool", codes: "E0504" },
    Row { number: 66, title: "the pool changed while services run", codes: "E0505" },
    Row { number: 67, title: "a fixed address that cannot be", codes: "E0506" },
    Row { number: 68, title: "not a pool for IPv6", codes: "E0507" },
    Row { number: 69, title: "a link-local pool", codes: "W0508" },
    Row { number: 70, title: "exposed without a port", codes: "E0601" },
    Row { number: 71, title: "a private port exposed", codes: "E0609" },
    Row { number: 72, title: "a domain twice", codes: "E0602" },
    Row { number: 73, title: "a wildcard without dns-01", codes: "E0603" },
    Row { number: 74, title: "a domain that cannot have a certificate", codes: "E0604" },
    Row { number: 75, title: "a port of the machine twice", codes: "E0605" },
    Row { number: 76, title: "a port of the machine that somebody holds", codes: "E0606" },
    Row { number: 77, title: "UDP on an onion", codes: "E0607" },
    Row { number: 78, title: "not the key of an onion client", codes: "E0608" },
    Row { number: 79, title: "http-01 without port 80", codes: "W0610" },
    Row { number: 80, title: "an onion and `direct`", codes: "W0611" },
    Row { number: 81, title: "a peer in two files", codes: "E0301" },
    Row { number: 82, title: "peers with overlapping addresses", codes: "E0702" },
    Row { number: 83, title: "a peer with all addresses", codes: "E0703" },
    Row { number: 84, title: "one key for two peers", codes: "E0704" },
    Row { number: 85, title: "a secret in a policy", codes: "E0705 E0107" },
    Row { number: 86, title: "a port that two tunnels listen on", codes: "E0706" },
    Row { number: 87, title: "not a public key of WireGuard", codes: "E0707" },
    Row { number: 88, title: "a QR code without an endpoint", codes: "E0708" },
    Row { number: 89, title: "`tor` without a tor service", codes: "E0801" },
    Row { number: 90, title: "names around tor", codes: "E0802" },
    Row { number: 91, title: "the tor service through tor", codes: "E0803" },
    Row { number: 92, title: "`direct` without names", codes: "W0804" },
    Row { number: 93, title: "`lan` overlaps the pool", codes: "E0805" },
    Row { number: 94, title: "a service may reach the host's ssh", codes: "W0806" },
    Row { number: 95, title: "a way around tor through a neighbour", codes: "W0807" },
    Row { number: 96, title: "UDP over tor", codes: "W0808" },
    Row { number: 97, title: "the kernel lacks something", codes: "E0901" },
    Row { number: 98, title: "somebody else's table drops what leaves", codes: "W0902" },
    Row { number: 99, title: "a second apply at the same time", codes: "E0903" },
    Row { number: 100, title: "another generation since the plan", codes: "E0904" },
    Row { number: 101, title: "a generation that is not confirmed", codes: "E0905" },
    Row { number: 102, title: "the disk is full", codes: "E0906" },
    Row { number: 103, title: "a service that still runs is removed", codes: "E0907" },
    Row { number: 104, title: "the clock jumps during a confirmation", codes: "" },
    Row { number: 105, title: "markup in the name of a peer", codes: "E0212" },
];

/// Rows that nobody can be told yet, and why.
pub const LATER: &[(u16, &str)] =
    &[(86, "there are no tunnels yet; two exposures on one port are row 75"), (88, "there are no QR codes yet")];

/// What is bad in that row.
pub fn title(row: u16) -> &'static str {
    ROWS[usize::from(row) - 1].title
}

/// The codes that may be said of it.
pub fn codes(row: u16) -> Vec<&'static str> {
    ROWS[usize::from(row) - 1].codes.split_whitespace().collect()
}
