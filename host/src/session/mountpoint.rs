//! The mountpoint: mounted and unmounted through fusermount3, which is all that an ordinary
//! user may call.
//!
//! The kernel's mount table is the only registry of live mounts. The mount's source names the
//! serving process, so nothing has to be kept in a file that could be left behind.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use guestmnt_protocol::path::{GuestPath, Printable};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::fuse_device::{self, FuseDeviceError};
use crate::sys;

/// The filesystem type in the mount table.
pub const FILESYSTEM_TYPE: &str = "fuse.guestmnt";

/// What stands before the process id in a mount's source.
const SOURCE_PREFIX: &str = "guestmnt:";

const FUSERMOUNT: &str = "fusermount3";

/// Why a folder cannot be mounted on, or unmounted.
#[derive(Debug)]
pub enum MountpointError {
    /// It cannot be looked at.
    Unreachable(PathBuf, io::Error),
    /// It is no folder.
    NotAFolder(PathBuf),
    /// Something is mounted on it.
    Busy(PathBuf),
    /// There is no FUSE for this user.
    Device(FuseDeviceError),
    /// There is no fusermount3.
    NoFusermount(io::Error),
    /// fusermount3 says no.
    Refused(String),
    /// The mount table cannot be read.
    MountTable(io::Error),
}

impl fmt::Display for MountpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(path, error) => {
                write!(f, "cannot mount on {}: {error}", path.display())?;
                if error.kind() == io::ErrorKind::NotFound {
                    write!(f, "\n  hint: mkdir {}", path.display())?;
                }
                Ok(())
            }
            Self::NotAFolder(path) => write!(
                f,
                "cannot mount on {}: not a folder\n  hint: name a folder that you own",
                path.display()
            ),
            Self::Busy(path) => write!(
                f,
                "cannot mount on {0}: something is mounted there already\n  hint: guestunmnt {0}",
                path.display()
            ),
            Self::Device(error) => write!(f, "{error}\n  hint: {}", error.hint()),
            Self::NoFusermount(error) => write!(
                f,
                "cannot run {FUSERMOUNT}: {error}\n  hint: install it (Debian: apt install fuse3)"
            ),
            Self::Refused(reason) => write!(f, "{reason}"),
            Self::MountTable(error) => write!(f, "cannot read the mount table: {error}"),
        }
    }
}

impl std::error::Error for MountpointError {}

/// A folder that can be mounted on, by its absolute path without symbolic links.
#[derive(Clone, Debug)]
pub struct Mountpoint(PathBuf);

impl Mountpoint {
    /// Checks `path`.
    ///
    /// # Errors
    /// [`MountpointError`] where it is no folder or busy, or where this user has no FUSE.
    pub fn check(path: &Path) -> Result<Self, MountpointError> {
        let absolute = fs::canonicalize(path)
            .map_err(|error| MountpointError::Unreachable(path.to_owned(), error))?;
        if !absolute.is_dir() {
            return Err(MountpointError::NotAFolder(path.to_owned()));
        }
        if mounts()?.iter().any(|mount| mount.mountpoint == absolute) {
            return Err(MountpointError::Busy(path.to_owned()));
        }
        // Before a VM is started for nothing, and in words that say what to do.
        fuse_device::check().map_err(MountpointError::Device)?;
        Ok(Self(absolute))
    }

    /// The folder's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Mounts here with `options` besides the fixed ones (no set-user-id programs, no device nodes).
    /// Gives the FUSE device and the mount.
    ///
    /// # Errors
    /// [`MountpointError`].
    pub fn mount(
        &self,
        access: MountAccess,
        options: &[String],
    ) -> Result<(OwnedFd, FuseMount), MountpointError> {
        let (ours, theirs) = UnixStream::pair().map_err(MountpointError::NoFusermount)?;
        let source = format!("fsname={SOURCE_PREFIX}{}", std::process::id());
        let access = match access {
            MountAccess::ReadOnly => "ro",
            MountAccess::Writable => "rw",
        };
        let fixed = [access, "nosuid", "nodev", "subtype=guestmnt", &source];
        let all: Vec<&str> = fixed.into_iter().chain(options.iter().map(String::as_str)).collect();
        // The helper's end has to survive exec; it is closed here right after.
        fcntl(theirs.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))
            .map_err(|error| MountpointError::NoFusermount(error.into()))?;
        let mut helper = Command::new(FUSERMOUNT)
            .args(["-o", &all.join(","), "--"])
            .arg(&self.0)
            .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(MountpointError::NoFusermount)?;
        drop(theirs);
        let device = sys::receive_fd(&ours);
        let mut said = Vec::new();
        if let Some(stderr) = &mut helper.stderr {
            // What it said is a courtesy; that it failed is known without.
            let _ = stderr.read_to_end(&mut said);
        }
        // It may have been reaped already where our caller ignores SIGCHLD.
        let _ = helper.wait();
        match device {
            Ok(device) => Ok((device, FuseMount { mountpoint: self.clone() })),
            Err(_) => Err(MountpointError::Refused(Printable(said.trim_ascii()).to_string())),
        }
    }
}

/// A mount of ours. Dropping it unmounts, lazily where it is in use.
pub struct FuseMount {
    mountpoint: Mountpoint,
}

/// What can be done with a mount's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountAccess {
    /// They can be read.
    ReadOnly,
    /// They can be read and written.
    Writable,
}

impl FuseMount {
    /// Has the kernel hand over what it has of what was written, unless it is unmounted already; and
    /// waits for what it has of the files `open`. Of FUSE filesystems syncfs(2) alone does not wait.
    ///
    /// # Errors
    /// As syncfs(2) and fsync(2). A file that is not there any more is none.
    pub fn sync(&self, open: &[GuestPath]) -> io::Result<()> {
        if !self.is_there() {
            return Ok(());
        }
        nix::unistd::syncfs(&fs::File::open(&self.mountpoint.0)?)?;
        for path in open {
            let path = self.mountpoint.0.join(OsStr::from_bytes(path.as_bytes()));
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
            match fs::File::options().read(true).custom_flags(flags).open(path) {
                Ok(file) => file.sync_all()?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn is_there(&self) -> bool {
        let here = |mount: &MountEntry| {
            mount.mountpoint == self.mountpoint.0 && mount.server() == Some(std::process::id())
        };
        mounts().is_ok_and(|mounts| mounts.iter().any(here))
    }
}

impl Drop for FuseMount {
    fn drop(&mut self) {
        if self.is_there() && unmount(&self.mountpoint.0, Unmount::Now).is_err() {
            // In use: it disappears for newcomers at once, and for the rest when we exit.
            let _ = unmount(&self.mountpoint.0, Unmount::Lazily);
        }
    }
}

/// How to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// Unless it is in use.
    Now,
    /// Even when it is in use.
    Lazily,
}

/// Unmounts a FUSE filesystem.
///
/// # Errors
/// [`MountpointError::Refused`] with fusermount3's words, where it is in use among others.
pub fn unmount(path: &Path, how: Unmount) -> Result<(), MountpointError> {
    let mut command = Command::new(FUSERMOUNT);
    command.args(["-u", "-q"]);
    if how == Unmount::Lazily {
        command.arg("-z");
    }
    let output = command
        .arg("--")
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(MountpointError::NoFusermount)?;
    if output.status.success() {
        return Ok(());
    }
    Err(MountpointError::Refused(Printable(output.stderr.trim_ascii()).to_string()))
}

/// A line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Where.
    pub mountpoint: PathBuf,
    /// Its filesystem type.
    pub kind: String,
    /// Its source.
    pub source: String,
}

impl MountEntry {
    /// Whether guestmnt mounted it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.kind == FILESYSTEM_TYPE
    }

    /// The process that serves it, if it is ours.
    #[must_use]
    pub fn server(&self) -> Option<u32> {
        if !self.is_ours() {
            return None;
        }
        self.source.strip_prefix(SOURCE_PREFIX)?.parse().ok()
    }
}

/// The mount table of this process, oldest mount first.
///
/// # Errors
/// [`MountpointError::MountTable`].
pub fn mounts() -> Result<Vec<MountEntry>, MountpointError> {
    let table = fs::read("/proc/self/mountinfo").map_err(MountpointError::MountTable)?;
    Ok(table.split(|&b| b == b'\n').filter_map(parse_entry).collect())
}

/// Source: proc_pid_mountinfo(5).
fn parse_entry(line: &[u8]) -> Option<MountEntry> {
    let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let separator = fields.iter().position(|field| *field == b"-")?;
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    Some(MountEntry {
        mountpoint: OsString::from_vec(unescape(fields.get(4)?)).into(),
        kind: text(fields.get(separator + 1)?),
        source: text(fields.get(separator + 2)?),
    })
}

/// Undoes the table's octal escapes of space, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &after[3..] } else { after };
    }
    bytes
}

/// `path` made absolute where its last part may be a mount whose server is dead, so that
/// nothing below its folder is looked at.
///
/// # Errors
/// Where the folder that it is in cannot be resolved.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    if let Ok(path) = fs::canonicalize(path) {
        return Ok(path);
    }
    let trimmed: PathBuf = path.components().collect();
    let name = trimmed.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let folder = match trimmed.parent() {
        Some(folder) if !folder.as_os_str().as_bytes().is_empty() => folder,
        _ => Path::new("."),
    };
    Ok(fs::canonicalize(folder)?.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_mount_table_is_read() {
        let line =
            b"36 35 98:0 / /mnt/a\\040b\\134 rw,nosuid shared:1 - fuse.guestmnt guestmnt:4711 ro";
        let entry = parse_entry(line).unwrap();
        assert_eq!(entry.mountpoint, Path::new("/mnt/a b\\"));
        assert_eq!(entry.server(), Some(4711));
    }

    #[test]
    fn mounts_of_others_have_no_server_of_ours() {
        let line = b"36 35 98:0 / /mnt rw - fuse.sshfs guestmnt:4711 rw";
        assert_eq!(parse_entry(line).unwrap().server(), None);
    }

    #[test]
    fn a_file_and_a_missing_folder_are_no_mountpoints() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Mountpoint::check(file.path()).unwrap_err();
        assert!(matches!(error, MountpointError::NotAFolder(_)), "{error}");
        let error = Mountpoint::check(Path::new("/nonexistent/folder")).unwrap_err();
        assert!(error.to_string().contains("hint: mkdir /nonexistent/folder"), "{error}");
    }

    #[test]
    fn a_folder_with_a_mount_is_busy() {
        let error = Mountpoint::check(Path::new("/proc")).unwrap_err();
        assert!(matches!(error, MountpointError::Busy(_)), "{error}");
    }
}
