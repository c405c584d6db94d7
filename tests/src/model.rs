//! A reference model: random sequences of changes, made on a mount and in a plain folder. Each has to
//! end alike in both; the files that it was about have to be the same afterwards, and all of them now
//! and then, and after a remount.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use sha2::{Digest, Sha256};

use crate::chance::Chance;
use crate::worlds::writable::Writable;

/// What a filesystem can keep beside names and contents. The model leaves alone what it cannot.
#[derive(Clone, Copy, Debug)]
pub struct Keeps {
    /// Permissions.
    pub modes: bool,
    /// Hard links, symbolic links and FIFOs.
    pub links: bool,
    /// Extended attributes.
    pub xattrs: bool,
    /// Holes that are punched.
    pub holes: bool,
    /// The exchange of two names.
    pub exchange: bool,
    /// Space that is allocated before it is written.
    pub allocation: bool,
}

/// Everything: ext4, XFS, Btrfs.
pub const ALL: Keeps =
    Keeps { modes: true, links: true, xattrs: true, holes: true, exchange: true, allocation: true };

/// FAT has names, contents and times.
pub const FAT: Keeps = Keeps { modes: false, links: false, xattrs: false, holes: false, ..ALL };

/// exFAT can do still less.
pub const EXFAT: Keeps = Keeps { exchange: false, allocation: false, ..FAT };

/// Steps between two looks at everything, and how many of each such run come before it is looked
/// after each step at what that concerned. Looking has the guest take what is kept, so that the others
/// meet files of which something is.
const STEPS_BETWEEN: usize = 40;
const STEPS_UNSEEN: usize = 20;

/// Few names, so that steps meet the files of earlier ones.
const NAMES: u64 = 6;

/// Bytes of the longest files.
const LONGEST: u64 = 300_000;

/// What a random sequence is made of.
struct Random(Chance);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0.below(limit)
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let index = self.below(from.len() as u64);
        &from[usize::try_from(index).expect("it is below a length")]
    }

    /// A path of at most three names.
    fn path(&mut self) -> PathBuf {
        let all: [&[&str]; 3] = [&["d"], &["d", "e"], &["d", "e", "f"]];
        let levels = *self.pick(&all);
        levels.iter().map(|level| format!("{level}{}", self.below(NAMES))).collect()
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = *self.pick(&[1, 17, 4096, 5000, 131_072, 200_001]);
        let first = self.below(251);
        (0..length).map(|at: u64| ((first + at * 7 + at / 4096) % 251) as u8).collect()
    }
}

/// One change.
#[derive(Clone, Debug)]
enum Step {
    Make(PathBuf),
    Write {
        path: PathBuf,
        offset: u64,
        bytes: Vec<u8>,
    },
    Append(PathBuf, Vec<u8>),
    /// Written while it is open and has lost its name; what is read then.
    WriteNameless(PathBuf, Vec<u8>),
    Truncate(PathBuf, u64),
    MakeFolder(PathBuf),
    Remove(PathBuf),
    RemoveFolder(PathBuf),
    Rename(PathBuf, PathBuf),
    Exchange(PathBuf, PathBuf),
    RenameIfFree(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf, PathBuf),
    Fifo(PathBuf),
    SetMode(PathBuf, u32),
    SetTime(PathBuf, u64),
    SetXattr(PathBuf, Vec<u8>),
    RemoveXattr(PathBuf),
    Punch(PathBuf, u64, u64),
    Allocate(PathBuf, u64),
    Copy(PathBuf, PathBuf),
}

impl Step {
    fn any(random: &mut Random, keeps: &Keeps) -> Self {
        loop {
            let path = random.path();
            let step = match random.below(28) {
                0..=2 => Self::Make(path),
                3..=5 => Self::Write { path, offset: random.below(LONGEST), bytes: random.bytes() },
                6 => Self::Append(path, random.bytes()),
                7 => Self::WriteNameless(path, random.bytes()),
                8 | 9 => Self::Truncate(path, random.below(LONGEST)),
                10..=12 => Self::MakeFolder(path),
                13 => Self::Remove(path),
                14 => Self::RemoveFolder(path),
                15 | 16 => Self::Rename(path, random.path()),
                17 if keeps.exchange => Self::Exchange(path, random.path()),
                18 if keeps.links => Self::Link(path, random.path()),
                19 if keeps.links => Self::Symlink(path, random.path()),
                20 if keeps.links => Self::Fifo(path),
                21 if keeps.modes => {
                    Self::SetMode(path, *random.pick(&[0o700, 0o755, 0o711, 0o4750]))
                }
                22 => Self::SetTime(path, 2 * random.below(500_000_000)),
                23 if keeps.xattrs => Self::SetXattr(path, random.bytes()[..1].to_vec()),
                24 if keeps.xattrs => Self::RemoveXattr(path),
                25 if keeps.holes => Self::Punch(path, random.below(LONGEST), 70_000),
                26 => Self::RenameIfFree(path, random.path()),
                27 if keeps.allocation => Self::Allocate(path, 1 + random.below(LONGEST)),
                _ if random.below(4) == 0 => Self::Copy(path, random.path()),
                _ => continue,
            };
            return step;
        }
    }

    /// Carries it out below `root`; what can be seen of it right away.
    fn run(&self, root: &Path) -> Result<Vec<u8>, Errno> {
        let nothing = |()| Vec::new();
        let done = match self {
            Self::Make(path) => File::options()
                .write(true)
                .create_new(true)
                .mode(0o644)
                .open(root.join(path))
                .map(drop)
                .map(nothing),
            Self::Write { path, offset, bytes } => writable(&root.join(path)).and_then(|file| {
                file.write_all_at(bytes, *offset)?;
                let mut back = vec![0; bytes.len()];
                file.read_exact_at(&mut back, *offset)?;
                Ok(back)
            }),
            Self::Append(path, bytes) => OpenOptions::new()
                .append(true)
                .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOFOLLOW)
                .open(root.join(path))
                .and_then(|mut file| io::Write::write_all(&mut file, bytes))
                .map(nothing),
            Self::WriteNameless(path, bytes) => nameless(&root.join(path), bytes),
            Self::Truncate(path, size) => {
                writable(&root.join(path)).and_then(|file| file.set_len(*size)).map(nothing)
            }
            Self::MakeFolder(path) => fs::create_dir(root.join(path)).map(nothing),
            Self::Remove(path) => fs::remove_file(root.join(path)).map(nothing),
            Self::RemoveFolder(path) => fs::remove_dir(root.join(path)).map(nothing),
            Self::Rename(from, to) => {
                fs::rename(root.join(from), root.join(to)).map(nothing).map_err(|error| {
                    // XFS calls a folder in the way that is not empty so, which POSIX allows.
                    if error.kind() == io::ErrorKind::AlreadyExists {
                        Errno::ENOTEMPTY.into()
                    } else {
                        error
                    }
                })
            }
            Self::Exchange(from, to) => {
                renamed(root, from, to, RenameFlags::RENAME_EXCHANGE).map(nothing)
            }
            Self::RenameIfFree(from, to) => {
                renamed(root, from, to, RenameFlags::RENAME_NOREPLACE).map(nothing)
            }
            Self::Link(from, to) => fs::hard_link(root.join(from), root.join(to)).map(nothing),
            Self::Symlink(target, path) => symlink(target, root.join(path)).map(nothing),
            Self::Fifo(path) => mkfifo(&root.join(path), Mode::from_bits_truncate(0o640))
                .map_err(Into::into)
                .map(nothing),
            Self::SetMode(path, mode) => real(root, path).and_then(|path| {
                fs::set_permissions(path, fs::Permissions::from_mode(*mode)).map(nothing)
            }),
            Self::SetTime(path, seconds) => writable(&root.join(path)).and_then(|file| {
                let time = SystemTime::UNIX_EPOCH + Duration::from_secs(400_000_000 + seconds);
                file.set_modified(time).map(nothing)
            }),
            Self::SetXattr(path, value) => {
                real(root, path).and_then(|path| xattr::set(path, "user.model", value)).map(nothing)
            }
            Self::RemoveXattr(path) => {
                real(root, path).and_then(|path| xattr::remove(path, "user.model")).map(nothing)
            }
            Self::Punch(path, offset, length) => writable(&root.join(path)).and_then(|file| {
                let how =
                    FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                let (offset, length) = (offset.cast_signed(), length.cast_signed());
                fallocate(&file, how, offset, length).map_err(Into::into).map(nothing)
            }),
            Self::Allocate(path, length) => writable(&root.join(path)).and_then(|file| {
                let all = FallocateFlags::empty();
                fallocate(&file, all, 0, length.cast_signed()).map_err(Into::into).map(nothing)
            }),
            Self::Copy(from, to) => real(root, from).and_then(|from| {
                // copy_file_range(2), where the two are regular files.
                let mut source = File::open(from)?;
                let mut target = writable(&root.join(to))?;
                io::copy(&mut source, &mut target).map(|bytes| bytes.to_le_bytes().to_vec())
            }),
        };
        done.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
    }

    /// The files that it is about.
    fn paths(&self) -> Vec<&Path> {
        match self {
            Self::Make(path)
            | Self::Write { path, .. }
            | Self::Append(path, _)
            | Self::WriteNameless(path, _)
            | Self::Truncate(path, _)
            | Self::MakeFolder(path)
            | Self::Remove(path)
            | Self::RemoveFolder(path)
            | Self::Fifo(path)
            | Self::SetMode(path, _)
            | Self::SetTime(path, _)
            | Self::SetXattr(path, _)
            | Self::RemoveXattr(path)
            | Self::Punch(path, ..)
            | Self::Allocate(path, _) => vec![path],
            Self::Rename(from, to)
            | Self::Exchange(from, to)
            | Self::RenameIfFree(from, to)
            | Self::Link(from, to)
            | Self::Copy(from, to) => vec![from, to],
            Self::Symlink(_, path) => vec![path],
        }
    }
}

fn renamed(root: &Path, from: &Path, to: &Path, how: RenameFlags) -> io::Result<()> {
    Ok(renameat2(AT_FDCWD, &root.join(from), AT_FDCWD, &root.join(to), how)?)
}

/// A file to be written, without waiting for the reader of a FIFO.
fn writable(path: &Path) -> io::Result<File> {
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(Errno::ESPIPE.into()) }
}

/// The path of a regular file or folder, and no link's.
fn real(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let path = root.join(path);
    let kind = fs::symlink_metadata(&path)?.file_type();
    if kind.is_file() || kind.is_dir() { Ok(path) } else { Err(Errno::ESPIPE.into()) }
}

/// Opens a file, takes its name away, writes to it, and reads it whole.
fn nameless(path: &Path, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let file = writable(path)?;
    fs::remove_file(path)?;
    file.write_all_at(bytes, 5)?;
    let length = file.metadata()?.len();
    let mut all = vec![0; usize::try_from(length).expect("files are short")];
    file.read_exact_at(&mut all, 0)?;
    Ok(all)
}

/// What a folder holds: for each file what tells it from others.
fn contents(root: &Path, keeps: &Keeps) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder can be read") {
            let path = entry.expect("the folder can be read").path();
            let what = described(&path, keeps).expect("it was listed");
            if fs::symlink_metadata(&path).is_ok_and(|stat| stat.is_dir()) {
                folders.push(path.clone());
            }
            all.insert(path.strip_prefix(root).expect("it is below").to_owned(), what);
        }
    }
    all
}

/// What tells a file from others; `None` where there is none.
fn described(path: &Path, keeps: &Keeps) -> Option<String> {
    let stat = fs::symlink_metadata(path).ok()?;
    let kind = stat.file_type();
    let mut what = format!("{kind:?} ");
    if keeps.modes {
        what += &format!("{:o} ", stat.mode() & 0o7777);
    }
    if !kind.is_dir() && keeps.links {
        what += &format!("links {} ", stat.nlink());
    }
    if kind.is_symlink() {
        what += &format!("{:?}", fs::read_link(path).expect("it is a link"));
    }
    if kind.is_file() {
        let bytes = fs::read(path).expect("it can be read");
        assert_eq!(bytes.len() as u64, stat.len(), "{}", path.display());
        what += &format!("{} bytes {}", bytes.len(), hash(&bytes));
    }
    if keeps.xattrs && (kind.is_file() || kind.is_dir()) {
        what += &format!(" {:?}", xattr::get(path, "user.model").unwrap_or_default());
    }
    Some(what)
}

/// What there is of the files that a step was about, and of their folders.
fn concerned(root: &Path, step: &Step, keeps: &Keeps) -> Vec<(Option<String>, Vec<OsString>)> {
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        names.sort();
        names
    };
    let one = |path: PathBuf| (described(&path, keeps), path.parent().map_or_else(Vec::new, names));
    step.paths().into_iter().map(|path| one(root.join(path))).collect()
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Times that were set, of all regular files.
fn times(root: &Path, files: &BTreeMap<PathBuf, u64>) -> BTreeMap<PathBuf, i64> {
    let time = |path: &PathBuf| Some(fs::symlink_metadata(root.join(path)).ok()?.mtime());
    files.keys().filter_map(|path| Some((path.clone(), time(path)?))).collect()
}

/// Makes `steps` random changes below the folder `place` of the mount.
///
/// # Panics
/// Where the mount and the plain folder differ; the message tells the seed and the step.
pub fn same_as_a_plain_folder(shown: &mut dyn Writable, keeps: &Keeps, seed: u64, steps: usize) {
    let plain = tempfile::tempdir().expect("a folder is to be had");
    let place = shown.path().join("model");
    fs::create_dir(&place).expect("a new folder");
    let mut random = Random(Chance::seeded(seed));
    let mut set = BTreeMap::new();
    for number in 0..steps {
        let step = Step::any(&mut random, keeps);
        let (ours, theirs) = (step.run(&place), step.run(plain.path()));
        let about = || format!("seed {seed}, step {number}: {}", summary(&step));
        assert!(
            ours == theirs,
            "{}: {:?} instead of {:?}",
            about(),
            ours.map(|b| b.len()),
            theirs.map(|b| b.len())
        );
        set.clear();
        if let (Step::SetTime(path, seconds), Ok(_)) = (&step, &ours) {
            set.insert(path.clone(), *seconds);
            assert_eq!(times(&place, &set), times(plain.path(), &set), "{}", about());
        }
        if number % STEPS_BETWEEN >= STEPS_UNSEEN {
            let (ours, theirs) = (&place, plain.path());
            assert_eq!(
                concerned(ours, &step, keeps),
                concerned(theirs, &step, keeps),
                "{}",
                about()
            );
        }
        let last = number + 1 == steps;
        if last || number % STEPS_BETWEEN == STEPS_BETWEEN - 1 {
            assert_eq!(contents(&place, keeps), contents(plain.path(), keeps), "{}", about());
        }
        if last || number == steps / 2 {
            shown.remount();
            let again = contents(&place, keeps);
            assert_eq!(again, contents(plain.path(), keeps), "after a remount, {}", about());
            assert_eq!(times(&place, &set), times(plain.path(), &set), "{}", about());
        }
    }
}

fn summary(step: &Step) -> String {
    let text = format!("{step:?}");
    text.chars().take(200).collect()
}
