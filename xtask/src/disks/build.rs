//! Puts the demo's disks together: trees into volumes, volumes onto disks, changes into snapshots.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::chain::{self, Layout};
use super::content;
use super::manifest::{self, Manifest};
use super::ntfs::{Edit, Format, Volume};
use super::partitions::{self, Partition, SECTOR};
use super::{BASE, MANIFEST, NEWEST, SNAPSHOTS, SYSTEM, sparse};
use crate::Error;

/// The large disk, in sectors.
const DISK: u64 = (4 << 30) / SECTOR;
const DISK_ID: u32 = 0x0efb_9e3e;
const BOOT: Format<'_> = Format { start: 2_048, sectors: 5_310_464, label: "System" };
const DATA: Format<'_> = Format { start: 5_312_512, sectors: 3_072_000, label: "Volume" };

/// The system-like disk, in sectors.
const SYSTEM_DISK: u64 = (256 << 20) / SECTOR;
const SYSTEM_DISK_ID: u32 = 0x7c11_0005;
const WINDOWS: Format<'_> =
    Format { start: 2_048, sectors: SYSTEM_DISK - 2 * 2_048, label: "Windows" };

/// Makes all disks below `staging` and moves them to `finished`, which the paths in them name.
pub fn all(staging: &Path, finished: &Path) -> Result<(), Error> {
    let work = staging.join("work");
    let disks = staging.join("disks");
    for folder in [&work, &disks, &disks.join("Win7"), &disks.join("Win7Test")] {
        fs::create_dir(folder).map_err(Error::file("create", folder))?;
    }
    let mut manifest = Manifest::default();
    manifest.disks.insert(NEWEST.to_owned(), chain(&work, &disks)?);
    manifest.disks.insert(SYSTEM.to_owned(), system(&work, &disks)?);
    manifest.write(&disks.join(MANIFEST))?;
    chain::set_parent_path(&disks.join(SNAPSHOTS[0]), &finished.join(BASE))?;
    make_readable(&disks)?;
    fs::rename(&disks, finished).map_err(Error::file("create", finished))
}

/// Makes the base and its snapshots, and says what the newest holds.
fn chain(work: &Path, disks: &Path) -> Result<Vec<manifest::Partition>, Error> {
    let (boot_tree, boot) = volume(work, "boot", &BOOT, content::boot)?;
    let (data_tree, data) = volume(work, "data", &DATA, content::data)?;
    let (file, name, text) = content::STREAM;
    data.edit(&[
        Edit::Stream { to: file.to_owned(), name: name.to_owned(), text: text.to_owned() },
        Edit::Time { from: data_tree.join(file), to: file.to_owned() },
    ])?;
    let raw = work.join("disk.raw");
    let assemble = || {
        let at = |format: &Format<'_>, image| Partition { start: format.start, image };
        let rows = [at(&BOOT, boot.image()), at(&DATA, data.image())];
        partitions::ntfs_disk(&raw, DISK, DISK_ID, &rows)
    };
    let layout = Layout::TwoGbMaxExtentSparse;

    assemble()?;
    let base = disks.join(BASE);
    chain::convert(&raw, &base, layout)?;
    chain::check_reads_as(&base, &raw)?;

    let mut parent = base;
    for (index, name) in SNAPSHOTS.iter().enumerate() {
        let before = work.join("before.raw");
        let copy = sparse::create(&before, DATA.sectors * SECTOR)?;
        sparse::copy_into(data.image(), &copy, 0)?;
        data.edit(&content::take_snapshot(&data_tree, index + 1)?)?;
        let child = disks.join(name);
        let named = if index == 0 { parent.clone() } else { file_name(&parent) };
        chain::create_snapshot(&child, &named, layout)?;
        chain::write_changes(&child, &before, data.image(), DATA.start * SECTOR)?;
        chain::check_cids(&child, &parent)?;
        parent = child;
    }
    assemble()?;
    chain::check_reads_as(&parent, &raw)?;

    let mut data = partition(2, &DATA, &data_tree)?;
    if let Some(content) = data.entries.get_mut(file).and_then(|entry| entry.file.as_mut()) {
        content.streams.insert(name.to_owned(), text.to_owned());
    }
    Ok(vec![partition(1, &BOOT, &boot_tree)?, data])
}

/// Makes the system-like disk, and says what it holds.
fn system(work: &Path, disks: &Path) -> Result<Vec<manifest::Partition>, Error> {
    let (tree, volume) = volume(work, "windows", &WINDOWS, content::system)?;
    let raw = work.join("system.raw");
    let rows = [Partition { start: WINDOWS.start, image: volume.image() }];
    partitions::ntfs_disk(&raw, SYSTEM_DISK, SYSTEM_DISK_ID, &rows)?;
    let disk = disks.join(SYSTEM);
    chain::convert(&raw, &disk, Layout::MonolithicSparse)?;
    chain::check_reads_as(&disk, &raw)?;
    Ok(vec![partition(1, &WINDOWS, &tree)?])
}

/// Makes a tree and a volume with it.
fn volume(
    work: &Path,
    name: &str,
    format: &Format<'_>,
    fill: fn(&Path) -> Result<(), Error>,
) -> Result<(PathBuf, Volume), Error> {
    let tree = work.join(name);
    fill(&tree)?;
    let volume = Volume::format(work.join(format!("{name}.raw")), format)?;
    volume.edit(&[Edit::Tree(&tree)])?;
    Ok((tree, volume))
}

fn partition(number: u32, format: &Format<'_>, tree: &Path) -> Result<manifest::Partition, Error> {
    Ok(manifest::Partition {
        number,
        fstype: "ntfs".to_owned(),
        label: format.label.to_owned(),
        entries: manifest::scan(tree)?,
    })
}

fn file_name(path: &Path) -> PathBuf {
    path.file_name().map(PathBuf::from).expect("disks have names")
}

/// Lets everybody read what is below `folder`.
fn make_readable(folder: &Path) -> Result<(), Error> {
    let set = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(Error::file("set the mode of", path))
    };
    set(folder, 0o755)?;
    for entry in fs::read_dir(folder).map_err(Error::file("list", folder))? {
        let path = entry.map_err(Error::file("list", folder))?.path();
        if path.is_dir() { make_readable(&path)? } else { set(&path, 0o644)? }
    }
    Ok(())
}
