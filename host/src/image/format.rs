//! Formats of image files, and how their first bytes tell them apart.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::error::Problem;
use super::file::ImageFile;
use super::{
    cowd, descriptor, foreign, owner, parallels, qcow2, qed, sesparse, sparse, vdi, vhd, vhdx,
};

/// A format of disk images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Plain sectors.
    Raw,
    /// VMware.
    Vmdk,
    /// QEMU.
    Qcow2,
    /// VirtualBox.
    Vdi,
    /// Virtual PC and Hyper-V before 2012: VHD.
    Vpc,
    /// Hyper-V.
    Vhdx,
    /// QEMU, until qcow2 had its speed.
    Qed,
    /// Parallels.
    Parallels,
}

/// A text that names no [`Format`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatError;

impl Format {
    const ALL: [Self; 8] = [
        Self::Raw,
        Self::Vmdk,
        Self::Qcow2,
        Self::Vdi,
        Self::Vpc,
        Self::Vhdx,
        Self::Qed,
        Self::Parallels,
    ];

    /// The name of QEMU's block driver for it, which is the one that users know it by.
    #[must_use]
    pub fn qemu_driver(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vmdk => "vmdk",
            Self::Qcow2 => "qcow2",
            Self::Vdi => "vdi",
            Self::Vpc => "vpc",
            Self::Vhdx => "vhdx",
            Self::Qed => "qed",
            Self::Parallels => "parallels",
        }
    }

    /// Tells the format of `file`.
    ///
    /// Whatever has no known magic passes for a raw disk, except where its name promises a
    /// format: then it is damaged, or a part of a disk.
    ///
    /// # Errors
    /// [`Problem::Empty`], [`Problem::Foreign`] for what is certainly no disk, [`Problem::UnknownFormat`], [`Problem::IsExtent`] for a raw extent that a descriptor names, or a read error.
    pub fn probe(file: &ImageFile) -> Result<Self, Problem> {
        if file.len == 0 {
            return Err(Problem::Empty);
        }
        if let Some(format) = Self::of_magic(&file.start(PROBE_LEN)?) {
            return Ok(format);
        }
        if let Some(foreign) = foreign::of(file)? {
            return Err(Problem::Foreign(foreign));
        }
        match extension(&file.path).as_str() {
            // A VHD of fixed size has its header at the end. A name is asked for because in
            // any other file these bytes belong to a raw disk, and a guest wrote them.
            "vhd" | "vpc" if vhd::has_footer(file)? => Ok(Self::Vpc),
            "vmdk" => Err(match owner::descriptor_naming(file) {
                Some(descriptor) => Problem::IsExtent(Some(descriptor)),
                None => Problem::UnknownFormat,
            }),
            "qcow2" | "vdi" | "vhd" | "vhdx" | "ova" | "qed" => Err(Problem::UnknownFormat),
            _ => Ok(Self::Raw),
        }
    }

    fn of_magic(start: &[u8]) -> Option<Self> {
        let vmdk = start.starts_with(&sparse::MAGIC)
            || start.starts_with(&cowd::MAGIC)
            || start.starts_with(&sesparse::MAGIC)
            || descriptor::is_descriptor(start);
        if vmdk {
            Some(Self::Vmdk)
        } else if start.starts_with(&qcow2::MAGIC) {
            Some(Self::Qcow2)
        } else if start.get(vdi::MAGIC_AT..).is_some_and(|rest| rest.starts_with(&vdi::MAGIC)) {
            Some(Self::Vdi)
        } else if start.starts_with(vhd::MAGIC) {
            Some(Self::Vpc)
        } else if start.starts_with(vhdx::MAGIC) {
            Some(Self::Vhdx)
        } else if start.starts_with(&qed::MAGIC) {
            Some(Self::Qed)
        } else if start.starts_with(parallels::MAGIC) || start.starts_with(parallels::OLD_MAGIC) {
            Some(Self::Parallels)
        } else {
            None
        }
    }
}

/// Bytes that tell the format; enough for the comments above a descriptor's first line.
const PROBE_LEN: usize = 1024;

/// Whether a file is called as disks are, whatever is in it.
pub fn named_as_disk(path: &Path) -> bool {
    const EXTENSIONS: [&str; 11] =
        ["vmdk", "qcow2", "vdi", "vhd", "avhd", "vhdx", "avhdx", "img", "raw", "qed", "hds"];
    EXTENSIONS.contains(&extension(path).as_str())
}

/// The part behind the last dot, in lower case; empty without one.
fn extension(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.qemu_driver())
    }
}

impl FromStr for Format {
    type Err = FormatError;

    /// Accepts QEMU's names, and `vhd` for `vpc`.
    fn from_str(text: &str) -> Result<Self, FormatError> {
        let name = if text == "vhd" { "vpc" } else { text };
        Self::ALL.into_iter().find(|f| f.qemu_driver() == name).ok_or(FormatError)
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not one of the formats")?;
        for (i, format) in Format::ALL.iter().enumerate() {
            write!(f, "{} {format}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl std::error::Error for FormatError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_prints_as_it_reads() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert_eq!("vhd".parse(), Ok(Format::Vpc));
        assert_eq!("nbd".parse::<Format>(), Err(FormatError));
        assert_eq!(
            FormatError.to_string(),
            "not one of the formats raw, vmdk, qcow2, vdi, vpc, vhdx, qed, parallels"
        );
    }

    #[test]
    fn first_bytes_tell_the_format() {
        let table: &[(&[u8], Option<Format>)] = &[
            (b"KDMV", Some(Format::Vmdk)),
            (b"COWD", Some(Format::Vmdk)),
            (b"\xbe\xba\xfe\xca\0\0\0\0", Some(Format::Vmdk)),
            (b"# Disk DescriptorFile\nversion=1\n", Some(Format::Vmdk)),
            (b"QFI\xfb", Some(Format::Qcow2)),
            (b"conectix", Some(Format::Vpc)),
            (b"vhdxfile", Some(Format::Vhdx)),
            (b"QED\0", Some(Format::Qed)),
            (b"WithoutFreeSpace", Some(Format::Parallels)),
            (b"WithouFreSpacExt", Some(Format::Parallels)),
            (b"QFI", None),
            (b"", None),
        ];
        for (start, format) in table {
            assert_eq!(Format::of_magic(start), *format);
        }
    }
}
