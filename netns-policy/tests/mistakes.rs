//! What is said about policies that are wrong: each case names its codes, and the words are in `snapshots/`.

use netns_policy::graph::AllowGraph;
use netns_policy::{PolicyErrors, Source};

/// A title, the codes in the order of the file, and what stands below the head of a policy.
type Case<'a> = (&'a str, &'a [&'a str], &'a str);

#[allow(dead_code, reason = "another test uses the rest of it")]
mod under_schema;

const HEAD: &str = "schema = 1\nnetwork.name = \"node\"\n";

fn refused(sources: &[Source]) -> PolicyErrors {
    match AllowGraph::parse(sources) {
        Ok(_) => panic!("accepted:\n{}", sources.iter().map(|s| String::from_utf8_lossy(&s.text)).collect::<String>()),
        Err(errors) => errors,
    }
}

fn shown(title: &str, codes: &[&str], sources: &[Source]) -> String {
    let errors = refused(sources);
    let text: Vec<String> = errors.iter().map(|error| format!("{error:#}")).collect();
    let text = text.join("\n");
    assert_eq!(errors.iter().map(|error| error.code()).collect::<Vec<_>>(), codes, "{title}:\n{text}");
    under_schema::finds_it_where_it_can(title, codes, sources);
    format!("# {title}\n{text}\n")
}

/// Each case below the head.
fn all(cases: &[Case<'_>]) -> String {
    let one =
        |(title, codes, body): &Case<'_>| shown(title, codes, &[Source::toml("policy.toml", format!("{HEAD}{body}"))]);
    cases.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// Each case as the whole of a file.
fn raw(cases: &[(&str, &[&str], Source)]) -> String {
    let one = |(title, codes, source): &(&str, &[&str], Source)| shown(title, codes, std::slice::from_ref(source));
    cases.iter().map(one).collect::<Vec<_>>().join("\n")
}

#[test]
fn of_bytes() {
    let toml = |text: &[u8]| Source::toml("policy.toml", text);
    insta::assert_snapshot!(raw(&[
        ("invalid UTF-8", &["E0101"], toml(b"schema = 1\n# \xff\n")),
        ("NUL byte", &["E0102"], toml(b"schema = 1\n# \0\n")),
        ("bare carriage return", &["E0103"], toml(b"schema = 1\r# old Macintosh\n")),
        ("bidi override in a comment", &["E0105"], toml("schema = 1 # \u{202e}txet\n".as_bytes())),
        ("1 MiB and a byte", &["E0008"], toml(&vec![b'\n'; (1 << 20) + 1])),
        ("terminal escape in a string", &["E0102"], toml(b"schema = 1\nnetwork.name = \"\\u001b[2J\"\n")),
        ("NUL in a JSON key", &["E0102"], Source::json("policy.json", r#"{"schema": 1, "\u0000": 1}"#)),
    ]));
}

#[test]
fn of_toml_and_json() {
    let toml = |text: &str| Source::toml("policy.toml", text);
    let json = |text: &str| Source::json("policy.json", text);
    let deep_toml = format!("schema = 1\nx = {}{}\n", "[".repeat(40), "]".repeat(40));
    let deep_json = format!("{{\"x\": {}{}}}", "[".repeat(40), "]".repeat(40));
    insta::assert_snapshot!(raw(&[
        ("TOML syntax", &["E0107"], toml("schema = 1\n[network\nname = \"node\"\n")),
        ("TOML key twice", &["E0108"], toml("schema = 1\nschema = 1\n")),
        ("TOML too deep", &["E0106"], toml(&deep_toml)),
        ("JSON syntax", &["E0107"], json("{\"schema\": 1,}")),
        ("JSON with a leading zero", &["E0107"], json("{\"schema\": 01}")),
        ("JSON with text behind it", &["E0107"], json("{\"schema\": 1, \"network\": {\"name\": \"n\"}} x")),
        ("JSON half of a surrogate pair", &["E0107"], json(r#"{"schema": 1, "network": {"name": "\ud800"}}"#)),
        ("JSON too deep", &["E0106"], json(&deep_json)),
        (
            "JSON key twice, deep down",
            &["E0108"],
            json(
                "{\"schema\": 1, \"network\": {\"name\": \"n\"},\n \"service\": {\"a\": {\"outbound\": \"none\",\n  \"outbound\": \"direct\"}}}"
            ),
        ),
    ]));
}

#[test]
fn of_form() {
    insta::assert_snapshot!(raw(&[
        ("empty file", &["E0111", "E0116"], Source::toml("policy.toml", "# nothing\n")),
        ("newer schema", &["E0112"], Source::toml("policy.toml", "schema = 2\nnetwork.name = \"n\"\n")),
        ("no such schema", &["E0112"], Source::toml("policy.toml", "schema = 0\nnetwork.name = \"n\"\n")),
        ("schema as a string", &["E0110"], Source::toml("policy.toml", "schema = \"1\"\nnetwork.name = \"n\"\n")),
        ("schema as a float", &["E0110"], Source::toml("policy.toml", "schema = 1.0\nnetwork.name = \"n\"\n")),
        (
            "schema as a JSON float",
            &["E0110"],
            Source::json("policy.json", r#"{"schema": 1.0, "network": {"name": "n"}}"#)
        ),
        ("no name for the network", &["E0116"], Source::toml("policy.toml", "schema = 1\n")),
        (
            "a list where a table belongs",
            &["E0110"],
            Source::json("policy.json", r#"{"schema": 1, "network": {"name": "n"}, "service": []}"#)
        ),
    ]));
    insta::assert_snapshot!(
        "of_form_below_the_head",
        all(&[
            ("unknown key", &["E0109"], "[service.a]\noutbuond = \"tor\"\n"),
            ("unknown table", &["E0109"], "[srevice.a]\n"),
            (
                "several mistakes at once",
                &["E0109", "E0206", "E0201"],
                "[service.a]\nprots = 1\nports = { x = \"tcp:0\" }\nconnect.b = [\"x\"]\n"
            ),
            ("a date for a string", &["E0110"], "[service.a]\nunit = 2026-01-01\n"),
            ("unknown word", &["E0110"], "[service.a]\noutbound = \"tro\"\n"),
            ("none with something", &["E0110"], "[service.a]\noutbound = [\"none\", \"direct\"]\n"),
            ("never as a single table", &["E0110"], "[never]\nfrom = [\"a\"]\n"),
            ("limits of zero", &["E0110"], "[service.a]\nlimits = { flows = 0 }\n"),
            ("an operator who asks", &["E0302"], "[service.a]\nwants.b = { ports = [\"rpc\"] }\n"),
            ("an include", &["E0304"], "include = [\"more.toml\"]\n"),
            (
                "an onion service for nobody",
                &["E0110"],
                "[service.a]\nports.x = \"tcp:1\"\n[service.a.expose.onion]\nports = { \"80\" = \"x\" }\nclients = []\n"
            ),
            ("not a unit", &["E0212"], "[service.a]\nunit = \"../a.service\"\n"),
        ])
    );
}

#[test]
fn of_names() {
    let long = "a".repeat(64);
    let long = format!("[service.{long}]\n");
    insta::assert_snapshot!(all(&[
        ("reserved word", &["E0211"], "[service.wan]\n"),
        ("word of the language", &["E0211"], "[service.peers]\n"),
        ("upper case", &["E0212"], "[service.Bitcoind]\n"),
        ("path", &["E0212"], "[service.\"../../etc\"]\n"),
        ("shell", &["E0212"], "[service.\"$(x)\"]\n"),
        ("markup in the name of a peer", &["E0212"], "[peer.\"<script>\"]\n"),
        ("too long", &["E0213"], &long),
        ("Cyrillic letter", &["E0214"], "[service.\"bitc\u{43e}ind\"]\n"),
        ("tag named like a service", &["E0210"], "[service.a]\ntags = [\"b\"]\n[service.b]\n"),
        ("peer named like a service", &["E0210"], "[service.a]\n[peer.a]\n"),
        ("one unit for two", &["E0225"], "[service.a]\nunit = \"x.service\"\n[service.b]\nunit = \"x.service\"\n"),
        ("was, and still is", &["E0229"], "[service.a]\nwas = \"b\"\n[service.b]\n"),
        ("one name but for case and hyphens", &["E0212", "E0216"], "[service.a_b]\n[service.a-b]\n"),
    ]));
}

#[test]
fn of_edges() {
    let two = "[service.b]\nports = { rpc = \"tcp:8332\", dns = \"udp:53\" }\ntags = [\"chain\"]\n";
    let bodies = [
        ("unknown service", "E0201", "[service.a]\nconnect.bb = [\"rpc\"]\n"),
        ("self edge", "E0203", "[service.a]\nports = { x = \"tcp:1\" }\nconnect.a = [\"x\"]\n"),
        ("unknown port", "E0204", "[service.a]\nconnect.b = [\"rcp\"]\n"),
        ("port of the other protocol", "E0205", "[service.a]\nconnect.b = [\"tcp:dns\"]\n"),
        ("port zero", "E0206", "[service.a]\nports = { x = \"tcp:0\" }\n"),
        ("port with a leading zero", "E0206", "[service.a]\nports = { x = \"tcp:080\" }\n"),
        ("port without a protocol", "E0206", "[service.a]\nconnect.b = [\"8332\"]\n"),
        ("range backwards", "E0207", "[service.a]\nports = { x = \"tcp:90-80\" }\n"),
        ("unknown tag", "E0209", "[service.a]\nconnect.\"@chian\" = [\"rpc\"]\n"),
        ("port that nobody with the tag has", "E0204", "[service.a]\nconnect.\"@chain\" = [\"http\"]\n"),
        ("nothing to connect to", "E0220", "[service.a]\nconnect.c = [\"rpc\"]\n[service.c]\n"),
        ("nothing to connect to, by no name", "E0220", "[service.a]\nconnect.c = []\n[service.c]\n"),
        ("unknown private port", "E0204", "[service.a]\nprivate = [\"rpc\"]\n"),
        ("host to an unknown service", "E0201", "[host]\nmay_connect.c = [\"rpc\"]\n"),
        (
            "host accepts from an unknown service",
            "E0201",
            "[host]\naccepts.x = { port = \"tcp:80\", from = [\"c\"] }\n",
        ),
        ("host accepts on no port", "E0115", "[host]\naccepts.x = { from = [\"b\"] }\n"),
    ];
    let bodies: Vec<_> = bodies.iter().map(|(title, code, body)| (*title, [*code], format!("{two}{body}"))).collect();
    let cases: Vec<Case<'_>> = bodies.iter().map(|(title, codes, body)| (*title, &codes[..], body.as_str())).collect();
    insta::assert_snapshot!(all(&cases));
}

#[test]
fn of_several_files() {
    let file = |name: &str, body: &str| Source::toml(name, format!("schema = 1\n{body}"));
    let shown = [
        shown(
            "service in two files",
            &["E0301"],
            &[file("a.toml", "network.name = \"n\"\n[service.x]\n"), file("b.toml", "[service.x]\n")],
        ),
        shown(
            "peer in two files",
            &["E0301"],
            &[file("a.toml", "network.name = \"n\"\n[peer.x]\n"), file("b.toml", "[peer.x]\n")],
        ),
        shown(
            "two pools",
            &["E0307"],
            &[
                file("a.toml", "network.name = \"n\"\nnetwork.pool4 = \"10.1.0.0/22\"\n"),
                file("b.toml", "network.name = \"n\"\nnetwork.pool4 = \"10.2.0.0/22\"\n"),
            ],
        ),
        shown(
            "two defaults",
            &["E0307"],
            &[
                file("a.toml", "network.name = \"n\"\ndefaults.outbound = \"none\"\n"),
                file("b.toml", "defaults.outbound = [\"direct\"]\n"),
            ],
        ),
        shown(
            "extensions that disagree",
            &["E0307", "E0307"],
            &[
                file("a.toml", "network.name = \"n\"\n[service.x]\nunit = \"x.service\"\nports.p = \"tcp:1\"\n"),
                file("b.toml", "[extend.x]\nunit = \"y.service\"\nports.p = \"tcp:2\"\n"),
            ],
        ),
        shown(
            "an extension of nobody",
            &["E0306"],
            &[file("a.toml", "network.name = \"n\"\n[service.electrs]\n"), file("b.toml", "[extend.elects]\n")],
        ),
        shown(
            "a file without a schema",
            &["E0111"],
            &[file("a.toml", "network.name = \"n\"\n"), Source::toml("b.toml", "[service.x]\n")],
        ),
        shown(
            "a file that cannot be read excuses what may stand in it",
            &["E0109", "E0107"],
            &[
                file("a.toml", "network.name = \"n\"\n[service.x]\nconnect.y = [\"p\"]\nouch = 1\n"),
                file("b.toml", "[service.y\nports = {}\n"),
            ],
        ),
    ];
    insta::assert_snapshot!(shown.join("\n"));
    assert_eq!(refused(&[]).0[0].code(), "E0111");
}

#[test]
fn of_obligations() {
    let services = "[service.rtl]\ntags = [\"web\"]\nports = { http = \"tcp:80\" }\nconnect.node = [\"rpc\"]\n\
                    [service.rtl.expose.onion]\nports = { \"80\" = \"http\" }\n\
                    [service.node]\nports = { rpc = \"tcp:8332\", p2p = \"tcp:8333\" }\n";
    let bodies: Vec<(&str, Vec<&str>, String)> = [
        (
            "an edge that must never be",
            "E0401",
            "[[never]]\nfrom = [\"@web\"]\nto = [\"node:rpc\"]\nwhy = \"a web bug must not become a wallet bug\"\n",
        ),
        ("a path that must never be", "E0402", "[[never]]\nfrom = [\"wan\"]\nto = [\"node\"]\npath = true\n"),
        ("a way in that must never be", "E0401", "[[never]]\nfrom = [\"wan\"]\nto = [\"rtl\"]\n"),
        ("never about an unknown service", "E0201", "[[never]]\nfrom = [\"rtl\"]\nto = [\"nod:rpc\"]\n"),
        ("never about an unknown port", "E0204", "[[never]]\nfrom = [\"rtl\"]\nto = [\"node:rcp\"]\n"),
        ("never about nobody", "E0404", "[[never]]\nfrom = []\nto = [\"node\"]\n"),
        ("hops without path", "E0110", "[[never]]\nfrom = [\"wan\"]\nto = [\"node:p2p\"]\nhops = 2\n"),
        ("never without an end", "E0115", "[[never]]\nfrom = [\"wan\"]\n"),
        ("test that fails on can", "E0403", "[[test]]\nfrom = \"rtl\"\ncan = [\"node:p2p\"]\n"),
        (
            "test that fails on cannot",
            "E0403",
            "[[test]]\nname = \"web stays away\"\nfrom = \"rtl\"\ncannot = [\"node\"]\n",
        ),
        ("test that wants the Internet", "E0403", "[[test]]\nfrom = \"rtl\"\ncan = [\"wan\"]\n"),
        ("test that wants link-local", "E0403", "[[test]]\nfrom = \"rtl\"\ncan = [\"ip6:link-local\"]\n"),
        ("test from outside", "E0403", "[[test]]\nfrom = \"wan\"\ncannot = [\"rtl:http\"]\n"),
        ("test that can never fail", "E0404", "[[test]]\nfrom = \"rtl\"\n"),
        ("test about an unknown service", "E0201", "[[test]]\nfrom = \"rtl\"\ncannot = [\"nodee\"]\n"),
        ("test about a tag", "E0110", "[[test]]\nfrom = \"@web\"\ncannot = [\"node\"]\n"),
    ]
    .into_iter()
    .map(|(title, code, body)| (title, vec![code], format!("{services}{body}")))
    .collect();
    let cases: Vec<Case<'_>> = bodies.iter().map(|(title, codes, body)| (*title, &codes[..], body.as_str())).collect();
    insta::assert_snapshot!(all(&cases));
}

#[test]
fn of_addresses() {
    insta::assert_snapshot!(all(&[
        ("pool with host bits", &["E0503"], "network.pool4 = \"10.0.0.5/24\"\n"),
        ("public pool", &["E0504"], "network.pool4 = \"8.8.8.0/24\"\n"),
        ("multicast pool", &["E0504"], "network.pool4 = \"224.0.0.0/24\"\n"),
        ("documentation pool", &["E0504"], "network.pool4 = \"192.0.2.0/24\"\n"),
        ("pool that is everything", &["E0504"], "network.pool4 = \"0.0.0.0/0\"\n"),
        ("pool that is no prefix", &["E0110"], "network.pool4 = \"10.0.0.0/33\"\n"),
        ("global pool6", &["E0507"], "network.pool6 = \"2001:db8::/64\"\n"),
        ("small pool6", &["E0507"], "network.pool6 = \"fd00::/120\"\n"),
        ("pool6 of IPv4", &["E0507"], "network.pool6 = \"10.0.0.0/24\"\n"),
        ("too many services", &["E0502"], &format!("network.pool4 = \"10.0.0.0/26\"\n{}", many("a", 40))),
        ("fixed address elsewhere", &["E0506"], "[service.a]\naddress4 = \"10.0.0.1\"\n"),
        ("fixed address that is the network", &["E0506"], "[service.a]\naddress4 = \"10.231.0.0\"\n"),
        (
            "fixed address twice",
            &["E0506"],
            "[service.a]\naddress4 = \"10.231.0.9\"\n[service.b]\naddress4 = \"10.231.0.9\"\n"
        ),
        ("fixed address that is none", &["E0506"], "[service.a]\naddress4 = \"10.231.0\"\n"),
        ("fixed address6 elsewhere", &["E0506"], "[service.a]\naddress6 = \"fd00::1\"\n"),
        ("lan in the pool", &["E0805"], "network.lan = [\"10.0.0.0/8\"]\n"),
        ("lan that is everything", &["E0504"], "network.lan = [\"0.0.0.0/0\"]\n"),
        ("lan port without a port", &["E0206"], "[service.a]\noutbound = { lan = [\"192.168.1.20/32\"] }\n"),
    ]));
}

fn many(letter: &str, count: usize) -> String {
    (0..count).map(|n| format!("[service.{letter}{n}]\n")).collect()
}

#[test]
fn of_exposures() {
    let service = "[service.web]\nports = { http = \"tcp:80\", dns = \"udp:53\", many = \"tcp:90-99\", rpc = \"tcp:8332\" }\nprivate = [\"rpc\"]\n";
    let peer = "[peer.phone]\n";
    let bodies: Vec<(&str, Vec<&str>, String)> = [
        ("without a port", "E0601", "[service.web.expose.onion]\n"),
        ("clearnet without a port", "E0601", "[service.web.expose.clearnet]\ndomain = \"a.example.com\"\n"),
        ("private port", "E0609", "[service.web.expose.onion]\nports = { \"80\" = \"rpc\" }\n"),
        ("unknown port", "E0204", "[service.web.expose.onion]\nports = { \"80\" = \"htp\" }\n"),
        ("port outside that is none", "E0206", "[service.web.expose.port]\nports = { \"0\" = \"http\" }\n"),
        ("UDP on an onion", "E0607", "[service.web.expose.onion]\nports = { \"53\" = \"dns\" }\n"),
        ("the port of ssh", "E0615", "[service.web.expose.lan]\nports = { \"22\" = \"http\" }\n"),
        ("UDP by a relay", "E0607", "[service.web.expose.lan]\nports = { \"53\" = \"dns\" }\nrelay = true\n"),
        ("a header without a relay", "E0110", "[service.web.expose.lan]\nports = { \"80\" = \"http\" }\nproxy = \"v2\"\n"),
        ("UDP to a domain", "E0607", "[service.web.expose.clearnet]\ndomain = \"a.example.com\"\nport = \"dns\"\n"),
        ("range behind one port", "E0612", "[service.web.expose.port]\nports = { \"90\" = \"many\" }\n"),
        ("wildcard with http-01", "E0603", "[service.web.expose.clearnet]\ndomain = \"*.example.com\"\nport = \"http\"\nchallenge = \"http-01\"\n"),
        ("unknown challenge", "E0110", "[service.web.expose.clearnet]\ndomain = \"a.example.com\"\nport = \"http\"\nchallenge = \"http01\"\n"),
        ("domain that is an address", "E0604", "[service.web.expose.clearnet]\ndomain = \"192.0.2.1\"\nport = \"http\"\n"),
        ("domain that is an onion", "E0604", "[service.web.expose.clearnet]\ndomain = \"a.onion\"\nport = \"http\"\n"),
        ("domain with an underscore", "E0604", "[service.web.expose.clearnet]\ndomain = \"a_b.example.com\"\nport = \"http\"\n"),
        ("domain for two", "E0602", "[service.web.expose.clearnet]\ndomain = \"a.example.com\"\nport = \"http\"\n[service.b]\nports = { http = \"tcp:80\" }\n[service.b.expose.clearnet]\ndomain = \"a.example.com\"\nport = \"http\"\n"),
        ("port of the machine for two", "E0605", "[service.web.expose.port]\nports = { \"80\" = \"http\" }\n[service.b]\nports = { http = \"tcp:80\" }\n[service.b.expose.lan]\nports = { \"80\" = \"http\" }\n"),
        ("two ports of the machine for one", "E0605", "[service.web.expose.port]\nports = { \"80\" = \"http\", \"81\" = \"http\" }\n"),
        ("unknown peer", "E0201", "[service.web.expose.wireguard]\nports = [\"http\"]\npeers = [\"phon\"]\n"),
        ("peer without a key", "E0707", "[service.web.expose.wireguard]\nports = [\"http\"]\npeers = [\"phone\"]\n"),
        ("nobody named", "E0115", "[service.web.expose.wireguard]\nports = [\"http\"]\n"),
        ("client without a key", "E0608", "[service.web.expose.onion]\nports = { \"80\" = \"http\" }\nclients = [\"phone\"]\n"),
    ]
    .into_iter()
    .map(|(title, code, body)| (title, vec![code], format!("{service}{body}{peer}")))
    .collect();
    let cases: Vec<Case<'_>> = bodies.iter().map(|(title, codes, body)| (*title, &codes[..], body.as_str())).collect();
    insta::assert_snapshot!(all(&cases));
}

const KEY: &str = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";

#[test]
fn of_sockets() {
    let two = "[service.a]\n[service.b]\nsockets = { rpc = \"/run/b/rpc\" }\nports = { web = \"tcp:80\" }\n";
    let long = format!("[service.c]\nsockets.x = \"/run/{}\"\n", "x".repeat(103));
    let bodies = [
        ("not from the root on", "E0231", "[service.c]\nsockets.x = \"run/x\"\n"),
        ("not in its plain form", "E0231", "[service.c]\nsockets.x = \"/run/b/../../etc/x\"\n"),
        ("a directory", "E0231", "[service.c]\nsockets.x = \"/run/x/\"\n"),
        ("too long for the kernel", "E0231", &long),
        ("abstract", "E0231", "[service.c]\nsockets.x = \"@x\"\n"),
        ("what a unit file would part", "E0231", "[service.c]\nsockets.x = \"/run/x:/etc/shadow\"\n"),
        ("the kernel's", "E0231", "[service.c]\nsockets.x = \"/proc/1/x\"\n"),
        ("ours", "E0231", "[service.c]\nsockets.x = \"/run/nsctl/x\"\n"),
        ("over a link", "E0231", "[service.c]\nsockets.x = \"/var/run/x\"\n"),
        ("NUL", "E0102", "[service.c]\nsockets.x = \"/run/\\u0000\"\n"),
        ("not a name", "E0212", "[service.c]\nsockets.X = \"/run/x\"\n"),
        ("a path twice", "E0232", "[service.c]\nsockets.x = \"/run/b/rpc\"\n"),
        ("open to an unknown service", "E0201", "[service.c]\nopen.bb = [\"rpc\"]\n"),
        ("open to oneself", "E0203", "[service.c]\nsockets.x = \"/run/x\"\nopen.c = [\"x\"]\n"),
        ("unknown socket", "E0230", "[service.c]\nopen.b = [\"rcp\"]\n"),
        ("a port is no socket", "E0230", "[service.c]\nopen.b = [\"web\"]\n"),
        ("a service without sockets", "E0230", "[service.c]\nopen.a = [\"rpc\"]\n"),
        ("a socket is no port", "E0206", "[service.c]\nconnect.b = [\"unix:rpc\"]\n"),
        ("never about an unknown socket", "E0230", "[[never]]\nfrom = [\"a\"]\nto = [\"b:unix:rcp\"]\n"),
        (
            "a socket that must never be",
            "E0401",
            "[service.c]\nopen.b = [\"rpc\"]\n[[never]]\nfrom = [\"c\"]\nto = [\"b:rpc\"]\n",
        ),
        ("a test about a socket", "E0403", "[[test]]\nfrom = \"a\"\ncan = [\"b:rpc\"]\n"),
    ];
    let bodies: Vec<_> = bodies.iter().map(|(title, code, body)| (*title, [*code], format!("{two}{body}"))).collect();
    let cases: Vec<Case<'_>> = bodies.iter().map(|(title, codes, body)| (*title, &codes[..], body.as_str())).collect();
    insta::assert_snapshot!(all(&cases));
}

#[test]
fn of_peers_and_their_keys() {
    let same = format!("[peer.a]\nwireguard = \"{KEY}\"\n[peer.b]\nwireguard = \"{KEY}\"\n");
    let auth = format!("[peer.a]\nonion = \"{}:descriptor:x25519:{}\"\n", "a".repeat(56), "B".repeat(52));
    insta::assert_snapshot!(all(&[
        ("key too short", &["E0707"], "[peer.a]\nwireguard = \"AAAA\"\n"),
        ("key not canonical", &["E0707"], &format!("[peer.a]\nwireguard = \"{}x=\"\n", &KEY[..42])),
        ("onion key malformed", &["E0608"], "[peer.a]\nonion = \"x25519:AAAA\"\n"),
        ("same key twice", &["E0704"], &same),
        ("addresses of a peer", &["E0702"], "[peer.a]\nallowed_ips = [\"10.0.0.1/32\"]\n"),
        ("all addresses for a peer", &["E0703"], "[peer.a]\nAllowedIPs = \"0.0.0.0/0, ::/0\"\n"),
        ("private key", &["E0705"], &format!("[peer.a]\nprivate_key = \"{KEY}\"\n")),
        ("private key in a table of it", &["E0705"], &format!("[peer.a]\nmy-private.key = \"{KEY}\"\n")),
        ("secret elsewhere", &["E0705"], &format!("[service.a]\nsecret = \"{KEY}\"\n")),
        ("the private half of an onion key", &["E0705"], &auth),
    ]));
}

#[test]
fn of_tor() {
    let tor = "[service.tor]\nrole = \"tor\"\noutbound = \"direct\"\nports = { socks = \"tcp:9050\" }\n";
    insta::assert_snapshot!(all(&[
        ("tor without a tor service", &["E0801"], "[service.a]\noutbound = \"tor\"\n"),
        ("dns by tor without a tor service", &["E0801"], "[service.a]\ndns = \"tor\"\n"),
        ("names outside tor", &["E0802"], &format!("{tor}[service.a]\noutbound = \"tor\"\ndns = \"direct\"\n")),
        (
            "tor through tor",
            &["E0803"],
            "[service.tor]\nrole = \"tor\"\noutbound = \"tor\"\nports = { socks = \"tcp:9050\" }\n"
        ),
        (
            "tor through tor by default",
            &["E0803"],
            "defaults.outbound = \"tor\"\n[service.tor]\nrole = \"tor\"\nports = { socks = \"tcp:9050\" }\n"
        ),
        ("two of them", &["E0809"], &format!("{tor}[service.a]\nrole = \"tor\"\nports.socks = \"tcp:1\"\n")),
        ("without a socks port", &["E0204"], "[service.tor]\nrole = \"tor\"\nports = { sokcs = \"tcp:9050\" }\n"),
        ("without a dns port", &["E0204"], &format!("{tor}[service.a]\ndns = \"tor\"\n")),
    ]));
}

#[test]
fn of_doubt() {
    let body = "[service.rt1]\nports = { a = \"tcp:80-90\", b = \"tcp:85\", socks = \"tcp:9050\" }\nrole = \"tor\"\n\
                [service.rtl]\nconnect.rt1 = [\"a\", \"a\", \"tcp:80-90\", \"tcp:99\"]\noutbound = \"direct\"\nports = { http = \"tcp:1\" }\n\
                [service.rtl.expose.onion]\nports = { \"80\" = \"http\" }\n\
                [service.off]\nenabled = false\ntags = [\"idle\"]\nports = { a = \"tcp:80\" }\n\
                [service.quiet]\noutbound = \"tor\"\nconnect.rtl = [\"http\"]\nconnect.rt1 = []\nconnect.\"@idle\" = [\"a\"]\n\
                [service.alone]\n\
                [service.dht]\noutbound = \"tor\"\nports.gossip = \"udp:6881\"\n\
                [service.shop]\nports.http = \"tcp:8080\"\n[service.shop.expose.clearnet]\ndomain = \"a.example.com\"\nport = \"http\"\nchallenge = \"http-01\"\n[service.lanny]\noutbound = \"lan\"\n\
                [host]\naccepts.ssh = { port = \"tcp:22\", from = [\"quiet\"] }\naccepts.none = { port = \"tcp:23\" }\n";
    let checked = AllowGraph::parse(&[Source::toml("policy.toml", format!("{HEAD}{body}"))]).unwrap();
    let shown: Vec<String> = checked.warnings.iter().map(|warning| format!("{warning:#}")).collect();
    insta::assert_snapshot!(shown.join("\n"));
    let codes: std::collections::BTreeSet<&str> = checked.warnings.iter().map(|warning| warning.code()).collect();
    let expected = "W0215 W0219 W0222 W0223 W0224 W0226 W0227 W0610 W0611 W0804 W0806 W0807 W0808 W0810";
    assert_eq!(codes.into_iter().collect::<Vec<_>>().join(" "), expected);
}

#[test]
fn a_secret_is_never_shown_not_even_when_the_file_cannot_be_read() {
    let bodies = [
        format!("{HEAD}[peer.a]\nprivate_key = \"{KEY}\"\nwireguard = 3\n"),
        format!("{HEAD}[peer.a]\nprivate.key.of.wireguard = \"{KEY}\"\n"),
        format!("{HEAD}[peer.a.private]\nkeys = [\n  \"{KEY}\", 3\n]\n"),
        format!("{HEAD}[peer.a]\nwireguard = \"\"\"\n{KEY}\n\"\" oops\n"),
        format!("{HEAD}[peer.a]\nprivate_key = \"{KEY}\" oops\n"),
        format!("{HEAD}[peer.a]\nprivate_key = \"{KEY}\n"),
        format!("{HEAD}fragment = \"x\"\npeer.a = {{ private_key = \"{KEY}\" }}\n"),
        format!("{HEAD}extend.a = {{ password = \"{KEY}\" }}\n"),
    ];
    for body in bodies {
        let errors = refused(&[Source::toml("policy.toml", body.clone())]);
        for error in errors.iter() {
            let fancy = format!("{:?}", miette::Report::new(error.clone()));
            let plain = serde_json::to_string(&error.plain()).unwrap();
            let shown = format!("{error:#}{error:?}{fancy}{plain}");
            assert!(!shown.contains(&KEY[..20]), "{body}\n{shown}");
        }
    }
}

#[test]
fn nothing_that_a_terminal_acts_on_is_shown() {
    let bodies = ["# \u{1b}[2J\u{9b}2J\u{202e}\u{61c}\0\r!\n", "[service.\"a\\u001b[2J\"]\n", "\"\u{9b}x\" = 1\n"];
    for body in bodies {
        for error in refused(&[Source::toml("policy.toml", format!("{HEAD}{body}"))]).iter() {
            let handler = miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::unicode_nocolor());
            let mut shown = format!("{error:#}\n");
            handler.render_report(&mut shown, error).unwrap();
            let acts = shown.chars().find(|c| (c.is_control() && *c != '\n') || "\u{202e}\u{61c}".contains(*c));
            assert_eq!(acts, None, "{body:?} is shown as {shown:?}");
        }
    }
}

#[test]
fn at_most_fifty_are_told_however_many_there_are() {
    let body: String = (0..2_000).map(|n| format!("x{n} = 1\n")).collect();
    let errors = refused(&[Source::toml("policy.toml", format!("schema = 1\n{body}"))]);
    assert_eq!(errors.0.len(), PolicyErrors::MOST);
    assert!(errors.iter().zip(errors.iter().skip(1)).all(|(a, b)| a.at().line < b.at().line));
}

#[test]
fn no_number_of_warnings_hides_a_mistake() {
    let many = (0..1_500).map(|n| format!("\"tcp:{}\"", n + 1)).collect::<Vec<_>>().join(", ");
    let body = format!("[service.a]\nconnect.b = [{many}]\n[service.b]\n[[test]]\nfrom = \"a\"\ncan = [\"wan\"]\n");
    assert_eq!(refused(&[Source::toml("policy.toml", format!("{HEAD}{body}"))]).0[0].code(), "E0403");
}

#[test]
fn a_finding_renders_as_the_house_shows_it() {
    let errors =
        refused(&[Source::toml("policy.toml", format!("{HEAD}[service.b]\n[service.a]\nconnect.bb = [\"x\"]\n"))]);
    let handler = miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::unicode_nocolor());
    let mut shown = String::new();
    handler.render_report(&mut shown, &errors.0[0]).unwrap();
    insta::assert_snapshot!(shown);
}

#[test]
fn a_secret_under_a_name_of_the_operators_is_not_shown_either() {
    let secret = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0MDA=";
    let shown = |key: &str| {
        let text = format!(
            r#"{{"schema": 1, "network": {{"name": "node"}}, "service": {{"a": {{"ports": {{"{key}": "{secret}"}}, "unit": "a b"}}}}}}"#
        );
        let errors = AllowGraph::parse(&[Source::json("policy.json", text)]).expect_err("nothing of it is right");
        errors.iter().map(|error| format!("{error:#}\n{:?}\n", error.plain())).collect::<String>()
    };
    assert!(shown("web").contains(secret), "what is no secret is quoted");
    for key in ["private_key", "wireguard-private-key", "secret", "password"] {
        assert!(!shown(key).contains(&secret[..20]), "{}", shown(key));
    }
}
