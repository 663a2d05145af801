//! The user of a systemd unit, read from its files without asking systemd.
//!
//! As in systemd.unit(5): the unit's file in the first directory masks those in the later ones; drop-ins are merged over
//! all directories, the first one with a name masks the others of that name, and they are read in the order of their
//! names; an instance takes the file and the drop-ins of its template too.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// Where systemd looks for the units of the system, the first with the most weight.
pub const DIRECTORIES: [&str; 4] =
    ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

/// The last `User=` of `unit` in `directories`; `None` when there is none, or one that only systemd can expand.
pub fn user(unit: &str, directories: &[&Path]) -> Option<String> {
    let template = template(unit);
    let names: Vec<&str> = [Some(unit), template.as_deref()].into_iter().flatten().collect();
    let main = names.iter().find_map(|name| directories.iter().find_map(|d| fs::read_to_string(d.join(name)).ok()));
    let drop_ins = drop_ins(&names, directories).into_iter().filter_map(|path| fs::read_to_string(path).ok());
    let texts: Vec<String> = main.into_iter().chain(drop_ins).collect();
    let lines = texts.iter().flat_map(|text| text.lines());
    let user = lines.filter_map(|line| line.trim().strip_prefix("User=")).next_back()?.trim();
    (!user.is_empty() && !user.contains('%')).then(|| user.to_owned())
}

/// `x@.service` for `x@y.service`.
fn template(unit: &str) -> Option<String> {
    let (stem, kind) = unit.rsplit_once('.')?;
    let (name, instance) = stem.split_once('@')?;
    (!instance.is_empty()).then(|| format!("{name}@.{kind}"))
}

fn drop_ins(names: &[&str], directories: &[&Path]) -> Vec<PathBuf> {
    let mut found: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for (name, directory) in names.iter().flat_map(|name| directories.iter().map(move |directory| (name, directory))) {
        for entry in fs::read_dir(directory.join(format!("{name}.d"))).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "conf") {
                found.entry(entry.file_name()).or_insert(path);
            }
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files below a directory that goes with the test.
    fn tree(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("nsctl-unit-{name}-{}", std::process::id()));
        for (file, user) in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("[Service]\nUser={user}\n")).unwrap();
        }
        root
    }

    fn user_in(root: &Path, unit: &str) -> Option<String> {
        let directories = ["etc", "lib"].map(|directory| root.join(directory));
        user(unit, &[&directories[0], &directories[1]])
    }

    #[test]
    fn the_first_directory_masks_the_others_and_drop_ins_go_by_name() {
        let files = [
            ("lib/a.service", "vendor"),
            ("etc/b.service", "own"),
            ("lib/b.service", "vendor"),
            ("lib/c.service", "vendor"),
            ("lib/c.service.d/90-last.conf", "last"),
            ("etc/c.service.d/10-first.conf", "first"),
            ("lib/d.service", "vendor"),
            ("lib/d.service.d/50-x.conf", "masked"),
            ("etc/d.service.d/50-x.conf", "masks"),
            ("lib/e.service", "vendor"),
            ("etc/e.service.d/50-x.conf.bak", "no drop-in"),
            ("lib/f.service", "%i"),
        ];
        let root = tree("masks", &files);
        let wanted = [("a", "vendor"), ("b", "own"), ("c", "last"), ("d", "masks"), ("e", "vendor")];
        for (name, user) in wanted {
            assert_eq!(user_in(&root, &format!("{name}.service")).as_deref(), Some(user), "{name}");
        }
        assert_eq!((user_in(&root, "f.service"), user_in(&root, "g.service")), (None, None));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn an_instance_takes_what_its_template_says() {
        let root = tree("template", &[("lib/x@.service", "all"), ("lib/x@.service.d/1.conf", "more")]);
        assert_eq!(user_in(&root, "x@y.service").as_deref(), Some("more"));
        assert_eq!(user_in(&root, "x@.service").as_deref(), Some("more"));
        fs::remove_dir_all(root).unwrap();
    }
}
