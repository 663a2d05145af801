//! One way in as it stands in the file of ours.

use toml_edit::{DocumentMut, InlineTable, Item, TableLike, Value};

use super::{Entrance, Handover, Side};
use crate::own::{Form, child};

/// `"OUTSIDE" = "port"` below `[extend.SERVICE.expose.SIDE]`, and what the table says of its relay.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Entry {
    pub(super) side: Side,
    pub(super) outside: u16,
    pub(super) port: String,
    pub(super) relay: Option<Handover>,
}

/// Why an entry cannot be written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Unwritable {
    /// The file says of the service what nsctl does not write.
    NotOurs,
    /// Other ways of the service stand in the same table, which has one relay or none.
    OtherRelay,
}

impl Entry {
    /// Those of `service` in the file.
    pub(super) fn all(document: &DocumentMut, service: &str) -> Vec<Self> {
        let table = |side: Side| {
            let path = ["extend", service, "expose", side.word()];
            path.iter().try_fold(document.as_item(), |item, key| item.get(key))?.as_table_like()
        };
        let of = |side: Side| {
            let (table, relay) = (table(side), table(side).and_then(handover));
            let ports = table.and_then(|table| table.get("ports")?.as_table_like());
            ports.into_iter().flat_map(TableLike::iter).filter_map(move |(outside, port)| {
                Some(Self { side, outside: outside.parse().ok()?, port: port.as_str()?.to_owned(), relay })
            })
        };
        Side::ALL.into_iter().flat_map(of).collect()
    }

    pub(super) fn entrance(&self, service: &str) -> Entrance {
        let (way, port) = (self.side.word().to_owned(), self.port.clone());
        Entrance { way, outside: self.outside, service: service.to_owned(), port }
    }

    /// Writes it down, for the service as `fragment` defines it or the operator.
    pub(super) fn write_down(
        &self,
        document: &mut DocumentMut,
        service: &str,
        fragment: Option<&str>,
    ) -> Result<(), Unwritable> {
        if Self::all(document, service).iter().any(|other| other.side == self.side && other.relay != self.relay) {
            return Err(Unwritable::OtherRelay);
        }
        self.put(document, service, fragment).ok_or(Unwritable::NotOurs)
    }

    fn put(&self, document: &mut DocumentMut, service: &str, fragment: Option<&str>) -> Option<()> {
        let extend = child(document.as_table_mut(), "extend", Form::Header)?;
        let is_new = !extend.contains_key(service);
        let form = if fragment.is_some() { Form::Table } else { Form::Header };
        let table = child(extend, service, form)?;
        match (table.get("fragment").and_then(Item::as_str), fragment) {
            (None, Some(fragment)) if is_new || table.iter().all(|(key, _)| key == "expose") => {
                table.insert("fragment", Item::Value(fragment.into()));
            }
            (have, want) if have == want => {}
            _ => return None,
        }
        let side = child(child(table, "expose", Form::Header)?, self.side.word(), Form::Table)?;
        let ports = side.entry("ports").or_insert(Item::Value(Value::InlineTable(InlineTable::new())));
        ports.as_table_like_mut()?.insert(&self.outside.to_string(), Item::Value(self.port.as_str().into()));
        ports.as_inline_table_mut().map(InlineTable::fmt);
        if self.relay.is_some() {
            side.insert("relay", Item::Value(true.into()));
        }
        if self.relay == Some(Handover::ProxyV2) {
            side.insert("proxy", Item::Value("v2".into()));
        }
        Some(())
    }

    /// Takes it out, and the tables that are empty then.
    pub(super) fn take_out(&self, document: &mut DocumentMut, service: &str) {
        let path = ["extend", service, "expose", self.side.word(), "ports"];
        take_out(document.as_table_mut(), &path, &self.outside.to_string());
        // What is left of the service may be the name of its fragment alone.
        if let Some(extend) = document.get_mut("extend").and_then(Item::as_table_like_mut) {
            let says =
                |item: &Item| item.as_table_like().is_some_and(|table| table.iter().any(|(key, _)| key != "fragment"));
            if extend.get(service).is_some_and(|item| !says(item)) {
                extend.remove(service);
            }
            if extend.is_empty() {
                document.remove("extend");
            }
        }
    }
}

/// What a table says of its relay.
fn handover(table: &dyn TableLike) -> Option<Handover> {
    let is_relayed = table.get("relay").and_then(Item::as_bool).unwrap_or(false);
    is_relayed.then(|| if table.contains_key("proxy") { Handover::ProxyV2 } else { Handover::Bare })
}

/// Says that every way in is closed, or says so no more. Nothing where something else is said there.
pub(super) fn close_all(document: &mut DocumentMut, is_off: bool) -> Option<()> {
    let root = document.as_table_mut();
    if is_off {
        child(root, "expose", Form::Table)?.insert("all", Item::Value("off".into()));
    } else if let Some(expose) = root.get_mut("expose") {
        let expose = expose.as_table_like_mut()?;
        expose.remove("all");
        if expose.is_empty() {
            root.remove("expose");
        }
    }
    Some(())
}

/// Removes `key` from the table at `path`, and each table on the way that is empty then.
fn take_out(table: &mut dyn TableLike, path: &[&str], key: &str) {
    let Some((first, rest)) = path.split_first() else {
        table.remove(key);
        return;
    };
    let Some(inner) = table.get_mut(first) else { return };
    if rest.is_empty() {
        inner.as_inline_table_mut().map(|inner| inner.remove(key).map(|_| inner.fmt()));
    }
    let Some(inner) = inner.as_table_like_mut() else { return };
    take_out(inner, rest, key);
    // `ports` alone stands for the way: what else is said of it has no meaning without.
    let is_spent = inner.is_empty() || (rest.len() == 1 && !inner.contains_key("ports"));
    if is_spent {
        table.remove(first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lan(outside: u16, port: &str) -> Entry {
        Entry { side: Side::Lan, outside, port: port.into(), relay: None }
    }

    fn after(text: &str, change: impl FnOnce(&mut DocumentMut)) -> String {
        let mut document: DocumentMut = text.parse().unwrap();
        change(&mut document);
        document.to_string()
    }

    #[test]
    fn a_way_is_written_under_its_service_and_taken_out_without_a_trace() {
        let empty = "# Mark\nschema = 1\n";
        let one = "# Mark\nschema = 1\n\n[extend.web.expose.lan]\nports = { 8080 = \"http\" }\n";
        let two = "# Mark\nschema = 1\n\n[extend.web.expose.lan]\nports = { 8080 = \"http\", 81 = \"other\" }\n";
        let write = |port: u16, name: &'static str| {
            move |document: &mut DocumentMut| lan(port, name).write_down(document, "web", None).unwrap()
        };
        assert_eq!(after(empty, write(8080, "http")), one);
        assert_eq!(after(one, write(81, "other")), two);
        let out = |port: u16| move |document: &mut DocumentMut| lan(port, "").take_out(document, "web");
        assert_eq!(after(two, out(81)), one);
        assert_eq!(after(one, out(8080)), empty);
    }

    #[test]
    fn a_relay_stands_beside_its_ports_and_goes_with_the_last() {
        let with = |relay: Handover| Entry { relay: Some(relay), ..lan(80, "http") };
        let empty = "schema = 1\n";
        let table = "schema = 1\n\n[extend.web.expose.lan]\nports = { 80 = \"http\" }\nrelay = true\n";
        let write = |entry: Entry| move |document: &mut DocumentMut| entry.write_down(document, "web", None).unwrap();
        assert_eq!(after(empty, write(with(Handover::Bare))), table);
        let proxied = after(empty, write(with(Handover::ProxyV2)));
        assert_eq!(proxied, format!("{table}proxy = \"v2\"\n"));
        for (text, relay) in [(table, Handover::Bare), (&proxied, Handover::ProxyV2)] {
            let mut document: DocumentMut = text.parse().unwrap();
            assert_eq!(Entry::all(&document, "web"), [with(relay)]);
            // One table has one relay: what is said of it would be said of the other port too.
            let other = Err(Unwritable::OtherRelay);
            assert_eq!(lan(81, "other").write_down(&mut document, "web", None), other);
            assert_eq!(after(text, |document| with(relay).take_out(document, "web")), empty);
        }
    }

    #[test]
    fn the_switch_leaves_no_trace() {
        let off = "schema = 1\n\n[expose]\nall = \"off\"\n";
        assert_eq!(after("schema = 1\n", |document| close_all(document, true).unwrap()), off);
        assert_eq!(after(off, |document| close_all(document, true).unwrap()), off);
        assert_eq!(after(off, |document| close_all(document, false).unwrap()), "schema = 1\n");
        assert_eq!(after("schema = 1\n", |document| close_all(document, false).unwrap()), "schema = 1\n");
    }

    #[test]
    fn what_else_is_said_of_a_service_stays() {
        let granted =
            "schema = 1\n\n# For fees.\n[extend.charge]\nfragment = \"charge-lnd\"\nconnect.lnd = [\"rpc\"]\n";
        let entry = lan(80, "http");
        let both = after(granted, |document| entry.write_down(document, "charge", Some("charge-lnd")).unwrap());
        assert!(both.starts_with(granted) && both.contains("[extend.charge.expose.lan]"), "{both}");
        assert_eq!(Entry::all(&both.parse().unwrap(), "charge"), std::slice::from_ref(&entry));
        assert_eq!(after(&both, |document| entry.take_out(document, "charge")), granted);
    }

    #[test]
    fn a_way_into_a_fragments_service_is_for_that_fragment() {
        let entry = lan(80, "http");
        let text = after("schema = 1\n", |document| entry.write_down(document, "charge", Some("charge-lnd")).unwrap());
        assert!(text.contains("[extend.charge]\nfragment = \"charge-lnd\"\n"), "{text}");
        // Somebody else's by now.
        let mut document: DocumentMut = text.parse().unwrap();
        assert_eq!(lan(81, "http").write_down(&mut document, "charge", None), Err(Unwritable::NotOurs));
        assert_eq!(after(&text, |document| entry.take_out(document, "charge")), "schema = 1\n");
    }
}
