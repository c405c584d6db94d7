//! What is timed: done by a program of its own, because only the user who mounted may look into
//! the mount, and because starting that program does not belong to the time.
//!
//! It prints one line of JSON, [`Timing`], as the last thing.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use clap::Subcommand;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde::{Deserialize, Serialize};

use crate::Error;

/// Bytes that a sequential reader asks for at a time.
const PIECE: usize = 1 << 20;

/// Bytes that a random reader asks for.
const BLOCK: usize = 4096;

/// A piece of work.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Run a command that mounts, then look at a file; the time is that of both.
    Answer {
        /// The file.
        #[arg(long)]
        file: PathBuf,
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Run a command, taking what it prints.
    Run {
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Read files from their beginnings to their ends, all at once.
    Read {
        /// The files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Read blocks of 4 KiB in no order, none of them twice.
    Random {
        /// How many.
        #[arg(long)]
        reads: usize,
        /// How many of the sequence, which is always the same, were read before.
        #[arg(long, default_value_t = 0)]
        skip: usize,
        /// How many readers there are.
        #[arg(long, default_value_t = 1)]
        depth: usize,
        /// The file.
        file: PathBuf,
    },
    /// Write a new file from its beginning to its end, and have it on the disk.
    Write {
        /// Its length in MiB.
        #[arg(long)]
        mebibytes: u32,
        /// The file.
        file: PathBuf,
    },
    /// Make files one by one, each with a few bytes and each on the disk before the next.
    Create {
        /// How many.
        #[arg(long)]
        files: u32,
        /// A folder that is there.
        folder: PathBuf,
    },
}

/// How long a [`Task`] took, and what came out of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Its time.
    pub seconds: f64,
    /// Bytes read or printed.
    pub bytes: u64,
    /// Lines printed.
    pub lines: u64,
}

impl Timing {
    /// Bytes over time, in 10⁶ bytes a second.
    #[must_use]
    pub fn megabytes_per_second(self) -> f64 {
        // Exact up to 2⁵³ bytes.
        #[expect(clippy::cast_precision_loss)]
        let bytes = self.bytes as f64;
        bytes / 1e6 / self.seconds
    }
}

/// Does `task` and prints its [`Timing`].
///
/// # Errors
/// As [`perform`].
pub fn report(task: &Task) -> Result<(), Error> {
    let timing = perform(task)?;
    println!("{}", serde_json::to_string(&timing).expect("three numbers"));
    Ok(())
}

/// Does `task`.
///
/// # Errors
/// [`Error`], naming the file or the command.
fn perform(task: &Task) -> Result<Timing, Error> {
    match task {
        Task::Answer { file, command } => answer(file, command),
        Task::Run { command } => run(command),
        Task::Read { files } => read(files),
        Task::Random { reads, skip, depth, file } => random(file, *reads, *skip, *depth),
        Task::Write { mebibytes, file } => write(file, *mebibytes),
        Task::Create { files, folder } => create(folder, *files),
    }
}

fn answer(file: &Path, words: &[OsString]) -> Result<Timing, Error> {
    let mut command = command(words);
    let start = Instant::now();
    let status = command.status().map_err(|source| start_error(words, source))?;
    let found = fs::metadata(file);
    let seconds = start.elapsed().as_secs_f64();
    if !status.success() {
        return Err(Error::Program { command: line(words), status, tail: Vec::new() });
    }
    found.map_err(Error::file("look at", file))?;
    Ok(Timing { seconds, ..Timing::default() })
}

fn run(words: &[OsString]) -> Result<Timing, Error> {
    let mut command = command(words);
    let mut printed = Vec::new();
    let start = Instant::now();
    let mut child =
        command.stdout(Stdio::piped()).spawn().map_err(|source| start_error(words, source))?;
    let mut output = child.stdout.take().expect("piped above");
    output.read_to_end(&mut printed).map_err(|source| start_error(words, source))?;
    let status = child.wait().map_err(|source| start_error(words, source))?;
    let seconds = start.elapsed().as_secs_f64();
    if !status.success() {
        return Err(Error::Program { command: line(words), status, tail: Vec::new() });
    }
    let lines = printed.iter().filter(|&&byte| byte == b'\n').count() as u64;
    Ok(Timing { seconds, bytes: printed.len() as u64, lines })
}

fn read(files: &[PathBuf]) -> Result<Timing, Error> {
    let start = Instant::now();
    let read_one = |path: &PathBuf| -> io::Result<u64> {
        let mut file = File::open(path)?;
        let mut piece = vec![0; PIECE];
        let mut bytes = 0;
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(bytes),
                got => bytes += got as u64,
            }
        }
    };
    let counts = thread::scope(|scope| {
        let readers: Vec<_> =
            files.iter().map(|path| (path, scope.spawn(move || read_one(path)))).collect();
        readers
            .into_iter()
            .map(|(path, reader)| {
                let count = reader.join().expect("a reader does not panic");
                count.map_err(Error::file("read", path))
            })
            .collect::<Result<Vec<u64>, Error>>()
    })?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Timing { seconds, bytes: counts.iter().sum(), lines: 0 })
}

fn random(path: &Path, reads: usize, skip: usize, depth: usize) -> Result<Timing, Error> {
    let failed = || Error::file("read", path);
    let size = fs::metadata(path).map_err(failed())?.len();
    let blocks = scattered(size / BLOCK as u64, skip + reads).split_off(skip);
    let next = AtomicUsize::new(0);
    // Opening is not what is timed.
    let ready = Barrier::new(depth + 1);
    let reader = || -> io::Result<()> {
        let opened = File::open(path).and_then(|file| {
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM)?;
            Ok(file)
        });
        ready.wait();
        let file = opened?;
        let mut bytes = [0; BLOCK];
        while let Some(block) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) {
            file.read_exact_at(&mut bytes, block * BLOCK as u64)?;
        }
        Ok(())
    };
    let (start, results) = thread::scope(|scope| {
        let readers: Vec<_> = (0..depth).map(|_| scope.spawn(reader)).collect();
        ready.wait();
        let start = Instant::now();
        let results: Vec<io::Result<()>> = readers
            .into_iter()
            .map(|reader| reader.join().expect("a reader does not panic"))
            .collect();
        (start, results)
    });
    let seconds = start.elapsed().as_secs_f64();
    results.into_iter().collect::<io::Result<()>>().map_err(failed())?;
    Ok(Timing { seconds, bytes: (reads * BLOCK) as u64, lines: 0 })
}

fn write(path: &Path, mebibytes: u32) -> Result<Timing, Error> {
    // No two pieces are alike, and none can be left out as zeros.
    let mut piece: Vec<u8> = (0..=250).cycle().take(PIECE).collect();
    let start = Instant::now();
    let mut write = || -> io::Result<()> {
        let mut file = File::create(path)?;
        for number in 0..mebibytes {
            piece[..4].copy_from_slice(&number.to_le_bytes());
            file.write_all(&piece)?;
        }
        file.sync_all()
    };
    write().map_err(Error::file("write", path))?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Timing { seconds, bytes: u64::from(mebibytes) << 20, lines: 0 })
}

fn create(folder: &Path, files: u32) -> Result<Timing, Error> {
    let start = Instant::now();
    for number in 0..files {
        let path = folder.join(format!("new-{number:04}"));
        let create = || -> io::Result<()> {
            let mut file = File::create_new(&path)?;
            writeln!(file, "file {number}")?;
            file.sync_all()
        };
        create().map_err(Error::file("create", &path))?;
    }
    Ok(Timing { seconds: start.elapsed().as_secs_f64(), ..Timing::default() })
}

/// The first `count` of a sequence that visits the numbers below `bound` in no order and none
/// twice; the same sequence every time.
///
/// # Panics
/// Where there are not as many.
fn scattered(bound: u64, count: usize) -> Vec<u64> {
    assert!(count as u64 <= bound, "{count} different numbers below {bound}");
    let mut state: u64 = 1;
    let mut seen = HashSet::new();
    let numbers = std::iter::repeat_with(move || {
        // Knuth's constants for 64 bits; the upper half is the better one.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) % bound
    });
    numbers.filter(|number| seen.insert(*number)).take(count).collect()
}

fn command(words: &[OsString]) -> Command {
    let (program, arguments) = words.split_first().expect("clap asks for at least one");
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command
}

fn start_error(words: &[OsString], source: io::Error) -> Error {
    Error::Start { program: words[0].to_string_lossy().into_owned(), source }
}

fn line(words: &[OsString]) -> String {
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattered_numbers_are_all_different_and_the_same_every_time() {
        let numbers = scattered(1000, 1000);
        let mut sorted = numbers.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
        assert_ne!(numbers, sorted);
        assert_eq!(scattered(1000, 10), numbers[..10]);
    }

    #[test]
    fn readers_read_every_byte_that_they_are_told_to() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["one", "two"].map(|name| folder.path().join(name));
        for path in &paths {
            fs::write(path, vec![7; 40 * BLOCK]).unwrap();
        }

        let whole = read(&paths).unwrap();
        let blocks = random(&paths[0], 20, 10, 4).unwrap();

        assert_eq!(whole.bytes, 80 * BLOCK as u64);
        assert_eq!(blocks.bytes, 20 * BLOCK as u64);
    }

    #[test]
    fn what_is_written_is_all_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert_eq!(write(&path, 3).unwrap().bytes, 3 << 20);
        let bytes = fs::read(&path).unwrap();
        assert_eq!((bytes.len(), bytes[2 << 20], bytes[5]), (3 << 20, 2, 5));
        create(folder.path(), 20).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 21);
        assert_eq!(fs::read_to_string(folder.path().join("new-0019")).unwrap(), "file 19\n");
    }

    #[test]
    fn a_command_that_fails_gives_no_time() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(run(&words("false")).is_err());
        assert!(answer(Path::new("/"), &words("false")).is_err());
        assert!(answer(Path::new("/no/such/file"), &words("true")).is_err());
        assert_eq!(run(&words("echo two words")).unwrap().lines, 1);
    }
}
