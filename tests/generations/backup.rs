//! The state in a sealed file, and back from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nsctl::store::Number;

use crate::common::{in_patient_sandbox, in_sandbox};
use crate::node::{NEW, NEW_EDGE, Node, OLD, OLD_EDGE, STATE, Said};

const FILE: &str = "/run/node/backup.age";
const PASSPHRASE: &str = "a passphrase of the test";
const KEY: &str = "0123456789abcdef-a-secret-key";

/// Two generations, and a key as a room to come would keep it.
fn node() -> Node {
    let node = Node::up();
    node.write(NEW);
    node.run("apply --no-confirm").ok();
    DirBuilder::new().mode(0o700).create(node.record("onion")).unwrap();
    fs::write(node.record("onion/key"), KEY).unwrap();
    fs::set_permissions(node.record("onion/key"), fs::Permissions::from_mode(0o600)).unwrap();
    node
}

/// The command with the passphrase on descriptor 0.
fn with_passphrase(node: &Node, passphrase: &str, arguments: &str) -> Said {
    with_variable(node, passphrase, arguments, ("LC_ALL", "C"))
}

fn with_variable(node: &Node, passphrase: &str, arguments: &str, variable: (&str, &str)) -> Said {
    let mut command = node.nsctl(arguments);
    command.env(variable.0, variable.1);
    fed(&mut command, passphrase)
}

fn fed(command: &mut Command, passphrase: &str) -> Said {
    fs::write("/run/node/passphrase", passphrase).unwrap();
    command.args(["--passphrase-fd", "0"]).stdin(File::open("/run/node/passphrase").unwrap());
    Said::of(&command.output().unwrap())
}

fn backed_up(node: &Node) {
    with_passphrase(node, PASSPHRASE, &format!("backup {FILE}")).ok();
}

/// The machine is another one, or its disk is.
fn lost(node: &Node) {
    node.run("down").ok();
    fs::remove_dir_all(STATE).unwrap();
}

/// Every file with its mode and the digest of its text, and where a link leads.
fn all_of(directory: &Path) -> BTreeMap<PathBuf, (u32, String)> {
    let mut all = BTreeMap::new();
    let mut left = vec![directory.to_owned()];
    while let Some(path) = left.pop() {
        let is = fs::symlink_metadata(&path).unwrap();
        let text = match is.file_type() {
            kind if kind.is_symlink() => fs::read_link(&path).unwrap().display().to_string(),
            kind if kind.is_file() => digest_of(&path),
            _ => {
                left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                String::new()
            }
        };
        all.insert(path.strip_prefix(directory).unwrap().to_owned(), (is.permissions().mode() & 0o7777, text));
    }
    all
}

fn digest_of(path: &Path) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(fs::read(path).unwrap()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_restored_state_is_the_one_that_was_backed_up() {
    in_sandbox(|| {
        let node = node();
        let addresses = node.addresses();
        fs::write(node.record("half.tmp"), "half").unwrap();
        let _socket = UnixListener::bind(node.record("socket")).unwrap();
        let answer = with_passphrase(&node, PASSPHRASE, &format!("backup {FILE} --json")).ok();
        let answer: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
        assert_eq!((&answer["networks"][0], &answer["policy_files"]), (&"node".into(), &1.into()));
        assert_eq!(fs::metadata(FILE).unwrap().permissions().mode() & 0o7777, 0o600);
        let sealed = fs::read(FILE).unwrap();
        for word in [KEY, "node", "10.31.0", PASSPHRASE] {
            assert!(!sealed.windows(word.len()).any(|bytes| bytes == word.as_bytes()), "`{word}` can be read in it");
        }
        fs::remove_file(node.record("socket")).unwrap();
        fs::remove_file(node.record("half.tmp")).unwrap();
        fs::remove_file(node.record("lock")).unwrap();
        let before = all_of(Path::new(STATE));
        assert!(before.len() > 12 && before.keys().any(|path| path.ends_with("current")), "{:?}", before.keys());

        lost(&node);
        let said = with_passphrase(&node, PASSPHRASE, &format!("restore {FILE}")).ok();
        assert!(said.out.contains("nsctl apply --boot"), "{}", said.out);
        assert_eq!(all_of(Path::new(STATE)), before);
        node.run("apply --boot").ok();
        assert_eq!((node.current(), node.addresses()), (Some(Number(2)), addresses));
        assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]));
        node.run("rollback --no-confirm").ok();
        assert_eq!(node.open(), BTreeSet::from([OLD_EDGE]), "with all that was before");
    });
}

/// What the host's sysctls were on another run of the machine says nothing of this one.
#[test]
fn the_sysctls_of_another_machine_are_not_restored_to_this_one() {
    in_sandbox(|| {
        let node = node();
        let stale = r#"{"kernel/random/boot_id": "another", "net/ipv4/ip_forward": "1"}"#;
        fs::write(node.record("sysctls.json"), stale).unwrap();
        backed_up(&node);
        lost(&node);
        with_passphrase(&node, PASSPHRASE, &format!("restore {FILE}")).ok();
        assert_eq!(fs::read_to_string(node.record("sysctls.json")).unwrap(), stale);
        assert!(node.store().sysctls().unwrap().is_empty());
    });
}

#[test]
fn another_passphrase_restores_nothing() {
    in_sandbox(|| {
        let node = node();
        backed_up(&node);
        lost(&node);
        let said = with_passphrase(&node, "another passphrase", &format!("restore {FILE}"));
        said.refused("E0924", &["the passphrase is another one", "nothing was changed"]);
        assert!(!Path::new(STATE).exists());
        // A line has an end, which is none of the passphrase.
        with_passphrase(&node, &format!("{PASSPHRASE}\n"), &format!("restore {FILE}")).ok();
    });
}

#[test]
fn a_passphrase_that_protects_nothing_is_refused() {
    in_sandbox(|| {
        let node = node();
        for (passphrase, why) in
            [("", "it is empty"), ("1234567", "shorter than 8 bytes"), (&"x".repeat(1025), "longer")]
        {
            let said = with_passphrase(&node, passphrase, &format!("backup {FILE}"));
            said.refused("E0927", &["there is no passphrase", why]);
        }
        // Out of a session there is no terminal, and none is waited for.
        let alone = node.run_by("setsid", &format!("backup {FILE}"));
        alone.refused("E0927", &["no terminal", "--passphrase-fd"]);
        node.run(&format!("backup {FILE} --passphrase-fd 77")).refused("E0927", &["file descriptor 77"]);
        assert!(!Path::new(FILE).exists());
    });
}

/// What is written to a terminal when these lines are typed, each as soon as there is a prompt.
fn typed(arguments: &str, lines: &[&str]) -> String {
    let command = format!("{} --state {STATE} {arguments}", env!("CARGO_BIN_EXE_nsctl"));
    let mut script = Command::new("script");
    script.args(["-qec", &command, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut script = script.spawn().unwrap();
    let (mut to, mut from) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
    let mut shown = String::new();
    for (number, line) in lines.iter().enumerate() {
        while shown.matches(": ").count() <= number {
            let mut some = [0; 256];
            let n = from.read(&mut some).unwrap();
            assert!(n > 0, "{shown}");
            shown.push_str(&String::from_utf8_lossy(&some[..n]));
        }
        writeln!(to, "{line}").unwrap();
    }
    from.read_to_string(&mut shown).unwrap();
    script.wait().unwrap();
    shown
}

#[test]
fn a_terminal_is_asked_twice_and_shows_nothing_of_what_is_typed() {
    in_sandbox(|| {
        let node = node();
        let shown = typed(&format!("backup {FILE}"), &[PASSPHRASE, "another passphrase"]);
        assert!(shown.contains("E0927") && shown.contains("the two are not the same"), "{shown}");
        assert!(!Path::new(FILE).exists());
        let shown = typed(&format!("backup {FILE}"), &[PASSPHRASE, PASSPHRASE]);
        assert!(shown.contains("sealed into") && !shown.contains(PASSPHRASE), "{shown}");
        lost(&node);
        let shown = typed(&format!("restore {FILE}"), &[PASSPHRASE]);
        assert!(shown.contains("restored") && !shown.contains(PASSPHRASE), "{shown}");
        assert_eq!(fs::read_to_string(node.record("onion/key")).unwrap(), KEY);
    });
}

/// Each byte of it is tried where no work is done for a passphrase; here the command is.
#[test]
fn a_damaged_backup_restores_nothing() {
    in_patient_sandbox(Duration::from_secs(300), || {
        let node = node();
        backed_up(&node);
        lost(&node);
        let whole = fs::read(FILE).unwrap();
        let length = whole.len();
        let refused = |bytes: &[u8], what: &str| {
            fs::write(FILE, bytes).unwrap();
            let said = with_passphrase(&node, PASSPHRASE, &format!("restore {FILE}"));
            assert!(
                said.code == Some(1) && (said.err.contains("E0924: ") || said.err.contains("E0925: ")),
                "{what}: {said:?}"
            );
            assert!(said.err.contains("nothing was changed"), "{what}: {said:?}");
            assert!(!Path::new(STATE).exists(), "{what}");
        };
        for at in [0, 25, 40, 70, 100, 140, 190, 210, length / 4, length / 2, length - 700, length - 17, length - 1] {
            let mut altered = whole.clone();
            altered[at] ^= 1;
            refused(&altered, &format!("byte {at}"));
        }
        for left in [0, 1, 100, 200, length / 2, length - 16, length - 1] {
            refused(&whole[..left], &format!("{left} bytes of it"));
        }
        refused(&[&whole[..], b"."].concat(), "with a byte more");
        fs::write(FILE, &whole).unwrap();
        with_passphrase(&node, PASSPHRASE, &format!("restore {FILE}")).ok();
    });
}

#[test]
fn a_file_that_is_there_is_not_replaced_unasked() {
    in_sandbox(|| {
        let node = node();
        fs::write(FILE, "somebody's").unwrap();
        with_passphrase(&node, PASSPHRASE, &format!("backup {FILE}"))
            .refused("E0923", &["is there already", "--force"]);
        assert_eq!(fs::read_to_string(FILE).unwrap(), "somebody's");
        with_passphrase(&node, PASSPHRASE, &format!("backup {FILE} --force")).ok();
        assert!(fs::read(FILE).unwrap().starts_with(b"age-encryption.org/v1\n"));
        let inside = format!("backup {STATE}/backup.age");
        with_passphrase(&node, PASSPHRASE, &inside).refused("E0923", &["in the state directory itself"]);
        let other = "backup /run/node/other.age --network other";
        with_passphrase(&node, PASSPHRASE, other).refused("E0911", &["there is no state"]);
    });
}

#[test]
fn state_that_is_there_is_set_aside_only_when_asked() {
    in_sandbox(|| {
        let node = node();
        backed_up(&node);
        let restore = format!("restore {FILE}");
        with_passphrase(&node, PASSPHRASE, &restore).refused("E0926", &["network node is up", "--force"]);
        node.run("down").ok();
        let was = all_of(&node.record(""));
        with_passphrase(&node, PASSPHRASE, &restore).refused("E0926", &["state/node is there already", "--force"]);
        assert_eq!(all_of(&node.record("")), was);
        for number in 1..=2 {
            let said = with_passphrase(&node, PASSPHRASE, &format!("{restore} --force")).ok();
            let told = format!("what was {STATE}/node is {STATE}/node.before-{number} now");
            assert!(said.out.contains(&told), "{}", said.out);
        }
        assert_eq!(all_of(&Path::new(STATE).join("node.before-1")), was);
        assert_eq!(node.current(), Some(Number(2)));
        // What is aside is in nobody's way, and in no backup.
        node.run("apply --boot").ok();
        let answer = with_passphrase(&node, PASSPHRASE, &format!("backup {FILE} --force --json")).ok();
        assert!(answer.out.contains("\"node\"") && !answer.out.contains("before"), "{}", answer.out);
    });
}

/// Addresses and indexes of wires are those of the backup then, in the middle of others.
#[test]
fn a_state_that_is_restored_while_the_network_is_up_is_made_so_by_the_next_apply() {
    in_sandbox(|| {
        let node = node();
        let addresses = node.addresses();
        backed_up(&node);
        node.write(&format!("{OLD}[service.aa]\n[service.bb]\n"));
        node.run("apply --no-confirm").ok();
        node.write(&format!("{OLD}[service.cc]\n[service.bb]\n"));
        node.run("apply --no-confirm").ok();
        assert_eq!(node.open(), BTreeSet::from([OLD_EDGE]));
        with_passphrase(&node, PASSPHRASE, &format!("restore {FILE} --force")).ok();
        assert_eq!(node.open(), BTreeSet::from([OLD_EDGE]), "packets do not ask");
        node.run("apply --boot --network node").ok();
        assert_eq!((node.current(), node.open()), (Some(Number(2)), BTreeSet::from([NEW_EDGE])));
        assert_eq!(node.addresses(), addresses);
        assert!(!Path::new("/run/netns/node-cc").exists());
        assert_eq!(node.run("apply --boot").ok().out, "nothing to do\n");
        node.write(NEW);
        node.run("prove --live").ok();
        node.write(&format!("{NEW}[service.dd]\n"));
        node.run("apply --no-confirm").ok();
        node.run("prove --live").ok();
        assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]));
    });
}

#[test]
fn a_state_directory_that_others_can_write_to_is_not_restored_into() {
    in_sandbox(|| {
        let node = node();
        backed_up(&node);
        lost(&node);
        fs::create_dir("/run/node/elsewhere").unwrap();
        std::os::unix::fs::symlink("elsewhere", STATE).unwrap();
        with_passphrase(&node, PASSPHRASE, &format!("restore {FILE}")).refused("E0007", &["is a link"]);
        fs::remove_file(STATE).unwrap();
        DirBuilder::new().mode(0o777).create(STATE).unwrap();
        fs::set_permissions(STATE, fs::Permissions::from_mode(0o777)).unwrap();
        with_passphrase(&node, PASSPHRASE, &format!("restore {FILE}")).refused("E0007", &["mode 0777"]);
        assert_eq!(fs::read_dir(STATE).unwrap().count() + fs::read_dir("/run/node/elsewhere").unwrap().count(), 0);
        fs::set_permissions(STATE, fs::Permissions::from_mode(0o700)).unwrap();
        with_passphrase(&node, PASSPHRASE, &format!("restore {FILE}")).ok();
    });
}

#[test]
fn a_state_that_could_not_be_restored_is_not_backed_up() {
    in_sandbox(|| {
        let node = node();
        let policy = node.record("generations/2/policy.json");
        let text = fs::read(&policy).unwrap();
        fs::write(&policy, "{").unwrap();
        with_passphrase(&node, PASSPHRASE, &format!("backup {FILE}")).refused("E0912", &["cannot understand"]);
        fs::write(&policy, text).unwrap();
        fs::write(node.record("format"), "2\n").unwrap();
        with_passphrase(&node, PASSPHRASE, &format!("backup {FILE}")).refused("E0918", &["format is of format 2"]);
        assert!(!Path::new(FILE).exists());
    });
}

#[test]
fn a_backup_that_dies_anywhere_leaves_the_old_file_or_the_new_one() {
    in_patient_sandbox(Duration::from_secs(300), || {
        let node = node();
        backed_up(&node);
        fs::write(node.record("onion/key"), "another key").unwrap();
        for place in 1..50 {
            let fault = format!("crash:{place}");
            let said = with_variable(&node, PASSPHRASE, &format!("backup {FILE} --force"), ("NSCTL_FAULT", &fault));
            let other = format!("/run/node/other{place}");
            let mut elsewhere = Command::new(env!("CARGO_BIN_EXE_nsctl"));
            elsewhere.args(["--state", &other, "restore", "--force", FILE]);
            fed(&mut elsewhere, PASSPHRASE).ok();
            let key = fs::read_to_string(format!("{other}/node/onion/key")).unwrap();
            assert!(key == KEY || key == "another key", "dead at its place {place}: {key}");
            if said.code == Some(0) {
                assert!(place > 3 && key == "another key");
                return;
            }
            assert_eq!(said.code, None, "{said:?}");
        }
        panic!("it never ended");
    });
}

#[test]
fn a_restore_that_dies_anywhere_loses_nothing_and_is_done_by_the_next() {
    in_patient_sandbox(Duration::from_secs(500), || {
        let node = node();
        backed_up(&node);
        node.run("down").ok();
        fs::write(node.record("onion/key"), "a newer key").unwrap();
        for place in 1..200 {
            let fault = format!("crash:{place}");
            let said = with_variable(&node, PASSPHRASE, &format!("restore {FILE} --force"), ("NSCTL_FAULT", &fault));
            let when = format!("dead at its place {place}");
            let keys = |root: PathBuf| fs::read_to_string(root.join("onion/key")).ok();
            let aside =
                (1..).map(|n| Path::new(STATE).join(format!("node.before-{n}"))).take_while(|path| path.exists());
            let all: Vec<_> = aside.chain([node.record("")]).filter_map(keys).collect();
            assert!(all.contains(&"a newer key".into()), "{when}: the state of before is lost: {all:?}");
            if node.record("").exists() {
                node.assert_whole(&[None, Some(Number(2))], &when);
            }
            if said.code == Some(0) {
                assert!(place > 20, "it died {} times", place - 1);
                return;
            }
            with_passphrase(&node, PASSPHRASE, &format!("restore {FILE} --force")).ok();
            assert_eq!(keys(node.record("")).as_deref(), Some(KEY), "{when}");
            assert!(!Path::new(STATE).join("restore.tmp").exists());
            // As before, for the next round.
            let aside =
                (1..).map(|n| Path::new(STATE).join(format!("node.before-{n}"))).take_while(|path| path.exists());
            aside.collect::<Vec<_>>().iter().for_each(|path| fs::remove_dir_all(path).unwrap());
            fs::remove_file(node.record("current")).unwrap();
            fs::write(node.record("onion/key"), "a newer key").unwrap();
        }
        panic!("it never ended");
    });
}

#[test]
fn without_room_from_any_write_on_neither_backup_nor_restore_changes_anything() {
    in_patient_sandbox(Duration::from_secs(500), || {
        let node = node();
        // A second thing to restore: what was placed before the one that fails is taken back.
        fs::create_dir(Path::new(STATE).join("policy.d")).unwrap();
        fs::write(Path::new(STATE).join("policy.d/90-nsctl.toml"), "schema = 1\n").unwrap();
        backed_up(&node);
        node.run("down").ok();
        fs::write(node.record("onion/key"), "a newer key").unwrap();
        fs::remove_file(node.record("lock")).unwrap();
        for asked in [format!("backup {FILE} --force"), format!("restore {FILE} --force")] {
            let (state, file) = (all_of(Path::new(STATE)), digest_of(Path::new(FILE)));
            let mut places = 1..200;
            loop {
                let place = places.next().expect("it ends");
                let fault = format!("full:{place}");
                let said = with_variable(&node, PASSPHRASE, &asked, ("NSCTL_FAULT", &fault));
                fs::remove_file(node.record("lock")).ok();
                if said.code == Some(0) {
                    assert!(place > 3, "{place}");
                    break;
                }
                assert!(
                    said.code == Some(1) && said.err.contains("make room there; nothing"),
                    "{asked}, {place}: {said:?}"
                );
                let now = all_of(Path::new(STATE));
                assert!(now == state, "{asked}, full at its write {place}: {:?}", now.keys());
                // A rename that cannot be synced has been made, and is whole.
                let other =
                    digest_of(Path::new(FILE)) == file || fs::read(FILE).unwrap().starts_with(b"age-encryption");
                assert!(other, "{asked}, {place}");
            }
        }
        assert_eq!(fs::read_to_string(node.record("onion/key")).unwrap(), "a newer key", "that was in the last backup");
        assert!(Path::new(STATE).join("policy.d.before-1/90-nsctl.toml").exists());
    });
}

#[test]
fn a_restore_without_room_changes_nothing() {
    in_sandbox(|| {
        let node = node();
        backed_up(&node);
        lost(&node);
        fs::create_dir(STATE).unwrap();
        mount(Some("state"), STATE, Some("tmpfs"), MsFlags::empty(), Some("size=32k,mode=0700")).unwrap();
        let said = with_passphrase(&node, PASSPHRASE, &format!("restore {FILE}"));
        said.refused("E0915", &["cannot write", "make room there; nothing was changed"]);
        assert_eq!(fs::read_dir(STATE).unwrap().count(), 0);
        mount(None::<&str>, STATE, None::<&str>, MsFlags::MS_REMOUNT, Some("size=4m")).unwrap();
        with_passphrase(&node, PASSPHRASE, &format!("restore {FILE}")).ok();
        node.run("apply --boot").ok();
        assert_eq!(node.open(), BTreeSet::from([NEW_EDGE]));
    });
}
