//! Everything that reaches a terminal: answers on stdout, talk on stderr.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use miette::{GraphicalReportHandler, GraphicalTheme};
use netns_policy::diagnostic::{Finding, PolicyErrors, Warning};
use netns_policy::prove::Counterexample;
use nsctl::Error;
use nsctl::kernel::KernelError;
use nsctl::kernel::nft::NftError;
use nsctl::own::OwnError;
use nsctl::policy::{Editable, Found, ReadError};
use nsctl::report::StepError;
pub use nsctl::report::chain;
use nsctl::rewrite::RewriteError;
use nsctl::store::StoreError;
use serde::Serialize;
use serde_json::json;

/// Prints a line of the answer. A reader that has gone (`nsctl status | head`) is no error.
pub fn line(text: impl Display) {
    writeln!(io::stdout().lock(), "{text}").ok();
}

/// `1 edge`, `2 edges`.
pub fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// A time as people read it, in UTC.
pub fn time(seconds: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

/// As [`count`], of what a kernel has counted.
pub fn count_of(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// Prints the answer as JSON.
pub fn answer(value: &impl Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => line(text),
        Err(e) => talk(format_args!("cannot write the answer as JSON: {e}")),
    }
}

/// Says something beside the answer.
pub fn talk(text: impl Display) {
    writeln!(io::stderr().lock(), "nsctl: {text}").ok();
}

/// Says what is legal but doubtful, as many times as mistakes are told.
pub fn warnings(warnings: &[Warning]) {
    let (shown, more) = warnings.split_at(warnings.len().min(PolicyErrors::MOST));
    for warning in shown {
        talk(format_args!("{}", report(warning)));
    }
    if !more.is_empty() {
        talk(format_args!("and {}; --json has them all", count(more.len(), "more warning")));
    }
}

/// A mistake in a policy file with its line, in plain ASCII: it means the same without colours.
fn report(finding: &Finding) -> String {
    if !finding.is_narrow() {
        return format!("{finding:#}\n");
    }
    let mut text = String::new();
    let theme = GraphicalTheme::none();
    match GraphicalReportHandler::new_themed(theme).with_width(110).render_report(&mut text, finding) {
        Ok(()) => text,
        Err(_) => finding.to_string(),
    }
}

/// Says why a command failed and gives its exit code: 2 when the policy or the command is wrong, else 1.
pub fn failure(error: &Error, as_json: bool) -> ExitCode {
    if as_json {
        answer(&failure_json(error));
    } else {
        person_readable(error);
    }
    ExitCode::from(exit_code(error))
}

/// Why a command failed, with stable keys.
pub fn failure_json(error: &Error) -> serde_json::Value {
    json!({ "errors": machine_readable(error) })
}

/// Says why a command inside a service was not run.
pub fn not_run(error: &nsctl::exec::ExecError, as_json: bool) {
    if !as_json {
        return talk(chain(error));
    }
    answer(&json!({ "errors": [{
        "code": "E0914", "file": null, "line": null, "column": null, "message": chain(error), "help": null,
    }] }));
}

/// Says as JSON that the command line is wrong.
pub fn misuse(message: &str) {
    let message = message.lines().next().unwrap_or_default().trim_start_matches("error: ");
    answer(&json!({ "errors": [{
        "code": "E0911", "file": null, "line": null, "column": null, "message": message, "help": "nsctl --help",
    }] }));
}

fn exit_code(error: &Error) -> u8 {
    match error {
        Error::Address(_)
        | Error::NoNetwork { .. }
        | Error::Policy(_)
        | Error::PoolTaken { .. }
        | Error::PortTaken { .. }
        | Error::Read(_)
        | Error::Usage { .. } => 2,
        Error::Own(error) if !matches!(error, OwnError::Rewrite(_) | OwnError::Store(_)) => 2,
        _ => 1,
    }
}

fn person_readable(error: &Error) {
    if let Error::Policy(errors) = error {
        for finding in errors.iter() {
            writeln!(io::stderr().lock(), "{}", report(finding)).ok();
        }
        let n = errors.iter().count();
        talk(format_args!("the policy is refused: {}; nothing was changed", count(n, "error")));
        return;
    }
    if let Error::Read(errors) = error {
        return errors.0.iter().for_each(|one| coded(one.code(), &chain(one), Some(&one.help()), &[]));
    }
    coded(code(error), &chain(error), help(error).as_deref(), &witness_of(error));
}

/// The packets of which a proof fails, where one has.
fn witness_of(error: &Error) -> Vec<String> {
    match error {
        Error::Unproved(found) | Error::Refuted(found) => witness(found),
        _ => Vec::new(),
    }
}

/// A failure that has no place in a text, with its code and the next move.
fn coded(code: &str, message: &str, help: Option<&str>, more: &[String]) {
    talk(format_args!("{code}: {message}"));
    for line in more {
        writeln!(io::stderr().lock(), "  {line}").ok();
    }
    if let Some(help) = help {
        writeln!(io::stderr().lock(), "  help: {help}").ok();
    }
}

/// Says who else can edit the policy.
pub fn editable(editable: &[Editable]) {
    for one in editable {
        coded(one.code(), &format!("{one}; `nsctl apply` refuses that"), Some(&one.help()), &[]);
    }
}

/// What is legal but doubtful, and who else can edit the policy, with stable keys.
pub fn warnings_json(warnings: &[Warning], editable: &[Editable]) -> Vec<serde_json::Value> {
    let warnings = warnings.iter().map(|warning| json!(warning.plain()));
    let editable = editable.iter().map(|one| plain(one.code(), Some(one.path()), one.to_string(), Some(one.help())));
    warnings.chain(editable).collect()
}

/// Says which files the policy was read from.
pub fn files(files: &[Found]) {
    for Found { path, trust, off, masked_by, .. } in files {
        let how = match masked_by {
            Some(by) => format!(", masked by {by}"),
            None if *off => ", which switches it off".to_owned(),
            None => String::new(),
        };
        talk(format_args!("{trust} {path}{how}"));
    }
}

/// Packets of which a proof fails: in words, one of them as bytes, and the rules that it meets.
fn witness(found: &Counterexample) -> Vec<String> {
    // As much as rules look at.
    const SHOWN: usize = 96;
    let mut lines = vec![format!("packets: {}", found.class)];
    if let Some(packet) = &found.packet {
        let bytes: String = packet.frame().iter().take(SHOWN).map(|byte| format!("{byte:02x}")).collect();
        let more = packet.frame().len().saturating_sub(SHOWN);
        let more = if more == 0 { String::new() } else { format!(" and {}", count(more, "byte")) };
        lines.push(format!("frame: {bytes}{more}"));
    }
    lines.extend(found.trace.iter().map(|met| format!("meets: {met}")));
    lines
}

/// Overwrites the last line of a terminal's stderr.
pub fn progress(text: impl Display) {
    write!(io::stderr().lock(), "\r{text}\x1b[K\r").ok();
}

fn machine_readable(error: &Error) -> Vec<serde_json::Value> {
    if let Error::Policy(errors) = error {
        return errors.iter().map(|finding| json!(finding.plain())).collect();
    }
    if let Error::Read(errors) = error {
        let one = |error: &ReadError| plain(error.code(), error.path(), chain(error), Some(error.help()));
        return errors.0.iter().map(one).collect();
    }
    let mut plain = plain(code(error), None, chain(error), help(error));
    if let Error::Unproved(found) | Error::Refuted(found) = error {
        plain["witness"] = json!(witness(found));
    }
    vec![plain]
}

/// A failure that has no place in a text, with the same keys as one that has.
fn plain(code: &str, file: Option<&Path>, message: String, help: Option<String>) -> serde_json::Value {
    let file = file.map(|file| file.display().to_string());
    json!({ "code": code, "file": file, "line": null, "column": null, "message": message, "help": help })
}

fn code(error: &Error) -> &'static str {
    match error {
        Error::Address(e) => e.code(),
        #[cfg(feature = "backup")]
        Error::Backup(e) => e.code(),
        Error::Demo { .. } | Error::Verify(_) => "E0913",
        Error::Moved { .. } => "E0904",
        Error::Waits { .. } | Error::WentBack { .. } => "E0905",
        Error::Occupied { .. } => "E0907",
        Error::NoParent | Error::NoWayBack => "E0917",
        Error::Unrecorded { .. } => "E0922",
        Error::NothingWaits | Error::NotWhole { .. } | Error::SameSession { .. } => "E0919",
        Error::Narrows { .. } => "E0920",
        Error::Hold { .. } => "E0921",
        #[cfg(feature = "daemon")]
        Error::Daemon(_) => "E0928",
        Error::Foreign { .. } | Error::ForeignLink { .. } => "E0218",
        Error::Kernel(_) | Error::Spoiled { .. } | Error::Step { .. } | Error::Unfinished { .. } => "E0908",
        Error::NoNetwork { .. } => "E0909",
        Error::Own(e) => e.code(),
        Error::Policy(_) => "E0100",
        Error::PoolTaken { .. } => "E0501",
        Error::PortTaken { .. } => "E0606",
        Error::Probe(_) => nsctl::kernel::probe::ProbeError::CODE,
        Error::NoIpv6 | Error::Sandbox(_) => "E0901",
        Error::Read(e) => e.0.first().map_or("E0001", ReadError::code),
        Error::Refuted(_) => "E0951",
        Error::Store(e) => e.code(),
        Error::Unprivileged { .. } => "E0910",
        Error::Unproved(_) => "E0950",
        Error::Usage { .. } => "E0911",
        Error::Write { .. } => "E0915",
        Error::Layout(_) => "E0916",
        Error::Rewrite(_) => RewriteError::CODE,
    }
}

fn help(error: &Error) -> Option<String> {
    match error {
        Error::Address(e) => Some(e.help().to_owned()),
        #[cfg(feature = "backup")]
        Error::Backup(e) => Some(e.help()),
        Error::Foreign { netns } => Some(format!("remove it (`ip netns del {netns}`), or give [network] another name")),
        Error::ForeignLink { link } => {
            Some(format!("rename it (`ip link set {link} name NAME`), or give [network] another name"))
        }
        Error::NoIpv6 => Some("write `ipv6 = false` under [network], or start the kernel with IPv6".into()),
        Error::NoNetwork { known } if known.is_empty() => Some("name a policy with --policy".into()),
        Error::NoNetwork { known } => {
            let known: Vec<_> = known.iter().map(ToString::to_string).collect();
            Some(format!("name a policy with --policy; `nsctl down` takes --network too: {}", known.join(", ")))
        }
        Error::Own(e) => Some(e.help()),
        Error::PoolTaken { free: Some(free), .. } => {
            Some(format!("write another one: `pool4 = \"{free}\"` is free here"))
        }
        Error::PoolTaken { .. } => Some("write another private prefix as [network] pool4 or pool6".into()),
        Error::Rewrite(e) => Some(e.help().to_owned()),
        Error::Step { source, .. } => Some(format!("nothing is open that the policy does not allow; {}", cure(source))),
        Error::Unfinished { .. } => {
            Some("nothing is open that the policy does not allow; run the same command again to finish".into())
        }
        Error::Usage { help, .. } => help.clone(),
        Error::Spoiled { .. } => Some(
            "somebody with CAP_NET_ADMIN inside changes its rules or its wire: stop that service, then apply again"
                .into(),
        ),
        Error::Refuted(_) => Some("`nsctl status` tells what differs, `nsctl apply` mends it".into()),
        Error::Store(e) => Some(e.help()),
        Error::Moved { .. } => Some("nothing was changed: `nsctl plan` again, then apply".into()),
        Error::Waits { .. } => Some(
            "`nsctl confirm` from a new connection keeps it, `nsctl rollback` takes it back; then apply again".into(),
        ),
        Error::WentBack { .. } => Some("see that you still get in, then `nsctl apply --confirm 2m` once more".into()),
        Error::Occupied { stopped: false, .. } => {
            Some("nothing was changed: stop them first, or let nsctl do it with --stop".into())
        }
        Error::Occupied { stopped: true, .. } => {
            Some("nothing was changed: they came back or do not end; stop the unit that starts them".into())
        }
        Error::NothingWaits => Some("`nsctl generations` tells what is in force".into()),
        Error::NotWhole { .. } => Some("`nsctl rollback` goes back at once; then apply again".into()),
        Error::SameSession { .. } => Some("open another one, and run `nsctl confirm` there".into()),
        Error::NoWayBack => Some(
            "nothing was changed: what is up would be taken down; `nsctl apply --no-confirm` makes the first".into(),
        ),
        Error::Unrecorded { source: StoreError::Io { source, .. } } if is_full(source) => {
            Some("it is done; make room, then run the same command again".into())
        }
        Error::Unrecorded { .. } => {
            Some("it is done; see that root can write the state directory, then run the same command again".into())
        }
        Error::NoParent => Some("`nsctl generations` tells which are kept".into()),
        Error::Narrows { .. } => {
            Some("nothing was changed: apply with --confirm 2m, so that it comes back if you do not".into())
        }
        #[cfg(feature = "daemon")]
        Error::Daemon(nsctl::daemon::ClientError::Absent { .. }) => {
            Some("start it (`nsctl daemon`), or use `nsctl apply`, which needs none".into())
        }
        #[cfg(feature = "daemon")]
        Error::Daemon(_) => Some("see its log; `nsctl apply` needs no daemon".into()),
        Error::PortTaken { port, .. } => Some(format!(
            "nothing was changed: stop that program (`ss -lntup 'sport = :{port}'` names it), or expose on another port"
        )),
        Error::Hold { .. } => Some("nothing was changed; without --confirm nobody needs to go back".into()),
        Error::Unproved(_) => {
            Some("this is a mistake of nsctl, and nothing was changed: please report it with the policy".into())
        }
        Error::Unprivileged { .. } => Some("run it as root, for example with sudo".into()),
        _ => None,
    }
}

/// Whether there was no room. The system's own answer may be the cause of one of ours.
fn is_full(error: &io::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) {
            return true;
        }
        // An `io::Error` that wraps another error tells of that one's causes, and not of itself.
        cause = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

/// What to do about a step that failed, by its cause.
fn cure(error: &StepError) -> &'static str {
    match &error.source {
        KernelError::Nft(NftError::GenerationChanged) => {
            "another program keeps changing the rules there: stop it, then run the same command again"
        }
        KernelError::File { source, .. } if is_full(source) => "make room, then run the same command again to finish",
        KernelError::File { source, .. } => match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                "let nsctl write there, then run the same command again to finish"
            }
            _ => "run the same command again to finish",
        },
        _ => "run the same command again to finish",
    }
}
