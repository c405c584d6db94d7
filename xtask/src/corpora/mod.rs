//! `cargo xtask corpora`: disk images out of the tests of other projects, each listed and read whole
//! by guestimg as an ordinary user, and held against what a table in this repository expects.
//!
//! The images come in source packages from the mirror that apt is configured for. The tables hold
//! digests and words only. What other programs see in the same images is the second opinion.

mod listing;
mod peers;
mod source;
mod table;
mod trial;
mod unpack;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use clap::Args;

pub use self::source::{SOURCES, Source};
pub use self::table::Row;
pub use self::trial::{Observed, Verdict};
use self::unpack::ImageName;
use crate::corpus::{Built, Family, GRACE, Ground};
use crate::digest;
use crate::error::Error;
use crate::places::Places;
use crate::stage::Stage;

/// Names the directory of unpacked images of the quick rows, for the tests.
pub const CORPORA: &str = "GUESTMNT_CORPORA";

/// Which images, and what to do with them.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Only images whose source and name, as in dfvfs/test_data/ext2.raw, contain one of these.
    filters: Vec<String>,
    /// Use the archives in target/corpora, and fetch none.
    #[arg(long)]
    offline: bool,
    /// Print the tables as they would be with what is seen now, for review; nothing is written.
    #[arg(long)]
    update: bool,
    /// Ask the other programs that are installed what they see.
    #[arg(long)]
    peers: bool,
    /// Images at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

/// What came of a row.
#[derive(Debug)]
pub enum Outcome {
    /// What the table says.
    AsExpected,
    /// Something else: a line for each difference.
    Different(Vec<String>),
    /// It was not tried, for this reason.
    Skipped(String),
}

/// A row that is to be tried.
struct Task {
    source: &'static Source,
    row: Row,
    root: PathBuf,
    /// Whether the table has the row.
    is_listed: bool,
}

impl Task {
    fn name(&self) -> String {
        format!("{}/{}", self.source.name, self.row.image)
    }
}

/// Checks all of them, shows how each went and a summary at the end. Fails where something is not
/// as expected.
///
/// # Errors
/// Where the images cannot be tried.
pub fn run(options: &Options, places: &Places) -> Result<ExitCode, Error> {
    let (stage, _) = Stage::of_everything(places)?;
    let mut prepare = stage.command("guestmnt");
    prepare.arg("--prepare");
    stage.run(prepare)?;
    let built = Built {
        programs: stage.path().join("release"),
        appliance: stage.path().join("appliance"),
        cache: stage.path().join("home/.cache"),
    };
    let mut skipped = Vec::new();
    let mut tasks = Vec::new();
    for source in SOURCES {
        let root = stage.path().join("corpora").join(source.name);
        match gather(source, &root, options, places) {
            Ok(found) => tasks.extend(found),
            Err(error) => skipped.push(format!("all of {}: {error}", source.name)),
        }
    }
    let adopt = Error::file("adopt the processes of", "/proc/self");
    let run = Run {
        tasks,
        options,
        next: AtomicUsize::new(0),
        unpacking: Mutex::default(),
        family: Family::new(GRACE).map_err(adopt)?,
        outcomes: Mutex::default(),
    };
    let grounds: Vec<Ground> = (0..options.jobs.max(1))
        .map(|number| Ground::new(stage.path().join(format!("ground-{number}")), &built))
        .collect::<Result<_, _>>()?;
    thread::scope(|scope| {
        let workers: Vec<_> =
            grounds.iter().map(|ground| scope.spawn(|| run.work(ground))).collect();
        let ended = workers.into_iter().map(|worker| worker.join().expect("workers do not panic"));
        ended.collect::<Result<Vec<()>, Error>>()
    })?;
    let failed = Error::file("look for processes in", "/proc");
    let orphans = run.family.orphans().map_err(failed)?;
    for (pid, name) in &orphans {
        eprintln!("FAULT: process {pid} ({name}) is left behind");
    }
    let code = run.conclude(&skipped);
    Ok(if orphans.is_empty() { code } else { ExitCode::FAILURE })
}

/// Unpacks the images of a source, and returns the rows that the filters choose.
fn gather(
    source: &'static Source,
    root: &Path,
    options: &Options,
    places: &Places,
) -> Result<Vec<Task>, Error> {
    let chosen = |image: &str| {
        let name = format!("{}/{image}", source.name);
        options.filters.is_empty() || options.filters.iter().any(|filter| name.contains(filter))
    };
    let rows: Vec<Row> = table::parse(source.table);
    let filters = &options.filters;
    let names_source =
        filters.is_empty() || filters.iter().any(|filter| filter.contains(source.name));
    if !names_source && !rows.iter().any(|row| chosen(&row.image)) {
        return Ok(Vec::new());
    }
    let archive = source.ensure(options.offline, places)?;
    if !archive.is_pinned {
        eprintln!("{} is not the version of the table: {}", source.name, archive.file.display());
    }
    unpack::unpack(source, &archive, root)?;
    let unlisted: Vec<Row> = unpack::images(source, root)?
        .into_iter()
        .filter(|image| !rows.iter().any(|row| row.image == *image))
        .map(Row::unlisted)
        .collect();
    let task = |is_listed| move |row: Row| Task { source, row, root: root.to_owned(), is_listed };
    let tasks = rows.into_iter().map(task(true)).chain(unlisted.into_iter().map(task(false)));
    Ok(tasks.filter(|task| chosen(&task.row.image)).collect())
}

/// What the workers share.
struct Run<'a> {
    tasks: Vec<Task>,
    options: &'a Options,
    next: AtomicUsize,
    /// Two rows may be of one archive.
    unpacking: Mutex<()>,
    family: Family,
    /// By the number of the task; with the row as it was seen now.
    outcomes: Mutex<Vec<(usize, Outcome, Row)>>,
}

impl Run<'_> {
    /// Takes tasks until there are none.
    fn work(&self, ground: &Ground) -> Result<(), Error> {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(task) = self.tasks.get(number) else { return Ok(()) };
            let mut seen = task.row.clone();
            let outcome = if task.is_listed || self.options.update {
                self.attempt(task, &mut seen, ground)?
            } else {
                Outcome::Skipped("the table has no row for it".to_owned())
            };
            print_outcome(&task.name(), &outcome);
            let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
            outcomes.push((number, outcome, seen));
        }
    }

    fn attempt(&self, task: &Task, seen: &mut Row, ground: &Ground) -> Result<Outcome, Error> {
        let located = {
            let _one = self.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
            locate(&task.row, &task.root)
        };
        let image = match located {
            Ok(image) => image,
            Err(why) => return Ok(Outcome::Skipped(why)),
        };
        if task.row.sha256 == "-" {
            seen.sha256 = digest::of_file(&ImageName::parse(&task.row.image).stored(&task.root))?;
        }
        let verdict = trial::run(&image, &task.row.arguments, ground, &self.family)?;
        let mut differences = differences(&task.row, &verdict);
        if self.options.peers {
            let opinions = peers::ask(&image, &verdict, ground.folder(), &self.family)?;
            differences.extend(opinions.differences(&task.row.peers));
            seen.peers = opinions.column(&task.row.peers);
        }
        let (before, now) = (&task.row.expected, &verdict.observed);
        if (&before.status, &before.contents) != (&now.status, &now.contents) {
            // What explained the row before need not explain it now.
            seen.reason = "-".to_owned();
        }
        seen.expected = verdict.observed;
        if differences.is_empty() {
            return Ok(Outcome::AsExpected);
        }
        Ok(Outcome::Different(differences))
    }

    /// Prints the summary, or the tables for review.
    fn conclude(self, skipped: &[String]) -> ExitCode {
        let mut outcomes = self.outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
        outcomes.sort_by_key(|(number, ..)| *number);
        if self.options.update {
            for source in SOURCES {
                let rows: Vec<Row> = outcomes
                    .iter()
                    .filter(|(number, ..)| self.tasks[*number].source.name == source.name)
                    .map(|(.., row)| row.clone())
                    .collect();
                if !rows.is_empty() {
                    print!("# {}.tsv\n{}", source.name, table::render(&rows));
                }
            }
        }
        for why in skipped {
            eprintln!("SKIP: {why}");
        }
        if self.options.peers {
            for program in peers::missing() {
                eprintln!("SKIP: the opinion of {program}, which is not installed");
            }
        }
        let count = |is: fn(&Outcome) -> bool| {
            outcomes.iter().filter(|(_, outcome, _)| is(outcome)).count()
        };
        let different = count(|outcome| matches!(outcome, Outcome::Different(_)));
        eprintln!(
            "{} images as expected, {different} with unexplained differences, {} skipped; \
             {} sources skipped",
            count(|outcome| matches!(outcome, Outcome::AsExpected)),
            count(|outcome| matches!(outcome, Outcome::Skipped(_))),
            skipped.len()
        );
        if different == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn print_outcome(name: &str, outcome: &Outcome) {
    match outcome {
        Outcome::AsExpected => eprintln!("ok      {name}"),
        Outcome::Skipped(why) => eprintln!("skipped {name}: {why}"),
        Outcome::Different(differences) => {
            let lines: String =
                differences.iter().map(|line| format!("\n          {line}")).collect();
            eprintln!("DIFFERS {name}{lines}");
        }
    }
}

/// Fetches and prepares the images of the quick rows, each source in its directory of `to`. Returns
/// why sources are not there.
pub fn prepare_quick(places: &Places, to: &Path) -> Vec<String> {
    let mut skipped = Vec::new();
    for source in SOURCES {
        let rows: Vec<Row> = quick_rows(source);
        let root = to.join(source.name);
        let prepare = || -> Result<(), Error> {
            let archive = source.ensure(false, places)?;
            unpack::unpack(source, &archive, &root)?;
            // What another version lacks is skipped by the row.
            rows.iter().for_each(|row| drop(locate(row, &root)));
            Ok(())
        };
        if !rows.is_empty()
            && let Err(error) = prepare()
        {
            skipped.push(format!("{}: {error}", source.name));
        }
    }
    skipped
}

/// The rows of a source that every run of the tests tries.
#[must_use]
pub fn quick_rows(source: &Source) -> Vec<Row> {
    table::parse(source.table).into_iter().filter(|row| row.is_quick).collect()
}

/// Tries the row of a source that [`prepare_quick`] has unpacked in `root`.
///
/// # Errors
/// Where the image cannot be tried.
pub fn check(row: &Row, root: &Path, ground: &Ground, family: &Family) -> Result<Outcome, Error> {
    let image = match locate(row, root) {
        Ok(image) => image,
        Err(why) => return Ok(Outcome::Skipped(why)),
    };
    let verdict = trial::run(&image, &row.arguments, ground, family)?;
    let differences = differences(row, &verdict);
    Ok(if differences.is_empty() { Outcome::AsExpected } else { Outcome::Different(differences) })
}

/// The image of a row, if it is the one that the row is about; otherwise why not.
fn locate(row: &Row, root: &Path) -> Result<PathBuf, String> {
    let name = ImageName::parse(&row.image);
    let stored = name.stored(root);
    if !stored.exists() {
        return Err("the source does not have it".to_owned());
    }
    let sha256 = digest::of_file(&stored).map_err(|error| error.to_string())?;
    if row.sha256 != sha256 && row.sha256 != "-" {
        return Err("the source has another image of this name".to_owned());
    }
    name.prepare(root).map_err(|error| error.to_string())
}

/// What is not as expected.
fn differences(row: &Row, verdict: &Verdict) -> Vec<String> {
    let (expected, seen) = (&row.expected, &verdict.observed);
    let columns = [
        ("filesystems", &expected.filesystems, &seen.filesystems),
        ("status", &expected.status, &seen.status),
        ("contents", &expected.contents, &seen.contents),
        ("said", &expected.said, &seen.said),
    ];
    let differing = columns.into_iter().filter(|(_, expected, seen)| expected != seen);
    let lines = differing.map(|(name, expected, seen)| format!("{name}: {seen}, not {expected}"));
    lines.chain(verdict.faults.iter().map(|fault| format!("FAULT: {fault}"))).collect()
}
