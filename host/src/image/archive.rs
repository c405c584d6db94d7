//! `.ova`: a tar archive with a virtual machine's description and its disks, which are read
//! where they are.
//!
//! Followed are POSIX.1-1988 (ustar), pax and GNU's long names and sizes. Every number is
//! checked against the archive's length.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::SECTOR_SIZE;
use super::error::{Problem, path_bytes};
use super::file::ImageFile;
use super::format::named_as_disk;
use super::hint::UNPACK;

/// Most members that are looked at.
const MAX_MEMBERS: usize = 4096;

/// Most bytes of a long name or of pax records.
const MAX_EXTENSION: u64 = 64 << 10;

/// No number is as large: no file is so long, and what is added to one here does not overflow.
const MAX_NUMBER: u64 = 1 << 62;

/// Where a file is in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    name: PathBuf,
    offset: u64,
    len: u64,
}

/// Splits `ARCHIVE.ova:MEMBER`, unless there is a file of that very name.
pub fn split_name(path: &Path) -> Option<(&Path, &Path)> {
    const BETWEEN: &[u8] = b".ova:";
    let bytes = path_bytes(path);
    let at = bytes.windows(BETWEEN.len()).position(|part| part.eq_ignore_ascii_case(BETWEEN))?;
    let (archive, member) = bytes.split_at(at + BETWEEN.len() - 1);
    let part = |bytes| Path::new(OsStr::from_bytes(bytes));
    path.symlink_metadata().is_err().then(|| (part(archive), part(&member[1..])))
}

/// Whether `file` is an archive by name and content. The name is asked for because the same
/// bytes in any other file may belong to a raw disk, and a guest wrote them.
///
/// # Errors
/// [`Problem::Io`].
pub fn is_archive(file: &ImageFile) -> Result<bool, Problem> {
    const MAGIC: &[u8] = b"ustar";
    let named =
        file.path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("ova"));
    Ok(named && file.start(512)?.get(257..).is_some_and(|rest| rest.starts_with(MAGIC)))
}

/// The member called `wanted`, or the only disk.
///
/// # Errors
/// [`Problem::SeveralDisks`], [`Problem::NoDisk`], [`Problem::NoMember`], or what is wrong with
/// the archive.
pub fn disk(archive: &ImageFile, wanted: Option<&Path>) -> Result<ImageFile, Problem> {
    let all = members(archive)?;
    let disks: Vec<&Member> = all.iter().filter(|member| named_as_disk(&member.name)).collect();
    let names = || disks.iter().map(|member| inside(archive, &member.name)).collect::<Vec<_>>();
    let member = match wanted {
        Some(name) => all
            .iter()
            .find(|member| member.name == name)
            .ok_or_else(|| Problem::NoMember { name: name.to_owned(), disks: names() })?,
        None => match disks.as_slice() {
            [] => return Err(Problem::NoDisk),
            [one] => one,
            _ => return Err(Problem::SeveralDisks(names())),
        },
    };
    // A member's last sector is filled up with zeros, and all were checked to be there.
    let len = member.len.next_multiple_of(SECTOR_SIZE);
    archive.part(inside(archive, &member.name), member.offset, len)
}

/// What a member is called.
fn inside(archive: &ImageFile, member: &Path) -> PathBuf {
    let mut path = archive.path.clone().into_os_string();
    path.push(":");
    path.push(member);
    path.into()
}

/// The regular files of an archive.
fn members(archive: &ImageFile) -> Result<Vec<Member>, Problem> {
    let mut found = Vec::new();
    let mut next = Extensions::default();
    let mut at = 0;
    for _ in 0..MAX_MEMBERS {
        if at == archive.len {
            return Ok(found);
        }
        let header: [u8; 512] = archive.header(at, "next file of the archive")?;
        if header.iter().all(|&byte| byte == 0) {
            return Ok(found);
        }
        check_sum(&header, at)?;
        let here = number(&header[124..136], at)?;
        let offset = at + 512;
        let kind = header[156];
        let len = match kind {
            // What an extension says holds for the file behind it, not for other extensions.
            b'x' | b'g' | b'L' => here,
            // Links, folders and devices have no bytes, whatever they say.
            b'1'..=b'6' => 0,
            _ => next.len.unwrap_or(here),
        };
        let stored_len = len.next_multiple_of(512);
        archive.check_inside(offset, stored_len, "file in it")?;
        match kind {
            b'x' | b'L' if len > MAX_EXTENSION => {
                return Err(Problem::damaged(format!("its entry at byte {at} is too long a name")));
            }
            b'x' | b'L' => {
                let len = usize::try_from(len).expect("checked above");
                let bytes = archive.bytes(offset, len, "name of a file")?;
                if kind == b'L' { next.long_name(&bytes) } else { next.pax(&bytes, at)? }
            }
            b'S' => {
                return Err(Problem::Unsupported {
                    what: "it holds a sparse file".to_owned(),
                    hint: UNPACK,
                });
            }
            b'0' | b'7' | 0 => {
                let name = next.name.take().unwrap_or_else(|| name(&header));
                let name = name.strip_prefix(b"./").unwrap_or(&name);
                found.push(Member { name: OsStr::from_bytes(name).into(), offset, len });
                next = Extensions::default();
            }
            b'g' => {}
            _ => next = Extensions::default(),
        }
        at = offset + stored_len;
    }
    Err(Problem::damaged(format!("it holds more than {MAX_MEMBERS} files")))
}

/// What extended headers say of the entry behind them.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    len: Option<u64>,
}

impl Extensions {
    fn long_name(&mut self, bytes: &[u8]) {
        self.name = Some(bytes.split(|&byte| byte == 0).next().unwrap_or_default().to_vec());
    }

    /// Reads `LENGTH KEY=VALUE\n` records, whose length counts all of a record.
    fn pax(&mut self, mut bytes: &[u8], at: u64) -> Result<(), Problem> {
        let damaged = || Problem::damaged(format!("its extended header at byte {at} is none"));
        while !bytes.is_empty() {
            let space = bytes.iter().position(|&byte| byte == b' ').ok_or_else(damaged)?;
            let len: usize = decimal(&bytes[..space]).ok_or_else(damaged)?;
            let record = bytes.get(space + 1..len).ok_or_else(damaged)?;
            let record = record.strip_suffix(b"\n").ok_or_else(damaged)?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(damaged)?;
            let value = &record[equals + 1..];
            match &record[..equals] {
                b"path" => self.name = Some(value.to_vec()),
                b"size" => {
                    let len = decimal(value).filter(|&len| len < MAX_NUMBER);
                    self.len = Some(len.ok_or_else(damaged)?);
                }
                _ => {}
            }
            bytes = &bytes[len..];
        }
        Ok(())
    }
}

fn decimal<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    let digits = bytes.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(bytes).ok().filter(|_| digits)?.parse().ok()
}

/// The name in a header: at most 100 bytes, with a prefix before it in POSIX' own archives.
fn name(header: &[u8; 512]) -> Vec<u8> {
    let text = |bytes: &[u8]| bytes.split(|&byte| byte == 0).next().unwrap_or_default().to_vec();
    let (name, prefix) = (text(&header[..100]), text(&header[345..500]));
    if &header[257..263] == b"ustar\0" && !prefix.is_empty() {
        [prefix.as_slice(), b"/", &name].concat()
    } else {
        name
    }
}

/// The header's bytes add up to what it says, its own eight digits counted as spaces.
fn check_sum(header: &[u8; 512], at: u64) -> Result<(), Problem> {
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>();
    let found = sum(&header[..148]) + 8 * u64::from(b' ') + sum(&header[156..]);
    if number(&header[148..156], at)? == found {
        Ok(())
    } else {
        Err(Problem::damaged(format!(
            "what should be a header of the archive, at byte {at}, is none"
        )))
    }
}

/// A number in octal digits, or, as GNU writes large ones, in bytes behind a first one of 0x80.
fn number(field: &[u8], at: u64) -> Result<u64, Problem> {
    let value = if field[0] == 0x80 {
        field[1..].iter().try_fold(0u64, |n, &byte| n.checked_mul(256)?.checked_add(byte.into()))
    } else {
        let text = field.split(|&byte| byte == 0).next().unwrap_or_default().trim_ascii();
        let digits = text.iter().all(u8::is_ascii_digit);
        std::str::from_utf8(text)
            .ok()
            .filter(|_| digits)
            .and_then(|text| u64::from_str_radix(if text.is_empty() { "0" } else { text }, 8).ok())
    };
    value.filter(|&value| value < MAX_NUMBER).ok_or_else(|| {
        Problem::damaged(format!("the archive's header at byte {at} has a bad number"))
    })
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
