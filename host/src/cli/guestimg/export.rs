//! `guestimg export`: a disk, partition or volume as a file of the host.

use std::ffi::OsStr;
use std::fmt::Display;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgMatches, Args};
use guestmnt_protocol::path::{GuestPath, Printable};
use guestmnt_protocol::volume::VolumeName;
use log::info;
use serde_json::{Value, json};

use super::output::say;
use crate::cli::look::{LookArguments, Opened};
use crate::cli::progress::Progress;
use crate::disk::DiskReader;
use crate::export::{Check, Form, Source, export};
use crate::extract::new_file::NewFile;
use crate::files::{Files, Follow};
use crate::image::{Disk, Missing, OnMissing, OpenOptions};
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

    /// Export a disk that was cut short too, with zeros in the place of what its files lack
    #[arg(long)]
    allow_truncated: bool,

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
    let (exported, filled) = match reader {
        Some((reader, disk)) => (arguments.write(&reader, &file)?, Vec::from_iter(filled(&disk))),
        None => {
            let disks = [vec![first], further].concat();
            let mut plan = arguments.look.plan(disks, Selection::Blocks)?;
            plan.on_missing = arguments.on_missing();
            let exported = arguments.through_vm(&plan, device.as_ref(), &file)?;
            (exported, arguments.filled(&plan)?)
        }
    };
    file.finish().map_err(super::boxed)?;
    if arguments.json {
        let filled: Vec<_> = filled.iter().map(Filled::json).collect();
        let Exported { size, sha256 } = exported;
        say!("{}", json!({ "size": size, "sha256": sha256, "filled": filled }));
    } else if let Some(sha256) = exported.sha256 {
        say!("sha256 {sha256}");
    }
    Ok(ExitCode::SUCCESS)
}

impl Arguments {
    fn on_missing(&self) -> OnMissing {
        if self.allow_truncated { OnMissing::Zeros } else { OnMissing::Fail }
    }

    /// What is zeros of the disks of `plan` because their files lack it.
    fn filled(&self, plan: &Plan) -> Result<Vec<Filled>, Box<dyn Display>> {
        if !self.allow_truncated {
            return Ok(Vec::new());
        }
        let mut all = Vec::new();
        for spec in &plan.disks {
            let disk = Disk::open(&spec.path, &self.options(spec)).map_err(super::boxed)?;
            all.extend(filled(&disk));
        }
        Ok(all)
    }

    fn options(&self, spec: &DiskSpec) -> OpenOptions {
        OpenOptions {
            format: spec.format,
            block_size: spec.block_size,
            allow_paths: self.look.images.allow_path.clone(),
            on_missing: self.on_missing(),
        }
    }

    /// The disk, if this process can read it itself.
    fn reader(&self, spec: &DiskSpec) -> Result<Option<(DiskReader, Disk)>, Box<dyn Display>> {
        let disks = self.look.images.resolved(vec![spec.clone()]).map_err(super::boxed)?;
        let [spec] = disks.as_slice() else {
            let names = disks.iter().map(|disk| format!("\n    {}", disk.path.display()));
            let names: String = names.collect();
            return Err(super::boxed(format!("several disks are meant:{names}")));
        };
        let disk = Disk::open(&spec.path, &self.options(spec)).map_err(super::boxed)?;
        if !disk.missing.is_empty() && !self.allow_truncated {
            return Err(super::boxed(format!(
                "{} was cut short: {} bytes of the disk are past the end of its files\n  hint: copy \
                 it once more; --allow-truncated exports it with zeros in their place",
                Printable(spec.path.as_os_str().as_bytes()),
                disk.missing.bytes()
            )));
        }
        let Some(reader) = DiskReader::of(&disk).map_err(super::boxed)? else { return Ok(None) };
        for warning in &disk.warnings {
            log::warn!("{warning}");
        }
        info!("no VM is needed: the disk is read here");
        Ok(Some((reader, disk)))
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

/// Says what of `disk` is zeros because its files lack it, if something is.
fn filled(disk: &Disk) -> Option<Filled> {
    /// Ranges that are named.
    const MOST: usize = 8;
    let missing = disk.missing.clone();
    if missing.is_empty() || disk.on_missing == OnMissing::Fail {
        return None;
    }
    let ranges = missing.ranges();
    let named = ranges.iter().take(MOST).map(|r| format!("{}-{}", r.start, r.end - 1));
    let named = named.collect::<Vec<_>>().join(", ");
    let further = match ranges.len().saturating_sub(MOST) {
        0 => String::new(),
        count => format!(" and in {count} further places"),
    };
    log::warn!(
        "{}: zeros are in the place of the {} bytes of the disk that its files lack, at bytes \
         {named}{further}",
        Printable(disk.path.as_os_str().as_bytes()),
        missing.bytes()
    );
    Some(Filled { missing })
}

/// What of a disk was not there.
struct Filled {
    missing: Missing,
}

impl Filled {
    fn json(&self) -> Value {
        let range = |r: &Range<u64>| json!({ "start": r.start, "length": r.end - r.start });
        let ranges: Vec<Value> = self.missing.ranges().iter().map(range).collect();
        json!({ "bytes": self.missing.bytes(), "ranges": ranges })
    }
}

/// Splits `DISK:DEV`. The name of a file that is there is the disk's alone, whatever is in it.
fn split(text: &Path) -> (PathBuf, Option<VolumeName>) {
    let whole = || (text.to_owned(), None);
    if text.exists() {
        return whole();
    }
    let bytes = text.as_os_str().as_bytes();
    let Some(colon) = bytes.iter().rposition(|&byte| byte == b':') else { return whole() };
    let disk = OsStr::from_bytes(&bytes[..colon]);
    let Ok(device) = std::str::from_utf8(&bytes[colon + 1..]) else { return whole() };
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
        let odd = OsStr::from_bytes(b"\xff.raw:sda1");
        let disk = OsStr::from_bytes(b"\xff.raw");
        assert_eq!(split(odd.as_ref()), (disk.into(), Some("/dev/sda1".parse().unwrap())));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk:sda1");
        std::fs::write(&path, "").unwrap();
        assert_eq!(split(&path), (path, None));
    }
}
