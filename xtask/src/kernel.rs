//! The appliance's kernel: where it comes from, and the ELF image inside its bzImage.
//!
//! QEMU starts an ELF kernel through its PVH entry without the decompressor's half second under
//! TCG, so the payload is cut out of the bzImage here.
//! Source: Documentation/arch/x86/boot.rst, fields `payload_offset` and `payload_length`.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::apt::Apt;
use crate::places::Places;
use crate::process::Tool;

/// Where a kernel comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The newest one that Debian has for this machine's release.
    Debian,
    /// Files that the user has.
    Files {
        /// A bzImage or an ELF vmlinux.
        image: PathBuf,
        /// Its `lib/modules/RELEASE`.
        modules: PathBuf,
    },
}

/// A kernel on this machine's disk.
#[derive(Debug)]
pub struct Kernel {
    /// A bzImage or an ELF vmlinux.
    pub image: PathBuf,
    /// Its `lib/modules/RELEASE`.
    pub modules: PathBuf,
    /// What `uname -r` says in the guest.
    pub release: String,
    /// The package it came in.
    pub package: Option<Origin>,
}

/// The package that a kernel came in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// The file beside an unpacked package that says what it is.
const ORIGIN: &str = "package.json";

impl Kernel {
    /// Debian's kernel if it was fetched before, or the user's files.
    ///
    /// # Errors
    /// Where the user's files are not what they should be.
    pub fn present(source: &Source, places: &Places) -> Result<Option<Self>, Error> {
        match source {
            Source::Files { image, modules } => Self::from_files(image, modules, None).map(Some),
            Source::Debian => Self::unpacked(&places.kernels().join("debian")),
        }
    }

    /// Fetches Debian's newest kernel and unpacks it, without installing it.
    ///
    /// # Errors
    /// Those of apt, and of the file system.
    pub fn fetch(places: &Places) -> Result<Self, Error> {
        let apt = Apt::open(places.apt())?;
        apt.update()?;
        let kernels = places.kernels();
        fs::create_dir_all(&kernels).map_err(Error::file("create", &kernels))?;
        let staging = tempfile::tempdir_in(&kernels).map_err(Error::file("write in", &kernels))?;
        let package = apt.download(&apt.newest_kernel()?, staging.path())?;
        let tree = staging.path().join("tree");
        Tool::new("dpkg-deb").arg("--extract").arg(&package.file).arg(&tree).run()?;
        let origin = Origin { name: package.name, version: package.version };
        let text = serde_json::to_vec(&origin).expect("two strings");
        fs::write(tree.join(ORIGIN), text).map_err(Error::file("write in", &tree))?;
        let kept = kernels.join("debian");
        fs::rename(&tree, &kept).map_err(Error::file("replace", &kept))?;
        Self::unpacked(&kept)?.ok_or_else(|| incomplete(&kept))
    }

    fn unpacked(tree: &Path) -> Result<Option<Self>, Error> {
        let Ok(text) = fs::read(tree.join(ORIGIN)) else { return Ok(None) };
        let origin = serde_json::from_slice(&text).map_err(|_| incomplete(tree))?;
        let image = first_in(&tree.join("boot"), "vmlinuz-");
        let modules = ["lib/modules", "usr/lib/modules"]
            .iter()
            .find_map(|folder| first_in(&tree.join(folder), ""));
        match (image, modules) {
            (Some(image), Some(modules)) => {
                Self::from_files(&image, &modules, Some(origin)).map(Some)
            }
            _ => Err(incomplete(tree)),
        }
    }

    fn from_files(image: &Path, modules: &Path, package: Option<Origin>) -> Result<Self, Error> {
        let absolute = |path: &Path| fs::canonicalize(path).map_err(Error::file("find", path));
        let (image, modules) = (absolute(image)?, absolute(modules)?);
        let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !modules.join("kernel").is_dir() {
            return Err(Error::unfit(
                format!("{} holds no folder named kernel", modules.display()),
                "--modules takes a folder as depmod knows it, /lib/modules/RELEASE",
            ));
        }
        Ok(Self { image, modules, release, package })
    }

    /// What tells this kernel from another without reading all of it.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn identity(&self) -> Result<String, Error> {
        let stat = |path: &Path| -> Result<String, Error> {
            let meta = fs::metadata(path).map_err(Error::file("look at", path))?;
            let mtime = meta.modified().map_err(Error::file("look at", path))?;
            let since = mtime.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            Ok(format!("{}:{}:{}", path.display(), meta.len(), since.as_nanos()))
        };
        Ok(format!("{} {}", stat(&self.image)?, stat(&self.modules)?))
    }

    /// The uncompressed ELF image.
    ///
    /// # Errors
    /// [`Error::Unfit`] where the file is no x86-64 kernel.
    pub fn vmlinux(&self) -> Result<Vec<u8>, Error> {
        let image = fs::read(&self.image).map_err(Error::file("read", &self.image))?;
        let elf = if is_elf(&image) { image } else { self.unpack(&image)? };
        if is_elf(&elf) {
            Ok(elf)
        } else {
            Err(self.no_kernel("its payload is no x86-64 ELF file"))
        }
    }

    fn unpack(&self, image: &[u8]) -> Result<Vec<u8>, Error> {
        let payload = payload(image)
            .ok_or_else(|| self.no_kernel("no bzImage with a payload, boot protocol 2.08"))?;
        let Some((program, args, trailer)) = decompressor(payload) else {
            return if is_elf(payload) {
                Ok(payload.to_vec())
            } else {
                Err(self.no_kernel("its compression is unknown"))
            };
        };
        let (packed, size) = payload.split_at(payload.len() - 4);
        let elf = Tool::new(program).args(args).filter(if trailer { packed } else { payload })?;
        let size = u32::from_le_bytes(size.try_into().expect("split 4 bytes off"));
        if elf.len() as u64 != u64::from(size) {
            return Err(self.no_kernel("its payload is damaged"));
        }
        Ok(elf)
    }

    fn no_kernel(&self, why: &str) -> Error {
        Error::unfit(
            format!("{} cannot be used as a kernel: {why}", self.image.display()),
            "give a bzImage or an ELF vmlinux for x86-64 with --kernel",
        )
    }
}

/// The part of a bzImage that `payload_offset` and `payload_length` point to.
fn payload(image: &[u8]) -> Option<&[u8]> {
    const SETUP_SECTS: usize = 0x1f1;
    const MAGIC: usize = 0x202;
    const PAYLOAD_OFFSET: usize = 0x248;
    const PAYLOAD_LENGTH: usize = 0x24c;
    let word = |at: usize| {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    if image.get(MAGIC..MAGIC + 4)? != b"HdrS" {
        return None;
    }
    // 0 stands for 4, for old loaders' sake.
    let setup_sectors = match *image.get(SETUP_SECTS)? {
        0 => 4,
        n => usize::from(n),
    };
    let start = (setup_sectors + 1) * 512 + word(PAYLOAD_OFFSET)?;
    let end = start.checked_add(word(PAYLOAD_LENGTH)?)?;
    image.get(start..end).filter(|payload| payload.len() > 4)
}

/// The program that unpacks `payload`, and whether the kernel's build appended the unpacked size
/// to it; gzip ends in that size by itself. Source: scripts/Makefile.lib, `size_append`.
fn decompressor(payload: &[u8]) -> Option<(&'static str, &'static [&'static str], bool)> {
    match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(("zstd", &["-dcq"], true)),
        [0xfd, b'7', b'z', ..] => Some(("xz", &["-dcq"], true)),
        [0x02, 0x21, 0x4c, 0x18, ..] => Some(("lz4", &["-dcq"], true)),
        [b'B', b'Z', b'h', ..] => Some(("bzip2", &["-dcq"], true)),
        [0x1f, 0x8b, ..] => Some(("gzip", &["-dcq"], false)),
        _ => None,
    }
}

/// Whether `bytes` start as a 64-bit ELF file for x86-64 does.
fn is_elf(bytes: &[u8]) -> bool {
    const CLASS_64_LITTLE: [u8; 2] = [2, 1];
    const EM_X86_64: [u8; 2] = [62, 0];
    bytes.starts_with(b"\x7fELF")
        && bytes.get(4..6) == Some(&CLASS_64_LITTLE)
        && bytes.get(18..20) == Some(&EM_X86_64)
}

fn first_in(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths.into_iter().find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    })
}

fn incomplete(tree: &Path) -> Error {
    Error::unfit(
        format!("{} is no unpacked kernel package", tree.display()),
        format!("remove it, it is fetched again: rm -r {}", tree.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf() -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01".to_vec();
        bytes.resize(18, 0);
        bytes.extend([62, 0]);
        bytes.resize(5000, 7);
        bytes
    }

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2048];
        image[0x1f1] = 2;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&512u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    fn kernel(folder: &Path, image: &[u8]) -> Kernel {
        let path = folder.join("vmlinuz");
        fs::write(&path, image).unwrap();
        Kernel { image: path, modules: folder.into(), release: "6".into(), package: None }
    }

    #[test]
    fn the_elf_image_comes_out_of_each_wrapping() {
        let gzip = Tool::new("gzip").arg("-c").filter(&elf()).unwrap();
        let mut xz = Tool::new("xz").arg("-c").filter(&elf()).unwrap();
        xz.extend(5000u32.to_le_bytes());
        let folder = tempfile::tempdir().unwrap();
        for image in [elf(), bzimage(&elf()), bzimage(&gzip), bzimage(&xz)] {
            assert_eq!(kernel(folder.path(), &image).vmlinux().unwrap(), elf());
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let mut cut = bzimage(&elf());
        cut.truncate(4000);
        let mut wrong_size = Tool::new("xz").arg("-c").filter(&elf()).unwrap();
        wrong_size.extend(1u32.to_le_bytes());
        let folder = tempfile::tempdir().unwrap();
        for image in [vec![], b"text".to_vec(), cut, bzimage(b"unknown"), bzimage(&wrong_size)] {
            assert!(kernel(folder.path(), &image).vmlinux().is_err());
        }
    }
}
