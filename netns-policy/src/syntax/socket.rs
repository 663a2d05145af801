//! `sockets.NAME = "/path"` and `open.TARGET = ["NAME"]` as written: unix sockets, whose they are and who may open them.

use crate::name::PortName;

use super::decode::{Table, items, name, string};
use super::findings::{At, Draft, Findings, Sp};
use super::node::{Entry, Node};
use super::reference::Who;

/// `NAME = "/run/clightning/lightning-rpc"`.
#[derive(Clone, Debug)]
pub(crate) struct Offered {
    pub(crate) name: Sp<String>,
    /// `None` when either is malformed, which has been reported.
    pub(crate) socket: Option<(PortName, String)>,
    /// Where the path stands.
    pub(crate) path: At,
}

/// `open.TARGET = [sockets]`.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    pub(crate) target: Sp<Who>,
    pub(crate) sockets: Vec<Sp<String>>,
}

/// The table `sockets`.
pub(crate) fn offered(table: &mut Table, out: &mut Findings) -> Vec<Offered> {
    let one = |Entry { key, value }: Entry, out: &mut Findings| {
        let name = name::<PortName>(&key.value, key.at, "socket", out);
        let at = value.at;
        Offered { name: key, socket: name.zip(path(value, out)), path: at }
    };
    table.named("sockets", out).into_iter().map(|entry| one(entry, out)).collect()
}

/// The table `open`.
pub(crate) fn opens(table: &mut Table, out: &mut Findings) -> Vec<Open> {
    let one = |Entry { key, value }: Entry, out: &mut Findings| {
        let target = Sp::new(Who::new(&key.value), key.at);
        Open { target, sockets: items(value, out, string) }
    };
    table.named("open", out).into_iter().map(|entry| one(entry, out)).collect()
}

fn path(node: Node, out: &mut Findings) -> Option<String> {
    let at = node.at;
    let text = string(node, out)?;
    let Some((why, help)) = why_not(&text) else {
        return Some(text);
    };
    let message = format!("\"{}\" is not the path of a socket: {why}", text.escape_debug());
    out.add(Draft::new("E0231", at, message).help(help));
    None
}

/// Why no service's socket can be at `path`, if so, and what to do.
fn why_not(path: &str) -> Option<(&'static str, &'static str)> {
    const ABSOLUTE: &str = "write it from the root on, as in \"/run/clightning/lightning-rpc\"";
    if path.starts_with('@') {
        return Some((
            "an abstract socket has none",
            "abstract sockets end at the namespace: let the service listen at a path, or on a port",
        ));
    }
    let Some(rest) = path.strip_prefix('/') else {
        return Some(("it does not begin with /", ABSOLUTE));
    };
    if rest.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Some(("it is not in its plain form", "leave out `.`, `..`, and slashes that part nothing"));
    }
    // unix(7): sun_path has 108 bytes, and the NUL is one of them.
    if path.len() > 107 {
        return Some(("it has more than 107 bytes", "the kernel takes no longer one: see unix(7)"));
    }
    // What systemd.exec(5) and systemd.syntax(7) read as something else than a part of a path.
    if path.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, ':' | '%' | '\\' | '"' | '\'')) {
        return Some(("a unit file would read it as something else", "leave out blanks, quotes, `:`, `%` and `\\`"));
    }
    let below =
        |directory: &str| path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    match path {
        _ if ["/dev", "/proc", "/sys"].into_iter().any(below) => {
            Some(("the kernel makes what is there", "let the service listen under /run"))
        }
        _ if below("/run/nsctl") => Some(("that directory is nsctl's", "let the service listen elsewhere under /run")),
        _ if below("/var/run") => Some(("/var/run is a link to /run", "write the path without the link")),
        _ => None,
    }
}
