//! `nsctl man`: the manual pages, from what the command itself knows of its commands and of the language.

mod policy;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};
use nsctl::Error;
use nsctl::policy::DEFAULT_PATHS;
use serde_json::json;

use crate::args::Args;
use crate::output;

/// Writes every page into a directory, or the main one to stdout where none is named.
pub fn man(args: &Args, directory: Option<&Path>) -> Result<ExitCode, Error> {
    let pages = pages();
    let Some(directory) = directory else {
        let (_, main) = &pages[0];
        output::line(main.trim_end());
        return Ok(ExitCode::SUCCESS);
    };
    let write = |path: &Path, text: &str| fs::create_dir_all(directory).and_then(|()| fs::write(path, text));
    let mut files = Vec::new();
    for (name, text) in &pages {
        let path = directory.join(name);
        write(&path, text).map_err(|source| Error::Write { path: path.clone(), source })?;
        files.push(path);
    }
    if args.json {
        let files: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
        output::answer(&json!({ "files": files }));
    } else {
        files.iter().map(PathBuf::as_path).map(Path::display).for_each(output::line);
    }
    Ok(ExitCode::SUCCESS)
}

/// Every page with the name of its file, the main one first.
fn pages() -> Vec<(String, String)> {
    let mut all = Args::command().disable_help_subcommand(true);
    all.build();
    // Nobody types what is hidden.
    let verbs = || all.get_subcommands().filter(|verb| !verb.is_hide_set());
    let names: Vec<String> = verbs().map(|verb| verb.get_name().to_owned()).collect();
    let main = rendered(|page| {
        let main = Man::new(all.clone()).manual("nsctl");
        main.render(page)?;
        ending(&names).to_writer(page)
    });
    let verbs = verbs().map(|verb| {
        let name = format!("nsctl-{}.1", verb.get_name());
        let verb = verb.clone().version(env!("CARGO_PKG_VERSION"));
        let page = rendered(|page| Man::new(verb.clone()).manual("nsctl").render(page));
        (name, page)
    });
    let policy = ("nsctl-policy.5".to_owned(), policy::page());
    std::iter::once(("nsctl.1".to_owned(), main)).chain(verbs).chain([policy]).collect()
}

fn rendered(render: impl Fn(&mut Vec<u8>) -> io::Result<()>) -> String {
    let mut page = Vec::new();
    render(&mut page).expect("writing to memory does not fail");
    String::from_utf8_lossy(&page).into_owned()
}

/// What is not in the help of any command.
fn ending(verbs: &[String]) -> Roff {
    let mut page = Roff::new();
    page.control("SH", ["EXIT STATUS"]);
    entry(&mut page, "0", "done, or nothing to do");
    entry(&mut page, "1", "it failed: a step, a capability, a lock; or what was compared differs");
    entry(&mut page, "2", "the command or the policy is wrong; nothing was changed");
    entry(&mut page, "3", "with plan --exit-code: there is something to do");
    page.control("SH", ["FILES"]);
    for path in DEFAULT_PATHS {
        entry(&mut page, path, "policies, where none is named with --policy; a later one masks files of the same name");
    }
    entry(&mut page, "/var/lib/nsctl", "recorded addresses");
    entry(&mut page, "/run/netns", "the namespaces");
    entry(&mut page, "/run/nsctl", "the hosts files of the services");
    page.control("SH", ["SEE ALSO"]);
    let pages = verbs.iter().map(|verb| format!("nsctl-{verb}(1)")).chain(["nsctl-policy(5)".to_owned()]);
    page.text(vec![roman(pages.collect::<Vec<_>>().join(", "))]);
    page
}

/// A term and what it means.
fn entry(page: &mut Roff, term: &str, meaning: &str) {
    page.control("TP", []);
    page.text(vec![bold(term)]);
    page.text(vec![roman(meaning)]);
}

/// Text in which what stands between backquotes is emphasized.
fn marked(text: &str) -> Vec<Inline> {
    let parts = text.split('`').enumerate();
    parts.map(|(n, part)| if n % 2 == 0 { roman(part) } else { italic(part) }).collect()
}
