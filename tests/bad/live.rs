//! Rows of a running machine: each in a sandbox of its own, by commands that change it.

use std::fs::{self, File};
use std::os::unix::fs::{chown, symlink};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nsctl::internet::Internet;

use crate::common::{in_root_sandbox, in_sandbox, ip, nft_here};
use crate::shell::Shell;

const HEAD: &str = "schema = 1\n[network]\nname = \"node\"\nipv6 = false\n";
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
        write(&format!("{HEAD}[service.a]\nports = {{ http = \"tcp:80\" }}\nconnect.b = [\"http\"]\n[service.b]\nports = {{ http = \"tcp:80\" }}\n"));
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
    row_102_disk_full = 102 in in_sandbox: |shell| {
        fs::create_dir("state").unwrap();
        mount(Some("state"), "state", Some("tmpfs"), MsFlags::empty(), Some("size=4k,mode=0700")).unwrap();
        fs::write("state/filler", [0; 4096]).unwrap();
        shell.case("policy.toml", APPLY);
        assert!(!Path::new("/run/netns/node+fabric").exists(), "nothing was applied");
        fs::remove_file("state/filler").unwrap();
        shell.case("ok-policy.toml", APPLY);
    };
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
