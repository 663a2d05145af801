//! `[[never]]` and `[[test]]` as written: they can refuse a policy, and do nothing else.

use super::decode::{Table, boolean, items, positive, string};
use super::findings::{At, Draft, Findings, Sp};
use super::node::{Kind, Node};
use super::reference::{Point, Who, point, who};

/// `[[never]]`.
#[derive(Debug)]
pub(crate) struct Never {
    pub(crate) at: At,
    pub(crate) from: Vec<Sp<Who>>,
    pub(crate) to: Vec<Sp<Point>>,
    pub(crate) except: Vec<Sp<Who>>,
    pub(crate) why: Option<String>,
    pub(crate) path: bool,
    pub(crate) hops: Option<u32>,
}

/// `[[test]]`.
#[derive(Debug)]
pub(crate) struct Test {
    pub(crate) name: Option<String>,
    pub(crate) from: Sp<Who>,
    pub(crate) can: Vec<Sp<Point>>,
    pub(crate) cannot: Vec<Sp<Point>>,
}

/// Every `[[never]]` of the file.
pub(crate) fn read_nevers(file: &mut Table, out: &mut Findings) -> Vec<Never> {
    tables(file, "never", out).into_iter().filter_map(|table| never(table, out)).collect()
}

/// Every `[[test]]` of the file.
pub(crate) fn read_tests(file: &mut Table, out: &mut Findings) -> Vec<Test> {
    tables(file, "test", out).into_iter().filter_map(|table| test(table, out)).collect()
}

fn tables(file: &mut Table, key: &'static str, out: &mut Findings) -> Vec<Table> {
    let Some(entry) = file.take(key) else {
        return Vec::new();
    };
    if matches!(entry.value.kind, Kind::Table(_)) {
        let help = format!("write `[[{key}]]` with two brackets: there may be several");
        out.add(Draft::new("E0110", entry.key.at, "expected a list, this is a table").help(help));
        return Vec::new();
    }
    let open = |node: Node, out: &mut Findings| {
        let at = node.at;
        Table::open(node, at, out)
    };
    items(entry.value, out, open).into_iter().map(|table| table.value).collect()
}

fn never(mut table: Table, out: &mut Findings) -> Option<Never> {
    let at = table.at;
    let from = table.need("from", out, |node, out| Some(items(node, out, who)));
    let to = table.need("to", out, |node, out| Some(items(node, out, point)));
    let except = table.list("except", out, who);
    let why = table.read("why", out, string).map(|why| why.value);
    let path = table.read("path", out, boolean).is_some_and(|path| path.value);
    let hops = table.read("hops", out, positive);
    if let Some(hops) = hops.as_ref().filter(|_| !path) {
        out.add(Draft::new("E0110", hops.at, "`hops` means nothing without `path = true`"));
    }
    table.finish(out);
    let (from, to) = (from?, to?);
    for (list, key) in [(from.at, from.value.is_empty()), (to.at, to.value.is_empty())] {
        if key {
            out.add(Draft::new("E0404", list, "an invariant about nobody always holds"));
        }
    }
    Some(Never { at, from: from.value, to: to.value, except, why, path, hops: hops.map(|hops| hops.value) })
}

fn test(mut table: Table, out: &mut Findings) -> Option<Test> {
    let at = table.at;
    let name = table.read("name", out, string).map(|name| name.value);
    let from = table.need("from", out, who);
    let can = table.list("can", out, point);
    let cannot = table.list("cannot", out, point);
    table.finish(out);
    if can.is_empty() && cannot.is_empty() {
        out.add(Draft::new("E0404", at, "a test without `can` and `cannot` can never fail"));
    }
    Some(Test { name, from: from?, can, cannot })
}
