//! `nsctl fmt`: policy files in their one layout.

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nsctl::Error;
use nsctl::netns_policy::graph::AllowGraph;
use nsctl::netns_policy::layout::{LayoutError, lay_out};
use nsctl::netns_policy::{PolicyErrors, Source, Trust};
use nsctl::policy::{self, DEFAULT_PATHS, LIMIT, ReadError, ReadErrors, VENDOR};
use nsctl::rewrite::{self, Replacement};
use serde_json::json;

use crate::args::Args;
use crate::output;

/// A file and its layout.
struct Laid {
    /// Where it was read; the name of the source is only what can be shown.
    path: PathBuf,
    source: Source,
    text: String,
}

pub fn fmt(args: &Args, paths: &[PathBuf], check: bool) -> Result<ExitCode, Error> {
    let is_piped = paths.iter().any(|path| path == Path::new("-"));
    if is_piped && paths.len() > 1 {
        let help = Some("name it alone".to_owned());
        return Err(Error::Usage { message: "`-` is stdin, which goes to stdout".into(), help });
    }
    let sources = if is_piped { vec![("-".into(), piped()?)] } else { read(args, paths)? };
    let all = lay_out_all(sources)?;
    if !check && is_piped && !args.json {
        all.iter().for_each(|laid| output::line(laid.text.trim_end()));
        return Ok(ExitCode::SUCCESS);
    }
    let changed: Vec<&Laid> = all.iter().filter(|laid| laid.differs()).collect();
    if !check && !is_piped {
        let ready = changed.iter().map(|laid| Replacement::prepare(&laid.path, &laid.source.text, &laid.text));
        rewrite::put(ready.collect::<Result<_, _>>()?)?;
    }
    tell(args, &all, check);
    Ok(if check && !changed.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn tell(args: &Args, all: &[Laid], check: bool) {
    if args.json {
        return output::answer(&json!({ "files": all.iter().map(Laid::as_json).collect::<Vec<_>>() }));
    }
    for laid in all.iter().filter(|laid| laid.differs()) {
        let (name, Difference { line, old, new }) = (&laid.source.name, laid.difference());
        let what = if check { "not laid out" } else { "laid out" };
        output::line(format_args!("{name}:{line}: {what}, from here on\n  - {old}\n  + {new}"));
    }
    if !all.iter().any(Laid::differs) {
        output::line("nothing to do");
    }
}

/// The files of the operator: those named, else those of `--policy`, else what lies at the default paths. What packages
/// ship is not ours to change.
fn read(args: &Args, paths: &[PathBuf]) -> Result<Vec<(PathBuf, Source)>, Error> {
    let named = if paths.is_empty() { &args.policy[..] } else { paths };
    let mut all = Vec::new();
    if named.is_empty() {
        let own = DEFAULT_PATHS.iter().filter(|path| **path != VENDOR).map(PathBuf::from);
        let (there, missing): (Vec<_>, Vec<_>) = own.partition(|path| path.exists());
        if there.is_empty() {
            return Err(ReadErrors::from(ReadError::Missing { paths: missing }).into());
        }
        all.push(policy::read(&there)?);
    }
    for path in named {
        // Each by itself: a file that is masked by another has a layout all the same.
        all.push(policy::read(std::slice::from_ref(path))?);
    }
    let files = all.into_iter().flat_map(|read| read.paths.into_iter().zip(read.sources));
    let mut once = Vec::new();
    let mut seen = BTreeSet::new();
    for (path, source) in files.filter(|(_, source)| source.trust == Trust::Operator) {
        let place = place(&path).map_err(|source| ReadErrors::from(ReadError::Io { path: path.clone(), source }))?;
        if seen.insert(place) {
            once.push((path, source));
        }
    }
    Ok(once)
}

/// Where a file lies, however it was named. A link in the last place lies there itself: it is refused, and is not taken
/// for the file that it leads to.
fn place(path: &Path) -> io::Result<PathBuf> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    Ok(directory.unwrap_or(Path::new(".")).canonicalize()?.join(path.file_name().unwrap_or_default()))
}

/// What comes on stdin: JSON when it begins like an object, else TOML.
fn piped() -> Result<Source, Error> {
    let mut text = Vec::new();
    let read = io::stdin().lock().take(LIMIT + 1).read_to_end(&mut text);
    read.map_err(|source| ReadErrors::from(ReadError::Io { path: "-".into(), source }))?;
    let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
    let source = if first == Some(&b'{') { Source::json("-", text) } else { Source::toml("-", text) };
    Ok(source)
}

/// Lays all of them out, or none: every mistake of every file is told at once.
fn lay_out_all(sources: Vec<(PathBuf, Source)>) -> Result<Vec<Laid>, Error> {
    let mut mistakes = Vec::new();
    let mut all = Vec::new();
    for (path, source) in sources {
        match lay_out(&source) {
            Ok(text) => all.push(Laid { path, source, text }),
            Err(LayoutError::Policy(errors)) => mistakes.extend(errors.0),
            Err(error) => return Err(error.into()),
        }
    }
    if !mistakes.is_empty() {
        mistakes.truncate(PolicyErrors::MOST);
        return Err(PolicyErrors(mistakes).into());
    }
    mean_the_same(&all)?;
    Ok(all)
}

/// Where the files make a policy, it is the same one. Each of them has been compared value by value; this is the look
/// with the eyes of `apply`.
fn mean_the_same(all: &[Laid]) -> Result<(), Error> {
    let before: Vec<Source> = all.iter().map(|laid| laid.source.clone()).collect();
    let after: Vec<Source> =
        all.iter().map(|laid| Source { text: laid.text.clone().into(), ..laid.source.clone() }).collect();
    let Ok(before) = AllowGraph::parse(&before) else { return Ok(()) };
    match AllowGraph::parse(&after) {
        Ok(after) if after.graph.same_as(&before.graph) => Ok(()),
        _ => Err(LayoutError::Unfaithful {
            file: all.iter().map(|l| l.source.name.as_str()).collect::<Vec<_>>().join(", "),
        }
        .into()),
    }
}

/// Where a file begins to be laid out otherwise.
struct Difference {
    /// The line, from 1.
    line: usize,
    old: String,
    new: String,
}

impl Laid {
    fn differs(&self) -> bool {
        self.source.text != self.text.as_bytes()
    }

    fn difference(&self) -> Difference {
        let before = String::from_utf8_lossy(&self.source.text);
        let (mut old, mut new) = (before.split('\n'), self.text.split('\n'));
        for line in 1.. {
            let (old, new) = (old.next(), new.next());
            if old != new || old.is_none() {
                let shown = |line: Option<&str>| line.unwrap_or_default().replace(char::is_control, " ");
                return Difference { line, old: shown(old), new: shown(new) };
            }
        }
        unreachable!("one of them ends")
    }

    fn as_json(&self) -> serde_json::Value {
        let line = self.differs().then(|| self.difference().line);
        json!({ "file": self.source.name, "changed": self.differs(), "line": line })
    }
}
