//! Rows of files that cannot lie in a repository, or would be too many in it.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::shell::Shell;

/// How a row is built and run.
type Build = fn(&mut Shell, &Path);

/// The rows built here.
pub const ROWS: &[(u16, Build)] = &[
    (1, missing),
    (2, not_regular),
    (3, links),
    (4, writable),
    (6, replaceable),
    (7, state),
    (8, large),
    (9, many),
    (10, changing),
    (46, too_much),
];

const HEAD: &str = "schema = 1\nnetwork.name = \"node\"\n";

fn write(path: impl AsRef<Path>, text: &str) {
    fs::write(&path, text).unwrap();
    mode(path, 0o644);
}

fn mode(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn directory(path: impl AsRef<Path>) {
    fs::create_dir(&path).unwrap();
    mode(path, 0o755);
}

fn missing(shell: &mut Shell, root: &Path) {
    directory(root.join("empty"));
    for name in ["nowhere.toml", "empty"] {
        shell.case(name, &format!("check -f {name}"));
    }
    write(root.join("ok-there.toml"), HEAD);
    shell.case("ok-there.toml", "check -f ok-there.toml");
}

fn not_regular(shell: &mut Shell, root: &Path) {
    directory(root.join("directory"));
    let at = |name: &str| root.join("directory").join(name);
    mkfifo(&at("fifo.toml"), Mode::S_IRWXU).unwrap();
    let _listener = UnixListener::bind(at("socket.toml")).unwrap();
    directory(at("directory.toml"));
    for name in ["directory", "directory/fifo.toml", "directory/socket.toml", "/dev/null", "/dev/stdin"] {
        shell.case(name, &format!("check -f {name}"));
    }
}

fn links(shell: &mut Shell, root: &Path) {
    for name in ["outside", "directory", "ok-directory"] {
        directory(root.join(name));
    }
    write(root.join("outside/a.toml"), HEAD);
    symlink("../outside/a.toml", root.join("directory/a.toml")).unwrap();
    symlink(root.join("outside/a.toml"), root.join("directory/b.toml")).unwrap();
    symlink("/etc/hostname", root.join("directory/c.json")).unwrap();
    shell.case("directory", "check -f directory");

    directory(root.join("ok-directory/..data"));
    write(root.join("ok-directory/..data/a.toml"), HEAD);
    symlink("..data/a.toml", root.join("ok-directory/a.toml")).unwrap();
    symlink("/dev/null", root.join("ok-directory/b.toml")).unwrap();
    // What emacs(1) leaves while a file is edited.
    symlink("operator@node.4711", root.join("ok-directory/.#a.toml")).unwrap();
    shell.case("ok-directory", "check -v -f ok-directory");
    symlink("outside/a.toml", root.join("ok-link.toml")).unwrap();
    shell.case("ok-link.toml", "check -f ok-link.toml");
}

fn writable(shell: &mut Shell, root: &Path) {
    write(root.join("policy.toml"), HEAD);
    mode(root.join("policy.toml"), 0o666);
    shell.case("policy.toml", "check -f policy.toml");
    write(root.join("ok-policy.toml"), HEAD);
    shell.case("ok-policy.toml", "check -f ok-policy.toml");
}

fn replaceable(shell: &mut Shell, root: &Path) {
    for (name, bits) in [("open", 0o777), ("ok-sticky", 0o1777), ("listed", 0o1777)] {
        directory(root.join(name));
        write(root.join(name).join("policy.toml"), HEAD);
        mode(root.join(name), bits);
    }
    shell.case("open", "check -f open/policy.toml");
    shell.case("ok-sticky", "check -f ok-sticky/policy.toml");
    // Nobody can take its file away, and everybody can add one.
    shell.case("listed", "check -f listed");
    // The way of a link counts, not only its two ends.
    directory(root.join("closed"));
    symlink("../open/policy.toml", root.join("closed/link.toml")).unwrap();
    shell.case("closed/link.toml", "check -f closed/link.toml");
}

fn state(shell: &mut Shell, root: &Path) {
    write(root.join("policy.toml"), HEAD);
    for name in ["elsewhere", "ok-state", "open"] {
        directory(root.join(name));
    }
    symlink("elsewhere", root.join("link")).unwrap();
    symlink("../elsewhere", root.join("ok-state/other")).unwrap();
    write(root.join("file"), "");
    mode(root.join("open"), 0o777);
    for name in ["link", "link/", "file", "open", "ok-state"] {
        shell.case(name, &format!("plan --offline -f policy.toml --state {name}"));
    }
    fs::remove_file(root.join("ok-state/other")).unwrap();
    symlink("../elsewhere", root.join("ok-state/node")).unwrap();
    shell.case("state/node", "plan --offline -f policy.toml --state ok-state");
    let written = fs::read_dir(root.join("elsewhere")).unwrap().count();
    assert_eq!(written, 0);
}

fn large(shell: &mut Shell, root: &Path) {
    File::create(root.join("policy.toml")).unwrap().set_len(100_000_000).unwrap();
    mode(root.join("policy.toml"), 0o644);
    shell.case("policy.toml", "check -f policy.toml");
}

fn many(shell: &mut Shell, root: &Path) {
    directory(root.join("fragments"));
    (0..5_000).for_each(|n| write(root.join(format!("fragments/{n:04}.toml")), "schema = 1\n"));
    shell.case("fragments", "check -f fragments");
    directory(root.join("heavy"));
    let heavy = format!("schema = 1\n#{}\n", "x".repeat((1 << 20) - 20));
    (0..64).for_each(|n| write(root.join(format!("heavy/{n:02}.toml")), &heavy));
    shell.case("heavy", "check -f heavy");
    directory(root.join("ok-eight"));
    (0..7).for_each(|n| write(root.join(format!("ok-eight/{n}.toml")), &heavy));
    write(root.join("ok-eight/node.toml"), HEAD);
    shell.case("ok-eight", "check -f ok-eight");
}

/// A writer that never rests: sooner or later it writes while the command reads.
fn changing(shell: &mut Shell, root: &Path) {
    let path = root.join("policy.toml");
    let long = format!("{HEAD}{}", "# a comment\n".repeat(20_000));
    write(&path, &long);
    let rest = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::options().write(true).open(&path).unwrap();
            while !rest.load(Ordering::Relaxed) {
                for length in [long.len() - 12, long.len()] {
                    file.set_len(length as u64).unwrap();
                }
            }
        });
        // Not every reading meets a writing.
        shell.case_at_last("policy.toml", "check -f policy.toml");
        rest.store(true, Ordering::Relaxed);
    });
    write(&path, &long);
    fs::rename(&path, root.join("ok-policy.toml")).unwrap();
    shell.case("ok-policy.toml", "check -f ok-policy.toml");
}

fn too_much(shell: &mut Shell, root: &Path) {
    let services = (0..5_000).map(|n| format!("[service.s{n}]\n")).collect::<String>();
    write(root.join("services.toml"), &format!("{HEAD}network.pool4 = \"10.0.0.0/16\"\n{services}"));
    shell.case("services.toml", "check -f services.toml");
    // 1,000 services that all reach each other.
    let service = |n| {
        format!(
            "[service.s{n}]\ntags = [\"every\"]\nports = {{ http = \"tcp:80\" }}\nconnect.\"@every\" = [\"http\"]\n"
        )
    };
    let edges = (0..1_000).map(service).collect::<String>();
    write(root.join("edges.toml"), &format!("{HEAD}network.pool4 = \"10.0.0.0/16\"\n{edges}"));
    shell.case("edges.toml", "check -f edges.toml");
    // Switched off, so that no edge comes of it: what costs is to ask each service for each port.
    let off = |n| {
        format!(
            "[service.s{n}]\nenabled = false\ntags = [\"every\"]\nconnect.\"@every\" = [\"tcp:1\", \"tcp:2\", \"tcp:3\"]\n"
        )
    };
    let asked = (0..1_000).map(off).collect::<String>();
    write(root.join("asked.toml"), &format!("{HEAD}network.pool4 = \"10.0.0.0/16\"\n{asked}"));
    let codes = shell.nsctl("check -f asked.toml --json").output().unwrap();
    let codes = String::from_utf8(codes.stdout).unwrap();
    assert!(codes.contains("E0221"), "{codes}");
    let ports = |count: u16| (1..=count).map(|n| format!("p{n} = \"tcp:{n}\"\n")).collect::<String>();
    let some = "[service.b]\nconnect.a = [\"p1\"]\n";
    for (name, count) in [("ports.toml", 1_001), ("ok-ports.toml", 1_000)] {
        write(root.join(name), &format!("{HEAD}{some}[service.a.ports]\n{}", ports(count)));
        shell.case(name, &format!("check -f {name}"));
    }
}
