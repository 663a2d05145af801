//! Rows of a running machine: each in a sandbox of its own, by commands that change it.

use std::fs::{self, File};
use std::os::unix::fs::{chown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nsctl::internet::Internet;

use crate::common::{in_root_sandbox, in_sandbox, ip, nft_here};
use crate::shell::Shell;

const HEAD: &str = "schema = 1\n[network]\nname = \"node\"\nipv6 = false\n";
/// Two services that know each other.
const PAIR: &str =
    "[service.a]\nports = { http = \"tcp:80\" }\nconnect.b = [\"http\"]\n[service.b]\nports = { http = \"tcp:80\" }\n";
const APPLY: &str = "apply -f policy.toml --state state";

/// A test for each row, and the list of them.
macro_rules! rows {
    ($($name:ident = $row:literal in $sandbox:ident: $body:expr;)*) => {
        /// The rows run here.
        pub const ROWS: &[u16] = &[$($row),*];
        $(
            #[test]
            fn $name() {
                $sandbox(|| {
                    let root = Path::new("/run/bad");
                    fs::create_dir(root).unwrap();
                    std::env::set_current_dir(root).unwrap();
                    write(HEAD);
                    let mut shell = Shell::new($row, root);
                    let body: fn(&mut Shell) = $body;
                    body(&mut shell);
                    shell.compare();
                });
            }
        )*
    };
}

fn write(text: &str) {
    fs::write("policy.toml", text).unwrap();
}

rows! {
    row_005_somebody_else_s_file = 5 in in_root_sandbox: |shell| {
        chown("policy.toml", Some(4711), None).unwrap();
        shell.case("policy.toml", "check -f policy.toml");
        shell.case("policy.toml", APPLY);
        assert!(!Path::new("state").exists(), "nothing is written before it is known whose the policy is");
        // Root's directory, but not root's alone.
        chown("policy.toml", Some(0), None).unwrap();
        shell.case("ok-policy.toml", APPLY);
        shell.case("ok-down", "down -f policy.toml --state state");
    };
    row_043_somebody_else_s_namespace = 43 in in_sandbox: |shell| {
        write(&format!("{HEAD}{PAIR}"));
        ip("netns add node-a");
        shell.case("policy.toml", APPLY);
        ip("netns del node-a");
        shell.case("ok-policy.toml", APPLY);
    };
    row_062_pool_of_the_host = 62 in in_sandbox: |shell| {
        ip("link add lan0 type veth peer name lan1");
        ip("address add 10.231.1.9/24 dev lan0");
        ip("link set lan0 up");
        ip("link set lan1 up");
        shell.case("policy.toml", APPLY);
        ip("link del lan0");
        shell.case("ok-policy.toml", APPLY);
    };
    row_066_another_pool = 66 in in_sandbox: |shell| {
        let policy = format!("{HEAD}pool4 = \"10.31.0.0/24\"\n[service.a]\nports = {{ http = \"tcp:80\" }}\nconnect.b = [\"http\"]\n[service.b]\nports = {{ http = \"tcp:80\" }}\n");
        write(&policy);
        shell.case("ok-policy.toml", APPLY);
        write(&policy.replace("10.31.0.0", "10.32.0.0"));
        shell.case("policy.toml", "plan -f policy.toml --state state");
        shell.case("policy.toml", APPLY);
        shell.case("ok-renumber", "apply --renumber -f policy.toml --state state");
    };
    row_097_kernel_lacks_something = 97 in in_sandbox: |shell| {
        fs::write("/proc/sys/user/max_net_namespaces", "0").unwrap();
        shell.case("policy.toml", APPLY);
        assert!(!Path::new("state").exists(), "it is found before anything is changed");
        fs::write("/proc/sys/user/max_net_namespaces", "100").unwrap();
        shell.case("ok-policy.toml", APPLY);
    };
    row_076_port_that_somebody_holds = 76 in in_sandbox: |shell| {
        let _internet = Internet::make().unwrap();
        let held = std::net::TcpListener::bind(("0.0.0.0", 443)).unwrap();
        let exposed = "[service.a]\nports = { web = \"tcp:8443\" }\n[service.a.expose.port]\nports = { \"443\" = \"web\" }\n";
        write(&format!("{HEAD}pool4 = \"10.31.0.0/24\"\n{exposed}"));
        shell.case("policy.toml", APPLY);
        assert!(!Path::new("/run/netns/node+fabric").exists(), "nothing was applied");
        drop(held);
        shell.case("ok-policy.toml", APPLY);
    };
    row_098_firewall_in_the_way = 98 in in_sandbox: |shell| {
        let _internet = Internet::make().unwrap();
        write(&format!("{HEAD}pool4 = \"10.31.0.0/24\"\n[service.a]\noutbound = \"direct\"\ndns = \"none\"\n"));
        nft_here("table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }");
        shell.case("policy.toml", APPLY);
        nft_here("delete table ip filter");
        shell.case("ok-policy.toml", APPLY);
    };
    row_099_two_at_a_time = 99 in in_sandbox: |shell| {
        shell.case("ok-policy.toml", APPLY);
        let lock = File::open("state/node/lock").unwrap();
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).unwrap();
        shell.hide(&format!("pid {} ", std::process::id()), "pid [PID] ");
        shell.case("policy.toml", APPLY);
        shell.case("policy.toml", "down -f policy.toml --state state");
        drop(lock);
        shell.case("ok-down", "down -f policy.toml --state state");
    };
    row_100_another_generation = 100 in in_sandbox: |shell| {
        shell.case("ok-policy.toml", APPLY);
        let planned = fs::read_link("state/node/current").unwrap();
        assert!(planned.ends_with("generations/1"));
        write(&format!("{HEAD}{PAIR}"));
        assert!(shell.nsctl(APPLY).output().unwrap().status.success());
        write(&format!("{HEAD}{PAIR}# more\n"));
        shell.case("policy.toml", "apply --against 1 -f policy.toml --state state");
        assert!(Path::new("/run/netns/node-b").exists(), "nothing was changed");
        write(&format!("{HEAD}{PAIR}"));
        shell.case("ok-policy.toml", APPLY);
    };
    row_101_not_confirmed = 101 in in_sandbox: |shell| {
        shell.case("ok-policy.toml", APPLY);
        write(&format!("{HEAD}{PAIR}"));
        assert!(shell.nsctl("apply --confirm 5m -f policy.toml --state state").output().unwrap().status.success());
        write(HEAD);
        shell.hide_number_after("confirmed, for ");
        shell.case("policy.toml", APPLY);
        assert!(Path::new("/run/netns/node-b").exists(), "nothing was changed");
        // The process that waits sees that nothing waits any more, and ends.
        assert!(shell.nsctl("rollback --network node --state state").output().unwrap().status.success());
        shell.case("ok-policy.toml", APPLY);
        no_process_waits();
    };
    row_102_disk_full = 102 in in_sandbox: |shell| {
        fs::create_dir("state").unwrap();
        mount(Some("state"), "state", Some("tmpfs"), MsFlags::empty(), Some("size=256k,mode=0700")).unwrap();
        assert!(fs::write("state/filler", vec![0; 1 << 20]).is_err(), "it is full");
        shell.case("policy.toml", APPLY);
        assert!(!Path::new("/run/netns/node+fabric").exists(), "nothing was applied");
        fs::remove_file("state/filler").unwrap();
        shell.case("ok-policy.toml", APPLY);
    };
    row_103_still_running = 103 in in_sandbox: |shell| {
        write(&format!("{HEAD}{PAIR}"));
        assert!(shell.nsctl(APPLY).output().unwrap().status.success());
        let mut inside = Command::new("ip").args(["netns", "exec", "node-b", "sleep", "1000"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let name = format!("/proc/{}/comm", inside.id());
        let deadline = Instant::now() + Duration::from_secs(5);
        while fs::read_to_string(&name).unwrap().trim() != "sleep" && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        write(HEAD);
        shell.hide(&format!("pid {}", inside.id()), "pid [PID]");
        shell.case("policy.toml", APPLY);
        shell.case("policy.toml", "down -f policy.toml --state state");
        assert!(inside.try_wait().unwrap().is_none(), "nobody is ended unasked");
        let ended = std::thread::spawn(move || inside.wait());
        shell.case("ok-stop", "apply --stop -f policy.toml --state state");
        ended.join().unwrap().unwrap();
    };
    row_104_clock = 104 in in_sandbox: |shell| {
        shell.case("ok-policy.toml", APPLY);
        write(&format!("{HEAD}{PAIR}"));
        assert!(shell.nsctl("apply --confirm 5m -f policy.toml --state state").output().unwrap().status.success());
        // As by a clock that went back by decades after the first, and on by a century during the second.
        for (generation, time) in [(1, 4_102_444_800_u64), (2, 0)] {
            let path = format!("state/node/generations/{generation}/meta.json");
            let mut meta: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            meta["time"] = time.into();
            fs::write(path, meta.to_string()).unwrap();
        }
        shell.case("ok-it-waits", "generations --state state");
        assert!(shell.nsctl("confirm --network node --state state").output().unwrap().status.success());
        shell.case("ok-it-stays", "generations --state state");
        no_process_waits();
    };
}

/// What `apply --confirm` has started ends when nothing waits any more.
fn no_process_waits() {
    let here = fs::read_link("/proc/self/ns/mnt").unwrap();
    let holds = |pid: &str| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let is_here = fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|there| there == here);
        is_here && line.split(|byte| *byte == 0).any(|word| word == b"hold")
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while fs::read_dir("/proc").unwrap().any(|entry| entry.is_ok_and(|e| e.file_name().to_str().is_some_and(holds))) {
        assert!(Instant::now() < deadline, "it waits for ever");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The same as rows 4, 6 and 7 of `built`, where it counts.
#[test]
fn apply_refuses_what_others_can_edit_and_writes_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    in_sandbox(|| {
        fs::create_dir("/run/bad").unwrap();
        std::env::set_current_dir("/run/bad").unwrap();
        write(HEAD);
        let shell = Shell::new(4, Path::new("/run/bad"));
        let says = |code: &str| {
            let output = shell.nsctl(&format!("{APPLY} --json")).output().unwrap();
            let said = String::from_utf8(output.stdout).unwrap();
            assert!(!output.status.success() && said.contains(code), "{code}: {said}");
            assert!(!Path::new("state").join("node").exists() && !Path::new("/run/netns").exists());
        };
        let mode = |path: &str, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        mode("policy.toml", 0o666);
        says("E0004");
        mode("policy.toml", 0o644);
        mode("/run/bad", 0o777);
        says("E0006");
        mode("/run/bad", 0o755);
        fs::create_dir("elsewhere").unwrap();
        symlink("elsewhere", "state").unwrap();
        says("E0007");
        fs::remove_file("state").unwrap();
        assert!(shell.nsctl(APPLY).output().unwrap().status.success(), "the control");
    });
}
