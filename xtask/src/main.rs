//! `cargo xtask`: the project's own chores.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::Error;
use xtask::appliance;
use xtask::bench;
use xtask::corpora;
use xtask::corpus;
use xtask::demo;
use xtask::disks::Disks;
use xtask::disks::specimens::Specimens;
use xtask::dist;
use xtask::fuzz;
use xtask::kernel::Source;
use xtask::places::Places;
use xtask::setup;
use xtask::template;
use xtask::test;

/// The project's own chores.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Install what building, testing and the demo need and this machine lacks.
    Setup,
    /// Build kernel, initramfs and manifest into target/appliance, and make the template.
    ///
    /// Without options the kernel is Debian's newest for this release, fetched once and kept in
    /// target/kernel; remove that folder to fetch a newer one.
    BuildAppliance {
        /// A bzImage or an ELF vmlinux for x86-64.
        #[arg(long, requires = "modules")]
        kernel: Option<PathBuf>,
        /// The kernel's modules: its /lib/modules/RELEASE.
        #[arg(long, requires = "kernel")]
        modules: Option<PathBuf>,
    },
    /// Set up, build and run the examples of the README as an ordinary user.
    Demo,
    /// Set up, build and run all tests; the last lines count what this machine could not run.
    Test {
        /// Build and run only these end-to-end tests, files of tests/tests without their ending.
        #[arg(long = "test", value_name = "FILE")]
        files: Vec<String>,
        /// Run only tests whose names contain one of these.
        filters: Vec<String>,
    },
    /// Set up, build and kill what runs at moments that chance picks, again and again.
    Faults {
        /// How often in each test.
        #[arg(long, default_value_t = 200)]
        rounds: u64,
        /// What the moments follow from.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Set up, build and measure, beside libguestfs' guestmount and the image mounted on the host.
    Bench(bench::Options),
    /// Build the fuzz targets and run each for some time.
    Fuzz(fuzz::Options),
    /// Mount, read whole and unmount damaged images, and see that nothing else comes of them.
    Corpus(corpus::Options),
    /// Fetch disk images out of the tests of other projects, and hold what guestimg reads in them
    /// against the tables in xtask/src/corpora/tables.
    Corpora(corpora::Options),
    /// Go through a mount. `corpus` calls this.
    #[command(hide = true)]
    CorpusWalk {
        /// The folder.
        folder: PathBuf,
    },
    /// Do one piece of what is measured. `bench` calls this.
    #[command(hide = true)]
    BenchTask {
        /// What.
        #[command(subcommand)]
        task: bench::worker::Task,
    },
    /// Become a test program, without root. `test` has cargo call this.
    #[command(hide = true)]
    AsUser {
        /// The program.
        program: PathBuf,
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Make manual pages, completions and a Debian package in target/dist, and try it out.
    Dist,
    /// Make the disks that the demo and the tests use, in target/disks.
    Disks,
}

fn run(chore: Chore) -> Result<ExitCode, Error> {
    let places = Places::of_workspace();
    match chore {
        Chore::Setup => setup::ensure(&places)?,
        Chore::BuildAppliance { kernel, modules } => {
            let source = match (kernel, modules) {
                (Some(image), Some(modules)) => Source::Files { image, modules },
                _ => Source::Debian,
            };
            appliance::build(&source, &places)?;
            template::make(&places)?;
        }
        Chore::Demo => demo::run(&places)?,
        Chore::Test { files, filters } => return test::run(&files, &filters, &places),
        Chore::Faults { rounds, seed } => return test::faults(rounds, seed, &places),
        Chore::Bench(options) => return bench::run(&options, &places),
        Chore::Fuzz(options) => return fuzz::run(&options, &places),
        Chore::Corpus(options) => return corpus::run(&options, &places),
        Chore::Corpora(options) => return corpora::run(&options, &places),
        Chore::CorpusWalk { folder } => {
            let walk = corpus::walk::walk(&folder);
            println!("{}", serde_json::to_string(&walk).expect("strings and numbers"));
        }
        Chore::BenchTask { task } => bench::worker::report(&task)?,
        Chore::AsUser { program, arguments } => return test::as_user(&program, &arguments),
        Chore::Dist => dist::run(&places)?,
        Chore::Disks => {
            println!("{}", Disks::ensure(&places)?.folder().display());
            println!("{}", Specimens::ensure(&places)?.folder().display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    run(Cli::parse().chore).unwrap_or_else(|error| {
        eprintln!("xtask: {error}");
        ExitCode::FAILURE
    })
}
