//! A folder as an ext4 image, made and read by e2fsprogs: no root, no mount, and what debugfs(8)
//! reads in it is read without Linux' driver and without guestmnt.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use xtask::disks::sparse;
use xtask::process::Tool;

use super::{Attributes, Space};

/// Room for all that the bodies put into a folder.
const IMAGE_BYTES: u64 = 64 << 20;
const INODES: &str = "16384";

/// ext4 has no other.
const LONGEST_NAME: u64 = 255;

/// An image.
pub struct Ext4(PathBuf);

impl Ext4 {
    /// Makes `image` hold what is in `folder`: names, modes, owners, whole seconds of times, hard
    /// links, holes, extended attributes.
    ///
    /// # Panics
    /// Where it cannot be made.
    #[must_use]
    pub fn of(folder: &Path, image: PathBuf) -> Self {
        sparse::create(&image, IMAGE_BYTES).unwrap_or_else(|error| panic!("{error}"));
        let mke2fs = Tool::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-b", "4096"]);
        output(mke2fs.args(["-N", INODES, "-d"]).args([folder, &image]));
        let debugfs = Tool::new("debugfs").args(["-w", "-R", "rmdir lost+found"]);
        output(debugfs.arg(&image));
        Self(image)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Attributes of the file at the path `file` from the root.
    ///
    /// # Panics
    /// Where there is none.
    #[must_use]
    pub fn attributes(&self, file: &str) -> Attributes {
        let text = self.ask(&format!("stat \"/{file}\""));
        let text = String::from_utf8_lossy(&text);
        attributes(&text).unwrap_or_else(|| panic!("debugfs says of {file}: {text}"))
    }

    /// The names in the folder at the path `folder`, with their inode numbers.
    #[must_use]
    pub fn numbers(&self, folder: &str) -> BTreeMap<OsString, u64> {
        numbers(&self.ask(&format!("ls -p \"/{folder}\"")))
    }

    /// The filesystem's size without its own structures, as statvfs(3) counts it.
    ///
    /// # Panics
    /// Where it is not known.
    #[must_use]
    pub fn space(&self) -> Space {
        let text = output(Tool::new("dumpe2fs").arg("-h").arg(self.path()));
        let text = String::from_utf8_lossy(&text);
        let number = |key: &str| number(&text, key).unwrap_or_else(|| panic!("no {key} in {text}"));
        let blocks = number("Block count:") - number("Overhead clusters:");
        Space { block_size: number("Block size:"), blocks, longest_name: LONGEST_NAME }
    }

    fn ask(&self, request: &str) -> Vec<u8> {
        output(Tool::new("debugfs").args(["-R", request]).arg(self.path()))
    }
}

fn output(tool: Tool) -> Vec<u8> {
    tool.output().unwrap_or_else(|error| panic!("{error}"))
}

/// What `stat` of debugfs prints, `Inode: 12   Type: regular    Mode:  0644 …`.
fn attributes(text: &str) -> Option<Attributes> {
    const PERMISSIONS: u32 = 0o7777;
    let kind = match word(text, "Type:")? {
        "regular" => nix::libc::S_IFREG,
        "directory" => nix::libc::S_IFDIR,
        "symlink" => nix::libc::S_IFLNK,
        _ => return None,
    };
    let permissions = u32::from_str_radix(word(text, "Mode:")?, 8).ok()?;
    Some(Attributes {
        number: number(text, "Inode:")?,
        mode: kind | (permissions & PERMISSIONS),
        uid: number(text, "User:")?.try_into().ok()?,
        gid: number(text, "Group:")?.try_into().ok()?,
        links: number(text, "Links:")?,
        size: number(text, "Size:")?,
        blocks: number(text, "Blockcount:")?,
        modified: time(word(text, "mtime:")?)?,
        changed: time(word(text, "ctime:")?)?,
    })
}

/// `0xffed2979:00000000`: the low 32 bits of the seconds, signed; then the two above them, and the
/// nanoseconds. Source: `ext4_decode_extra_time()` in fs/ext4/ext4.h.
fn time(text: &str) -> Option<(i64, i64)> {
    let (low, extra) = text.strip_prefix("0x")?.split_once(':')?;
    let low = u32::from_str_radix(low, 16).ok()?.cast_signed();
    let extra = i64::from_str_radix(extra, 16).ok()?;
    Some((i64::from(low) + ((extra & 3) << 32), extra >> 2))
}

/// What `ls -p` of debugfs prints: `/12/100644/0/0/name/5/` and a newline for each file. No name
/// has a slash in it, but it may have a newline.
fn numbers(listing: &[u8]) -> BTreeMap<OsString, u64> {
    const FIELDS: usize = 7;
    let fields: Vec<&[u8]> = listing.split(|&byte| byte == b'/').skip(1).collect();
    let entries = fields.chunks_exact(FIELDS).map(|fields| {
        let number = String::from_utf8_lossy(fields[0]).parse().expect("the number comes first");
        (OsStr::from_bytes(fields[4]).to_owned(), number)
    });
    entries.filter(|(name, _)| name != "." && name != "..").collect()
}

/// The first word behind the first `key`.
fn word<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.split_once(key)?.1.split_whitespace().next()
}

fn number(text: &str, key: &str) -> Option<u64> {
    word(text, key)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_debugfs_prints_them() {
        let text = "\
Inode: 5040   Type: regular    Mode:  04751   Flags: 0x80000
Generation: 0    Version: 0x00000000:00000000
User:     7   Group:     8   Project:     0   Size: 4
File ACL: 4206
Links: 2   Blockcount: 16
Fragment:  Address: 0    Number: 0    Size: 0
 ctime: 0x6b02ec41:00000004 -- Sun Nov 22 13:21:05 2026
 atime: 0x6b02ec41:00000000 -- Sun Nov 22 13:21:05 2026
 mtime: 0xffed2979:1d6f3455 -- Wed Dec 17 17:03:53 1969
crtime: 0x6b02ec43:00000000 -- Sun Nov 22 13:21:07 2026
";
        let expected = Attributes {
            number: 5040,
            mode: 0o104_751,
            uid: 7,
            gid: 8,
            links: 2,
            size: 4,
            blocks: 16,
            modified: (4_293_732_729, 123_456_789),
            changed: (1_795_353_665, 1),
        };
        assert_eq!(attributes(text), Some(expected));
        assert_eq!(time("0xffed2979:00000000"), Some((-1_234_567, 0)));
    }

    #[test]
    fn a_name_with_a_newline_is_one_name() {
        let listing = b"/2/040755/0/0/.//\n/2/040755/0/0/..//\n/12/100644/0/0/new\nline/8/\n\
                        /13/040755/0/0/folder//\n\n";
        let names: Vec<_> = numbers(listing).into_iter().collect();
        assert_eq!(names, [("folder".into(), 13), ("new\nline".into(), 12)]);
    }
}
