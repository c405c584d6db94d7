//! Directories of Parallels Desktop: a machine `NAME.pvm` with its disks, each a directory
//! `NAME.hdd` with a `DiskDescriptor.xml` and the files of the disk.
//!
//! A disk without snapshots is one file. What snapshots hold is said by the descriptor, and QEMU's
//! driver reads one file only.

use std::fs;
use std::path::{Path, PathBuf};

use roxmltree::{Document, Node, ParsingOptions};

use super::Format;
use super::error::Problem;
use super::file::ImageFile;
use super::name::FileName;
use super::reach::Reach;

const DESCRIPTOR: &str = "DiskDescriptor.xml";
const MAX_LEN: usize = 1 << 20;
const MAX_NODES: u32 = 1 << 14;
const MAX_ENTRIES: usize = 1 << 12;

/// Whether the directory at `path` is a disk of Parallels.
pub fn is_disk(path: &Path) -> bool {
    path.join(DESCRIPTOR).is_file()
}

/// The disks in the directory at `path` that are directories, by name.
///
/// # Errors
/// [`Problem::Io`].
pub fn disks_in(path: &Path) -> Result<Vec<PathBuf>, Problem> {
    let entries = fs::read_dir(path)?.take(MAX_ENTRIES);
    let paths: Result<Vec<PathBuf>, _> = entries.map(|entry| entry.map(|e| e.path())).collect();
    let mut disks: Vec<PathBuf> = paths?.into_iter().filter(|path| is_disk(path)).collect();
    disks.sort();
    Ok(disks)
}

/// The file of the disk that is the directory at `path`.
///
/// # Errors
/// [`Problem::Unsupported`] for a disk of several files, or what is wrong with the descriptor.
pub fn file_of(path: &Path, allowed: &[PathBuf]) -> Result<PathBuf, Problem> {
    let file = ImageFile::open(&path.join(DESCRIPTOR))?;
    if file.len > MAX_LEN as u64 {
        return Err(Problem::damaged("its DiskDescriptor.xml is too long"));
    }
    let images = images(&file.start(MAX_LEN)?)?;
    let [Image { name, is_plain }] = images.as_slice() else {
        return Err(Problem::Unsupported {
            what: "it is a disk of Parallels with snapshots, or in several files".to_owned(),
            hint: "delete its snapshots in Parallels Desktop, which merges them, \
                   or `prl_disk_tool merge --hdd` a copy of it",
        });
    };
    let reach = Reach { folder: file.folder(), allowed };
    let check = || -> Result<(), Problem> {
        let file = reach.locate(name.as_path())?.open()?;
        // Plain sectors have no magic, and a growing disk without one is something else.
        if !is_plain && Format::probe(&file)? == Format::Raw {
            return Err(Problem::Unsupported {
                what: "it is a growing disk of Parallels in a format that is not known".to_owned(),
                hint: "`qemu-img convert -f parallels` makes another disk of it",
            });
        }
        Ok(())
    };
    check().map_err(|problem| Problem::Disk { name: name.clone(), problem: Box::new(problem) })?;
    Ok(path.join(name.as_path()))
}

/// A file of a disk.
struct Image {
    name: FileName,
    /// Whether it holds the sectors as they are.
    is_plain: bool,
}

/// The files that a descriptor names.
fn images(text: &[u8]) -> Result<Vec<Image>, Problem> {
    let damaged = || Problem::damaged("its DiskDescriptor.xml is no descriptor of a disk");
    let text = std::str::from_utf8(text).map_err(|_| damaged())?;
    let options =
        ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text.trim_start_matches('\u{feff}'), options)
        .map_err(|_| damaged())?;
    let value = |image: Node, tag: &str| {
        let child = image.children().find(|node| node.has_tag_name(tag));
        child.and_then(|node| node.text()).unwrap_or_default().trim().to_owned()
    };
    let elements = document.descendants().filter(|node| node.has_tag_name("Image"));
    let image = |element: Node| {
        let name = FileName::new(value(element, "File").as_bytes()).map_err(Problem::Name)?;
        Ok(Image { name, is_plain: value(element, "Type") == "Plain" })
    };
    elements.map(image).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::Folder;
    use super::*;

    fn descriptor(files: &[&str]) -> String {
        let images: String = files
            .iter()
            .map(|file| {
                format!("<Image><GUID>{{1}}</GUID><Type>Plain</Type><File>{file}</File></Image>")
            })
            .collect();
        format!(
            "<?xml version='1.0' encoding='UTF-8'?>\n<Parallels_disk_image Version=\"1.0\">\
             <StorageData><Storage>{images}</Storage></StorageData></Parallels_disk_image>"
        )
    }

    #[test]
    fn a_disk_of_one_file_is_that_file_and_others_are_refused() {
        let folder = Folder::new();
        folder.write("vm.pvm/a.hdd/a.hds", [0; 512]);
        folder.write("vm.pvm/b.hdd/DiskDescriptor.xml", descriptor(&["b.hds", "c.hds"]));
        let one = folder.write("vm.pvm/a.hdd/DiskDescriptor.xml", descriptor(&["a.hds"]));
        let pvm = folder.path.join("vm.pvm");
        assert_eq!(disks_in(&pvm).unwrap(), [pvm.join("a.hdd"), pvm.join("b.hdd")]);
        assert_eq!(file_of(&pvm.join("a.hdd"), &[]).unwrap(), pvm.join("a.hdd/a.hds"));
        let refusal = file_of(&pvm.join("b.hdd"), &[]).unwrap_err().to_string();
        assert!(refusal.contains("with snapshots"), "{refusal}");
        fs::write(&one, descriptor(&["a.hds"]).replace("Plain", "Compressed")).unwrap();
        let refusal = file_of(&pvm.join("a.hdd"), &[]).unwrap_err().to_string();
        assert!(refusal.contains("a growing disk of Parallels"), "{refusal}");
        for names in [&["/etc/passwd"][..], &["../../x"], &["nbd:h:1"], &["gone.hds"], &[""], &[]] {
            fs::write(&one, descriptor(names)).unwrap();
            assert!(file_of(&pvm.join("a.hdd"), &[]).is_err(), "{names:?}");
        }
    }
}
