//! The appliance's initramfs: an uncompressed newc archive.
//!
//! Uncompressed, because unpacking costs the guest more under TCG than reading costs the host,
//! and the image is read once, for the template.
//! Source: Documentation/driver-api/early-userspace/buffer-format.rst.

use std::io::{self, Write};

use cpio::NewcBuilder;
use cpio::newc::ModeFileType;

/// Folders that the daemon mounts on, and those that the archive's files need. A folder comes
/// before what is in it.
pub const FOLDERS: &[&str] =
    &["dev", "modules", "proc", "programs", "run", "sys", "sysroot", "tmp"];

/// Character devices that must be there before devtmpfs is: the kernel opens the console for
/// PID 1 itself. Name, mode, major, minor; source: Documentation/admin-guide/devices.txt.
const DEVICES: &[(&str, u32, u32, u32)] =
    &[("dev/console", 0o600, 5, 1), ("dev/null", 0o666, 1, 3)];

/// Writes an archive entry by entry.
pub struct Initramfs<W: Write> {
    archive: W,
    entries: u32,
}

impl<W: Write> Initramfs<W> {
    /// Starts an archive with [`FOLDERS`] and the devices in it.
    ///
    /// # Errors
    /// Those of `archive`.
    pub fn new(archive: W) -> io::Result<Self> {
        let mut new = Self { archive, entries: 0 };
        for folder in FOLDERS {
            new.folder(folder)?;
        }
        for &(name, mode, major, minor) in DEVICES {
            let entry = NewcBuilder::new(name).mode(mode).rdev_major(major).rdev_minor(minor);
            new.add(entry.set_mode_file_type(ModeFileType::Char), &[])?;
        }
        Ok(new)
    }

    /// Adds a folder.
    ///
    /// # Errors
    /// Those of the archive.
    pub fn folder(&mut self, name: &str) -> io::Result<()> {
        let entry = NewcBuilder::new(name).mode(0o755).nlink(2);
        self.add(entry.set_mode_file_type(ModeFileType::Directory), &[])
    }

    /// Adds a file with permission bits `mode`.
    ///
    /// # Errors
    /// Those of the archive, and `InvalidInput` for 4 GiB and more.
    pub fn file(&mut self, name: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let entry = NewcBuilder::new(name).mode(mode);
        self.add(entry.set_mode_file_type(ModeFileType::Regular), bytes)
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// Those of the archive.
    pub fn finish(self) -> io::Result<W> {
        let mut archive = cpio::newc::trailer(self.archive)?;
        archive.flush()?;
        Ok(archive)
    }

    fn add(&mut self, entry: NewcBuilder, bytes: &[u8]) -> io::Result<()> {
        let len = u32::try_from(bytes.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "newc files end at 4 GiB"))?;
        self.entries += 1;
        // Equal inode numbers would make hard links of them.
        let mut writer = entry.ino(self.entries).write(&mut self.archive, len);
        writer.write_all(bytes)?;
        writer.finish().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_holds_devices_folders_and_files() {
        let mut initramfs = Initramfs::new(Vec::new()).unwrap();
        initramfs.file("init", 0o755, b"daemon").unwrap();
        initramfs.file("modules/list", 0o644, b"a: b\n").unwrap();
        let archive = initramfs.finish().unwrap();

        let mut rows = Vec::new();
        let mut rest = &archive[..];
        loop {
            let reader = cpio::NewcReader::new(rest).unwrap();
            let entry = reader.entry();
            if entry.is_trailer() {
                break;
            }
            rows.push((
                entry.name().to_owned(),
                entry.mode(),
                (entry.rdev_major(), entry.rdev_minor()),
                entry.file_size(),
            ));
            rest = reader.finish().unwrap();
        }
        let row = |name: &str| rows.iter().find(|row| row.0 == name).unwrap().clone();
        assert_eq!(row("dev/console").1, 0o020_600);
        assert_eq!(row("dev/console").2, (5, 1));
        assert_eq!(row("dev/null").2, (1, 3));
        assert_eq!(row("sysroot").1, 0o040_755);
        assert_eq!(row("init"), ("init".into(), 0o100_755, (0, 0), 6));
        assert_eq!(row("modules/list").3, 5);
    }
}
