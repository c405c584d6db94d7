//! `guestimg`: tells about images, mounts and this host. Each subcommand has a file of its own.

mod base64;
mod canary;
mod cat;
mod chain;
mod commit;
mod cp;
mod diff;
mod discard;
mod doctor;
mod export;
mod filesystems;
mod inspect;
mod ls;
mod output;
mod starts;
mod status;
mod table;
mod tar;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use super::{harmless, raise_file_limit, start_logging};

const NAME: &str = "guestimg";

const AFTER_HELP: &str = "\
Exit status:
  0    all is well
  1    usage or internal error, or an error that is told, of one file also
  2    doctor: mounts work, but something is missing; status: a mount lacks a layer or cannot be
       looked into; chain: something is broken
  3    doctor: mounts do not work; status: no such mount
  141  nobody reads the output any more";

/// Tells about untrusted disk images, mounts of guestmnt and what this host offers to them.
#[derive(Parser)]
#[command(name = NAME, version, after_help = AFTER_HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists filesystems, partitions, logical volumes and what else is on the disks
    Filesystems(filesystems::Arguments),
    Inspect(inspect::Arguments),
    Ls(ls::Arguments),
    Cat(cat::Arguments),
    Cp(cp::Arguments),
    Tar(tar::Arguments),
    Export(export::Arguments),
    Diff(Box<diff::Arguments>),
    Commit(commit::Arguments),
    Discard(discard::Arguments),
    Chain(chain::Arguments),
    Status(status::Arguments),
    Doctor(doctor::Arguments),
    #[command(hide = true)]
    Canary(canary::Arguments),
    #[command(hide = true)]
    Starts(starts::Arguments),
}

/// The command line as people see it. Some shells' completions offer also what is hidden, so that is
/// left out.
#[must_use]
pub fn command() -> clap::Command {
    let whole = Arguments::command();
    let shown = whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    clap::Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .about(whole.get_about().cloned().unwrap_or_default())
        .after_help(AFTER_HELP)
        .subcommand_required(true)
        .subcommands(shown)
}

/// Runs the program with the process's arguments.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let matches = match Arguments::command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => return usage(&error),
    };
    let arguments = match Arguments::from_arg_matches(&matches) {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    let (_, matches) = matches.subcommand().expect("clap asks for a subcommand");
    let look = match &arguments.command {
        Command::Filesystems(arguments) => Some(&arguments.look),
        Command::Inspect(arguments) => Some(&arguments.look),
        Command::Ls(arguments) => Some(&arguments.files.look),
        Command::Cat(arguments) => Some(&arguments.files.look),
        Command::Cp(arguments) => Some(&arguments.files.look),
        Command::Tar(arguments) => Some(&arguments.files.look),
        Command::Export(arguments) => Some(&arguments.look),
        Command::Diff(_)
        | Command::Commit(_)
        | Command::Discard(_)
        | Command::Chain(_)
        | Command::Status(_)
        | Command::Doctor(_)
        | Command::Canary(_)
        | Command::Starts(_) => None,
    };
    let verbose = match &arguments.command {
        Command::Diff(arguments) => arguments.verbose,
        _ => look.is_some_and(|look| look.verbose),
    };
    start_logging("guestimg", verbose, false);
    // Chains of split disks have hundreds of extents.
    raise_file_limit();
    let done = match arguments.command {
        Command::Filesystems(arguments) => {
            filesystems::run(&arguments, matches).map(|()| ExitCode::SUCCESS)
        }
        Command::Inspect(arguments) => {
            inspect::run(&arguments, matches).map(|()| ExitCode::SUCCESS)
        }
        Command::Ls(arguments) => ls::run(&arguments, matches),
        Command::Cat(arguments) => cat::run(&arguments, matches),
        Command::Cp(arguments) => cp::run(&arguments, matches),
        Command::Tar(arguments) => tar::run(&arguments, matches),
        Command::Export(arguments) => export::run(&arguments, matches),
        Command::Diff(arguments) => diff::run(&arguments, matches).map(|()| ExitCode::SUCCESS),
        Command::Commit(arguments) => commit::run(&arguments, matches).map(|()| ExitCode::SUCCESS),
        Command::Discard(arguments) => {
            discard::run(&arguments, matches).map(|()| ExitCode::SUCCESS)
        }
        Command::Chain(arguments) => chain::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Canary(arguments) => canary::run(&arguments),
        Command::Starts(arguments) => starts::run(&arguments),
    };
    output::finish(done.unwrap_or_else(|error| {
        // Who stopped reading knows why nothing more comes.
        if !output::reader_is_gone() {
            eprintln!("guestimg: {}", harmless(error));
        }
        ExitCode::FAILURE
    }))
}

fn usage(error: &clap::Error) -> ExitCode {
    // Nothing can be done where even this cannot be printed.
    let _ = error.print();
    if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// An error of any of the subcommands: all that is done with it is to print it.
fn boxed(error: impl std::fmt::Display + 'static) -> Box<dyn std::fmt::Display> {
    Box::new(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
