//! What a live mount says of itself, for `guestimg status`: a piece of memory of the serving
//! process, found among its open files. It is gone when the process is, however that ended.
//!
//! Of a mount that can be written it also says how that ended: who unmounts it reads it once more
//! when the process is gone.
//!
//! It is there for the user's own eyes. Who else could read it may read all of the process.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::path_json;
use crate::vm::accelerator::Accelerator;
use crate::vm::confinement::Report;

/// The memory's name, as `/proc/PID/fd` shows it.
const NAME: &str = "guestmnt-session";

/// Longest record that is read: 255 images with long names.
const MAX_LEN: u64 = 2 << 20;

/// The record of one mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The images, sda first.
    #[serde(with = "path_json::list")]
    pub images: Vec<PathBuf>,
    /// When it was mounted, in seconds since 1970.
    pub since: u64,
    /// What runs the guest.
    pub accelerator: Accelerator,
    /// QEMU's process id.
    pub qemu: u32,
    /// How many VMs followed one that died.
    pub revivals: u32,
    /// What QEMU is confined by.
    pub confinement: Report,
    /// What takes or holds changes, one for each image; empty where there are none.
    #[serde(with = "path_json::list")]
    pub overlays: Vec<PathBuf>,
    /// Whether files can be written: to the overlays, or to the images where there are none.
    pub writable: bool,
    /// How it ended, where something could be written.
    pub end: End,
}

/// How a mount ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// It has not, or nobody could say.
    #[default]
    Open,
    /// Everything that was written is kept.
    Kept,
    /// Something is not, for this reason.
    Lost(String),
}

/// Another process's record, which can be read when that is gone too.
#[derive(Debug)]
pub struct Shown(File);

impl Record {
    /// Shows the record as long as the file is open.
    ///
    /// # Errors
    /// As memfd_create(2).
    pub fn publish(&self) -> io::Result<File> {
        let file = File::from(memfd_create(NAME, MFdFlags::MFD_CLOEXEC)?);
        self.update(&file)?;
        Ok(file)
    }

    /// Shows this record in the place of the one that is `shown`.
    ///
    /// # Errors
    /// As write(2).
    pub fn update(&self, shown: &File) -> io::Result<()> {
        shown.set_len(0)?;
        shown.write_all_at(&serde_json::to_vec(self)?, 0)
    }

    /// The record of the process `server`; `None` where it shows none, or we may not look.
    #[must_use]
    pub fn of(server: u32) -> Option<Self> {
        Shown::by(server)?.read()
    }
}

impl Shown {
    /// That of the process `server`; `None` where it shows none, or we may not look.
    #[must_use]
    pub fn by(server: u32) -> Option<Self> {
        let link = format!("/memfd:{NAME} (deleted)");
        let files = fs::read_dir(format!("/proc/{server}/fd")).ok()?.flatten();
        let mut named = files.map(|entry| entry.path());
        let path = named.find(|path| {
            fs::read_link(path).is_ok_and(|found| found.as_os_str() == link.as_str())
        })?;
        File::open(path).ok().map(Self)
    }

    /// What it says now.
    #[must_use]
    pub fn read(&self) -> Option<Record> {
        let mut text = Vec::new();
        // Opened anew, so that it is read from its beginning.
        let file = File::open(format!("/proc/self/fd/{}", self.0.as_raw_fd())).ok()?;
        file.take(MAX_LEN).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_record_is_found_while_its_file_is_open() {
        let record = Record {
            images: vec!["/a b.vmdk".into(), OsStr::from_bytes(b"/\xff.vmdk").into()],
            since: 1_400_000_000,
            accelerator: Accelerator::Tcg,
            qemu: 7,
            revivals: 0,
            confinement: Report(Vec::new()),
            overlays: Vec::new(),
            writable: false,
            end: End::Open,
        };
        let me = std::process::id();
        let published = record.publish().unwrap();
        assert_eq!(Record::of(me), Some(record.clone()));
        let shown = Shown::by(me).unwrap();
        Record { end: End::Kept, ..record }.update(&published).unwrap();
        drop(published);
        assert_eq!(shown.read().map(|record| record.end), Some(End::Kept));
        drop(shown);
        assert_eq!(Record::of(me), None);
    }
}
