//! A reference model for reading: random steps by several threads, each taken in a mount and in the
//! folder that the mount was made of. Each has to end alike in both.
#![expect(missing_docs, reason = "the names of the bodies say what they show")]

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{Whence, lseek};
use sha2::{Digest, Sha256};

use crate::calls;
use crate::chance::{self, Chance};
use crate::planted::{Planted, plant};
use crate::worlds::World;

/// Makes a test of each body, in the world that the expression gives.
#[macro_export]
macro_rules! reading_in {
    ($world:expr) => {
        #[test]
        fn random_steps_read_what_is_in_the_source() {
            $crate::reading::random_steps_read_what_is_in_the_source(&$world);
        }
    };
}

const THREADS: u64 = 3;

/// Steps of each thread.
const STEPS: usize = 170;

/// Bytes of the longest read at a random place.
const LONGEST: u64 = 300_000;

/// What a thread does once.
#[derive(Debug)]
enum Step {
    /// Some bytes at a place.
    At(PathBuf, u64, u64),
    /// All of a file at once.
    Whole(PathBuf),
    /// All of it in pieces of this size, from the start on.
    Pieces(PathBuf, usize),
    Attributes(PathBuf),
    Target(PathBuf),
    AttributeNames(PathBuf),
    Attribute(PathBuf, &'static str),
    /// The next data or hole.
    Seek(PathBuf, u64, Whence),
    /// A part of a folder, its last entries once more, and the rest.
    Folder(PathBuf, Part),
    /// The kernel forgets what it has of a file.
    Forget(PathBuf),
}

/// How a folder is gone through.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Calls before it is gone back.
    calls: u64,
    /// Bytes of each.
    size: usize,
    /// To behind which of the entries it is gone back.
    back: u64,
}

impl Step {
    fn any(chance: &mut Chance, planted: &Planted) -> Self {
        let file = pick(chance, &planted.files).clone();
        match chance.below(16) {
            0..=3 => {
                let size = planted.root.join(&file).metadata().expect("it was planted").len();
                let most = *pick(chance, &[8, 5000, LONGEST]);
                Self::At(file, chance.below(size + 5000), 1 + chance.below(most))
            }
            4 => Self::Whole(file),
            5 => Self::Pieces(file, *pick(chance, &[4096, 10_000, 131_072])),
            6 | 7 => Self::Attributes(pick(chance, &planted.all).clone()),
            // There is none of this name, in a folder or below a file.
            8 => Self::Attributes(pick(chance, &planted.all).join(format!("{}", chance.below(9)))),
            9 => Self::Target(pick(chance, &planted.all).clone()),
            10 => Self::AttributeNames(pick(chance, &planted.all).clone()),
            11 => {
                let path = pick(chance, &planted.all).clone();
                let name = *pick(chance, &["user.one", "user.large", "user.empty", "user.none"]);
                Self::Attribute(path, name)
            }
            12 => {
                let file = pick(chance, &planted.large).clone();
                let size = planted.root.join(&file).metadata().expect("it was planted").len();
                let whence = *pick(chance, &[Whence::SeekData, Whence::SeekHole]);
                Self::Seek(file, chance.below(size + 5000), whence)
            }
            13 | 14 => {
                let part = Part {
                    calls: chance.below(8),
                    size: *pick(chance, &[300, 1000, 32_768]),
                    back: chance.below(600),
                };
                Self::Folder(pick(chance, &planted.folders).clone(), part)
            }
            _ => Self::Forget(pick(chance, &planted.large).clone()),
        }
    }

    /// Takes it below `root`: what is found.
    fn run(&self, root: &Path) -> Result<String, Errno> {
        let found = match self {
            Self::At(path, offset, length) => {
                let mut bytes = vec![0; usize::try_from(*length).expect("it is short")];
                File::open(root.join(path))
                    .and_then(|file| read_at(&file, &mut bytes, *offset))
                    .map(|count| hash(&bytes[..count]))
            }
            Self::Whole(path) => fs::read(root.join(path)).map(|bytes| hash(&bytes)),
            Self::Pieces(path, size) => {
                File::open(root.join(path)).and_then(|file| in_pieces(file, *size))
            }
            Self::Attributes(path) => fs::symlink_metadata(root.join(path)).map(|stat| {
                let kept = (stat.mode(), stat.uid(), stat.gid(), stat.mtime());
                // Those of folders are each filesystem's own.
                let counts = (!stat.is_dir()).then_some((stat.nlink(), stat.len()));
                format!("{kept:?} {counts:?}")
            }),
            Self::Target(path) => {
                fs::read_link(root.join(path)).map(|target| format!("{target:?}"))
            }
            Self::AttributeNames(path) => xattr::list(root.join(path)).map(|names| {
                let mut names: Vec<OsString> = names.collect();
                names.sort();
                format!("{names:?}")
            }),
            Self::Attribute(path, name) => {
                xattr::get(root.join(path), name).map(|value| format!("{value:?}"))
            }
            Self::Seek(path, offset, whence) => File::open(root.join(path)).and_then(|file| {
                Ok(lseek(file.as_fd(), offset.cast_signed(), *whence)?.to_string())
            }),
            Self::Folder(path, part) => File::open(root.join(path))
                .and_then(|folder| Ok(format!("{:?}", in_part(&folder, *part)?))),
            Self::Forget(path) => File::open(root.join(path)).and_then(|file| {
                let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
                Ok(posix_fadvise(&file, 0, 0, advice).map(|()| String::new())?)
            }),
        };
        found.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
    }
}

fn pick<'a, T>(chance: &mut Chance, from: &'a [T]) -> &'a T {
    let index = chance.below(from.len() as u64);
    &from[usize::try_from(index).expect("it is below a length")]
}

/// Reads as much as there is, up to the length of `bytes`.
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

fn in_pieces(mut file: File, size: usize) -> io::Result<String> {
    let (mut piece, mut all) = (vec![0; size], Vec::new());
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hash(&all)),
            count => all.extend_from_slice(&piece[..count]),
        }
    }
}

/// Goes through a folder, back once in between, and gives the names in their order. That order is each
/// filesystem's own; the names are sorted when they were found to be the same after going back.
fn in_part(folder: &File, part: Part) -> nix::Result<Vec<OsString>> {
    let mut found = Vec::new();
    for _ in 0..part.calls {
        found.extend(calls::entries(folder, part.size)?);
    }
    let back = usize::try_from(part.back).expect("it is small").min(found.len());
    let place = back.checked_sub(1).map_or(0, |last| found[last].1);
    let passed = found.split_off(back);
    lseek(folder.as_fd(), place, Whence::SeekSet)?;
    loop {
        match calls::entries(folder, part.size)? {
            entries if entries.is_empty() => break,
            entries => found.extend(entries),
        }
    }
    assert!(found[back..].starts_with(&passed), "from {place} on: {:?}", &found[back..]);
    let mut names: Vec<OsString> = found.into_iter().map(|(name, _)| name).collect();
    names.sort();
    Ok(names)
}

fn hash(bytes: &[u8]) -> String {
    let hash: String =
        Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{} bytes {hash}", bytes.len())
}

pub fn random_steps_read_what_is_in_the_source(world: &dyn World) {
    let seed = chance::seed();
    let source = tempfile::tempdir().unwrap();
    let planted = plant(source.path(), &mut Chance::seeded(seed));
    let shown = world.show(source.path(), "");
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (planted, mountpoint) = (&planted, shown.path());
            scope.spawn(move || {
                let mut chance = Chance::seeded(seed.wrapping_mul(THREADS).wrapping_add(thread));
                for number in 0..STEPS {
                    let step = Step::any(&mut chance, planted);
                    let about = format!("seed {seed}, thread {thread}, step {number}: {step:?}");
                    // Whatever panics in it shows this as well.
                    let _context = Context(&about);
                    assert_eq!(step.run(mountpoint), step.run(&planted.root), "{about}");
                }
            });
        }
    });
}

/// What is printed where a step panics.
struct Context<'a>(&'a str);

impl Drop for Context<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}
