//! A worker that was taken over: what its fences leave it, and what it can say. This program is the test and, when it is
//! started by a launcher, the worker; what it has to try stands in its configuration.

#![allow(clippy::disallowed_methods, reason = "what a worker may not do is tried here")]

mod common;
#[path = "worker/stage.rs"]
mod stage;

use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::time::Duration;

use common::in_root_sandbox;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, send, socket};
use nix::unistd::Pid;
use nsctl::worker::fence::{FenceError, Rights, enclose};
use nsctl::worker::inside::work;
use nsctl::worker::relay::{Config, Route};
use nsctl::worker::{Event, Fence, Kind, Phase, Spec};
use stage::{Crew, SERVICE, SOON, address, echo, relay, route, set, timing};

fn main() -> ExitCode {
    if is_worker() {
        return worker();
    }
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == OWNER) {
        own();
    }
    if arguments.iter().any(|argument| argument == "--list") {
        println!("fences: test");
        return ExitCode::SUCCESS;
    }
    let tests: [(&str, fn()); 3] = [
        (
            "a_worker_that_is_taken_over_has_its_connections_and_nothing_else",
            a_worker_that_is_taken_over_has_its_connections_and_nothing_else,
        ),
        (
            "a_worker_that_hears_nothing_does_not_outlive_its_owner",
            a_worker_that_hears_nothing_does_not_outlive_its_owner,
        ),
        ("a_worker_that_says_what_it_may_not_is_ended", a_worker_that_says_what_it_may_not_is_ended),
    ];
    // Inside a sandbox there is one name among the arguments, outside a filter of the caller's.
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    for (name, test) in tests {
        if filter.is_none_or(|filter| name.contains(filter.as_str())) {
            test();
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}

fn is_worker() -> bool {
    let stdin = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    stdin.and_then(|stdin| stdin.metadata()).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// This program as a worker that tries `what`.
fn trying(what: &str) -> Spec {
    let name = std::env::current_exe().expect("a test has a binary");
    let name = name.file_name().expect("it is a file").to_owned();
    let program = std::path::Path::new("/run/programs/deps").join(name);
    Spec { program: Some(program), ..relay(vec![Route { name: what.into(), ..route() }]) }
}

/// What can be tried: its name, and how.
type Attempt = (&'static str, fn() -> io::Result<()>);

/// What everybody may, and a worker has no need of.
const ATTEMPTS: &[Attempt] = &[
    ("read a file", || File::open("/etc/passwd").map(drop)),
    ("make a file", || File::create("/run/open/file").map(drop)),
    ("look into a directory", || std::fs::read_dir("/").map(drop)),
    ("ask netlink", || {
        let (family, protocol) = (AddressFamily::Netlink, SockProtocol::NetlinkRoute);
        socket(family, SockType::Raw, SockFlag::empty(), protocol).map(drop).map_err(Into::into)
    }),
    ("send a datagram", || UdpSocket::bind("127.0.0.1:0").map(drop)),
    ("make a unix socket", || UnixStream::pair().map(drop)),
    ("listen", || TcpListener::bind("127.0.0.1:0").map(drop)),
    ("start a program", || started("/bin/true")),
    ("make a user namespace", || started("/usr/bin/unshare")),
    ("start a thread", || std::thread::Builder::new().spawn(|| ()).map(drop)),
    ("send a signal", || kill(Pid::this(), None::<Signal>).map_err(Into::into)),
    ("change what it is", || nix::sys::prctl::set_name(c"other").map_err(Into::into)),
    ("connect elsewhere", || TcpStream::connect_timeout(&address(SERVICE, 8080), SOON).map(drop)),
];

/// What cannot be tried twice, or is refused in any case.
const AFTERWARDS: &[Attempt] = &[
    ("become another program", || Err(Command::new("/bin/true").exec())),
    ("enter a namespace", || {
        let here = io::stdin().as_fd().try_clone_to_owned()?;
        nix::sched::setns(here, nix::sched::CloneFlags::empty()).map_err(Into::into)
    }),
    ("leave its namespaces", || nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).map_err(Into::into)),
];

fn started(program: &str) -> io::Result<()> {
    let mut command = Command::new(program);
    if program.ends_with("unshare") {
        command.args(["--user", "true"]);
    }
    let status = command.status()?;
    status.success().then_some(()).ok_or_else(|| io::Error::other(status.to_string()))
}

fn worker() -> ExitCode {
    work(async |post, orders| -> Result<(), FenceError> {
        let config: Config = serde_json::from_value(orders.config).expect("it is what the test says");
        match config.routes[0].name.as_str() {
            "everything" => everything(&config),
            "secrets" => {
                let read = orders.secrets.into_iter().map(|(name, file)| {
                    let text = io::read_to_string(File::from(file)).expect("it can be read");
                    format!("{name} is {text}")
                });
                post.failed(&read.collect::<Vec<_>>().join(", ")).ok();
                Ok(())
            }
            "deaf" => {
                speak("deaf");
                // For ever, as far as a test goes, and without an ear for the socket.
                std::thread::sleep(Duration::from_secs(600));
                Ok(())
            }
            word => {
                speak(word);
                post.order().await.ok();
                Ok(())
            }
        }
    })
}

/// Tries everything before and after the fences and prints what became of it.
fn everything(config: &Config) -> Result<(), FenceError> {
    let outcome = |attempt: &Attempt| match attempt.1() {
        Ok(()) => "done".to_owned(),
        Err(error) => error.raw_os_error().map_or(error.to_string(), |code| nix::Error::from_raw(code).to_string()),
    };
    let before: Vec<_> = ATTEMPTS.iter().map(outcome).collect();
    let target = config.routes[0].target;
    let allowed = |_: ()| TcpStream::connect_timeout(&target, SOON).is_ok();
    let connected = allowed(());
    let fences = enclose(Kind::Relay.user(), &Rights { connect: vec![target.port()] })?;
    let after = ATTEMPTS.iter().zip(before).map(|(attempt, before)| (attempt.0, before, outcome(attempt)));
    let lines: Vec<_> = after.map(|(name, before, after)| format!("{name}: {before} / {after}")).collect();
    let lines =
        lines.into_iter().chain(AFTERWARDS.iter().map(|attempt| format!("{}: {}", attempt.0, outcome(attempt))));
    for line in lines.chain([format!("connect: {connected} / {}", allowed(())), format!("fences: {fences:?}")]) {
        // Not eprintln: it would be captured nowhere, but says so in a panic.
        writeln!(io::stderr(), "{line}").ok();
    }
    Ok(())
}

fn a_worker_that_is_taken_over_has_its_connections_and_nothing_else() {
    in_root_sandbox(|| {
        set();
        std::fs::create_dir("/run/open").unwrap();
        std::fs::set_permissions("/run/open", Permissions::from_mode(0o777)).unwrap();
        echo("a", SERVICE, 80);
        echo("b", SERVICE, 8080);
        let crew = Crew::new(timing());
        crew.want(vec![trying("everything")]);
        crew.until("ended", |state| state.phase == Phase::BackingOff);
        crew.want(Vec::new());
        let lines: Vec<String> = crew
            .events()
            .into_iter()
            .filter_map(|event| match event {
                Event::Line { text, .. } => Some(text),
                _ => None,
            })
            .collect();
        let said = |name: &str| {
            let line = lines.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.unwrap_or_else(|| panic!("nothing of `{name}` in {lines:#?}")).to_owned()
        };
        let fences = said("fences");
        let has = |fence: Fence| fences.contains(&format!("{fence:?}"));
        assert!(has(Fence::User) && has(Fence::Capabilities) && has(Fence::NoNewPrivileges), "{fences}");
        // Where a kernel has no such fence the machine cannot show what it does.
        assert!(has(Fence::Seccomp), "{fences}");
        for (name, _) in ATTEMPTS {
            let said = said(name);
            let (before, after) = said.split_once(" / ").expect("two outcomes");
            assert_eq!(before, "done", "the control: {name}");
            match *name {
                "connect elsewhere" if !has(Fence::Ports) => assert_eq!(after, "done", "{name}"),
                // landlock says so.
                "connect elsewhere" => assert!(after.starts_with("EACCES"), "{name}: {after}"),
                _ => assert!(after.starts_with("EPERM"), "{name}: {after}"),
            }
        }
        for (name, _) in AFTERWARDS {
            assert!(said(name).starts_with("EPERM"), "{name}: {}", said(name));
        }
        assert_eq!(said("connect"), "true / true");
    });
}

/// Says something over the socket, as whoever took a worker over could.
fn speak(what: &str) {
    let pid = std::process::id();
    let fences = r#"["user","capabilities","no-new-privileges"]"#;
    let hello = format!(r#"{{"hello":{{"pid":{pid},"fences":{fences}}}}}"#);
    let ready = r#""ready""#.to_owned();
    let words = match what {
        "proper" | "deaf" => vec![hello, ready],
        "another pid" => vec![hello.replace(&pid.to_string(), "1")],
        "no fence" => vec![hello.replace(fences, r#"["capabilities","no-new-privileges","seccomp"]"#)],
        "ready first" => vec![ready],
        "hello twice" => vec![hello.clone(), hello],
        "no json" => vec![hello, "ready".into()],
        "an order" => vec![hello, r#""drain""#.into()],
        "too long" => vec![hello, " ".repeat(5000)],
        "ready twice" => vec![hello, ready.clone(), ready],
        "a flood" => {
            let alive = r#"{"alive":{"open":0,"total":0,"refused":0,"unanswered":0,"evicted":0}}"#.to_owned();
            [hello, ready].into_iter().chain(vec![alive; 200]).collect()
        }
        "escapes" => vec![r#"{"failed":{"why":"a\u001b[31mb\nc"}}"#.into()],
        other => unreachable!("{other}"),
    };
    for word in words {
        // What does not fit into the socket's buffer is not waited for: nobody may read any more.
        send(io::stdin().as_raw_fd(), word.as_bytes(), MsgFlags::MSG_NOSIGNAL).ok();
        if what == "a flood" {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn a_worker_that_says_what_it_may_not_is_ended() {
    in_root_sandbox(|| {
        set();
        let crew = Crew::new(nsctl::worker::Timing { silence: Duration::from_secs(60), ..timing() });
        // The control: the same program that keeps to the rules is ready.
        crew.want(vec![trying("proper")]);
        crew.until("ready", |state| state.phase == Phase::Ready);
        let out_of_turn = "it was killed, for it said what it may not say at this point";
        let no_word = "it was killed, for it said what is no word of a worker";
        for (what, why) in [
            ("another pid", out_of_turn),
            ("no fence", "it was killed, for it is not held as it has to be: it has rights, or another's user"),
            ("ready first", out_of_turn),
            ("hello twice", out_of_turn),
            ("ready twice", out_of_turn),
            ("no json", no_word),
            ("an order", no_word),
            ("too long", "it was killed, for it said too much at once"),
            ("a flood", "it was killed, for it says more than anybody wants to know"),
            ("escapes", "it said: a?[31mb?c"),
        ] {
            // From scratch: a change would be handed to the one that runs.
            crew.want(Vec::new());
            crew.until("gone", |state| state.phase == Phase::Stopped);
            crew.want(vec![trying(what)]);
            let state = crew.until(why, |state| state.phase == Phase::BackingOff);
            assert_eq!(state.why.as_deref(), Some(why), "{what}");
        }
        // And a secret that was handed over is one.
        crew.want(Vec::new());
        crew.until("gone", |state| state.phase == Phase::Stopped);
        let secret = |text: &str| nsctl::worker::Secret::new(text.into());
        let secrets = [("key".to_owned(), secret("hunter2")), ("other".to_owned(), secret("two"))];
        let spec = Spec { secrets: secrets.into(), ..trying("secrets") };
        assert!(!format!("{spec:?}").contains("hunter2"));
        crew.want(vec![spec]);
        let state = crew.until("told", |state| state.phase == Phase::BackingOff);
        assert_eq!(state.why.as_deref(), Some("it said: key is hunter2, other is two"));
    });
}

/// Says that this process is to own a deaf worker until it is killed.
const OWNER: &str = "owner";

fn own() {
    let launcher = nsctl::worker::Launcher::with_programs("/run/programs".as_ref());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async move {
        let timing = nsctl::worker::Timing { silence: Duration::from_secs(600), ..timing() };
        let mut fleet = nsctl::worker::Fleet::new(launcher, timing, |event| {
            if let Event::Ready { pid, .. } = event {
                println!("worker {pid}");
            }
        });
        fleet.want(vec![trying("deaf")]);
        std::future::pending::<()>().await;
    });
}

fn a_worker_that_hears_nothing_does_not_outlive_its_owner() {
    in_root_sandbox(|| {
        set();
        stage::programs();
        let mut command = Command::new(std::env::current_exe().unwrap());
        let ended = stage::owner_is_killed(command.arg(OWNER), |_| {});
        assert!(ended, "it lives on");
    });
}
