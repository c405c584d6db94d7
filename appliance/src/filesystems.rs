//! What the kernel wants to know of each type of filesystem: its own name for it, the modules it
//! does not ask for by itself, and the options by which names come out as UTF-8 and clones can be
//! mounted side by side.
//!
//! Follows fs/*/super.c of Linux 6.12.

use guestmnt_protocol::message::NameMatching;

/// How one type is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filesystem<'a> {
    /// The kernel's name.
    pub kernel_name: &'a str,
    /// Modules beyond the filesystem's own.
    pub modules: &'a [&'a str],
    /// Options that always hold; what the user adds comes behind and so wins.
    pub options: &'a str,
    /// The option that leaves the journal as it is, for a second attempt where replaying fails.
    pub without_journal: Option<&'a str>,
    /// Whether it may be written, and how it is mounted then.
    pub writing: Option<ForWriting>,
}

/// How a filesystem is mounted to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForWriting {
    /// Options beyond those that always hold.
    pub options: &'static str,
    /// The option that has a dirty one written to, of those filesystems that can be dirty.
    pub force: Option<&'static str>,
    /// How names are compared.
    pub names: NameMatching,
}

impl ForWriting {
    const PLAIN: Self = Self { options: "", force: None, names: NameMatching::Exact };
    const LOOSE: Self = Self { names: NameMatching::Loose, ..Self::PLAIN };
    /// A driver that goes on after an error would write to what it does not understand.
    const EXT4: Self = Self { options: "errors=remount-ro", ..Self::PLAIN };
    /// What fsync put into the log tree cannot always be brought back: after one kill in twenty, the
    /// replay failed with `EEXIST` (Linux 6.12), and all that was in it was lost. Without the log
    /// tree, fsync commits a transaction.
    const BTRFS: Self = Self { options: "notreelog", ..Self::PLAIN };
    const NTFS: Self = Self { force: Some("force"), ..Self::PLAIN };
}

impl<'a> Filesystem<'a> {
    /// What is known of the type `name`, which is libblkid's or the kernel's. A type that is not in
    /// the table is mounted by its own name and without options.
    pub fn named(name: &'a str) -> Self {
        let plain = |kernel_name| Self {
            kernel_name,
            modules: &[],
            options: "",
            without_journal: None,
            writing: None,
        };
        match name {
            // The kernel replays the journal into the overlay, read-only mount or not.
            "ext2" | "ext3" | "ext4" | "ext4dev" => Self {
                without_journal: Some("noload"),
                writing: Some(ForWriting::EXT4),
                ..plain("ext4")
            },
            // nouuid: two clones of a filesystem, as in snapshots of a VM, have one UUID.
            "xfs" => Self {
                options: "nouuid",
                without_journal: Some("norecovery"),
                writing: Some(ForWriting::PLAIN),
                ..plain("xfs")
            },
            "btrfs" => Self {
                without_journal: Some("rescue=nologreplay"),
                writing: Some(ForWriting::BTRFS),
                ..plain("btrfs")
            },
            "f2fs" => Self { without_journal: Some("norecovery"), ..plain("f2fs") },
            "nilfs2" => Self { without_journal: Some("norecovery"), ..plain("nilfs2") },
            "ntfs" | "ntfs3" => Self {
                options: "iocharset=utf8",
                writing: Some(ForWriting::NTFS),
                ..plain("ntfs3")
            },
            "exfat" => Self {
                options: "iocharset=utf8",
                writing: Some(ForWriting::LOOSE),
                ..plain("exfat")
            },
            "iso9660" => Self { options: "iocharset=utf8", ..plain("iso9660") },
            "udf" => Self { options: "iocharset=utf8", ..plain("udf") },
            // FAT takes short names from a code page. With utf8 the character set serves for upper
            // and lower case only; ASCII leaves all other bytes alone.
            "vfat" => Self {
                modules: &["nls_cp437", "nls_ascii"],
                options: "codepage=437,iocharset=ascii,utf8",
                writing: Some(ForWriting::LOOSE),
                ..plain("vfat")
            },
            "msdos" => Self { modules: &["nls_cp437"], options: "codepage=437", ..plain("msdos") },
            "hfs" => Self {
                modules: &["mac_roman", "nls_utf8"],
                options: "codepage=macroman,iocharset=utf8",
                ..plain("hfs")
            },
            "hfsplus" => Self { modules: &["nls_utf8"], options: "nls=utf8", ..plain("hfsplus") },
            "jfs" => Self { modules: &["nls_utf8"], options: "iocharset=utf8", ..plain("jfs") },
            other => plain(other),
        }
    }
}

/// Modules of the character sets that the user's options name. The kernel asks for them by
/// running modprobe, which the appliance does not have.
pub fn character_sets(options: &str) -> Vec<String> {
    options
        .split(',')
        .filter_map(|option| option.split_once('='))
        .filter_map(|(key, value)| match key {
            "iocharset" | "nls" => Some(format!("nls_{}", value.replace('-', "_"))),
            "codepage" => Some(format!("nls_cp{}", value.strip_prefix("cp").unwrap_or(value))),
            _ => None,
        })
        .collect()
}

/// `options` without those that are mount(8)'s and no filesystem's: how a filesystem is mounted
/// here is settled, and `rw` would let the driver of a read-only mount write.
pub fn own_options(options: &str) -> String {
    const OF_MOUNT: [&str; 26] = [
        "defaults",
        "ro",
        "rw",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "exec",
        "noexec",
        "sync",
        "async",
        "dirsync",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "lazytime",
        "auto",
        "noauto",
        "user",
        "nouser",
        "nofail",
        "_netdev",
    ];
    let own: Vec<&str> = options.split(',').filter(|option| !OF_MOUNT.contains(option)).collect();
    join_options(&own)
}

/// Options joined by commas; empty ones leave no trace.
pub fn join_options(options: &[&str]) -> String {
    let given: Vec<&str> = options.iter().copied().filter(|option| !option.is_empty()).collect();
    given.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libblkids_names_become_the_kernels() {
        let table =
            [("ntfs", "ntfs3"), ("ext2", "ext4"), ("vfat", "vfat"), ("squashfs", "squashfs")];
        for (name, kernel_name) in table {
            assert_eq!(Filesystem::named(name).kernel_name, kernel_name);
        }
    }

    #[test]
    fn character_sets_of_options_are_found() {
        let table: [(&str, &[&str]); 4] = [
            ("ro,iocharset=koi8-r,codepage=866", &["nls_koi8_r", "nls_cp866"]),
            ("nls=utf8", &["nls_utf8"]),
            ("codepage=cp932", &["nls_cp932"]),
            ("uid=0,utf8", &[]),
        ];
        for (options, modules) in table {
            assert_eq!(character_sets(options), modules, "{options}");
        }
    }

    #[test]
    fn options_of_mount_do_not_reach_the_filesystem() {
        assert_eq!(own_options("ro,uid=1,rw,noatime,utf8"), "uid=1,utf8");
        assert_eq!(own_options("defaults"), "");
        assert_eq!(own_options("rw=1,"), "rw=1");
    }

    #[test]
    fn options_are_joined_without_gaps() {
        assert_eq!(join_options(&["", "a=1", "", "b"]), "a=1,b");
        assert_eq!(join_options(&["", ""]), "");
    }
}
