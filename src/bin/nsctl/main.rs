//! `nsctl`: parse, hand over, explain. The only room that prints or exits.

mod args;
mod cmd;
mod junit;
mod output;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(e) => {
            // Help and version are answers; anything else is a mistake of the caller.
            let code = if e.use_stderr() { 2 } else { 0 };
            if code == 2 && std::env::args_os().any(|arg| arg == "--json") {
                output::misuse(&e.to_string());
            } else {
                e.print().ok();
            }
            return ExitCode::from(code);
        }
    };
    match cmd::run(&args) {
        Ok(code) => code,
        Err(error) => output::failure(&error, args.json),
    }
}
