//! How a VM begins, and the files that it is made of: its memory, and what it boots. QEMU gets all of
//! them as descriptors, and opens some once more by their names in `/proc/self/fd`, since its
//! options take no descriptor.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::arguments::{BootFiles, Machine, Memory};
use super::confinement::Reopened;
use super::qmp::Version;
use super::template::{self, Template};
use super::{VmConfig, VmError, bulk};

/// How a VM begins.
pub enum Boot<'a> {
    /// The kernel starts.
    Cold,
    /// The kernel starts; what the folder gets is a template once [`super::Vm::save`] was called.
    ToSave(&'a Path),
    /// It goes on where a template was saved, once [`super::Vm::restore`] was called.
    Restore(&'a Template),
}

/// The first version of QEMU that maps memory privately from a file that it may not write.
const MAPS_READ_ONLY: (u32, u32) = (8, 2);

/// The files of a VM that is about to start.
pub struct Files<'a> {
    kernel: Option<(File, File)>,
    ram: Ram<'a>,
    bulk: Option<File>,
    is_saved: bool,
}

enum Ram<'a> {
    Anonymous,
    New(File),
    Template(&'a Template),
}

impl<'a> Boot<'a> {
    /// Opens or makes the files.
    ///
    /// # Errors
    /// [`VmError`] where one cannot be had.
    pub(super) fn files(&self, config: &VmConfig) -> Result<Files<'a>, VmError> {
        let kernel = match self {
            Self::Restore(_) => None,
            Self::Cold | Self::ToSave(_) => {
                let appliance = config.appliance;
                Some((readable(&appliance.kernel)?, readable(&appliance.initramfs)?))
            }
        };
        let ram = match self {
            Self::Cold => Ram::Anonymous,
            Self::ToSave(folder) => {
                let size = u64::from(config.memory_mib) << 20;
                let file = new_file(&folder.join(template::RAM), size);
                Ram::New(file.map_err(|error| VmError::Save((*folder).to_owned(), error))?)
            }
            Self::Restore(template) => Ram::Template(template),
        };
        let bulk = config.bulk.then(|| self.bulk_memory()).transpose()?;
        Ok(Files { kernel, ram, bulk, is_saved: matches!(self, Self::ToSave(_)) })
    }

    /// The file with the memory of the guest's second node.
    fn bulk_memory(&self) -> Result<File, VmError> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        match self {
            Self::ToSave(folder) => new_file(&folder.join(template::BULK), bulk::SIZE)
                .map_err(|error| VmError::Save((*folder).to_owned(), error)),
            Self::Restore(Template { bulk: None, .. }) => Err(VmError::Bulk(missing())),
            Self::Cold | Self::Restore(_) => bulk::new_memory().map_err(VmError::Bulk),
        }
    }
}

impl Files<'_> {
    /// Those that QEMU inherits.
    pub fn all(&self) -> Vec<BorrowedFd<'_>> {
        let kernel = self.kernel.iter().flat_map(|(kernel, initramfs)| [kernel, initramfs]);
        kernel.chain(self.ram()).chain(&self.bulk).map(AsFd::as_fd).collect()
    }

    /// Those that it opens once more. What lies in memory only needs no leave.
    pub fn reopened(&self) -> Vec<(BorrowedFd<'_>, Reopened)> {
        let kernel = self.kernel.iter().flat_map(|(kernel, initramfs)| [kernel, initramfs]);
        let kernel = kernel.map(|file| (file, Reopened::ToRead));
        let ram = self.ram().map(|file| (file, self.ram_reopened()));
        let saved = self.bulk.iter().filter(|_| self.is_saved);
        let saved = saved.map(|file| (file, Reopened::ToWrite));
        kernel.chain(ram).chain(saved).map(|(file, how)| (file.as_fd(), how)).collect()
    }

    /// What the command line says of them.
    pub fn machine(&self) -> Machine {
        let number = |file: &File| file.as_raw_fd();
        Machine {
            boot: self.kernel.as_ref().map(|(kernel, initramfs)| BootFiles {
                kernel: number(kernel),
                initramfs: number(initramfs),
            }),
            memory: match &self.ram {
                Ram::Anonymous => Memory::Anonymous,
                Ram::New(file) => Memory::Kept(number(file)),
                Ram::Template(template) => Memory::Template {
                    ram: number(&template.ram),
                    read_only: self.ram_reopened() == Reopened::ToRead,
                },
            },
            bulk: self.bulk.as_ref().map(number),
        }
    }

    /// Gives the second node's memory what the template has of it: after QEMU was started, which is
    /// busy with itself for longer than that takes, and before it restores.
    ///
    /// # Errors
    /// [`VmError::Bulk`].
    pub fn load(&self) -> Result<(), VmError> {
        match (&self.ram, &self.bulk) {
            (Ram::Template(Template { bulk: Some(saved), .. }), Some(memory)) => {
                bulk::load(saved, memory).map_err(VmError::Bulk)
            }
            _ => Ok(()),
        }
    }

    /// Bytes of the largest that QEMU may write.
    pub fn largest(&self) -> u64 {
        let files = self.ram().into_iter().chain(&self.bulk);
        files.filter_map(|file| file.metadata().ok()).map(|stat| stat.len()).max().unwrap_or(0)
    }

    /// The memory of the second node, which we map as well.
    pub fn into_bulk(self) -> Option<File> {
        self.bulk
    }

    fn ram(&self) -> Option<&File> {
        match &self.ram {
            Ram::Anonymous => None,
            Ram::New(file) => Some(file),
            Ram::Template(template) => Some(&template.ram),
        }
    }

    fn ram_reopened(&self) -> Reopened {
        match &self.ram {
            Ram::Template(template) if maps_read_only(&template.qemu_version) => Reopened::ToRead,
            _ => Reopened::ToWrite,
        }
    }
}

fn maps_read_only(version: &Version) -> bool {
    (version.major, version.minor) >= MAPS_READ_ONLY
}

/// Leaves the saved memory in a state in which nobody is to write it, if the QEMU of `version` can
/// do without.
///
/// # Errors
/// As chmod(2).
pub fn protect(saved: &Path, version: &Version) -> io::Result<()> {
    let mode = if maps_read_only(version) { 0o444 } else { 0o666 };
    fs::set_permissions(saved, Permissions::from_mode(mode))
}

/// A new file in a folder that only its owner can enter, in the place of that of a QEMU which did not
/// start. It is open to all, since the QEMU that root starts is nobody.
fn new_file(path: &Path, size: u64) -> io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    file.set_permissions(Permissions::from_mode(0o666))?;
    file.set_len(size)?;
    Ok(file)
}

/// A file of the appliance; a copy in memory where root may read it and nobody may not, who is the
/// one that QEMU runs as then.
fn readable(path: &PathBuf) -> Result<File, VmError> {
    let opened = || -> io::Result<File> {
        let mut file = File::open(path)?;
        if !nix::unistd::geteuid().is_root() || file.metadata()?.mode() & 0o004 != 0 {
            return Ok(file);
        }
        let mut copy = File::from(memfd_create("appliance", MFdFlags::MFD_CLOEXEC)?);
        io::copy(&mut file, &mut copy)?;
        Ok(copy)
    };
    opened().map_err(|error| VmError::Appliance(path.clone(), error))
}

/// The name by which QEMU opens an inherited file.
pub fn inherited_path(number: RawFd) -> String {
    format!("/proc/self/fd/{number}")
}
