//! Kinds of filesystems that the tests have images of, and what each keeps of the files that it is
//! filled with.

use crate::process::find_program;

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
    Iso9660RockRidge,
    Iso9660Joliet,
    Udf,
    Squashfs,
    Erofs,
    F2fs,
    Hfs,
    HfsPlus,
    Ntfs,
}

/// What an image of a kind keeps of the tree that [`super::mkfs::make`] fills it with: what the
/// kind can have, less what the tool that fills it drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keeps {
    /// Names.
    pub names: Names,
    /// Symbolic links.
    pub symbolic_links: bool,
    /// Several names of one file.
    pub hard_links: bool,
    /// Modification times, or `None` where the tool sets its own.
    pub times: Option<Times>,
}

/// Names that a kind keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// ASCII, no spaces, 31 characters at most.
    Plain,
    /// The first 65,536 characters of Unicode.
    TwoBytes,
    /// All of Unicode.
    All,
}

/// Times that a kind keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// What they are rounded down to.
    pub unit_ns: i64,
    /// The first year.
    pub first_year: i64,
    /// The last year.
    pub last_year: i64,
}

impl Times {
    const SECONDS: Self = Self { unit_ns: 1_000_000_000, first_year: 1902, last_year: 2200 };
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Ext2,
        Self::Ext3,
        Self::Ext4,
        Self::Xfs,
        Self::Btrfs,
        Self::Vfat,
        Self::Exfat,
        Self::Iso9660RockRidge,
        Self::Iso9660Joliet,
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
            Self::Iso9660RockRidge | Self::Iso9660Joliet => "iso9660",
            Self::Udf => "udf",
            Self::Squashfs => "squashfs",
            Self::Erofs => "erofs",
            Self::F2fs => "f2fs",
            Self::Hfs => "hfs",
            Self::HfsPlus => "hfsplus",
            Self::Ntfs => "ntfs",
        }
    }

    /// A name of its own, for files.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Iso9660Joliet => "iso9660-joliet",
            other => other.name(),
        }
    }

    /// The first program that making it would miss here.
    #[must_use]
    pub fn missing_program(self) -> Option<&'static str> {
        let programs: &[&str] = match self {
            Self::Ext2 | Self::Ext3 | Self::Ext4 => &["mke2fs", "debugfs"],
            Self::Xfs => &["mkfs.xfs"],
            Self::Btrfs => &["mkfs.btrfs"],
            Self::Vfat => &["mkfs.vfat", "mcopy"],
            Self::Exfat => &["mkfs.exfat", "fsck.exfat"],
            Self::Iso9660RockRidge | Self::Iso9660Joliet | Self::Udf => &["genisoimage"],
            Self::Squashfs => &["mksquashfs"],
            Self::Erofs => &["mkfs.erofs"],
            Self::F2fs => &["mkfs.f2fs", "sload.f2fs"],
            Self::Hfs => &["hformat", "hcopy"],
            Self::HfsPlus => &["xorriso"],
            Self::Ntfs => &["mkntfs", "ntfs-3g"],
        };
        programs.iter().copied().find(|program| find_program(program).is_none())
    }

    /// What an image keeps of the tree that it is filled with.
    #[must_use]
    pub fn keeps(self) -> Keeps {
        let all = Keeps {
            names: Names::All,
            symbolic_links: true,
            hard_links: true,
            times: Some(Times::SECONDS),
        };
        let no_links = Keeps { symbolic_links: false, hard_links: false, ..all };
        let times = |unit_ns, first_year, last_year| Times { unit_ns, first_year, last_year };
        // From 1970 for as long as 32 bits last: the driver reads them without a sign.
        let unsigned = Some(Times { first_year: 1970, last_year: 2105, ..Times::SECONDS });
        match self {
            // mke2fs 1.47.0 leaves the bits beyond 32 at zero.
            Self::Ext2 | Self::Ext3 | Self::Ext4 => {
                Keeps { times: Some(Times { last_year: 2037, ..Times::SECONDS }), ..all }
            }
            // A prototype file has words for neither.
            Self::Xfs => Keeps { names: Names::Plain, hard_links: false, times: None, ..all },
            Self::Btrfs => all,
            // mcopy makes one UTF-16 unit of every character.
            Self::Vfat => Keeps {
                names: Names::TwoBytes,
                times: Some(times(2_000_000_000, 1980, 2107)),
                ..no_links
            },
            Self::Exfat => Keeps { times: Some(times(10_000_000, 1980, 2107)), ..no_links },
            Self::Iso9660RockRidge => Keeps { names: Names::TwoBytes, ..all },
            Self::Iso9660Joliet => Keeps { names: Names::TwoBytes, ..no_links },
            // From 2028 on genisoimage writes a time zone a day away, and symbolic links only into
            // the ISO 9660 half of the image.
            Self::Udf => Keeps {
                names: Names::TwoBytes,
                times: Some(Times { last_year: 2027, ..Times::SECONDS }),
                ..no_links
            },
            Self::Squashfs | Self::F2fs => Keeps { times: unsigned, ..all },
            Self::Erofs => Keeps { times: Some(Times { unit_ns: 1, ..Times::SECONDS }), ..all },
            Self::Hfs => Keeps { names: Names::Plain, times: None, ..no_links },
            // Linux' driver has two bytes for a character.
            Self::HfsPlus => {
                Keeps { names: Names::TwoBytes, hard_links: false, times: unsigned, ..all }
            }
            // ntfs-3g's symbolic links are no reparse points; Linux' driver shows them as files.
            Self::Ntfs => Keeps {
                symbolic_links: false,
                times: Some(Times { unit_ns: 100, ..Times::SECONDS }),
                ..all
            },
        }
    }
}
