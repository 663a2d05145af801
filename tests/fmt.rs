//! `nsctl fmt` writes what it says, and nothing else.

#![allow(clippy::disallowed_methods, reason = "it runs the command")]

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use nsctl::rewrite::{Replacement, RewriteError, put};

const UGLY: &str = "schema=1\n[service.web]\nports={http=\"tcp:80\"} # for all\nunit=\"web.service\"\n";
const NEAT: &str = "schema = 1\n\n[service.web]\nunit = \"web.service\"\nports = { http = \"tcp:80\" }  # for all\n";

/// A directory of its own.
fn directory(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fmt-{name}"));
    drop(fs::remove_dir_all(&directory));
    fs::create_dir_all(&directory).unwrap();
    directory
}

fn file(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    path
}

fn fmt(arguments: &[&str], paths: &[&Path], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nsctl"));
    command.arg("fmt").args(arguments).args(paths);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One that does not read it may have gone.
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    child.wait_with_output().unwrap()
}

/// Replaces one file alone.
fn replace(path: &Path, before: &[u8], after: &str) -> Result<(), RewriteError> {
    put(vec![Replacement::prepare(path, before, after)?])
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

#[test]
fn a_file_is_laid_out_and_keeps_its_mode_and_its_owner() {
    let directory = directory("mode");
    let path = file(&directory, "policy.toml", UGLY);
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if is_root {
        // In a user namespace of one user nobody else can own a file.
        drop(chown(&path, Some(1), Some(1)));
    }
    let before = fs::metadata(&path).unwrap();
    let checked = fmt(&["--check"], &[&path], "");
    assert_eq!((code(&checked), fs::read_to_string(&path).unwrap().as_str()), (1, UGLY), "--check changed it");
    let written = fmt(&[], &[&path], "");
    assert_eq!((code(&written), fs::read_to_string(&path).unwrap().as_str()), (0, NEAT), "{written:?}");
    let after = fs::metadata(&path).unwrap();
    assert_eq!((before.mode(), before.uid(), before.gid()), (after.mode(), after.uid(), after.gid()));
    assert_ne!(before.ino(), after.ino(), "a reader could have seen half of it");
    let again = fmt(&[], &[&path], "");
    assert_eq!((code(&again), &again.stdout[..]), (0, &b"nothing to do\n"[..]));
    assert_eq!(after.ino(), fs::metadata(&path).unwrap().ino(), "a neat file is left alone");
    assert_eq!(code(&fmt(&["--check"], &[&path], "")), 0);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "something is left beside it");
}

#[test]
fn one_wrong_file_of_several_leaves_all_as_they_are() {
    let directory = directory("wrong");
    let good = file(&directory, "a.toml", UGLY);
    file(&directory, "b.toml", "schema = 1\nsrevice = 3\n");
    let output = fmt(&[], &[&directory], "");
    assert_eq!((code(&output), fs::read_to_string(&good).unwrap().as_str()), (2, UGLY));
    assert!(String::from_utf8_lossy(&output.stderr).contains("E0109"), "{output:?}");
    fs::remove_file(directory.join("b.toml")).unwrap();
    assert_eq!(code(&fmt(&[], &[&directory], "")), 0);
    assert_eq!(fs::read_to_string(&good).unwrap(), NEAT, "it is laid out when nothing is in the way");
}

#[test]
fn one_link_of_several_files_leaves_all_as_they_are() {
    for is_hard in [false, true] {
        let directory = directory("one-link");
        let good = file(&directory, "a.toml", UGLY);
        let (target, link) = (file(&directory, "x.toml", &UGLY.replace("web", "api")), directory.join("b.toml"));
        if is_hard { fs::hard_link(&target, &link) } else { symlink(&target, &link) }.unwrap();
        let output = fmt(&[], &[&directory], "");
        assert_eq!((code(&output), fs::read_to_string(&good).unwrap().as_str()), (1, UGLY), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("E0915"), "{output:?}");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 3, "something is left beside them");
        fs::remove_file(&link).unwrap();
        assert_eq!(code(&fmt(&[], &[&directory], "")), 0);
        assert_eq!(fs::read_to_string(&good).unwrap(), NEAT, "it is laid out when nothing is in the way");
    }
}

#[test]
fn what_was_rewritten_before_the_end_is_told() {
    let directory = directory("partly");
    let all = ["a.toml", "b.toml", "c.toml"].map(|name| file(&directory, name, UGLY));
    let ready = || all.iter().map(|path| Replacement::prepare(path, UGLY.as_bytes(), NEAT).unwrap()).collect();
    let ready_once: Vec<_> = ready();
    fs::write(&all[1], "schema = 1\n").unwrap();
    let error = put(ready_once).unwrap_err();
    let told = error.to_string();
    assert!(told.contains("a.toml") && !told.contains("b.toml") && !told.contains("c.toml"), "{told}");
    let RewriteError::Partly { done, source } = error else { panic!("{told}") };
    assert!(done == all[..1] && matches!(&*source, RewriteError::Changed { path } if *path == all[1]), "{source}");
    let texts = all.each_ref().map(|path| fs::read_to_string(path).unwrap());
    assert_eq!(texts, [NEAT, "schema = 1\n", UGLY]);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 3, "something is left beside them");
    all.iter().for_each(|path| fs::write(path, UGLY).unwrap());
    put(ready()).expect("nobody is in the way");
    assert!(all.iter().all(|path| fs::read_to_string(path).unwrap() == NEAT));
}

#[test]
fn a_file_that_is_named_twice_is_one_file() {
    let directory = directory("twice");
    let path = file(&directory, "a.toml", UGLY);
    let roundabout = directory.join("../fmt-twice/a.toml");
    let checked = fmt(&["--check", "--json"], &[&directory, &path, &roundabout], "");
    let answer: serde_json::Value = serde_json::from_slice(&checked.stdout).unwrap();
    assert_eq!(answer["files"].as_array().map(Vec::len), Some(1), "{answer}");
    let output = fmt(&[], &[&directory, &path, &roundabout], "");
    assert_eq!((code(&output), fs::read_to_string(&path).unwrap().as_str()), (0, NEAT), "{output:?}");
    // A link is another name, in whatever order, and is refused.
    fs::write(&path, UGLY).unwrap();
    let link = directory.join("link.toml");
    symlink(&path, &link).unwrap();
    for named in [[&path, &link], [&link, &path]] {
        let output = fmt(&[], &[named[0], named[1]], "");
        assert_eq!((code(&output), fs::read_to_string(&path).unwrap().as_str()), (1, UGLY), "{output:?}");
    }
}

#[test]
fn stdin_goes_to_stdout() {
    let output = fmt(&[], &[Path::new("-")], UGLY);
    assert_eq!((code(&output), String::from_utf8_lossy(&output.stdout).as_ref()), (0, NEAT));
    assert_eq!(code(&fmt(&["--check"], &[Path::new("-")], UGLY)), 1);
    assert_eq!(code(&fmt(&["--check"], &[Path::new("-")], NEAT)), 0);
    let json = fmt(&[], &[Path::new("-")], "{\"schema\":1,\"network\":{\"name\":\"n\"}}");
    let expected = "{\n  \"network\": {\n    \"name\": \"n\"\n  },\n  \"schema\": 1\n}\n";
    assert_eq!(String::from_utf8_lossy(&json.stdout), expected);
    assert_eq!(code(&fmt(&[], &[Path::new("-"), Path::new("x.toml")], UGLY)), 2);
}

#[test]
fn neither_a_link_nor_one_of_several_names_is_replaced() {
    let directory = directory("links");
    let path = file(&directory, "policy.toml", UGLY);
    let (link, name) = (directory.join("link.toml"), directory.join("name.toml"));
    symlink(&path, &link).unwrap();
    assert!(matches!(replace(&link, UGLY.as_bytes(), NEAT), Err(RewriteError::Linked { .. })));
    fs::hard_link(&path, &name).unwrap();
    assert!(matches!(replace(&path, UGLY.as_bytes(), NEAT), Err(RewriteError::Linked { .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), UGLY);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    fs::remove_file(&name).unwrap();
    replace(&path, UGLY.as_bytes(), NEAT).expect("it has one name now, and is no link");
    assert_eq!(fs::read_to_string(&link).unwrap(), NEAT);
}

#[test]
fn a_file_that_changed_meanwhile_is_left_alone() {
    let directory = directory("changed");
    let path = file(&directory, "policy.toml", "schema = 1\n# by somebody else\n");
    for read in ["schema = 1\n", "schema = 1\n# by somebody else\n\n", ""] {
        assert!(matches!(replace(&path, read.as_bytes(), NEAT), Err(RewriteError::Changed { .. })));
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "schema = 1\n# by somebody else\n");
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "something is left beside it");
}

#[test]
fn a_file_that_changes_while_it_is_replaced_is_left_alone() {
    let directory = directory("meanwhile");
    let path = file(&directory, "policy.toml", UGLY);
    let long_ago = SystemTime::now() - Duration::from_secs(1000);
    let touch = |path: &Path| File::options().write(true).open(path).and_then(|file| file.set_modified(long_ago));
    type Change<'a> = &'a dyn Fn(&Path) -> io::Result<()>;
    let changes: [(&str, Change); 4] = [
        ("another text of that length, in place", &|path| fs::write(path, UGLY.replace("web", "api"))),
        ("another mode", &|path| fs::set_permissions(path, Permissions::from_mode(0o600))),
        ("written, with the text it had", &touch),
        ("another file of that text", &|path| {
            fs::write(directory.join("new"), UGLY)?;
            fs::rename(directory.join("new"), path)
        }),
    ];
    for (what, change) in changes {
        fs::write(&path, UGLY).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let ready = Replacement::prepare(&path, UGLY.as_bytes(), NEAT).unwrap();
        change(&path).unwrap();
        let (text, mode) = (fs::read_to_string(&path).unwrap(), fs::metadata(&path).unwrap().mode());
        assert!(matches!(put(vec![ready]), Err(RewriteError::Changed { .. })), "{what}");
        assert_eq!((fs::read_to_string(&path).unwrap(), fs::metadata(&path).unwrap().mode()), (text, mode), "{what}");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "something is left beside it");
    }
    put(vec![Replacement::prepare(&path, UGLY.as_bytes(), NEAT).unwrap()]).expect("nothing happens meanwhile");
}

/// An access list (acl(5)) with an entry of a named user, as the kernel has it (linux/posix_acl_xattr.h).
fn access_list(user: u32) -> Vec<u8> {
    let entries = [(1, 6, u32::MAX), (2, 4, user), (4, 0, u32::MAX), (0x10, 4, u32::MAX), (0x20, 0, u32::MAX)];
    let entry =
        |(tag, may, id): (u16, u16, u32)| [&tag.to_le_bytes()[..], &may.to_le_bytes(), &id.to_le_bytes()].concat();
    [vec![2, 0, 0, 0], entries.map(entry).concat()].concat()
}

#[test]
fn a_file_keeps_its_attributes_and_its_access_list() {
    let directory = directory("attributes");
    let path = file(&directory, "policy.toml", UGLY);
    let list = access_list(fs::metadata(&path).unwrap().uid());
    xattr::set(&path, "user.note", b"mine").unwrap();
    xattr::set(&path, "system.posix_acl_access", &list).unwrap();
    let mode = fs::metadata(&path).unwrap().mode();
    let output = fmt(&[], &[&path], "");
    assert_eq!((code(&output), fs::read_to_string(&path).unwrap().as_str()), (0, NEAT), "{output:?}");
    assert_eq!(xattr::get(&path, "user.note").unwrap().as_deref(), Some(&b"mine"[..]));
    assert_eq!(xattr::get(&path, "system.posix_acl_access").unwrap(), Some(list));
    assert_eq!(fs::metadata(&path).unwrap().mode(), mode);
}

#[test]
fn a_file_takes_no_access_list_from_its_directory() {
    let directory = directory("defaults");
    let path = file(&directory, "policy.toml", UGLY);
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    let list = access_list(fs::metadata(&path).unwrap().uid());
    xattr::set(&directory, "system.posix_acl_default", &list).unwrap();
    let control = file(&directory, "control", "");
    assert!(xattr::get(&control, "system.posix_acl_access").unwrap().is_some(), "new files get one here");
    let output = fmt(&[], &[&path], "");
    assert_eq!((code(&output), fs::read_to_string(&path).unwrap().as_str()), (0, NEAT), "{output:?}");
    assert_eq!(xattr::get(&path, "system.posix_acl_access").unwrap(), None);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
}

#[test]
fn the_file_itself_is_replaced_and_not_one_that_is_called_as_it_is_shown() {
    let directory = directory("shown");
    // As a terminal is shown it, the first has the name of the second.
    let path = file(&directory, "bell\u{7}.toml", UGLY);
    let other = file(&directory, "bell?.toml", UGLY);
    let output = fmt(&[], &[&path], "");
    assert_eq!((code(&output), fs::read_to_string(&path).unwrap().as_str()), (0, NEAT), "{output:?}");
    assert_eq!(fs::read_to_string(&other).unwrap(), UGLY);
    fs::remove_file(&other).unwrap();
    fs::write(&path, UGLY).unwrap();
    fs::hard_link(&path, directory.join("link.toml")).unwrap();
    let output = fmt(&[], &[&path], "");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("bell?.toml is one of several names") && !told.contains('\u{7}'), "{told:?}");
}

#[test]
fn the_examples_that_programs_wrote_are_laid_out() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/policies");
    for example in ["nix-bitcoin.toml", "umbrel.toml"] {
        let output = fmt(&["--check"], &[&examples.join(example)], "");
        assert_eq!(code(&output), 0, "{}", String::from_utf8_lossy(&output.stdout));
    }
}
