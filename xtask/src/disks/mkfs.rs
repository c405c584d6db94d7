//! Small filesystems in raw files, each filled with a folder of the host by the tool that makes
//! it: no mount, no loop device, no root, but for NTFS (see [`super::ntfs`]).

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::exfat;
use super::filesystems::Kind;
use super::ntfs::{Edit, Format, Volume};
use super::partitions::{SECTOR, read_sectors};
use super::sparse;
use crate::Error;
use crate::process::Tool;

/// Bytes of the image: small, yet enough for the kind's own structures and the files. `None` where
/// the tool gives the file its size.
fn size(kind: Kind) -> Option<u64> {
    const MIB: u64 = 1 << 20;
    match kind {
        Kind::Iso9660RockRidge
        | Kind::Iso9660Joliet
        | Kind::Udf
        | Kind::Squashfs
        | Kind::Erofs
        | Kind::HfsPlus => None,
        // The least that mkfs.xfs and mkfs.btrfs take.
        Kind::Xfs => Some(320 * MIB),
        Kind::Btrfs | Kind::F2fs => Some(128 * MIB),
        _ => Some(32 * MIB),
    }
}

/// Makes the raw file `image` a filesystem of `kind` that holds what is in the folder `tree`,
/// as far as [`Kind::keeps`] says. Names must be such as the kind keeps.
///
/// # Errors
/// [`Error::Start`] where [`Kind::missing_program`], otherwise those of the tools.
pub fn make(kind: Kind, tree: &Path, image: &Path) -> Result<(), Error> {
    if let Some(size) = size(kind) {
        sparse::create(image, size)?;
    }
    match kind {
        Kind::Ext2 | Kind::Ext3 | Kind::Ext4 => {
            let mke2fs = Tool::new("mke2fs").args(["-q", "-F", "-t", kind.name(), "-d"]);
            mke2fs.args([tree, image]).run()?;
            // So that nothing is in it that is not in the tree.
            Tool::new("debugfs").args(["-w", "-R", "rmdir lost+found"]).arg(image).run()
        }
        Kind::Xfs => make_xfs(tree, image),
        Kind::Btrfs => Tool::new("mkfs.btrfs").args(["-q", "--rootdir"]).args([tree, image]).run(),
        Kind::Vfat => {
            Tool::new("mkfs.vfat").arg(image).run()?;
            // FAT keeps local times, and the guest's clock is UTC.
            let mcopy = Tool::new("mcopy").env("TZ", "UTC").args(["-s", "-m", "-Q", "-i"]);
            mcopy.arg(image).args(children(tree)?).arg("::/").run()
        }
        Kind::Exfat => exfat::make(tree, image),
        Kind::Iso9660RockRidge => genisoimage(&["-rational-rock"], tree, image),
        Kind::Iso9660Joliet => genisoimage(&["-joliet", "-joliet-long"], tree, image),
        Kind::Udf => genisoimage(&["-udf"], tree, image),
        Kind::Squashfs => Tool::new("mksquashfs")
            .args([tree, image])
            .args(["-noappend", "-no-progress", "-quiet"])
            .run(),
        Kind::Erofs => Tool::new("mkfs.erofs").args([image, tree]).run(),
        Kind::F2fs => {
            Tool::new("mkfs.f2fs").arg("-q").arg(image).run()?;
            Tool::new("sload.f2fs").args(["-P", "-f"]).args([tree, image]).run()
        }
        Kind::Hfs => make_hfs(tree, image),
        Kind::HfsPlus => make_hfsplus(tree, image),
        Kind::Ntfs => {
            let format = Format {
                sectors: size(kind).expect("it has one") / SECTOR,
                start: 0,
                label: "ntfs",
            };
            fs::remove_file(image).map_err(Error::file("replace", image))?;
            Volume::format(image.to_path_buf(), &format)?.edit(&[Edit::Tree(tree)])
        }
    }
}

fn genisoimage(options: &[&str], tree: &Path, image: &Path) -> Result<(), Error> {
    Tool::new("genisoimage")
        .args(["-quiet", "-input-charset", "utf-8"])
        .args(options)
        .args([Path::new("-o"), image, tree])
        .run()
}

/// XFS takes a tree as a prototype file. Source: mkfs.xfs(8), option -p.
fn make_xfs(tree: &Path, image: &Path) -> Result<(), Error> {
    let mut text = "/\n0 0\nd--755 0 0\n".to_owned();
    prototype(tree, &mut text)?;
    let file = tempfile::NamedTempFile::new().map_err(Error::file("write in", "/tmp"))?;
    fs::write(file.path(), text).map_err(Error::file("write", file.path()))?;
    Tool::new("mkfs.xfs").args(["-q", "-f", "-p"]).args([file.path(), image]).run()
}

/// Appends the entries of `folder` and the `$` that ends them.
fn prototype(folder: &Path, text: &mut String) -> Result<(), Error> {
    for path in children(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_symlink() {
            let target = fs::read_link(&path).map_err(Error::file("read", &path))?;
            let _ = writeln!(text, "{name} l--777 0 0 {}", target.display());
        } else if path.is_dir() {
            let _ = writeln!(text, "{name} d--755 0 0");
            prototype(&path, text)?;
        } else {
            let _ = writeln!(text, "{name} ---644 0 0 {}", path.display());
        }
    }
    text.push_str("$\n");
    Ok(())
}

/// hfsutils work on the volume that `hmount` noted in the home folder.
fn make_hfs(tree: &Path, image: &Path) -> Result<(), Error> {
    let home = tempfile::tempdir().map_err(Error::file("write in", "/tmp"))?;
    let tool = |program: &str| Tool::new(program).env("HOME", home.path());
    tool("hformat").args(["-l", "hfs"]).arg(image).run()?;
    copy_to_hfs(tree, ":", &tool)?;
    tool("humount").run()
}

fn copy_to_hfs(folder: &Path, to: &str, tool: &dyn Fn(&str) -> Tool) -> Result<(), Error> {
    for path in children(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            let inner = format!("{to}{name}:");
            tool("hmkdir").arg(&inner).run()?;
            copy_to_hfs(&path, &inner, tool)?;
        } else {
            tool("hcopy").arg("-r").arg(&path).arg(format!("{to}{name}")).run()?;
        }
    }
    Ok(())
}

/// Debian has no tool for HFS+ any more, but xorriso makes CDs with a partition that is one, for
/// Macs. That partition is taken out. Source: "Inside Macintosh: Devices", partition map entries.
fn make_hfsplus(tree: &Path, image: &Path) -> Result<(), Error> {
    let field = |entry: &[u8], at: usize| {
        u64::from(u32::from_be_bytes(entry[at..at + 4].try_into().expect("four bytes")))
    };
    let hybrid = tempfile::NamedTempFile::new().map_err(Error::file("write in", "/tmp"))?;
    let xorriso = Tool::new("xorriso").args(["-as", "mkisofs", "-hfsplus", "-quiet", "-o"]);
    xorriso.args([hybrid.path(), tree]).run()?;
    let map = read_sectors(hybrid.path(), 1, 16 * 512)?;
    let entry = map.chunks_exact(512).find(|entry| entry[48..].starts_with(b"Apple_HFS\0"));
    let Some(entry) = entry else {
        return Err(Error::unfit(
            "xorriso made no HFS+",
            "a newer xorriso may differ; please tell us",
        ));
    };
    let (first, sectors) = (field(entry, 8), field(entry, 12));
    let file = sparse::create(image, sectors * SECTOR)?;
    let bytes = usize::try_from(sectors * SECTOR).expect("images are small");
    let partition = read_sectors(hybrid.path(), first, bytes)?;
    file.write_all_at(&partition, 0).map_err(Error::file("write", image))
}

/// Paths of what is in `folder`, sorted, so that images come out alike.
pub(super) fn children(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::file("list", folder))? {
        paths.push(entry.map_err(Error::file("list", folder))?.path());
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_recognised_by_libblkid() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        fs::create_dir_all(tree.join("inner/most")).unwrap();
        fs::write(tree.join("file.txt"), "text\n").unwrap();
        fs::write(tree.join("inner/most/large.bin"), vec![7; 100_000]).unwrap();
        // Filling NTFS takes a mount; its image is made by `Specimens::ensure`.
        for kind in Kind::ALL.into_iter().filter(|&kind| kind != Kind::Ntfs) {
            if let Some(program) = kind.missing_program() {
                crate::skips::skip(&format!("{} needs {program}", kind.name()));
                continue;
            }
            let image = folder.path().join(kind.file_name());
            make(kind, &tree, &image).unwrap_or_else(|error| panic!("{error}"));
            let args = ["-p", "-o", "value", "-s", "TYPE"];
            let found = Tool::new("blkid").args(args).arg(&image).output().unwrap();
            assert_eq!(String::from_utf8(found).unwrap().trim(), kind.name());
        }
    }
}
