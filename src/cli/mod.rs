//! The command line: the only place that prints.
//!
//! What was typed is an `Args`; each verb is one struct and one function beside it. What it means here (which
//! store, which daemon) is found out in `which`.

mod content;
mod logging;
mod media;
mod mount;
mod output;
mod progress;
mod releases;
mod switch;
mod which;

use crate::error::Result;
use clap::{Parser, Subcommand};
use output::Output;
use rustix::process::{Resource, getrlimit, setrlimit};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// A docroot that switches: immutable releases, changed by swapping one pointer.
#[derive(Debug, Parser)]
#[command(name = "verfs", version, arg_required_else_help = true, after_help = TOUR, max_term_width = 100)]
struct Args {
    /// The store; else $VERFS_STORE, else the only one that is mounted
    #[arg(long, global = true, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// Say more in the log; twice for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    verb: Verb,
}

const TOUR: &str = "A tour:
  export VERFS_STORE=/srv/shop
  verfs init /srv/shop
  verfs add 02 ./build
  verfs mount /srv/shop /var/www/html
  verfs add 03 ./build && verfs switch 03
  verfs rollback";

#[derive(Debug, Subcommand)]
enum Verb {
    Init(content::Init),
    Add(content::Add),
    Mount(mount::Mount),
    Switch(switch::Switch),
    Rollback(switch::Rollback),
    Status(releases::Status),
    List(releases::List),
    Log(releases::Log),
    Diff(releases::Diff),
    Export(content::Export),
    Media(media::Media),
    Remove(content::Remove),
    Gc(content::Gc),
    Verify(content::Verify),
    Reload(mount::Reload),
    Umount(mount::Umount),
    /// Names of the points at which a test may stop verfs
    #[cfg(feature = "faults")]
    #[command(hide = true)]
    DebugFaults,
}

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if mount::is_helper(&arguments) {
        return mount::helper(&arguments);
    }
    if arguments.is_empty() {
        arguments.push("verfs".into());
    }
    let args = match Args::try_parse_from(&arguments) {
        Ok(args) => args,
        Err(error) => return refuse(&error, arguments.iter().any(|word| word == "--json")),
    };
    let output = Output { json: args.json };
    match run(&args, output) {
        Ok(code) => code,
        Err(error) => {
            output.error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// What clap says of a wrong call, or the help that was asked for.
fn refuse(error: &clap::Error, json: bool) -> ExitCode {
    if json && error.use_stderr() {
        let text = error.render().to_string();
        let text = text.trim().trim_start_matches("error: ").to_owned();
        Output { json }.error(&crate::error::Error::request(text));
    } else {
        // Nothing can be done about a standard error that is closed.
        let _ = error.print();
    }
    ExitCode::from(if error.use_stderr() { 2 } else { 0 })
}

/// Every pack of a store takes a descriptor, and so do the objects that a mount keeps open.
fn raise_limit_of_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        log::warn!("raising the limit of open files: {error}");
    }
}

fn run(args: &Args, output: Output) -> Result<ExitCode> {
    if !matches!(args.verb, Verb::Mount(_)) {
        logging::to_stderr(args.verbose);
    }
    raise_limit_of_files();
    let store = args.store.as_deref();
    let done = |result: Result<()>| result.map(|()| ExitCode::SUCCESS);
    match &args.verb {
        Verb::Init(verb) => done(content::init(verb, store, output)),
        Verb::Add(verb) => done(content::add(verb, store, output)),
        Verb::Mount(verb) => mount::mount(verb, store, args.verbose, output),
        Verb::Switch(verb) => done(switch::switch(verb, store, output)),
        Verb::Rollback(verb) => done(switch::rollback(verb, store, output)),
        Verb::Status(verb) => done(releases::status(verb, store, output)),
        Verb::List(verb) => done(releases::list(verb, store, output)),
        Verb::Log(verb) => done(releases::log(verb, store, output)),
        Verb::Diff(verb) => done(releases::diff(verb, store, output)),
        Verb::Export(verb) => done(content::export(verb, store, output)),
        Verb::Media(verb) => done(media::media(verb, store, output)),
        Verb::Remove(verb) => done(content::remove(verb, store, output)),
        Verb::Gc(verb) => done(content::gc(verb, store, output)),
        Verb::Verify(verb) => content::verify(verb, store, output),
        Verb::Reload(verb) => done(mount::reload(verb, store, output)),
        Verb::Umount(verb) => done(mount::umount(verb, store, output)),
        #[cfg(feature = "faults")]
        Verb::DebugFaults => {
            for (verb, point) in crate::fault::CRASH_POINTS {
                println!("{verb} {point}");
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}
