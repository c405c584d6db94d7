//! A folder with a virtual machine in it in the place of a disk.
//!
//! Descriptions of machines say which disks there are; see [`super::machine`]. Without one, what
//! counts is the newest state of the disk that is there, wherever its snapshots are: what is over
//! what is found as for `guestimg chain`.

use std::collections::HashSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::error::{ImageError, Problem};
use super::file::{FileId, ImageFile};
use super::format::named_as_disk;
use super::history::history;
use super::machine::{self, is_description, is_readable};
use super::{Disk, OpenOptions, chain, parallels_bundle};

/// Entries of the folder that are looked at, and disks that are opened to see which belong
/// together.
const MAX_ENTRIES: usize = 1 << 16;
const MAX_DISKS: usize = 1024;

/// The disks that `path` stands for; see [`super::disks_of`].
pub fn disks(path: &Path, options: &OpenOptions) -> Result<Vec<PathBuf>, ImageError> {
    let failed = |problem| ImageError::new(path, problem);
    if path.is_dir() {
        let names = entries(path).map_err(failed)?;
        let machines: Vec<PathBuf> =
            names.iter().filter(|path| is_readable(path)).cloned().collect();
        match machines.as_slice() {
            [] => disk_without_description(path, names, options).map(|disk| vec![disk]),
            [one] => machine::disks(one, options),
            _ => Err(failed(Problem::SeveralMachines(machines))),
        }
    } else if is_description(path) {
        machine::disks(path, options)
    } else {
        Ok(vec![path.to_owned()])
    }
}

/// The only disk of a folder, in its newest state.
fn disk_without_description(
    path: &Path,
    names: Vec<PathBuf>,
    options: &OpenOptions,
) -> Result<PathBuf, ImageError> {
    let failed = |problem| ImageError::new(path, problem);
    let allowed = chain::real_paths(&options.allow_paths)?;
    if parallels_bundle::is_disk(path) {
        return parallels_bundle::file_of(path, &allowed).map_err(failed);
    }
    let here = unused_disks(names, options);
    if here.is_empty() {
        let bundles = parallels_bundle::disks_in(path).map_err(failed)?;
        match bundles.as_slice() {
            [] => {}
            [one] => return parallels_bundle::file_of(one, &allowed).map_err(failed),
            _ => return Err(failed(Problem::SeveralDisks(bundles))),
        }
    }
    newest(path, here, options).map_err(failed)
}

/// What is not hidden in a folder and no folder itself, by name.
///
/// # Errors
/// [`Problem::Io`].
pub fn entries(folder: &Path) -> Result<Vec<PathBuf>, Problem> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)?.take(MAX_ENTRIES) {
        let entry = entry?;
        if !entry.file_name().as_bytes().starts_with(b".") && !entry.file_type()?.is_dir() {
            names.push(entry.path());
        }
    }
    names.sort();
    Ok(names)
}

/// A disk and when it was changed last.
type Aged = (SystemTime, PathBuf);

/// The disks among files of a folder that no other of them is a snapshot of, or made of.
fn unused_disks(names: Vec<PathBuf>, options: &OpenOptions) -> Vec<Aged> {
    let mut found = Vec::new();
    let mut used = HashSet::new();
    for path in names.into_iter().filter(|path| is_candidate(path)).take(MAX_DISKS) {
        let Ok(file) = ImageFile::open(&path) else { continue };
        let opened = Disk::open(&path, options);
        if let Ok(disk) = &opened {
            used.extend(files_of(disk).into_iter().filter(|&id| id != file.id));
        }
        // What is damaged or lacks its parent is the user's to know of.
        let is_part =
            |e: &ImageError| matches!(e.problem(), Problem::IsExtent(_) | Problem::IsPiece(_));
        if !opened.as_ref().is_err_and(is_part) {
            let changed = path.metadata().and_then(|meta| meta.modified());
            found.push((changed.unwrap_or(SystemTime::UNIX_EPOCH), path, file.id));
        }
    }
    found.retain(|(_, _, id)| !used.contains(id));
    found.into_iter().map(|(changed, path, _)| (changed, path)).collect()
}

/// The only one of several disks, all of them called by their names.
///
/// # Errors
/// [`Problem::NoDisk`], [`Problem::SeveralDisks`] with the youngest first.
pub fn only_one(mut found: Vec<Aged>) -> Result<PathBuf, Problem> {
    found.sort_by(|a, b| (b.0, &a.1).cmp(&(a.0, &b.1)));
    let mut found: Vec<PathBuf> = found.into_iter().map(|(_, path)| path).collect();
    match found.len() {
        0 => Err(Problem::NoDisk),
        1 => Ok(found.remove(0)),
        _ => Err(Problem::SeveralDisks(found)),
    }
}

/// The disk among `names` that no other of them is made of or over.
///
/// # Errors
/// Those of [`only_one`].
pub fn lone_disk(names: Vec<PathBuf>, options: &OpenOptions) -> Result<PathBuf, Problem> {
    only_one(unused_disks(names, options))
}

/// The newest state of the disk of a folder that has `here` directly in it; with nothing there,
/// that of the disk anywhere below.
fn newest(folder: &Path, here: Vec<Aged>, options: &OpenOptions) -> Result<PathBuf, Problem> {
    // One that cannot be looked at further counts as it is.
    let can_be_told = |path: &PathBuf| chain::find_leaf(path, options.format).is_ok();
    let (known, mut found): (Vec<Aged>, Vec<Aged>) =
        here.into_iter().partition(|(_, path)| can_be_told(path));
    let starts = match (known.as_slice(), found.as_slice()) {
        ([], []) => vec![folder.to_owned()],
        ([], _) => return only_one(found),
        _ => known.iter().map(|(_, path)| path.clone()).collect(),
    };
    let history = match history(&starts, options) {
        Ok(history) => history,
        Err(error) if matches!(error.problem(), Problem::NoDisk) => return Err(Problem::NoDisk),
        Err(_) => return only_one(known.into_iter().chain(found).collect()),
    };
    let real_folder = folder.canonicalize()?;
    for (index, member) in history.members.iter().enumerate() {
        if history.children(index).is_empty() {
            let path = match member.path.strip_prefix(&real_folder) {
                Ok(below) => folder.join(below),
                Err(_) => member.path.clone(),
            };
            found.push((member.changed().unwrap_or(SystemTime::UNIX_EPOCH), path));
        }
    }
    only_one(found)
}

/// Whether a file is called like a disk or the first piece of one.
pub fn is_candidate(path: &Path) -> bool {
    let is_first = |extension: &std::ffi::OsStr| extension == "000" || extension == "001";
    named_as_disk(path) || path.extension().is_some_and(is_first)
}

/// All files of a disk.
fn files_of(disk: &Disk) -> Vec<FileId> {
    let mut ids = Vec::new();
    for link in &disk.chain {
        ids.extend(FileId::at(&link.path).ok());
        ids.extend(link.files().iter().filter_map(|file| FileId::of(file).ok()));
    }
    ids
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::super::Guid;
    use super::super::fixtures::*;
    use super::*;

    fn names(folder: &Folder, path: &str) -> Vec<String> {
        let disks = disks(&folder.path.join(path), &OpenOptions::default()).unwrap();
        let relative = |path: &PathBuf| path.strip_prefix(&folder.path).unwrap().to_owned();
        disks.iter().map(|path| relative(path).display().to_string()).collect()
    }

    fn refusal(folder: &Folder, path: &str) -> String {
        disks(&folder.path.join(path), &OpenOptions::default()).unwrap_err().to_string()
    }

    #[test]
    fn a_description_says_which_disks_there_are() {
        let folder = Folder::new();
        folder.write("vm/a.vmdk", base(1, "RW 1 ZERO"));
        folder.write("vm/other.vmdk", base(1, "RW 1 ZERO"));
        folder.write("vm/sub/b.vmdk", base(2, "RW 1 ZERO"));
        let text = "scsi0:1.fileName = \"a.vmdk\"\nscsi0:0.fileName = \"C:\\x\\sub\\b.vmdk\"";
        let vmx = folder.write("vm/vm.vmx", text);
        let missing = refusal(&folder, "vm");
        assert!(missing.contains("its disk C:\\x\\sub\\b.vmdk: "), "{missing}");
        fs::write(&vmx, text.replace("C:\\x\\", "")).unwrap();
        for path in ["vm", "vm/vm.vmx"] {
            assert_eq!(names(&folder, path), ["vm/sub/b.vmdk", "vm/a.vmdk"]);
        }
        assert_eq!(names(&folder, "vm/a.vmdk"), ["vm/a.vmdk"]);
        folder.write("vm/second.vmx", text);
        let several = refusal(&folder, "vm");
        assert!(several.contains("several virtual machines:\n"), "{several}");
        assert!(several.contains("/vm/second.vmx\n") && several.contains("hint: "), "{several}");
    }

    #[test]
    fn disks_of_a_description_are_in_its_folder_or_allowed() {
        let folder = Folder::new();
        let outside = folder.write("out/b.vmdk", base(2, "RW 1 ZERO"));
        symlink(&outside, {
            folder.write("vm/.hidden/c.vmdk", base(2, "RW 1 ZERO"));
            folder.path.join("vm/link.vmdk")
        })
        .unwrap();
        for name in [outside.to_str().unwrap(), "../out/b.vmdk", "link.vmdk", ".hidden/c.vmdk"] {
            folder.write("vm/vm.vmx", format!("scsi0:0.fileName = \"{name}\""));
            let error = refusal(&folder, "vm");
            assert!(error.contains("outside of the image's folder"), "{name}: {error}");
            let allow_paths = vec![folder.path.clone()];
            let options = OpenOptions { allow_paths, ..OpenOptions::default() };
            assert!(disks(&folder.path.join("vm"), &options).is_ok(), "{name}");
        }
        folder.write("vm/vm.vmx", "scsi0:0.fileName = \"nbd:host:1/x.vmdk\"");
        assert!(refusal(&folder, "vm").contains("it names a protocol and not a file"));
        folder.write("vm/vm.vmx", "memsize = \"512\"");
        assert!(refusal(&folder, "vm").contains("it holds no disk"));
        folder.write("vm/vm.vmx", vec![b'x'; super::super::vmx::MAX_LEN + 1]);
        assert!(refusal(&folder, "vm").contains("too long"));
    }

    #[test]
    fn without_a_description_the_newest_snapshot_is_the_disk() {
        let folder = Folder::new();
        folder.write("vm/base-s001.vmdk", sparse(128, None));
        folder.write("vm/flat.img", [0; 512]);
        folder.write("vm/base.vmdk", base(1, "RW 128 SPARSE \"base-s001.vmdk\""));
        folder
            .write("vm/a.vmdk", child(2, 1, "base.vmdk", "RW 127 ZERO\nRW 1 FLAT \"flat.img\" 0"));
        folder.write("vm/b.vmdk", child(3, 2, "a.vmdk", "RW 128 ZERO"));
        folder.write("vm/notes.txt", "text");
        folder.write("vm/.trash.vmdk", base(1, "RW 1 ZERO"));
        assert_eq!(names(&folder, "vm"), ["vm/b.vmdk"]);

        // A second branch, older, and one whose parent is gone.
        folder.write("vm/c.vmdk", child(3, 2, "a.vmdk", "RW 128 ZERO"));
        folder.write("vm/lone.vmdk", child(3, 2, "gone.vmdk", "RW 128 ZERO"));
        for (age, name) in (1..).zip(["b", "lone", "c"]) {
            let file =
                fs::File::options().write(true).open(folder.path.join(format!("vm/{name}.vmdk")));
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - age);
            file.unwrap().set_modified(time).unwrap();
        }
        let path = folder.path.display();
        assert_eq!(
            refusal(&folder, "vm"),
            format!(
                "cannot open {path}/vm: it holds several disks:\n    {path}/vm/b.vmdk\n    \
                 {path}/vm/lone.vmdk\n    {path}/vm/c.vmdk\n  hint: name one of them after -a"
            )
        );
    }

    #[test]
    fn folders_of_other_disks_are_taken_likewise() {
        let folder = Folder::new();
        folder.write("q/base.img", [0; 512]);
        folder.write("q/a.qcow2", qcow2_over(512, b"base.img", "raw"));
        folder.write("s/disk.001", [0; 512]);
        folder.write("s/disk.002", [0; 512]);
        fs::create_dir(folder.path.join("empty")).unwrap();
        assert_eq!(names(&folder, "q"), ["q/a.qcow2"]);
        assert_eq!(names(&folder, "s"), ["s/disk.001"]);
        assert!(refusal(&folder, "empty").contains("it holds no disk"));
    }

    #[test]
    fn a_snapshot_in_a_folder_below_or_beside_is_the_newest_state() {
        let folder = Folder::new();
        folder.write("vm/base.vmdk", base(1, "RW 128 ZERO"));
        assert_eq!(names(&folder, "vm"), ["vm/base.vmdk"]);
        folder.write("vm/snaps/a.vmdk", child(2, 1, "../base.vmdk", "RW 128 ZERO"));
        folder.write("vm/unrelated/other.vmdk", base(1, "RW 128 ZERO"));
        assert_eq!(names(&folder, "vm"), ["vm/snaps/a.vmdk"]);
        folder.write("vm/snaps/b.vmdk", child(3, 1, "../base.vmdk", "RW 128 ZERO"));
        let several = refusal(&folder, "vm");
        for name in ["vm/snaps/a.vmdk", "vm/snaps/b.vmdk", "hint: name one"] {
            assert!(several.contains(name), "{several}");
        }
        // With nothing in the folder itself, what is below it.
        folder.write("hv/Virtual Hard Disks/a.vhd", vhd_base([1; 16]));
        folder
            .write("hv/Virtual Hard Disks/b.avhd", vhd_over([1; 16], ["a.vhd", "", ""], [0xff; 8]));
        folder.write("hv/Virtual Machines/x.vmcx", "binary");
        assert_eq!(names(&folder, "hv"), ["hv/Virtual Hard Disks/b.avhd"]);
        let refusal = refusal(&folder, "hv/Virtual Machines/x.vmcx");
        assert!(refusal.contains("Hyper-V") && refusal.contains("hint: name the dir"), "{refusal}");
        folder.write("x.utm/Data/disk-0.qcow2", qcow2(512));
        folder.write("x.utm/config.plist", "<plist/>");
        assert_eq!(names(&folder, "x.utm"), ["x.utm/Data/disk-0.qcow2"]);
    }

    #[test]
    fn a_missing_delta_is_answered_with_what_it_was_made_over() {
        let folder = Folder::new();
        folder.write("vm/d.vmdk", base(1, "RW 128 ZERO"));
        folder.write("vm/d-000001.vmdk", child(2, 1, "d.vmdk", "RW 128 ZERO"));
        folder.write("vm/other.vmdk", base(1, "RW 128 ZERO"));
        folder.write("vm/vm.vmx", "scsi0:0.fileName = \"d-000002.vmdk\"");
        let error = refusal(&folder, "vm");
        assert!(error.contains("its disk d-000002.vmdk does not exist"), "{error}");
        assert!(error.contains("\n    ") && error.contains("vm/d-000001.vmdk\n"), "{error}");
        assert!(error.contains("hint: ") && !error.contains("other.vmdk"), "{error}");
        folder.write("vm/vm.vmx", "scsi0:0.fileName = \"gone.vmdk\"");
        assert!(refusal(&folder, "vm").contains("its disk gone.vmdk: "));
    }

    #[test]
    fn a_description_of_virtualbox_says_the_current_state() {
        let folder = Folder::new();
        let id = |n: u8| format!("{{{}}}", Guid([n; 16]));
        let vbox = |attached: u8, location: &str| {
            format!(
                "<VirtualBox><Machine snapshotFolder=\"Snapshots\"><MediaRegistry><HardDisks>\
                 <HardDisk uuid=\"{}\" location=\"a.vdi\">\
                 <HardDisk uuid=\"{}\" location=\"{location}\"/></HardDisk></HardDisks>\
                 </MediaRegistry><StorageControllers><StorageController type=\"AHCI\">\
                 <AttachedDevice type=\"HardDisk\"><Image uuid=\"{}\"/></AttachedDevice>\
                 </StorageController></StorageControllers></Machine></VirtualBox>",
                id(1),
                id(2),
                id(attached)
            )
        };
        let vdi = |id: u8| {
            let mut bytes = vdi(512);
            bytes[392..408].fill(id);
            bytes
        };
        folder.write("vm/a.vdi", vdi(1));
        folder.write("vm/Snapshots/{2}.vdi", vdi(2));
        let path = folder.path.join("vm/vm.vbox");
        for location in ["Snapshots/{2}.vdi", "C:\\VMs\\vm\\Snapshots\\{2}.vdi", "/vms/vm/{2}.vdi"]
        {
            fs::write(&path, vbox(2, location)).unwrap();
            for named in ["vm", "vm/vm.vbox"] {
                assert_eq!(names(&folder, named), ["vm/Snapshots/{2}.vdi"], "{location}");
            }
        }
        // A copy that came with the description counts, not where it was copied from.
        let original = folder.write("original/Snapshots/{2}.vdi", vdi(2));
        fs::write(&path, vbox(2, original.to_str().unwrap())).unwrap();
        assert_eq!(names(&folder, "vm"), ["vm/Snapshots/{2}.vdi"]);
        fs::write(&path, vbox(1, "x.vdi")).unwrap();
        assert_eq!(names(&folder, "vm"), ["vm/a.vdi"]);
        // Where the media are listed elsewhere, the id is looked for.
        fs::write(&path, vbox(2, "x").replace("MediaRegistry", "Other")).unwrap();
        assert_eq!(names(&folder, "vm"), ["vm/Snapshots/{2}.vdi"]);
        for (text, words) in [
            (vbox(3, "x"), "its disk with the id 03030303"),
            (vbox(2, "gone.vdi"), "its disk gone.vdi: "),
            (vbox(2, "a.vdi"), "it has the id 01010101-0101-0101-0101-010101010101 and not 0202"),
            (vbox(2, "/etc/passwd"), "outside of the image's folder"),
            (vbox(2, "nbd:h:1"), "names a protocol"),
            ("text".to_owned(), "no description of a machine"),
        ] {
            fs::write(&path, text).unwrap();
            let error = refusal(&folder, "vm");
            assert!(error.contains(words), "{words}: {error}");
        }
        folder.write("vm/vm.vmx", "");
        assert!(refusal(&folder, "vm").contains("several virtual machines"));
    }
}
