//! NTFS volumes in raw files, made with mkntfs and filled through ntfs-3g.
//!
//! The mount lives in a mount and PID namespace of its own that dies with its shell, so that
//! whatever happens neither a mount nor a process is left behind. Without root a user namespace
//! goes with it, where the machine lets users have them and open `/dev/fuse`.

use std::path::{Path, PathBuf};

use guestmnt_protocol::path::Printable;

use super::partitions::SECTOR;
use super::reparse::{Link, Target};
use super::sparse;
use crate::Error;
use crate::process::Tool;

/// A volume to be made.
pub struct Format<'a> {
    /// Its size.
    pub sectors: u64,
    /// Where its partition starts on the disk; NTFS keeps this in its boot sector.
    pub start: u64,
    /// Its label.
    pub label: &'a str,
}

/// What else a volume is made of. Records have 1 KiB, or the size of a sector where that is more.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Bytes of a sector.
    pub sector: u32,
    /// Bytes of a cluster.
    pub cluster: u32,
}

/// An NTFS volume in a raw file.
pub struct Volume {
    image: PathBuf,
}

/// One change to a volume. Paths in the volume (`to`) are relative to its root.
pub enum Edit<'a> {
    /// Copies what is in this folder of the host into the root, with times, hard links and holes.
    Tree(&'a Path),
    /// Copies one file, with its times.
    File {
        /// On the host.
        from: PathBuf,
        /// In the volume.
        to: String,
    },
    /// Removes one file of the volume.
    Remove(String),
    /// Writes a part of a file over the same part of the one in the volume.
    Patch {
        /// On the host.
        from: PathBuf,
        /// In the volume.
        to: String,
        /// Where the part starts, in bytes.
        offset: u64,
        /// Its bytes.
        len: u64,
    },
    /// Writes an alternate data stream.
    Stream {
        /// The file in the volume that has it.
        to: String,
        /// Its name.
        name: String,
        /// What is in it.
        text: String,
    },
    /// Makes an empty folder, or an empty file, a link of Windows.
    Link {
        /// The folder or file in the volume.
        at: String,
        /// Its kind.
        link: Link,
        /// Where it leads, as Windows opens it.
        target: String,
    },
    /// Runs this script of sh(1) in the root, to its end or its first error.
    Script(String),
    /// Takes over a modification time.
    Time {
        /// On the host.
        from: PathBuf,
        /// In the volume.
        to: String,
    },
}

/// Mounts `$1` on `$2`, runs the edits, and ends when ntfs-3g has written everything: umount(8)
/// does not wait for a server that is not on a block device.
///
/// `stat` makes the kernel ask for the root's owner. Until then it takes it for root's, whom the
/// namespace of an ordinary user does not have, and refuses to write there.
const MOUNT: &str = r#"
set -e
image=$1 mnt=$2
ntfs-3g -o no_detach,big_writes,compression,streams_interface=windows "$image" "$mnt" &
server=$!
until mountpoint -q "$mnt"; do kill -0 "$server"; sleep 0.02; done
stat "$mnt" > /dev/null
"#;
const UNMOUNT: &str = r#"
umount "$mnt"
wait "$server"
"#;

impl Volume {
    /// Makes an empty volume in the new file `image`.
    ///
    /// # Errors
    /// Those of mkntfs.
    pub fn format(image: PathBuf, format: &Format<'_>) -> Result<Self, Error> {
        Self::format_with(image, format, Sizes { sector: 512, cluster: 4096 })
    }

    /// Likewise, with other sizes. Sectors of [`Format`] are of 512 bytes all the same.
    ///
    /// # Errors
    /// Those of mkntfs.
    pub fn format_with(image: PathBuf, format: &Format<'_>, sizes: Sizes) -> Result<Self, Error> {
        let Sizes { sector, cluster } = sizes;
        let sectors = format.sectors * SECTOR / u64::from(sector);
        sparse::create(&image, format.sectors * SECTOR)?;
        Tool::new("mkntfs")
            .args(["--force", "--quick", "--quiet", "--no-indexing"])
            .args(["--sector-size", &sector.to_string(), "--cluster-size", &cluster.to_string()])
            .args(["--heads", "255", "--sectors-per-track", "63"])
            .args(["--partition-start", &format.start.to_string(), "--label", format.label])
            .arg(&image)
            .arg(sectors.to_string())
            .run()?;
        Ok(Self { image })
    }

    /// The volume that the raw file `image` is.
    #[must_use]
    pub fn in_file(image: impl Into<PathBuf>) -> Self {
        Self { image: image.into() }
    }

    /// The raw file.
    #[must_use]
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Makes changes, in order.
    ///
    /// # Errors
    /// [`Error::Unfit`] where this user may not mount, otherwise those of ntfs-3g and of the
    /// commands that the changes are made with.
    pub fn edit(&self, edits: &[Edit<'_>]) -> Result<(), Error> {
        let mountpoint =
            tempfile::tempdir().map_err(Error::file("write in", std::env::temp_dir()))?;
        let script: String = edits.iter().map(Edit::command).collect();
        let mut unshare = Tool::new("unshare").args(["--mount", "--pid", "--fork", "--kill-child"]);
        if !nix::unistd::geteuid().is_root() {
            // As itself and with the rights kept: as the namespace's root, ntfs-3g would give up
            // groups, which needs more than a namespace.
            unshare = unshare.args(["--map-current-user", "--keep-caps"]);
        }
        unshare
            .args(["--mount-proc", "sh", "-c"])
            .arg(format!("{MOUNT}{script}{UNMOUNT}"))
            .arg("sh")
            .arg(&self.image)
            .arg(mountpoint.path())
            .run()
            .map_err(|error| match error {
                Error::Program { tail, .. } if !nix::unistd::geteuid().is_root() => not_here(&tail),
                other => other,
            })
    }
}

/// What to say where this user may not mount; `said` is why.
fn not_here(said: &[u8]) -> Error {
    let lines = said.split(|&byte| byte == b'\n').map(|line| format!("\n  | {}", Printable(line)));
    let me = std::env::current_exe().unwrap_or_else(|_| "cargo xtask".into());
    Error::unfit(
        lines.fold("this user cannot mount NTFS here, to fill it:".to_owned(), |text, line| {
            text + &line
        }),
        format!("run as root, then try again; what it makes is kept:\n{} disks", me.display()),
    )
}

impl Edit<'_> {
    /// The shell's command for it.
    fn command(&self) -> String {
        let path = |path: &Path| quote(&path.to_string_lossy());
        let inside = |path: &str| format!("\"$mnt\"/{}", quote(path));
        match self {
            Self::Tree(from) => {
                format!("cp --archive --sparse=always {}/. \"$mnt\"/\n", path(from))
            }
            Self::File { from, to } => format!("cp --archive {} {}\n", path(from), inside(to)),
            Self::Remove(to) => format!("rm {}\n", inside(to)),
            Self::Patch { from, to, offset, len } => format!(
                "dd status=none conv=notrunc iflag=skip_bytes,count_bytes oflag=seek_bytes \
                 bs=64K skip={offset} seek={offset} count={len} if={} of={}\n",
                path(from),
                inside(to)
            ),
            Self::Stream { to, name, text } => {
                format!("printf %s {} > {}\n", quote(text), inside(&format!("{to}:{name}")))
            }
            Self::Link { at, link, target } => format!(
                "setfattr --name system.ntfs_reparse_data --value 0x{} {}\n",
                Target { link: *link, target }
                    .data()
                    .iter()
                    .fold(String::new(), |text, byte| { format!("{text}{byte:02x}") }),
                inside(at)
            ),
            Self::Script(script) => format!("(cd \"$mnt\"\n{script}\n)\n"),
            Self::Time { from, to } => {
                format!("touch --no-create --reference={} {}\n", path(from), inside(to))
            }
        }
    }
}

/// `text` as one word of sh(1).
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words_whatever_is_in_them() {
        for text in ["plain", "two words", "it's", "$HOME `id` \\ \"", "new\nline"] {
            let shown =
                Tool::new("sh").args(["-c", &format!("printf %s {}", quote(text))]).output();
            assert_eq!(shown.unwrap(), text.as_bytes());
        }
    }
}
