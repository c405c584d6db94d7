//! Small filesystems in raw files, each filled with a folder of the host by the tool that makes
//! it: no mount, no loop device, no root, but for NTFS (see [`super::ntfs`]).

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::ntfs::{Edit, Format, Volume};
use super::partitions::SECTOR;
use super::sparse;
use crate::Error;
use crate::process::{Tool, find_program};

/// A kind of filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are called what they are called")]
pub enum Kind {
    Ext2,
    Ext3,
    Ext4,
    Xfs,
    Btrfs,
    Vfat,
    Exfat,
    Iso9660,
    Udf,
    Squashfs,
    Erofs,
    F2fs,
    Hfs,
    HfsPlus,
    Ntfs,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Ext2,
        Self::Ext3,
        Self::Ext4,
        Self::Xfs,
        Self::Btrfs,
        Self::Vfat,
        Self::Exfat,
        Self::Iso9660,
        Self::Udf,
        Self::Squashfs,
        Self::Erofs,
        Self::F2fs,
        Self::Hfs,
        Self::HfsPlus,
        Self::Ntfs,
    ];

    /// Its name as libblkid has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext2 => "ext2",
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Vfat => "vfat",
            Self::Exfat => "exfat",
            Self::Iso9660 => "iso9660",
            Self::Udf => "udf",
            Self::Squashfs => "squashfs",
            Self::Erofs => "erofs",
            Self::F2fs => "f2fs",
            Self::Hfs => "hfs",
            Self::HfsPlus => "hfsplus",
            Self::Ntfs => "ntfs",
        }
    }

    /// The first program that [`make`] would miss here.
    #[must_use]
    pub fn missing_program(self) -> Option<&'static str> {
        let programs: &[&str] = match self {
            Self::Ext2 | Self::Ext3 | Self::Ext4 => &["mke2fs"],
            Self::Xfs => &["mkfs.xfs"],
            Self::Btrfs => &["mkfs.btrfs"],
            Self::Vfat => &["mkfs.vfat", "mcopy"],
            Self::Exfat => &["mkfs.exfat"],
            Self::Iso9660 | Self::Udf => &["genisoimage"],
            Self::Squashfs => &["mksquashfs"],
            Self::Erofs => &["mkfs.erofs"],
            Self::F2fs => &["mkfs.f2fs", "sload.f2fs"],
            Self::Hfs => &["hformat", "hcopy"],
            Self::HfsPlus => &["mkfs.hfsplus"],
            Self::Ntfs => &["mkntfs", "ntfs-3g"],
        };
        programs.iter().copied().find(|program| find_program(program).is_none())
    }

    /// Whether [`make`] fills it; for some kinds nothing does without mounting them, and they
    /// stay empty.
    #[must_use]
    pub fn is_filled(self) -> bool {
        !matches!(self, Self::Exfat | Self::HfsPlus)
    }

    /// Bytes of the image: small, yet enough for the kind's own structures and a few files.
    /// Zero where the tool gives the file its size.
    fn size(self) -> u64 {
        const MIB: u64 = 1 << 20;
        match self {
            Self::Iso9660 | Self::Udf | Self::Squashfs | Self::Erofs => 0,
            // The least that mkfs.xfs and mkfs.btrfs take.
            Self::Xfs => 320 * MIB,
            Self::Btrfs | Self::F2fs => 128 * MIB,
            _ => 32 * MIB,
        }
    }
}

/// Makes the raw file `image` a filesystem of `kind` that holds what is in the folder `tree`,
/// where [`Kind::is_filled`]. Names must be such as the kind can have; for XFS, without spaces.
///
/// # Errors
/// [`Error::Start`] where [`Kind::missing_program`], otherwise those of the tools.
pub fn make(kind: Kind, tree: &Path, image: &Path) -> Result<(), Error> {
    if kind.size() > 0 {
        sparse::create(image, kind.size())?;
    }
    match kind {
        Kind::Ext2 | Kind::Ext3 | Kind::Ext4 => Tool::new("mke2fs")
            .args(["-q", "-F", "-t", kind.name(), "-d"])
            .args([tree, image])
            .run(),
        Kind::Xfs => make_xfs(tree, image),
        Kind::Btrfs => Tool::new("mkfs.btrfs").args(["-q", "--rootdir"]).args([tree, image]).run(),
        Kind::Vfat => {
            Tool::new("mkfs.vfat").arg(image).run()?;
            let mcopy = Tool::new("mcopy").args(["-s", "-m", "-Q", "-i"]).arg(image);
            mcopy.args(children(tree)?).arg("::/").run()
        }
        Kind::Exfat => Tool::new("mkfs.exfat").arg(image).run(),
        Kind::Iso9660 => genisoimage(&[], tree, image),
        Kind::Udf => genisoimage(&["-udf"], tree, image),
        Kind::Squashfs => Tool::new("mksquashfs")
            .args([tree, image])
            .args(["-noappend", "-no-progress", "-quiet"])
            .run(),
        Kind::Erofs => Tool::new("mkfs.erofs").args([image, tree]).run(),
        Kind::F2fs => {
            Tool::new("mkfs.f2fs").arg("-q").arg(image).run()?;
            Tool::new("sload.f2fs").arg("-f").args([tree, image]).run()
        }
        Kind::Hfs => make_hfs(tree, image),
        Kind::HfsPlus => Tool::new("mkfs.hfsplus").arg(image).run(),
        Kind::Ntfs => {
            let format = Format { sectors: kind.size() / SECTOR, start: 0, label: "ntfs" };
            fs::remove_file(image).map_err(Error::file("replace", image))?;
            Volume::format(image.to_path_buf(), &format)?.edit(&[Edit::Tree(tree)])
        }
    }
}

fn genisoimage(options: &[&str], tree: &Path, image: &Path) -> Result<(), Error> {
    Tool::new("genisoimage")
        .args(["-quiet", "-rational-rock", "-joliet", "-joliet-long"])
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
        if name.contains(char::is_whitespace) {
            return Err(Error::unfit(
                format!("mkfs.xfs takes no file name with a space: {}", path.display()),
                "give it another tree",
            ));
        }
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

/// Paths of what is in `folder`, sorted, so that images come out alike.
fn children(folder: &Path) -> Result<Vec<std::path::PathBuf>, Error> {
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
        for kind in Kind::ALL {
            if let Some(program) = kind.missing_program() {
                crate::skips::skip(&format!("{} needs {program}", kind.name()));
                continue;
            }
            let image = folder.path().join(kind.name());
            if let Err(error) = make(kind, &tree, &image) {
                // Only NTFS mounts, which not every user and every container may.
                assert_eq!(kind, Kind::Ntfs, "{error}");
                crate::skips::skip(&error.to_string());
                continue;
            }
            let args = ["-p", "-o", "value", "-s", "TYPE"];
            let found = Tool::new("blkid").args(args).arg(&image).output().unwrap();
            assert_eq!(String::from_utf8(found).unwrap().trim(), kind.name());
        }
    }
}
