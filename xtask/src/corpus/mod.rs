//! `cargo xtask corpus`: damaged images, each mounted, gone through, read whole and unmounted as an
//! ordinary user. What may come of an image is a mount that works, errors within it, or a
//! refusal; a hang, a crash, something left behind, a changed image or a message of this machine's
//! kernel is a fault.

mod family;
mod ground;
mod kernel_log;
mod mutants;
mod tally;
pub mod trial;
pub mod walk;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use clap::Args;

pub use self::family::Family;
pub use self::ground::{Built, Ground};
use self::mutants::{Anatomy, Mutant};
pub use self::mutants::{Subject, subjects};
use self::tally::Tally;
use self::trial::{Exhibit, Verdict};
use crate::disks::sparse;
use crate::error::Error;
use crate::places::Places;
use crate::process::Tool;
use crate::stage::Stage;

/// How long processes may take that end because others did.
pub const GRACE: Duration = Duration::from_secs(10);

/// Filesystems of one image that are mounted, of those that guestmnt names.
const MOST_DEVICES: usize = 4;

/// Which images.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// A folder of images, or such a folder in an archive of tar.
    #[arg(required_unless_present = "mutants")]
    images: Option<PathBuf>,
    /// How many mutants of the tests' own small images.
    #[arg(long, default_value_t = 0)]
    mutants: u64,
    /// Which mutants.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The number of the first mutant, to see one again.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Trials at a time; as many as there are processors unless said.
    #[arg(long)]
    jobs: Option<usize>,
}

/// Tries all of them, shows how each went and a table at the end; fails where there was a fault.
/// Mutants with one are kept in `target/corpus`.
///
/// # Errors
/// Where the trials cannot be made.
pub fn run(options: &Options, places: &Places) -> Result<ExitCode, Error> {
    let (stage, specimens) = Stage::of_everything(places)?;
    let mut prepare = stage.command("guestmnt");
    prepare.arg("--prepare");
    stage.run(prepare)?;
    let built = Built {
        programs: stage.path().join("release"),
        appliance: stage.path().join("appliance"),
        cache: stage.path().join("home/.cache"),
    };

    let subjects = subjects(&specimens, stage.path())?;
    let mut tasks = match &options.images {
        Some(path) => images(path, stage.path())?,
        None => Vec::new(),
    };
    tasks.extend((options.first..).take(usize_of(options.mutants)).map(Task::Mutant));
    let run = Run {
        tasks,
        next: AtomicUsize::new(0),
        subjects,
        seed: options.seed,
        kept: places.target().join("corpus"),
        family: Family::new(GRACE).map_err(Error::file("adopt the processes of", "/proc/self"))?,
        tally: Mutex::default(),
    };
    let jobs = options.jobs.or_else(|| thread::available_parallelism().ok().map(Into::into));
    let grounds: Vec<Ground> = (0..jobs.unwrap_or(1))
        .map(|number| Ground::new(stage.path().join(format!("ground-{number}")), &built))
        .collect::<Result<_, _>>()?;
    thread::scope(|scope| {
        let workers: Vec<_> =
            grounds.iter().map(|ground| scope.spawn(|| run.work(ground))).collect();
        let ended = workers.into_iter().map(|worker| worker.join().expect("workers do not panic"));
        ended.collect::<Result<Vec<()>, Error>>()
    })?;
    let tally = run.tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    print!("\n{tally}");
    Ok(if tally.faults() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn usize_of(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// Something to be tried.
enum Task {
    Image(PathBuf),
    /// By its number.
    Mutant(u64),
}

/// The regular files in a folder and those in it, or in an archive, which is unpacked in `scratch`
/// so that everybody can read it.
fn images(path: &Path, scratch: &Path) -> Result<Vec<Task>, Error> {
    let folder = if path.is_dir() {
        path.to_owned()
    } else {
        let folder = scratch.join("images");
        fs::create_dir(&folder).map_err(Error::file("create", &folder))?;
        Tool::new("tar").arg("-xf").arg(path).arg("-C").arg(&folder).run()?;
        Tool::new("chmod").args(["-R", "a+rX"]).arg(&folder).run()?;
        folder
    };
    let mut ahead = vec![folder];
    let mut found = Vec::new();
    while let Some(folder) = ahead.pop() {
        for entry in fs::read_dir(&folder).map_err(Error::file("list", &folder))? {
            let entry = entry.map_err(Error::file("list", &folder))?;
            let kind = entry.file_type().map_err(Error::file("look at", entry.path()))?;
            if kind.is_dir() {
                ahead.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found.into_iter().map(Task::Image).collect())
}

/// What the workers share.
struct Run {
    tasks: Vec<Task>,
    next: AtomicUsize,
    subjects: Vec<Subject>,
    seed: u64,
    kept: PathBuf,
    family: Family,
    tally: Mutex<Tally>,
}

impl Run {
    /// Takes tasks until there are none.
    fn work(&self, ground: &Ground) -> Result<(), Error> {
        let mut herd = Herd::new(ground, self.seed);
        while let Some(task) = self.tasks.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            match task {
                Task::Image(image) => self.try_image(image, ground)?,
                Task::Mutant(number) => {
                    let count = self.subjects.len() as u64;
                    let subject = &self.subjects[usize_of(number % count)];
                    let verdict = herd.try_mutant(subject, *number, &self.family)?;
                    if !verdict.faults.is_empty() {
                        herd.keep(subject, *number, &self.kept)?;
                    }
                    self.note(&subject.name, &format!("{} {number}", subject.name), &verdict);
                }
            }
        }
        Ok(())
    }

    /// Tries the whole of an image, or what guestmnt says that there is in it.
    fn try_image(&self, image: &Path, ground: &Ground) -> Result<(), Error> {
        let name = image.file_name().unwrap_or_default().to_string_lossy();
        let of = |device| Exhibit { image, device, passphrase: None };
        let verdict = trial::run(&of("/dev/sda"), ground, &self.family)?;
        let devices = trial::suggested(&verdict.said);
        if devices.is_empty() || !verdict.faults.is_empty() {
            self.note("images", &name, &verdict);
        }
        for device in devices.iter().take(MOST_DEVICES) {
            let verdict = trial::run(&of(device), ground, &self.family)?;
            self.note("images", &format!("{name} {device}"), &verdict);
        }
        Ok(())
    }

    fn note(&self, group: &str, name: &str, verdict: &Verdict) {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        println!("{}", tally.add(group, name, verdict));
    }
}

/// Copies of the subjects on a ground, each of which is made one mutant after the other.
pub struct Herd<'a> {
    ground: &'a Ground,
    seed: u64,
    anatomies: Vec<(String, Anatomy)>,
}

impl<'a> Herd<'a> {
    /// None yet.
    #[must_use]
    pub fn new(ground: &'a Ground, seed: u64) -> Self {
        Self { ground, seed, anatomies: Vec::new() }
    }

    /// Tries mutant `number` of `subject`.
    ///
    /// # Errors
    /// Where the trial cannot be made.
    pub fn try_mutant(
        &mut self,
        subject: &Subject,
        number: u64,
        family: &Family,
    ) -> Result<Verdict, Error> {
        let copied = self.copy_of(subject);
        if !copied.exists() {
            sparse::copy(&subject.image, &copied)?;
            self.anatomies.push((subject.name.clone(), Anatomy::of(subject)?));
        }
        let anatomy = self.anatomies.iter().find(|(name, _)| *name == subject.name);
        let (_, anatomy) = anatomy.expect("it was noted with the copy");
        let mutant = Mutant::of(subject, anatomy, self.seed, number)?;
        let open = |path: &Path, write| File::options().read(true).write(write).open(path);
        let copy = open(&copied, true).map_err(Error::file("open", &copied))?;
        mutant.inflict(&copy).map_err(Error::file("write", &copied))?;
        let exhibit =
            Exhibit { image: &copied, device: subject.device, passphrase: subject.passphrase };
        let verdict = trial::run(&exhibit, self.ground, family)?;
        if verdict.faults.is_empty() {
            let original =
                open(&subject.image, false).map_err(Error::file("open", &subject.image))?;
            mutant.heal(&original, &copy).map_err(Error::file("write", &copied))?;
        }
        Ok(verdict)
    }

    /// Puts the mutant that was tried last of `subject`, and had a fault, into the folder `kept`.
    ///
    /// # Errors
    /// [`Error::File`].
    fn keep(&self, subject: &Subject, number: u64, kept: &Path) -> Result<(), Error> {
        fs::create_dir_all(kept).map_err(Error::file("create", kept))?;
        let path = kept.join(format!("{}-{}-{number}.img", subject.name, self.seed));
        let copied = self.copy_of(subject);
        sparse::copy(&copied, &path)?;
        // The next one begins with a fresh copy.
        fs::remove_file(&copied).map_err(Error::file("remove", &copied))
    }

    fn copy_of(&self, subject: &Subject) -> PathBuf {
        self.ground.folder().join(format!("{}.img", subject.name.replace(' ', "-")))
    }
}
