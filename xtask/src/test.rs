//! `cargo xtask test`: everything that the tests need, then the tests, as an ordinary user.
//!
//! Started by root, each test program is run by [`as_user`], which gives up root before it
//! runs it; only programs named `as_root…` keep it. Started by an ordinary user, all run as
//! that user, and those skip.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use crate::corpora;
use crate::disks::sparse;
use crate::error::Error;
use crate::pjdfstest;
use crate::places::Places;
use crate::process::Tool;
use crate::skips;
use crate::stage::Stage;
use crate::user::Ordinary;

/// What the names of test programs that need root begin with.
const AS_ROOT: &str = "as_root";

/// Names the folder of images that others made.
pub const IMAGES: &str = "GUESTMNT_IMAGES";

/// Names how many rounds tests of faults make, instead of a few.
pub const ROUNDS: &str = "GUESTMNT_FAULT_ROUNDS";

/// Names the seed of the moments that they pick.
pub const SEED: &str = "GUESTMNT_FAULT_SEED";

/// Runs the tests of faults that chance has a part in, `rounds` times each, with the moments that
/// follow from `seed`.
///
/// # Errors
/// As [`run`].
pub fn faults(rounds: u64, seed: u64, places: &Places) -> Result<ExitCode, Error> {
    let variables = [(ROUNDS, rounds.to_string()), (SEED, seed.to_string())];
    run_with(&[], &["many_times::".to_owned()], &variables, places)
}

/// Runs the tests whose names contain one of `filters`, or all; of the end-to-end tests in `files`
/// alone, where some are named. The status is theirs.
///
/// # Errors
/// Where the tests could not be started.
pub fn run(files: &[String], filters: &[String], places: &Places) -> Result<ExitCode, Error> {
    run_with(files, filters, &[], places)
}

fn run_with(
    files: &[String],
    filters: &[String],
    variables: &[(&str, String)],
    places: &Places,
) -> Result<ExitCode, Error> {
    let (stage, specimens) = Stage::of_everything(places)?;
    let log = stage.path().join("skips.log");
    fs::write(&log, "")
        .and_then(|()| fs::set_permissions(&log, fs::Permissions::from_mode(0o666)))
        .map_err(Error::file("write", &log))?;
    let placed = stage.path().join("specimens");
    sparse::link_tree(specimens.folder(), &placed)?;
    let seeds = stage.path().join("seeds");
    sparse::link_tree(&places.root().join("fuzz/seeds"), &seeds)?;
    let images = stage.path().join("images");
    let shared =
        std::env::var_os(IMAGES).map_or_else(|| places.root().join("../shared/images"), Into::into);
    if shared.is_dir() {
        sparse::link_tree(&shared, &images)?;
    }

    let suite = stage.path().join("pjdfstest");
    match pjdfstest::ensure(places) {
        Ok(built) => sparse::link_or_copy(&built, &suite)?,
        Err(error) => println!("tests of POSIX behaviour are skipped: {error}"),
    }

    let corpora = stage.path().join("corpora");
    for why in corpora::prepare_quick(places, &corpora) {
        println!("images of other projects are skipped: {why}");
    }

    // All tests but those of templates restore the same one.
    let mut prepare = stage.command("guestmnt");
    prepare.arg("--prepare");
    let prepared = stage.run(prepare)?;
    print!("{}", prepared.printed);

    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let me = std::env::current_exe().map_err(Error::file("find", "this program"))?;
    let runner =
        format!("target.'cfg(unix)'.runner = [{:?}, \"as-user\"]", me.display().to_string());
    let tests =
        variables.iter().fold(Tool::new(cargo), |tool, (name, value)| tool.env(name, value));
    let tests = tests.arg("test").args(["--locked", "--no-fail-fast", "--config", &runner]);
    let tests = if files.is_empty() {
        tests.arg("--workspace")
    } else {
        let named = files.iter().flat_map(|file| ["--test", file]);
        tests.args(["--package", "guestmnt-tests"]).args(named)
    };
    let status = tests
        .arg("--")
        .args(filters)
        .env("GUESTMNT_APPLIANCE", stage.path().join("appliance"))
        .env("GUESTMNT_BIN_DIR", stage.path().join("release"))
        .env("GUESTMNT_DISKS", stage.disks().folder())
        .env("GUESTMNT_TEST_CACHE", stage.path().join("home/.cache"))
        .env("GUESTMNT_SPECIMENS", &placed)
        .env("GUESTMNT_SEEDS", &seeds)
        .env(pjdfstest::PROGRAM, &suite)
        .env(IMAGES, &images)
        .env(corpora::CORPORA, &corpora)
        .env(skips::LOG, &log)
        .within(places.root())
        .shown()?;

    let skipped = skips::read(&log);
    for line in &skipped {
        println!("{line}");
    }
    let leftovers = stage.finish()?;
    if !leftovers.is_empty() {
        println!("left behind: {leftovers:?}");
    }
    let passed = status.success() && leftovers.is_empty();
    let outcome = if passed { "passed" } else { "FAILED" };
    println!("tests {outcome}; skipped on this machine: {}", skipped.len());
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Becomes the test program `program`, as an ordinary user unless its name says that it needs
/// root. The program is opened before, so that it may lie where that user cannot go.
///
/// # Errors
/// Where it cannot be run.
pub fn as_user(program: &Path, arguments: &[OsString]) -> Result<ExitCode, Error> {
    let start = |source: io::Error| Error::Start { program: program.display().to_string(), source };
    let file = File::open(program).map_err(start)?;
    let mut command = Command::new(format!("/proc/self/fd/{}", file.as_raw_fd()));
    command.arg0(program).args(arguments);
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    if nix::unistd::geteuid().is_root() && !name.starts_with(AS_ROOT) {
        let user = Ordinary::find()?;
        nix::unistd::setgroups(&[user.gid])
            .and_then(|()| nix::unistd::setgid(user.gid))
            .and_then(|()| nix::unistd::setuid(user.uid))
            .map_err(|errno| start(errno.into()))?;
        command.env("HOME", std::env::temp_dir());
    }
    Err(start(command.exec()))
}
