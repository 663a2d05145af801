//! A gateway between an outside and a service, and a fleet on a thread of its own.

#![allow(dead_code, reason = "each test crate uses a part of this")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use nsctl::worker::relay::{Config, Limits, Route};
use nsctl::worker::{Event, Fleet, Launcher, Phase, Spec, Timing, Work, WorkerState};
use tokio::sync::mpsc as jobs;

use super::common::{ip, netns, wire};

/// How long something that ought to happen may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(10);

pub const CLIENT: &str = "10.1.0.1";
pub const CLIENT6: &str = "fd01::1";
pub const GATE: &str = "10.1.0.2";
pub const GATE6: &str = "fd01::2";
pub const SERVICE: &str = "10.2.0.2";
pub const SERVICE6: &str = "fd02::2";

/// Three namespaces: `outside`, `gate`, `service`. Nothing is forwarded between the first and the last.
pub fn set() {
    for name in ["outside", "gate", "service"] {
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
    }
    // A second client on the same wire.
    wire(
        ("outside", "out0", &["10.1.0.1/24", "10.1.0.9/24", "fd01::1/64"]),
        ("gate", "in0", &["10.1.0.2/24", "fd01::2/64"]),
    );
    wire(("gate", "net0", &["10.2.0.1/24", "fd02::1/64"]), ("service", "net0", &["10.2.0.2/24", "fd02::2/64"]));
}

/// Quicker than usual where a test would only wait.
pub fn timing() -> Timing {
    Timing { beat: Duration::from_millis(100), silence: Duration::from_millis(1500), ..Timing::default() }
}

/// Where everybody may run the programs from: the build directory may lie in somebody's home.
pub fn programs() -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_nsctl-relay")).parent().expect("it lies in a directory");
    let open = Path::new("/run/programs");
    fs::create_dir_all(open).expect("/run is the sandbox's own");
    mount(Some(built), open, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("root may mount");
    open.to_owned()
}

/// A route from port 80 of the gate to port 80 of the service.
pub fn route() -> Route {
    Route {
        name: "web".into(),
        listen: address(GATE, 80),
        target: address(SERVICE, 80),
        proxy: false,
        sources: Vec::new(),
    }
}

pub fn relay(routes: Vec<Route>) -> Spec {
    relay_within(routes, Limits::default())
}

pub fn relay_within(routes: Vec<Route>, limits: Limits) -> Spec {
    let work = Work::Relay(Config { routes, limits });
    Spec {
        name: "relay".into(),
        netns: "/run/netns/gate".into(),
        work,
        secrets: std::collections::BTreeMap::new(),
        program: None,
    }
}

pub fn address(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

/// A fleet on a thread of its own.
pub struct Crew {
    jobs: Option<jobs::UnboundedSender<Job>>,
    thread: Option<JoinHandle<()>>,
    events: Arc<Mutex<Vec<Event>>>,
}

type Job = Box<dyn FnOnce(&mut Fleet) + Send>;

impl Crew {
    pub fn new(timing: Timing) -> Self {
        let events = Arc::<Mutex<Vec<Event>>>::default();
        let (sender, mut receiver) = jobs::unbounded_channel::<Job>();
        let launcher = Launcher::with_programs(&programs());
        let told = events.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let mut fleet = Fleet::new(launcher, timing, move |event| {
                    told.lock().expect("nobody panics with it").push(event.clone());
                });
                while let Some(job) = receiver.recv().await {
                    job(&mut fleet);
                }
                fleet.stop().await;
            });
        });
        Self { jobs: Some(sender), thread: Some(thread), events }
    }

    /// With this worker, ready.
    pub fn with(spec: Spec) -> Self {
        let crew = Self::new(timing());
        crew.want(vec![spec]);
        crew.until("ready", |state| state.phase == Phase::Ready);
        crew
    }

    pub fn want(&self, specs: Vec<Spec>) {
        self.job(move |fleet| fleet.want(specs));
    }

    pub fn states(&self) -> Vec<WorkerState> {
        let (sender, receiver) = mpsc::channel();
        self.job(move |fleet| sender.send(fleet.states()).expect("the test waits"));
        receiver.recv_timeout(SOON).expect("the fleet answers at once")
    }

    /// The only worker.
    pub fn state(&self) -> WorkerState {
        self.states().into_iter().next().expect("there is a worker")
    }

    pub fn until(&self, what: &str, holds: impl Fn(&WorkerState) -> bool) -> WorkerState {
        let deadline = Instant::now() + SOON;
        loop {
            let state = self.state();
            if holds(&state) {
                return state;
            }
            assert!(Instant::now() < deadline, "not {what}: {state:?}\n{:?}", self.events());
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn pid(&self) -> Pid {
        process(self.state().pid.expect("it runs"))
    }

    pub fn events(&self) -> Vec<Event> {
        self.events.lock().expect("nobody panics with it").clone()
    }

    pub fn stop(mut self) {
        self.jobs = None;
        self.thread.take().expect("it is stopped once").join().expect("the fleet does not panic");
    }

    fn job(&self, job: impl FnOnce(&mut Fleet) + Send + 'static) {
        let sent = self.jobs.as_ref().expect("not stopped").send(Box::new(job));
        assert!(sent.is_ok(), "the fleet lives");
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

pub fn process(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("a pid"))
}

/// Whether there is such a process, be it a zombie.
pub fn exists(pid: Pid) -> bool {
    kill(pid, None::<Signal>).is_ok()
}

/// What proc_pid_status(5) says after `key:`.
pub fn status_of(pid: Pid, key: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {key} in {status}")).trim().to_owned()
}

/// The inode of the network namespace of a process.
pub fn netns_of(process: &str) -> u64 {
    fs::metadata(format!("/proc/{process}/ns/net")).expect("/proc is mounted").ino()
}

pub fn connect(from: &str, to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = netns(from).run(move || TcpStream::connect_timeout(&to, SOON))?;
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    Ok(stream)
}

/// A connection to the relay.
pub fn client() -> TcpStream {
    connect("outside", address(GATE, 80)).expect("the relay listens")
}

/// A connection to the relay from the other client on the wire.
pub fn from_other_client() -> TcpStream {
    let connected = netns("outside").run(|| {
        let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)?;
        rustix::net::bind(&socket, &address("10.1.0.9", 0))?;
        rustix::net::connect(&socket, &address(GATE, 80))?;
        Ok(TcpStream::from(socket))
    });
    let stream = connected.expect("the relay listens");
    stream.set_read_timeout(Some(SOON)).expect("it is a socket");
    stream
}

/// A listener in the service.
pub fn listener(ip: &str, port: u16) -> TcpListener {
    let address = address(ip, port);
    netns("service").run(move || TcpListener::bind(address)).expect("the service can listen")
}

/// A service that sends back what it gets with its name in front, for as long as the test lives.
pub fn echo(name: &'static str, ip: &str, port: u16) {
    let listener = listener(ip, port);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let mut bytes = [0; 1024];
                while let Ok(read @ 1..) = stream.read(&mut bytes) {
                    let mut answer = name.as_bytes().to_vec();
                    answer.extend(&bytes[..read]);
                    if stream.write_all(&answer).is_err() {
                        return;
                    }
                }
                stream.shutdown(Shutdown::Write).ok();
            });
        }
    });
}

/// What comes back for `text`: as many bytes as `expected` has.
pub fn ask(stream: &mut TcpStream, text: &str, expected: &str) -> Result<(), String> {
    stream.write_all(text.as_bytes()).map_err(|error| error.to_string())?;
    let mut answer = vec![0; expected.len()];
    stream.read_exact(&mut answer).map_err(|error| error.to_string())?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    if answer == expected { Ok(()) } else { Err(answer) }
}

/// Starts an owner of a worker, which prints `worker PID`, does something to the worker and kills the owner. Whether the
/// worker ends then.
pub fn owner_is_killed(owner: &mut Command, first: impl FnOnce(Pid)) -> bool {
    // The orphan comes to us, and nobody is left behind.
    nix::sys::prctl::set_child_subreaper(true).expect("every process may");
    let mut owner = owner.stdout(Stdio::piped()).spawn().expect("it starts");
    let lines = BufReader::new(owner.stdout.take().expect("a pipe")).lines();
    let pid = lines.map_while(Result::ok).find_map(|line| line.split_once("worker ")?.1.trim().parse().ok());
    let pid = process(pid.expect("the worker becomes ready"));
    first(pid);
    owner.kill().expect("it is ours");
    owner.wait().expect("it is ours");
    let deadline = Instant::now() + SOON;
    while Instant::now() < deadline {
        if waitpid(pid, Some(WaitPidFlag::WNOHANG)).expect("it is ours by now") != WaitStatus::StillAlive {
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    kill(pid, Signal::SIGKILL).expect("it is ours");
    waitpid(pid, None).expect("it is ours");
    false
}
