//! A folder with a virtual machine in it, or the machine's description, in the place of a disk.

use std::collections::HashSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::error::{ImageError, Problem};
use super::file::{FileId, ImageFile};
use super::format::named_as_disk;
use super::name::FileName;
use super::reach::Reach;
use super::{Disk, OpenOptions, chain, vmx};

/// Entries of the folder that are looked at, and disks that are opened to see which belong
/// together.
const MAX_ENTRIES: usize = 1 << 16;
const MAX_DISKS: usize = 1024;

/// The disks that `path` stands for; see [`super::disks_of`].
pub fn disks(path: &Path, options: &OpenOptions) -> Result<Vec<PathBuf>, ImageError> {
    let failed = |problem| ImageError::new(path, problem);
    if path.is_dir() {
        let names = entries(path).map_err(failed)?;
        let machines: Vec<PathBuf> = names.iter().filter(|path| is_vmx(path)).cloned().collect();
        match machines.as_slice() {
            [] => lone_disk(names, options).map(|disk| vec![disk]).map_err(failed),
            [one] => machine(one, options),
            _ => Err(failed(Problem::SeveralMachines(machines))),
        }
    } else if is_vmx(path) {
        machine(path, options)
    } else {
        Ok(vec![path.to_owned()])
    }
}

/// Whether a file is called like the description of a machine.
pub fn is_vmx(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("vmx"))
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

/// The disks that the description at `path` names.
fn machine(path: &Path, options: &OpenOptions) -> Result<Vec<PathBuf>, ImageError> {
    let failed = |problem| ImageError::new(path, problem);
    let allowed = chain::real_paths(&options.allow_paths)?;
    let read = || -> Result<Vec<PathBuf>, Problem> {
        let file = ImageFile::open(path)?;
        if file.len > vmx::MAX_LEN as u64 {
            return Err(Problem::damaged("it is too long for a description of a machine"));
        }
        let names = vmx::disks(&file.start(vmx::MAX_LEN)?)?;
        let reach = Reach { folder: file.folder(), allowed: &allowed };
        let disks: Result<Vec<PathBuf>, Problem> =
            names.iter().map(|name| disk_of(name, reach)).collect();
        disks.and_then(|disks| if disks.is_empty() { Err(Problem::NoDisk) } else { Ok(disks) })
    };
    read().map_err(failed)
}

/// The first disk that exists among those that `name` may mean.
fn disk_of(name: &FileName, reach: Reach) -> Result<PathBuf, Problem> {
    for path in name.candidates(reach.folder) {
        match reach.locate(&path) {
            Ok(_) => return Ok(path),
            Err(problem) if problem.is_missing() => {}
            Err(problem) => {
                return Err(Problem::Disk { name: name.clone(), problem: Box::new(problem) });
            }
        }
    }
    let problem = Box::new(Problem::Io(std::io::Error::from_raw_os_error(libc::ENOENT)));
    Err(Problem::Disk { name: name.clone(), problem })
}

/// The disk among files of a folder that no other is a snapshot of, or made of.
fn lone_disk(names: Vec<PathBuf>, options: &OpenOptions) -> Result<PathBuf, Problem> {
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
    found.sort_by(|a, b| (b.0, &a.1).cmp(&(a.0, &b.1)));
    let mut found = found.into_iter().map(|(_, path, _)| path);
    match (found.next(), found.next()) {
        (None, _) => Err(Problem::NoDisk),
        (Some(one), None) => Ok(one),
        (Some(youngest), Some(next)) => {
            Err(Problem::SeveralDisks([youngest, next].into_iter().chain(found).collect()))
        }
    }
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
        folder.write("vm/vm.vmx", vec![b'x'; vmx::MAX_LEN + 1]);
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
}
