//! An overlay that outlives the mount: a qcow2 file of the user's that takes the changes and
//! knows the image that it belongs to. Over another one, or over the same one after it was changed,
//! its clusters would make a disk that never was.
//!
//! Its header has an extension of ours, which QEMU leaves as it is: the image's fingerprint, and its
//! name for messages. Source: docs/interop/qcow2.txt of QEMU.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use guestmnt_protocol::path::Printable;
use nix::fcntl::{Flock, FlockArg};

use super::overlay::{self, CLUSTER, CLUSTER_BITS, HEADER_LEN};
use crate::image::{DIGEST, Disk, Fingerprint};

/// The extension's type: "gmnt".
const EXTENSION: u32 = 0x676d_6e74;

/// What the extension's data begin with: an overlay that takes changes.
const TAKES: u8 = 1;

/// One whose changes are on their way into the image, which is neither as it was nor as it will be.
const COMMITS: u8 = 2;

/// Bytes of the image's name that are kept.
const MAX_NAME: usize = 4096;

/// A file that takes a mount's changes. Locked: no other mount can have it meanwhile.
#[derive(Debug)]
pub struct KeptOverlay {
    path: PathBuf,
    file: Flock<File>,
    /// Where the header says what is done with it.
    state_at: u64,
}

/// Why a file cannot take a mount's changes.
#[derive(Debug)]
pub struct OverlayError {
    path: PathBuf,
    problem: Problem,
}

#[derive(Debug)]
enum Problem {
    /// It, or the image, cannot be read or written.
    Io(io::Error),
    /// It is no regular file.
    NotRegular,
    /// Another mount has it.
    InUse,
    /// It was not made here.
    NotOurs,
    /// QEMU found it damaged.
    Damaged,
    /// Its changes are partly in the image.
    Committing(PathBuf),
    /// It belongs to another image.
    OtherImage(PathBuf),
    /// Its image was changed.
    ImageChanged(PathBuf),
}

impl fmt::Display for OverlayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |path: &Path| Printable(path.as_os_str().as_bytes()).to_string();
        write!(f, "cannot use {} as an overlay: ", shown(&self.path))?;
        match &self.problem {
            Problem::Io(error) => error.fmt(f),
            Problem::NotRegular => f.write_str("it is no regular file"),
            Problem::InUse => f.write_str(
                "it is in use by another mount\n  hint: `guestimg status` shows your mounts",
            ),
            Problem::NotOurs => f.write_str(
                "it is a file of another kind, which is left alone\n  hint: name a file that is not there, and it is made",
            ),
            Problem::Damaged => f.write_str(
                "it is marked as damaged\n  hint: `qemu-img check -r all` may repair it; take a copy first",
            ),
            Problem::Committing(image) => write!(
                f,
                "its changes were being written to {} when that was interrupted\n  hint: `guestimg commit` with the same files goes on with it; until then the image is incomplete",
                shown(image)
            ),
            Problem::OtherImage(image) => write!(
                f,
                "it belongs to another image, {}\n  hint: each image takes an overlay of its own",
                shown(image)
            ),
            Problem::ImageChanged(image) => write!(
                f,
                "{} was written to, or copied, after the overlay was made\n  hint: if it is a copy with the same bytes, give it the time of the original (`touch -r`)",
                shown(image)
            ),
        }
    }
}

impl std::error::Error for OverlayError {}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl KeptOverlay {
    /// The overlay in the file `path` over `disk`; a new one where there is no such file.
    ///
    /// # Errors
    /// [`OverlayError`] where it cannot be made, or is not this disk's.
    pub fn over(path: &Path, disk: &Disk) -> Result<Self, OverlayError> {
        let failed = |problem| OverlayError { path: path.to_owned(), problem };
        match Self::existing(path, disk) {
            Err(OverlayError { problem: Problem::Io(error), .. })
                if error.kind() == io::ErrorKind::NotFound =>
            {
                Self::new(path, disk).map_err(failed)
            }
            done => done,
        }
    }

    /// The overlay in the file `path` over `disk`.
    ///
    /// # Errors
    /// [`OverlayError`] where there is none, or it is not this disk's.
    pub fn existing(path: &Path, disk: &Disk) -> Result<Self, OverlayError> {
        Self::open(path, |header| check(header, disk))
    }

    /// The overlay in the file `path` over `disk`, to be committed: one for which that was begun
    /// before, too.
    ///
    /// # Errors
    /// [`OverlayError`] where there is none, or it is not this disk's.
    pub fn to_commit(path: &Path, disk: &Disk) -> Result<Self, OverlayError> {
        Self::open(path, |header| match parse(header) {
            // The image is not what it was; that it is the same one, its name has to tell.
            Some(Belongs { state: COMMITS, name, corrupt: false, state_at, .. }) => {
                if name != name_of(disk) || size(header) != disk.sectors_size() {
                    return Err(Problem::OtherImage(name));
                }
                Ok(state_at)
            }
            _ => check(header, disk),
        })
    }

    fn open(
        path: &Path,
        check: impl Fn(&[u8]) -> Result<u64, Problem>,
    ) -> Result<Self, OverlayError> {
        let open = || {
            // Not to wait for a FIFO's reader.
            let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
            let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
            if !file.metadata()?.is_file() {
                return Err(Problem::NotRegular);
            }
            let file = locked(file)?;
            let mut header = vec![0; usize::try_from(CLUSTER).expect("it is small")];
            file.read_exact_at(&mut header, 0).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => Problem::NotOurs,
                _ => Problem::Io(error),
            })?;
            let state_at = check(&header)?;
            Ok(Self { path: path.to_owned(), file, state_at })
        };
        open().map_err(|problem| OverlayError { path: path.to_owned(), problem })
    }

    fn new(path: &Path, disk: &Disk) -> Result<Self, Problem> {
        let header = extension(disk)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        let file = locked(file)?;
        overlay::format(&file, disk.sectors_size(), &header)?;
        file.sync_all()?;
        // Its name too has to survive.
        sync_folder_of(path)?;
        Ok(Self { path: path.to_owned(), file, state_at: u64::from(HEADER_LEN) + 8 })
    }

    /// Notes that the image is about to get the changes. From then on they can only be committed.
    ///
    /// # Errors
    /// Those of pwrite(2) and fsync(2).
    pub fn begin_commit(&self) -> io::Result<()> {
        self.file.write_all_at(&[COMMITS], self.state_at)?;
        self.file.sync_all()
    }

    /// Removes the file.
    ///
    /// # Errors
    /// Those of unlink(2) and fsync(2).
    pub fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)?;
        sync_folder_of(&self.path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Has the disk keep the names beside `path`.
fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// What an overlay calls its image.
fn name_of(disk: &Disk) -> PathBuf {
    let name = disk.path.canonicalize().unwrap_or_else(|_| disk.path.clone());
    let bytes = name.as_os_str().as_bytes();
    OsStr::from_bytes(&bytes[..bytes.len().min(MAX_NAME)]).into()
}

fn locked(file: File) -> Result<Flock<File>, Problem> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => Problem::InUse,
        other => Problem::Io(other.into()),
    })
}

/// The extension for an overlay over `disk`, with its head and padded.
fn extension(disk: &Disk) -> io::Result<Vec<u8>> {
    let Fingerprint { contents, times } = disk.fingerprint()?;
    let mut data = vec![TAKES];
    data.extend_from_slice(&contents);
    data.extend_from_slice(&times);
    data.extend_from_slice(name_of(disk).as_os_str().as_bytes());
    let length = u32::try_from(data.len()).expect("names are cut");
    let mut bytes = [EXTENSION.to_be_bytes(), length.to_be_bytes()].concat();
    bytes.extend_from_slice(&data);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    Ok(bytes)
}

/// Checks that `header` is that of an overlay of ours over `disk`. Tells where its state is.
fn check(header: &[u8], disk: &Disk) -> Result<u64, Problem> {
    let Belongs { state, state_at, contents, times, name, corrupt } =
        parse(header).ok_or(Problem::NotOurs)?;
    if corrupt {
        return Err(Problem::Damaged);
    }
    if state != TAKES {
        return Err(Problem::Committing(name));
    }
    let now = disk.fingerprint()?;
    let is_alike = contents == now.contents && size(header) == disk.sectors_size();
    if is_alike && times == now.times {
        return Ok(state_at);
    }
    // What is called as before is the same image with something else in it.
    let is_known = is_alike || name == name_of(disk);
    Err(if is_known { Problem::ImageChanged(name) } else { Problem::OtherImage(name) })
}

/// Bytes of the disk, as a header that was parsed says.
fn size(header: &[u8]) -> u64 {
    word(header, 24, 8)
}

/// What the header of an overlay of ours says.
struct Belongs {
    /// [`TAKES`] or [`COMMITS`].
    state: u8,
    /// Where that is in the file.
    state_at: u64,
    contents: [u8; DIGEST],
    times: [u8; DIGEST],
    name: PathBuf,
    corrupt: bool,
}

/// Reads a header; `None` where it is not one of ours. QEMU is told its node's name for the image,
/// so that a backing file or one with the data must not be named here.
fn parse(header: &[u8]) -> Option<Belongs> {
    const DIRTY: u64 = 1;
    const CORRUPT: u64 = 2;
    let features = word(header, 72, 8);
    let good = header.starts_with(b"QFI\xfb")
        && word(header, 4, 4) == 3
        && word(header, 8, 8) == 0
        && word(header, 20, 4) == u64::from(CLUSTER_BITS)
        && word(header, 32, 4) == 0
        && features & !(DIRTY | CORRUPT) == 0;
    if !good {
        return None;
    }
    let mut at = usize::try_from(word(header, 100, 4)).ok()?;
    if at < HEADER_LEN as usize {
        return None;
    }
    loop {
        let head = header.get(at..at.checked_add(8)?)?;
        let length = usize::try_from(word(head, 4, 4)).ok()?;
        let data = header.get(at + 8..(at + 8).checked_add(length)?)?;
        match u32::try_from(word(head, 0, 4)).ok()? {
            0 => return None,
            EXTENSION => {
                let (&state, data) = data.split_first()?;
                let (contents, data) = data.split_first_chunk()?;
                let (times, name) = data.split_first_chunk()?;
                let name = OsStr::from_bytes(name).into();
                let corrupt = features & CORRUPT != 0;
                let (contents, times, state_at) = (*contents, *times, at as u64 + 8);
                let belongs = Belongs { state, state_at, contents, times, name, corrupt };
                return [TAKES, COMMITS].contains(&state).then_some(belongs);
            }
            _ => at = (at + 8).checked_add(length.checked_next_multiple_of(8)?)?,
        }
    }
}

/// The big-endian number of `length` bytes at `at`, which is within `bytes`.
fn word(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes[at..at + length].iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::image::{Format, OpenOptions as ImageOptions};

    fn disk(path: &Path) -> Disk {
        let options = ImageOptions { format: Some(Format::Raw), ..ImageOptions::default() };
        Disk::open(path, &options).unwrap()
    }

    fn reason(path: &Path, image: &Path) -> String {
        KeptOverlay::over(path, &disk(image)).unwrap_err().to_string()
    }

    #[test]
    fn an_overlay_is_one_mounts_and_one_images() {
        let folder = tempfile::tempdir().unwrap();
        let [image, other, overlay] = ["image", "other", "o.qcow2"].map(|n| folder.path().join(n));
        fs::write(&image, vec![1; 100_000]).unwrap();
        fs::write(&other, vec![2; 100_000]).unwrap();

        let first = KeptOverlay::over(&overlay, &disk(&image)).unwrap();
        assert!(reason(&overlay, &image).contains("in use by another mount"));
        drop(first);
        drop(KeptOverlay::over(&overlay, &disk(&image)).unwrap());

        let said = reason(&overlay, &other);
        assert!(said.contains("belongs to another image"), "{said}");
        assert!(said.contains(image.to_str().unwrap()), "{said}");
        let file = File::options().write(true).open(&image).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(reason(&overlay, &image).contains("was written to, or copied"));
        fs::write(&image, vec![3; 100_000]).unwrap();
        assert!(reason(&overlay, &image).contains("was written to, or copied"));
    }

    #[test]
    fn a_file_that_was_not_made_here_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let [image, overlay] = ["image", "o.qcow2"].map(|n| folder.path().join(n));
        fs::write(&image, vec![1; 100_000]).unwrap();
        let mut plain = vec![0; 200_000];
        overlay::format(&tempfile::tempfile().unwrap(), 512, &[]).unwrap();
        let foreign = tempfile::NamedTempFile::new().unwrap();
        overlay::format(foreign.as_file(), 100_352, &[]).unwrap();
        for bytes in [b"".to_vec(), b"text".to_vec(), plain.clone(), fs::read(foreign).unwrap()] {
            fs::write(&overlay, &bytes).unwrap();
            assert!(reason(&overlay, &image).contains("of another kind"));
            assert!(fs::read(&overlay).unwrap() == bytes);
        }
        plain.truncate(9);
        assert!(reason(folder.path(), &image).contains("directory"));
    }

    #[test]
    fn what_is_being_committed_can_only_be_committed() {
        let folder = tempfile::tempdir().unwrap();
        let [image, other, overlay] = ["image", "other", "o.qcow2"].map(|n| folder.path().join(n));
        for image in [&image, &other] {
            fs::write(image, vec![1; 100_000]).unwrap();
        }
        KeptOverlay::over(&overlay, &disk(&image)).unwrap().begin_commit().unwrap();
        assert!(reason(&overlay, &image).contains("hint: `guestimg commit`"));
        // Some of it is there.
        fs::write(&image, vec![2; 100_000]).unwrap();
        let again = KeptOverlay::to_commit(&overlay, &disk(&image)).unwrap();
        again.begin_commit().unwrap();
        drop(again);
        assert!(KeptOverlay::to_commit(&overlay, &disk(&other)).is_err());
        KeptOverlay::to_commit(&overlay, &disk(&image)).unwrap().remove().unwrap();
        assert!(!overlay.exists());
    }

    #[test]
    fn headers_that_make_no_sense_are_not_ours() {
        let folder = tempfile::tempdir().unwrap();
        let [image, overlay] = ["image", "o.qcow2"].map(|n| folder.path().join(n));
        fs::write(&image, vec![1; 100_000]).unwrap();
        drop(KeptOverlay::over(&overlay, &disk(&image)).unwrap());
        let good = fs::read(&overlay).unwrap();
        assert!(parse(&good).is_some());
        // Whatever bit is wrong, nothing panics; a name of another file is never accepted.
        for bit in 0..200 * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let parsed = parse(&bytes);
            assert!(parsed.is_none() || !(64..32 * 8).contains(&bit) || bit >= 128, "{bit}");
        }
    }
}
