//! `cargo xtask fuzz`: gives what reads untrusted bytes to libFuzzer, each for some time.
//!
//! libFuzzer wants to see which branches an input takes. The compiler's pass for that is in stable
//! Rust as well, so that no other toolchain is needed; what is missing there are the sanitizers,
//! which watch over unsafe code, of which there is none on these ways.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use clap::Args;
use tempfile::TempDir;

use crate::error::Error;
use crate::places::Places;
use crate::process::Tool;
use crate::progress::{line, step};
use crate::setup;

/// The only platform of the project. Naming it keeps the flags from build scripts.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// What makes the compiler tell libFuzzer which branches were taken and what was compared.
const INSTRUMENTED: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
    -Ccodegen-units=1";

/// Bytes of the longest input, seconds that one may take, and mebibytes of memory: beyond them is
/// a finding.
const LIMITS: [&str; 3] = ["-max_len=65536", "-timeout=10", "-rss_limit_mb=1024"];

/// How long to fuzz what.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Targets, or all: the names of the files in fuzz/targets.
    targets: Vec<String>,
}

/// Builds the targets and runs them one after the other; fails where one found something.
///
/// What libFuzzer learns is kept in `target/fuzz/corpus`, what it finds in `target/fuzz/findings`.
///
/// # Errors
/// Where they cannot be built or run.
pub fn run(options: &Options, places: &Places) -> Result<ExitCode, Error> {
    setup::ensure(places)?;
    let grounds = Grounds::of(places)?;
    let all = targets(places.root())?;
    if let Some(unknown) = options.targets.iter().find(|name| !all.contains(name)) {
        let hint = format!("one of {}", all.join(", "));
        return Err(Error::unfit(format!("there is no target {unknown}"), hint));
    }
    let chosen = if options.targets.is_empty() { &all } else { &options.targets };
    step("fuzz targets", || {
        build(places, &grounds)?;
        Ok(((), format!("{}", chosen.len())))
    })?;
    let mut findings = 0;
    for target in chosen {
        findings += usize::from(!grounds.fuzz(target, options.seconds)?);
    }
    println!("targets fuzzed: {}, with findings: {findings}", chosen.len());
    Ok(if findings == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The names of the targets.
fn targets(root: &Path) -> Result<Vec<String>, Error> {
    let folder = root.join("fuzz/targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).map_err(Error::file("list", &folder))? {
        let path = entry.map_err(Error::file("list", &folder))?.path();
        names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

fn build(places: &Places, grounds: &Grounds) -> Result<(), Error> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let status = Tool::new(cargo)
        .args(["build", "--quiet", "--locked", "--package", "guestmnt-fuzz", "--bins"])
        .args(["--features", "libfuzzer", "--profile", "fuzz", "--target", PLATFORM])
        .arg("--target-dir")
        .arg(&grounds.target)
        .env("RUSTFLAGS", INSTRUMENTED)
        .within(places.root())
        .shown()?;
    if status.success() {
        return Ok(());
    }
    Err(Error::unfit("the fuzz targets do not build", "cargo's messages stand above"))
}

/// Where things are.
struct Grounds {
    target: PathBuf,
    seeds: PathBuf,
    /// For the files that the targets make: in memory, which is several times as fast.
    scratch: TempDir,
}

impl Grounds {
    fn of(places: &Places) -> Result<Self, Error> {
        let memory = Path::new("/dev/shm");
        let temp = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let scratch = tempfile::Builder::new()
            .prefix("guestmnt-fuzz.")
            .tempdir_in(&temp)
            .map_err(Error::file("write in", &temp))?;
        let target = places.target().join("fuzz");
        Ok(Self { target, seeds: places.root().join("fuzz/seeds"), scratch })
    }

    /// Runs a target, and says how it went; whether it found nothing.
    fn fuzz(&self, name: &str, seconds: u64) -> Result<bool, Error> {
        let corpus = self.target.join("corpus").join(name);
        let findings = self.target.join("findings");
        for folder in [&corpus, &findings] {
            fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
        }
        let program = self.target.join(PLATFORM).join("fuzz").join(name);
        let mut artifacts = OsString::from("-artifact_prefix=");
        artifacts.push(findings.join(format!("{name}-")));
        let output = Command::new(&program)
            .arg(format!("-max_total_time={seconds}"))
            .args(LIMITS)
            .args(["-print_final_stats=1", "-verbosity=1"])
            .arg(artifacts)
            .arg(&corpus)
            .arg(self.seeds.join(name))
            .env("TMPDIR", self.scratch.path())
            .stdin(Stdio::null())
            .output()
            .map_err(|source| Error::Start { program: program.display().to_string(), source })?;
        let said = String::from_utf8_lossy(&output.stderr);
        let words = format!("{} runs, coverage {}", after(&said, RUNS), covered(&said));
        line(name, Duration::from_secs(seconds), &words);
        if !output.status.success() {
            println!("{name}: {}\n{}", output.status, tail(&said));
            println!("keep the input that is named above in fuzz/seeds/{name} with the fix");
        }
        Ok(output.status.success())
    }
}

const RUNS: &str = "stat::number_of_executed_units:";

/// The word behind the last `key`.
fn after<'a>(said: &'a str, key: &str) -> &'a str {
    let rest = said.rsplit_once(key).map_or("", |(_, rest)| rest);
    rest.split_whitespace().next().unwrap_or("?")
}

/// What was covered at the end, as libFuzzer counts it.
fn covered(said: &str) -> &str {
    after(said, " cov:")
}

/// The last lines, without those on progress.
fn tail(said: &str) -> String {
    const LINES: usize = 40;
    let told: Vec<&str> = said.lines().filter(|line| !line.starts_with('#')).collect();
    told[told.len().saturating_sub(LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_figures_of_libfuzzer_are_found() {
        let said = "#2 INITED cov: 8 ft: 8\n#9 NEW    cov: 12 ft: 13\n\
                    stat::number_of_executed_units: 3826908\nstat::peak_rss_mb: 30\n";
        assert_eq!((after(said, RUNS), covered(said)), ("3826908", "12"));
        assert_eq!(covered(""), "?");
        assert_eq!(tail(said).lines().count(), 2);
    }
}
