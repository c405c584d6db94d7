//! `guestimg export`: a disk, partition or volume as a file of the host.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgMatches, Args};
use guestmnt_protocol::path::{GuestPath, Printable};
use guestmnt_protocol::volume::VolumeName;
use log::info;
use serde_json::json;

use super::output::say;
use crate::cli::look::{LookArguments, Opened};
use crate::cli::progress::Progress;
use crate::disk::DiskReader;
use crate::export::{Check, Form, Source, export};
use crate::extract::new_file::NewFile;
use crate::files::{Files, Follow};
use crate::image::{Disk, OpenOptions};
use crate::session::launch::launch;
use crate::session::plan::{DiskSpec, Plan};
use crate::session::selection::Selection;
use crate::session::timings::Timings;

/// Writes a disk, or a partition or volume of it, to a file of its own
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    pub(super) look: LookArguments,

    /// What the file is to be
    #[arg(short = 'O', long, value_name = "raw|qcow2", default_value = "raw")]
    output_format: Form,

    /// Read the file again, compare, and tell the disk's SHA-256
    #[arg(long)]
    check: bool,

    /// Replace the file if it is there already
    #[arg(short = 'f', long)]
    force: bool,

    /// Print what was done as JSON
    #[arg(long)]
    json: bool,

    /// The disk, which is sda, and a device such as sda1 or /dev/VG/LV; its volumes' other disks
    /// are named with -a
    #[arg(value_name = "DISK[:DEV]")]
    disk: PathBuf,

    /// The file to write
    #[arg(value_name = "OUT")]
    out: PathBuf,
}

/// What came of it.
struct Exported {
    size: u64,
    sha256: Option<String>,
}

/// Writes the file.
///
/// # Errors
/// Whatever stopped it, in words for people; there is no file then.
pub fn run(arguments: &Arguments, matches: &ArgMatches) -> Result<ExitCode, Box<dyn Display>> {
    let (path, device) = split(&arguments.disk);
    let first = arguments.look.images.disk(matches, "disk", path);
    let further = arguments.look.images.disks(matches);
    let file = NewFile::beside(&arguments.out, arguments.force).map_err(super::boxed)?;
    let alone = device.is_none() && further.is_empty();
    let reader = if alone { arguments.reader(&first)? } else { None };
    let exported = match reader {
        Some(disk) => arguments.write(&disk, &file)?,
        None => {
            let disks = [vec![first], further].concat();
            let plan = arguments.look.plan(disks, Selection::Blocks)?;
            arguments.through_vm(&plan, device.as_ref(), &file)?
        }
    };
    file.finish().map_err(super::boxed)?;
    if arguments.json {
        say!("{}", json!({ "size": exported.size, "sha256": exported.sha256 }));
    } else if let Some(sha256) = exported.sha256 {
        say!("sha256 {sha256}");
    }
    Ok(ExitCode::SUCCESS)
}

impl Arguments {
    /// The disk, if this process can read it itself.
    fn reader(&self, spec: &DiskSpec) -> Result<Option<DiskReader>, Box<dyn Display>> {
        let disks = self.look.images.resolved(vec![spec.clone()]).map_err(super::boxed)?;
        let [spec] = disks.as_slice() else {
            let names = disks.iter().map(|disk| format!("\n    {}", disk.path.display()));
            let names: String = names.collect();
            return Err(super::boxed(format!("several disks are meant:{names}")));
        };
        let allow_paths = self.look.images.allow_path.clone();
        let options = OpenOptions { format: spec.format, block_size: spec.block_size, allow_paths };
        let disk = Disk::open(&spec.path, &options).map_err(super::boxed)?;
        for warning in &disk.warnings {
            log::warn!("{warning}");
        }
        let reader = DiskReader::of(&disk).map_err(super::boxed)?;
        if reader.is_some() {
            info!("no VM is needed: the disk is read here");
        }
        Ok(reader)
    }

    fn through_vm(
        &self,
        plan: &Plan,
        device: Option<&VolumeName>,
        file: &NewFile,
    ) -> Result<Exported, Box<dyn Display>> {
        let opened = Opened::of(launch(plan, &Timings::start()).map_err(super::boxed)?)?;
        let name = device.map_or_else(|| "sda".to_owned(), VolumeName::file_name);
        let exported = self.device(&opened.files, &name, file);
        // Devices are all shown, or none.
        let _ = opened.close();
        exported
    }

    fn device(
        &self,
        files: &Files,
        name: &str,
        file: &NewFile,
    ) -> Result<Exported, Box<dyn Display>> {
        let found = files.find(name.as_bytes(), Follow::NotLast).map_err(|_| {
            let there = files.entries(&GuestPath::root()).map(|entries| entries.all);
            let names = there
                .unwrap_or_default()
                .into_iter()
                .map(|entry| format!(" {}", Printable(entry.name.as_bytes())));
            let names: String = names.collect();
            super::boxed(format!("there is no {name} on the disk; there are:{names}"))
        })?;
        self.write(&files.contents(&found.path, &found.attr), file)
    }

    fn write(&self, source: &dyn Source, file: &NewFile) -> Result<Exported, Box<dyn Display>> {
        let progress = Progress::of_bytes(source.size());
        let check = if self.check { Check::Yes } else { Check::No };
        let mut advance = |bytes| progress.advance(bytes);
        let sha256 = export(source, file.as_file(), self.output_format, check, &mut advance)
            .map_err(|error| super::boxed(format!("{}: {error}", self.out.display())))?;
        Ok(Exported { size: source.size(), sha256 })
    }
}

/// Splits `DISK:DEV`. The name of a file that is there is the disk's alone, whatever is in it.
fn split(text: &Path) -> (PathBuf, Option<VolumeName>) {
    let whole = || (text.to_owned(), None);
    if text.exists() {
        return whole();
    }
    let Some((disk, device)) = text.to_str().and_then(|text| text.rsplit_once(':')) else {
        return whole();
    };
    let full = if device.starts_with('/') { device.to_owned() } else { format!("/dev/{device}") };
    match full.parse() {
        Ok(device) => (disk.into(), Some(device)),
        Err(_) => whole(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_behind_the_disk() {
        let table = [
            ("disk.vmdk", "disk.vmdk", None),
            ("disk.vmdk:sda1", "disk.vmdk", Some("/dev/sda1")),
            ("disk.vmdk:/dev/sda2", "disk.vmdk", Some("/dev/sda2")),
            ("disk.vmdk:vg/root", "disk.vmdk", Some("/dev/vg/root")),
            ("disk.vmdk:md0", "disk.vmdk", Some("/dev/md0")),
            ("x.ova:disk1.vmdk", "x.ova:disk1.vmdk", None),
            ("x.ova:disk1.vmdk:sda1", "x.ova:disk1.vmdk", Some("/dev/sda1")),
            ("a:b", "a:b", None),
        ];
        for (text, disk, device) in table {
            let device = device.map(|name: &str| name.parse().unwrap());
            assert_eq!(split(text.as_ref()), (disk.into(), device), "{text}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk:sda1");
        std::fs::write(&path, "").unwrap();
        assert_eq!(split(&path), (path, None));
    }
}
