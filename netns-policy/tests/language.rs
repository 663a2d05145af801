//! What the language means: tags, defaults, switched-off services, drop-ins, outbound.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use netns_policy::graph::{AllowGraph, Cause, Denied, Dns, Limits, Service};
use netns_policy::{Checked, PolicyErrors, Source};

const HEAD: &str = "schema = 1\nnetwork.name = \"node\"\n";

fn parse(body: &str) -> Checked {
    AllowGraph::parse(&[Source::toml("policy.toml", format!("{HEAD}{body}"))]).unwrap_or_else(|errors| {
        let shown: Vec<String> = errors.iter().map(|error| format!("{error:#}")).collect();
        panic!("{}", shown.join("\n"))
    })
}

fn refused(sources: &[Source]) -> PolicyErrors {
    AllowGraph::parse(sources).expect_err("accepted")
}

fn edges(body: &str) -> String {
    parse(body).graph.edges().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn service(body: &str, name: &str) -> Service {
    parse(body).graph.service(name).expect("it is enabled").clone()
}

#[test]
fn a_tag_means_its_members_but_not_oneself_nor_those_without_the_port() {
    let body = "[service.a]\ntags = [\"t\"]\nports = { x = \"tcp:1\" }\nconnect.\"@t\" = [\"x\"]\n\
                [service.b]\ntags = [\"t\"]\nports = { x = \"tcp:2\" }\n\
                [service.c]\ntags = [\"t\"]\nports = { y = \"tcp:3\" }\n";
    assert_eq!(edges(body), "a -> b:x");
    assert_eq!(parse(body).graph.edges()[0].cause, Cause::Tag("t".parse().unwrap()));
}

#[test]
fn edges_of_a_switched_off_service_are_inert() {
    let body = "[service.a]\nconnect.b = [\"x\"]\n[service.b]\nenabled = false\nports = { x = \"tcp:1\" }\nconnect.c = [\"y\"]\n\
                [service.c]\nports = { y = \"tcp:1\" }\n[host]\nmay_connect.b = [\"x\"]\naccepts.z = { port = \"tcp:9\", from = [\"b\"] }\n";
    assert_eq!(edges(body), "");
    assert_eq!(edges(&body.replace("false", "true")), "host -> b:x, a -> b:x, b -> host:z, b -> c:y");
    assert_eq!(parse(body).graph.disabled().map(|name| name.as_str()).collect::<Vec<_>>(), ["b"]);
}

#[test]
fn a_number_opens_what_no_name_declares_and_is_doubted() {
    let body = "[service.a]\nconnect.b = [\"tcp:53-80\", \"udp:x\"]\n[service.b]\nports = { x = \"udp:9\" }\n";
    assert_eq!(edges(body), "a -> b:tcp:53-80, a -> b:x");
    assert_eq!(parse(body).warnings.iter().map(|w| w.code()).collect::<Vec<_>>(), ["W0224"]);
}

#[test]
fn the_host_is_an_origin_and_a_target() {
    let body = "[service.a]\ntags = [\"t\"]\nports = { x = \"tcp:1\" }\n[service.b]\ntags = [\"t\"]\n\
                [host]\nmay_connect.\"@t\" = [\"x\"]\naccepts.backup = { port = \"tcp:8000\", from = [\"@t\"] }\n";
    assert_eq!(edges(body), "host -> a:x, a -> host:backup, b -> host:backup");
}

#[test]
fn tor_is_an_edge_to_its_socks_port_and_names_one_to_its_dns_port() {
    let body = "[defaults]\noutbound = \"tor\"\n[service.a]\ndns = \"tor\"\n[service.b]\noutbound = \"none\"\n\
                [service.tor]\nrole = \"tor\"\noutbound = \"direct\"\nports = { socks = \"tcp:9050\", dns = \"udp:9053\" }\n";
    assert_eq!(edges(body), "a -> tor:socks, a -> tor:dns");
    assert!(service(body, "a").outbound.tor && service(body, "a").outbound.stays_inside());
    assert_eq!(service(body, "a").dns, Dns::Tor);
}

#[test]
fn outbound_can_be_narrowed_to_prefixes_and_ports() {
    let body = "network.lan = [\"192.168.1.0/24\", \"10.9.0.0/16\"]\n\
                [service.a]\noutbound = { direct = [\"tcp:443\"], lan = [\"192.168.1.20/32 tcp:5000\", \"udp:53\"] }\n\
                [service.b]\noutbound = [\"lan\", \"direct\"]\n";
    let outbound = service(body, "a").outbound;
    let lan: Vec<String> = outbound.lan_only.iter().map(|(prefix, ports)| format!("{prefix} {ports}")).collect();
    assert_eq!(lan, ["10.9.0.0/16 udp:53", "192.168.1.0/24 udp:53", "192.168.1.20/32 tcp:5000"]);
    assert_eq!(outbound.direct_only, ["tcp:443".parse().unwrap()]);
    assert!(!outbound.lan && !outbound.direct && outbound.reaches_lan() && outbound.reaches_wan());
    assert!(service(body, "b").outbound.lan && service(body, "b").outbound.direct);
}

#[test]
fn what_is_not_said_is_closed_or_quiet() {
    let checked = parse("[service.a]\nlimits = { flows = 2000 }\n");
    let (network, defaults) = (checked.graph.network().clone(), checked.graph.defaults());
    assert_eq!(network.pool4.to_string(), "10.231.0.0/22");
    // printf node | sha256sum: the first ten digits.
    assert_eq!(network.pool6.unwrap().to_string(), "fd54:5ea5:3846::/64");
    assert_eq!((defaults.denied, defaults.log), (Denied::Reject, true));
    let service = checked.graph.service("a").unwrap();
    assert!(service.outbound.stays_inside() && !service.outbound.tor);
    assert_eq!((service.dns, service.limits), (Dns::None, Limits { flows: Some(2000), new_per_second: None }));
    assert_eq!(parse("network.ipv6 = false\n").graph.network().pool6, None);
}

#[test]
fn a_drop_in_may_hold_any_part_but_names_its_schema() {
    let main = Source::toml("policy.toml", format!("{HEAD}[service.a]\nports = {{ x = \"tcp:1\" }}\n"));
    let peer = Source::toml("d/10-peer.toml", "schema = 1\n[peer.phone]\n");
    let more = Source::json(
        "d/20-more.json",
        r#"{"schema": 1, "service": {"b": {"connect": {"a": ["x"]}}}, "network": {"name": "node"}}"#,
    );
    let never = Source::toml("d/30-never.toml", "schema = 1\n[[never]]\nfrom = [\"b\"]\nto = [\"a\"]\n");
    let sources = [main, peer, more];
    let graph = AllowGraph::parse(&sources).unwrap().graph;
    assert_eq!(graph.edges()[0].at.to_string(), "d/20-more.json:1");
    assert_eq!(graph.peers().count(), 1);
    let errors = refused(&[&sources[..], &[never]].concat());
    assert_eq!(errors.0[0].code(), "E0401");
    assert_eq!(errors.0[0].second().unwrap().0.file, "d/30-never.toml");
}

#[test]
fn an_invariant_trusts_whom_it_excepts_and_counts_hops() {
    let services = "[service.a]\nports = { x = \"tcp:1\" }\nconnect.b = [\"x\"]\n[service.a.expose.onion]\nports = { \"80\" = \"x\" }\n\
                    [service.b]\nports = { x = \"tcp:1\" }\nconnect.c = [\"x\"]\n[service.c]\nports = { x = \"tcp:1\" }\n";
    let codes = |never: &str| -> Vec<&str> {
        let source = Source::toml("policy.toml", format!("{HEAD}{services}[[never]]\nto = [\"c:x\"]\n{never}"));
        AllowGraph::parse(&[source])
            .map_or_else(|errors| errors.iter().map(|error| error.code()).collect(), |_| Vec::new())
    };
    assert!(codes("from = [\"wan\"]\n").is_empty());
    assert_eq!(codes("from = [\"wan\"]\npath = true\n"), ["E0402"]);
    assert_eq!(codes("from = [\"wan\"]\npath = true\nhops = 3\n"), ["E0402"]);
    assert!(codes("from = [\"wan\"]\npath = true\nhops = 2\n").is_empty());
    assert!(codes("from = [\"wan\"]\npath = true\nexcept = [\"b\"]\n").is_empty());
    assert_eq!(codes("from = [\"a\"]\npath = true\nhops = 2\n"), ["E0402"]);
    assert_eq!(codes("from = [\"b\"]\n"), ["E0401"]);
    assert!(codes("from = [\"b\"]\nexcept = [\"b\"]\n").is_empty());
    assert!(codes("from = [\"lan\", \"peers\", \"host\"]\npath = true\n").is_empty());
}

/// The codes of what the policy is refused with, and how each chain reads.
fn broken(body: &str) -> Vec<String> {
    let source = Source::toml("policy.toml", format!("{HEAD}{body}"));
    let line = |error: &netns_policy::PolicyError| format!("{} {error}", error.code());
    AllowGraph::parse(&[source]).map_or_else(|errors| errors.iter().map(line).collect(), |_| Vec::new())
}

#[test]
fn a_chain_leads_over_the_host_unless_it_is_trusted() {
    let body = "[service.a]\n[service.b]\nports.x = \"tcp:1\"\n[host]\nmay_connect.b = [\"x\"]\n\
                accepts.log = { port = \"tcp:9\", from = [\"a\"] }\n[[never]]\nfrom = [\"a\"]\nto = [\"b\"]\n";
    assert_eq!(broken(body), [] as [&str; 0], "without `path` it is no edge of a");
    assert_eq!(broken(&format!("{body}path = true\n")), ["E0402 a -> host:log -> b:x is a forbidden path"]);
    assert!(broken(&format!("{body}path = true\nhops = 1\n")).is_empty());
    assert!(broken(&format!("{body}path = true\nexcept = [\"host\"]\n")).is_empty());
    assert_eq!(broken(&format!("{body}path = true\nexcept = [\"b\"]\n")).len(), 1, "who is reached is not passed");
}

#[test]
fn a_chain_leads_over_sockets_and_a_service_alone_means_them_too() {
    let body = "[service.a]\nopen.b = [\"s\"]\n[service.b]\nsockets.s = \"/run/b/s\"\nconnect.c = [\"x\"]\n\
                [service.c]\nports.x = \"tcp:1\"\nsockets.s = \"/run/c/s\"\n[[never]]\nfrom = [\"a\"]\n";
    assert_eq!(broken(&format!("{body}to = [\"b\"]\n")), ["E0401 a -> b:unix:s is forbidden"]);
    assert_eq!(broken(&format!("{body}to = [\"b:s\"]\n")).len(), 1);
    assert_eq!(broken(&format!("{body}to = [\"b:unix:s\"]\n")).len(), 1);
    assert!(broken(&format!("{body}to = [\"c\"]\n")).is_empty());
    assert_eq!(
        broken(&format!("{body}to = [\"c:x\"]\npath = true\n")),
        ["E0402 a -> b:unix:s -> c:x is a forbidden path"]
    );
    assert!(broken(&format!("{body}to = [\"c:s\"]\npath = true\n")).is_empty(), "nobody opens that socket");
    assert!(broken(&format!("{body}to = [\"c:x\"]\npath = true\nexcept = [\"b\"]\n")).is_empty());
}

#[test]
fn what_breaks_an_invariant_may_come_by_a_tag_an_extension_or_a_grant() {
    let node = "[service.web]\ntags = [\"front\"]\n[service.db]\nports.sql = \"tcp:5432\"\ntags = [\"store\"]\n\
                [[never]]\nfrom = [\"@front\"]\nto = [\"@store:sql\"]\n";
    let main = Source::toml("a.toml", format!("{HEAD}{node}"));
    let package = Source {
        trust: netns_policy::Trust::Vendor,
        ..Source::toml("b.toml", "schema = 1\nfragment = \"p\"\n[service.p]\nwants.db = [\"sql\"]\n")
    };
    let codes = |more: &str| -> Vec<&str> {
        let more = Source::toml("c.toml", format!("schema = 1\n{more}"));
        let refused = AllowGraph::parse(&[main.clone(), package.clone(), more]);
        refused.map_or_else(|errors| errors.iter().map(|error| error.code()).collect(), |_| Vec::new())
    };
    assert!(codes("[extend.p]\nfragment = \"p\"\nconnect.db = [\"sql\"]\n").is_empty(), "the control");
    assert_eq!(codes("[extend.web]\nconnect.\"@store\" = [\"sql\"]\n"), ["E0401"]);
    assert_eq!(codes("[service.new]\ntags = [\"front\"]\nconnect.db = [\"sql\"]\n"), ["E0401"]);
    let joined = "[extend.p]\nfragment = \"p\"\ntags = [\"front\"]\nconnect.db = [\"sql\"]\n";
    assert_eq!(codes(joined), ["E0401"], "a package's service that the operator puts into the group");
}

#[test]
fn who_is_next_door_comes_in_where_everybody_does() {
    let exposed = |way: &str| {
        format!(
            "network.lan = [\"192.168.1.0/24\"]\n[service.a]\nports.x = \"tcp:80\"\n{way}\n[[never]]\nfrom = [\"lan\"]\nto = [\"a\"]\n"
        )
    };
    for way in [
        "expose.lan.ports = { \"80\" = \"x\" }",
        "expose.port.ports = { \"80\" = \"x\" }",
        "expose.clearnet = { domain = \"a.example.com\", port = \"x\" }",
    ] {
        assert_eq!(broken(&exposed(way)).len(), 1, "{way}");
    }
    assert!(broken(&exposed("expose.onion.ports = { \"80\" = \"x\" }")).is_empty(), "it comes from everywhere");
}

#[test]
fn sockets_are_opened_by_name_or_by_tag_and_those_of_switched_off_services_are_not() {
    let body = "[service.a]\nopen.\"@t\" = [\"s\"]\nopen.c = [\"s\"]\n\
                [service.b]\ntags = [\"t\"]\nsockets = { s = \"/run/b/s\", u = \"/run/b/u\" }\n\
                [service.c]\ntags = [\"t\"]\nsockets.s = \"/run/c/s\"\n\
                [service.d]\ntags = [\"t\"]\n[service.off]\nenabled = false\ntags = [\"t\"]\nsockets.s = \"/run/off/s\"\n";
    let checked = parse(body);
    let sockets: Vec<String> = checked.graph.sockets().iter().map(|s| format!("{s} {}", s.path)).collect();
    assert_eq!(sockets, ["a -> b:unix:s /run/b/s", "a -> c:unix:s /run/c/s"]);
    assert!(checked.graph.edges().is_empty(), "no packet passes for it");
    assert_eq!(checked.warnings[0].code(), "W0222", "c is opened by name and by its tag");
}

#[test]
fn a_way_around_tor_that_is_none_is_acknowledged_for_one_neighbour_or_for_all() {
    let body = |ok: &str| {
        format!(
            "[service.tor]\nrole = \"tor\"\noutbound = \"direct\"\nports.socks = \"tcp:9050\"\n\
             [service.b]\noutbound = \"direct\"\ndns = \"direct\"\nports.x = \"tcp:1\"\nsockets.s = \"/run/b/s\"\n\
             [service.a]\noutbound = \"tor\"\nconnect.b = [\"x\"]\nopen.b = [\"s\"]\n{ok}"
        )
    };
    let codes = |ok: &str| parse(&body(ok)).warnings.iter().map(|w| w.code()).collect::<Vec<_>>();
    assert_eq!(codes(""), ["W0807", "W0807"]);
    assert_eq!(codes("via_ok = false\n").len(), 2);
    assert_eq!(codes("via_ok = [\"tor\"]\n").len(), 2);
    assert!(codes("via_ok = [\"b\"]\n").is_empty() && codes("via_ok = true\n").is_empty());
    assert_eq!(broken(&body("via_ok = [\"bb\"]\n"))[0][..5], *"E0201");
}

#[test]
fn a_declared_tag_may_have_nobody() {
    let body = "[service.a]\nconnect.\"@t\" = [\"x\"]\n";
    assert_eq!(broken(body)[0][..5], *"E0209");
    let checked = parse(&format!("declare_tags = [\"t\"]\n{body}"));
    assert_eq!(checked.warnings.iter().map(|w| w.code()).collect::<Vec<_>>(), ["W0226", "W0223"]);
}

#[test]
fn names_whose_links_would_meet_are_refused() {
    use std::collections::BTreeMap;
    let link = |name: &str| netns_policy::name::LinkName::for_name(name).to_string();
    // Six hexadecimal digits are few: among thousands of names two meet.
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let (a, b) = (0..200_000)
        .find_map(|n| {
            let name = format!("service-with-number-{n}");
            seen.insert(link(&name), name.clone()).map(|first| (first, name))
        })
        .expect("with so many names it is certain");
    assert_eq!(broken(&format!("[service.{a}]\n[service.{b}]\n"))[0][..5], *"E0217", "{a} {b}");
    assert!(broken(&format!("[service.{a}]\n[service.{b}x]\n")).is_empty());
}

#[test]
fn a_byte_order_mark_and_crlf_change_nothing() {
    let plain = "schema = 1\nnetwork.name = \"n\"\n[service.a]\n";
    let graph = |text: String| AllowGraph::parse(&[Source::toml("p", text)]).unwrap().graph;
    assert_eq!(graph(plain.to_owned()), graph(format!("\u{feff}{}", plain.replace('\n', "\r\n"))));
    let json = "\u{feff}{\"schema\": 1, \"network\": {\"name\": \"n\"}, \"service\": {\"a\": {\"unit\": null}}}";
    assert!(AllowGraph::parse(&[Source::json("p", json)]).unwrap().graph.same_as(&graph(plain.to_owned())));
}

#[test]
fn json_has_its_lines_and_columns() {
    let json = "{\n  \"schema\": 1, \"network\": {\"name\": \"n\"},\n  \"service\": {\"a\": {\"unit\": \"é.service\", \"outbuond\": 1}}\n}";
    let errors = refused(&[Source::json("p.json", json)]);
    let shown: Vec<String> = errors.iter().map(|e| format!("{} {}", e.code(), e.at())).collect();
    assert_eq!(shown, ["E0212 p.json:3:29", "E0109 p.json:3:42"]);
    assert_eq!(&json[errors.0[1].at().span.clone()], "\"outbuond\"");
}

#[test]
fn limits_are_told_and_keep_a_hostile_file_cheap() {
    let mut services = String::new();
    for n in 0..1_001 {
        writeln!(services, "[service.s{n}]").unwrap();
    }
    let mut edges = String::new();
    for n in 0..300 {
        writeln!(edges, "[service.s{n}]\ntags = [\"t\"]\nports = {{ x = \"tcp:1\" }}\nconnect.\"@t\" = [\"x\"]")
            .unwrap();
    }
    let unknown: String = (0..40_000).map(|n| format!("x{n} = 1\n")).collect();
    let dotted = format!("{} = 1\n", vec!["a"; 200_000].join("."));
    let cases = [
        (services, "E0221"),
        (edges, "E0221"),
        (unknown, "E0109"),
        (dotted, "E0106"),
        (format!("x = {}", "[".repeat(200_000)), "E0106"),
        (format!("x = {}", "{a=".repeat(100_000)), "E0106"),
    ];
    for (body, code) in cases {
        let start = Instant::now();
        let errors = refused(&[Source::toml("p", format!("{HEAD}{body}"))]);
        assert!(errors.iter().any(|error| error.code() == code), "{code}: {:?}", errors.0[0].to_string());
        assert!(start.elapsed() < Duration::from_secs(20), "{code} took {:?}", start.elapsed());
    }
    let deep = format!("{{\"a\": {}", "[".repeat(500_000));
    assert_eq!(refused(&[Source::json("p", deep)]).0[0].code(), "E0106");
}
