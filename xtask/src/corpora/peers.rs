//! The second opinion: other programs read the same filesystems, as far as they are installed.
//!
//! A column of the tables lists them. `name` sees the same type (blkid), or the same regular files
//! with the same bytes (the others); `!name` does not, which the row's reason explains.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;

use super::listing::{Entry, Listing};
use super::trial::Verdict;
use crate::corpus::Family;
use crate::digest;
use crate::error::Error;
use crate::process::{Tool, find_program, search_path};

/// How long one program may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// Filesystems that are larger are not read by others: their pieces are files of their own.
const MOST_BYTES: u64 = 2 << 30;

/// A program that writes all files of a filesystem into a directory.
struct Peer {
    name: &'static str,
    program: &'static str,
    /// libblkid's names of the filesystems that it reads.
    types: &'static [&'static str],
    /// Its arguments for a filesystem's file and the directory.
    arguments: fn(&str, &str) -> Vec<String>,
    /// Beginnings of paths that are no files of the filesystem.
    extras: &'static [&'static str],
}

/// Writes the volume's name above its files.
const HAS_VOLUME_NAME: [&str; 2] = ["hfs", "hfsplus"];

/// Linux shows names without Rock Ridge and Joliet in small letters.
const HAS_CAPITALS: &str = "iso9660";

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[rustfmt::skip]
const PEERS: &[Peer] = &[
    Peer {
        name: "debugfs",
        program: "debugfs",
        types: &["ext2", "ext3", "ext4"],
        arguments: |image, to| words(&["-R", &format!("rdump / {to}"), image]),
        extras: &[],
    },
    Peer {
        name: "mtools",
        program: "mcopy",
        types: &["vfat"],
        arguments: |image, to| words(&["-s", "-n", "-i", image, "::", to]),
        extras: &[],
    },
    Peer {
        name: "sleuthkit",
        program: "tsk_recover",
        types: &["ext2", "ext3", "ext4", "vfat", "exfat", "ntfs", "hfsplus", "ufs", "iso9660"],
        arguments: |image, to| words(&["-a", image, to]),
        extras: &["$", "^"],
    },
    Peer {
        name: "7zip",
        program: "7zz",
        types: &[
            "ext2", "ext3", "ext4", "vfat", "ntfs", "hfsplus", "hfs", "squashfs", "iso9660", "udf", "cramfs",
        ],
        arguments: |image, to| words(&["x", "-y", "-bd", "-snl", &format!("-o{to}"), image]),
        extras: &["[SYS", "[BOOT]", "[HFS+ Private Data]"],
    },
    Peer {
        name: "btrfs-restore",
        program: "btrfs",
        types: &["btrfs"],
        arguments: |image, to| words(&["restore", "-i", image, to]),
        extras: &[],
    },
];

/// What the programs see.
#[derive(Debug, Default)]
pub struct Opinions {
    /// Each program that was asked, and how it differs.
    of: BTreeMap<&'static str, Option<String>>,
}

impl Opinions {
    fn add(&mut self, name: &'static str, difference: Option<String>) {
        let before = self.of.entry(name).or_default();
        *before = before.take().or(difference);
    }

    /// Where the opinions are others than the column `peers` of a row.
    #[must_use]
    pub fn differences(&self, peers: &str) -> Vec<String> {
        let known: BTreeSet<&str> = peers.split(' ').collect();
        let unknown = self.of.iter().filter(|(name, difference)| match difference {
            None => !known.contains(**name),
            Some(_) => !known.contains(format!("!{name}").as_str()),
        });
        unknown
            .map(|(name, difference)| match difference {
                Some(difference) => format!("{name} differs: {difference}"),
                None => format!("{name} agrees, which the table does not say"),
            })
            .collect()
    }

    /// The column `peers` of a row that had `before` in it. Programs that were not asked now keep
    /// their marks.
    #[must_use]
    pub fn column(&self, before: &str) -> String {
        let not_asked = |mark: &&str| {
            let name = mark.trim_start_matches('!');
            name != "-" && !self.of.contains_key(name)
        };
        let mut marks: Vec<String> =
            before.split(' ').filter(not_asked).map(str::to_owned).collect();
        marks.extend(self.of.iter().map(|(name, difference)| match difference {
            None => (*name).to_owned(),
            Some(_) => format!("!{name}"),
        }));
        marks.sort_by(|a, b| a.trim_start_matches('!').cmp(b.trim_start_matches('!')));
        if marks.is_empty() { "-".to_owned() } else { marks.join(" ") }
    }
}

/// The programs that could be asked and are not installed.
#[must_use]
pub fn missing() -> Vec<&'static str> {
    let programs = PEERS.iter().map(|peer| peer.program).chain(["blkid", "qemu-img", "sfdisk"]);
    programs.filter(|program| find_program(program).is_none()).collect()
}

/// Asks the programs that are installed what they see of an image's filesystems.
///
/// # Errors
/// Where they cannot be asked. That one fails is its opinion.
pub fn ask(
    image: &Path,
    verdict: &Verdict,
    scratch: &Path,
    family: &Family,
) -> Result<Opinions, Error> {
    let mut opinions = Opinions::default();
    let scratch = tempfile::tempdir_in(scratch).map_err(Error::file("write in", scratch))?;
    let Some(raw) = to_raw(image, scratch.path()) else { return Ok(opinions) };
    for filesystem in verdict.observed.filesystems.split(", ") {
        let Some((device, kind)) = filesystem.split_once(' ') else { continue };
        if let Some(piece) = piece(&raw, device, scratch.path())?
            && kind != "unknown"
        {
            let seen = blkid(&piece);
            let difference = (seen != kind).then(|| format!("{seen:?} instead of {kind:?}"));
            opinions.add("blkid", difference);
        }
    }
    let devices = verdict.listing.0.keys().filter(|path| !path.contains(&b'/'));
    for device in devices.map(|path| String::from_utf8_lossy(path)) {
        let Some(piece) = piece(&raw, &device, scratch.path())? else { continue };
        let kind = blkid(&piece);
        let ours = below(&verdict.listing, &device);
        for peer in PEERS.iter().filter(|peer| peer.types.contains(&kind.as_str())) {
            if find_program(peer.program).is_some() {
                let files = ask_peer(peer, &piece, scratch.path(), family)?;
                opinions.add(peer.name, compare(&ours, &files, peer, &kind));
            }
        }
    }
    Ok(opinions)
}

/// The image as a raw file; `None` where qemu-img cannot read it either.
fn to_raw(image: &Path, scratch: &Path) -> Option<PathBuf> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Info {
        format: String,
        virtual_size: u64,
    }
    let info = Tool::new("qemu-img").args(["info", "--output=json"]).arg(image).output().ok()?;
    let info: Info = serde_json::from_slice(&info).ok()?;
    if info.virtual_size > MOST_BYTES {
        return None;
    }
    if info.format == "raw" {
        return Some(image.to_owned());
    }
    let raw = scratch.join("raw");
    let convert = Tool::new("qemu-img").args(["convert", "-O", "raw"]).arg(image).arg(&raw);
    convert.run().ok().map(|()| raw)
}

/// The file of `device`: the whole disk's, or a partition's out of it.
fn piece(raw: &Path, device: &str, scratch: &Path) -> Result<Option<PathBuf>, Error> {
    #[derive(Deserialize)]
    struct Dump {
        partitiontable: Table,
    }
    #[derive(Deserialize)]
    struct Table {
        partitions: Vec<Partition>,
    }
    #[derive(Deserialize)]
    struct Partition {
        node: String,
        start: u64,
        size: u64,
    }
    if device == "sda" {
        return Ok(Some(raw.to_owned()));
    }
    let Some(number) = device.strip_prefix("sda").and_then(|digits| digits.parse::<u32>().ok())
    else {
        return Ok(None);
    };
    let Ok(dump) = Tool::new("sfdisk").arg("--json").arg(raw).output() else { return Ok(None) };
    let Ok(dump) = serde_json::from_slice::<Dump>(&dump) else { return Ok(None) };
    let node = format!("{}{number}", raw.display());
    let node_p = format!("{}p{number}", raw.display());
    let partitions = dump.partitiontable.partitions;
    let Some(found) = partitions.iter().find(|at| at.node == node || at.node == node_p) else {
        return Ok(None);
    };
    let piece = scratch.join(device);
    Tool::new("dd")
        .args(["bs=512", "conv=sparse", "status=none"])
        .arg(format!("if={}", raw.display()))
        .arg(format!("of={}", piece.display()))
        .args([format!("skip={}", found.start), format!("count={}", found.size)])
        .run()?;
    Ok(Some(piece))
}

/// The type of a filesystem; empty where blkid knows none.
fn blkid(piece: &Path) -> String {
    let blkid = Tool::new("blkid").args(["-p", "-s", "TYPE", "-o", "value"]).arg(piece).output();
    blkid.map(|seen| String::from_utf8_lossy(&seen).trim().to_owned()).unwrap_or_default()
}

/// The entries of a device, by their paths in it.
fn below(listing: &Listing, device: &str) -> Listing {
    let top = format!("{device}/");
    let entries = listing.0.iter().filter_map(|(path, entry)| {
        Some((path.strip_prefix(top.as_bytes())?.to_vec(), entry.clone()))
    });
    Listing(entries.collect())
}

/// The regular files of a filesystem: path and SHA-256.
type Files = BTreeMap<Vec<u8>, String>;

/// The files that a program writes. One that does not end has written none.
fn ask_peer(peer: &Peer, piece: &Path, scratch: &Path, family: &Family) -> Result<Files, Error> {
    let to = tempfile::tempdir_in(scratch).map_err(Error::file("write in", scratch))?;
    let arguments = (peer.arguments)(&piece.to_string_lossy(), &to.path().to_string_lossy());
    let failed = |source| Error::Start { program: peer.program.to_owned(), source };
    let mut command = Command::new(peer.program);
    command.args(arguments).env("PATH", search_path()).env("LC_ALL", "C.UTF-8");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = family.start(&mut command).map_err(failed)?;
    let mut files = Files::new();
    if family.wait(&mut child, DEADLINE).map_err(failed)?.is_none() {
        child.kill().map_err(failed)?;
        family.wait(&mut child, DEADLINE).map_err(failed)?;
        return Ok(files);
    }
    collect(to.path(), to.path(), &mut files)?;
    Ok(files)
}

/// How the files of a program differ from what guestimg lists of the same filesystem.
fn compare(ours: &Listing, theirs: &Files, peer: &Peer, kind: &str) -> Option<String> {
    let mut theirs = theirs.clone();
    theirs.retain(|path, _| !peer.extras.iter().any(|extra| path.starts_with(extra.as_bytes())));
    if HAS_VOLUME_NAME.contains(&kind) && peer.name == "7zip" {
        theirs = renamed(theirs, |path| {
            path.iter().position(|&byte| byte == b'/').map_or(path, |at| &path[at + 1..]).to_vec()
        });
        theirs
            .retain(|path, _| !peer.extras.iter().any(|extra| path.starts_with(extra.as_bytes())));
    }
    if kind == HAS_CAPITALS {
        theirs = renamed(theirs, <[u8]>::to_ascii_lowercase);
    }
    // Some programs write links and devices as files.
    let is_special =
        |path: &Vec<u8>| ours.0.get(path).is_some_and(|entry| !matches!(entry, Entry::File { .. }));
    theirs.retain(|path, _| !is_special(path));
    let mut ours: Files =
        ours.files().map(|(path, _, digest)| (path.to_vec(), digest.to_owned())).collect();
    if kind == HAS_CAPITALS {
        ours = renamed(ours, <[u8]>::to_ascii_lowercase);
    }
    first_difference(&ours, &theirs)
}

fn renamed(files: Files, name: impl Fn(&[u8]) -> Vec<u8>) -> Files {
    files.into_iter().map(|(path, digest)| (name(&path), digest)).collect()
}

/// Regular files below `directory`, with their digests.
fn collect(root: &Path, directory: &Path, files: &mut Files) -> Result<(), Error> {
    for entry in fs::read_dir(directory).map_err(Error::file("list", directory))? {
        let path = entry.map_err(Error::file("list", directory))?.path();
        let meta = fs::symlink_metadata(&path).map_err(Error::file("look at", &path))?;
        if meta.is_dir() {
            collect(root, &path, files)?;
        } else if meta.is_file() {
            let name = path.strip_prefix(root).expect("it is below");
            files.insert(name.as_os_str().as_bytes().to_vec(), digest::of_file(&path)?);
        }
    }
    Ok(())
}

fn first_difference(ours: &Files, theirs: &Files) -> Option<String> {
    let shown = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    let paths: BTreeSet<&Vec<u8>> = ours.keys().chain(theirs.keys()).collect();
    paths.into_iter().find_map(|path| match (ours.get(path), theirs.get(path)) {
        (Some(a), Some(b)) if a == b => None,
        (Some(_), Some(_)) => Some(format!("it reads other bytes of {}", shown(path))),
        (Some(_), None) => Some(format!("it does not see {}", shown(path))),
        (None, _) => Some(format!("it also sees {}", shown(path))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_say_who_agrees_and_who_was_known_to_differ() {
        let mut opinions = Opinions::default();
        opinions.add("blkid", None);
        opinions.add("7zip", Some("it does not see a".to_owned()));
        opinions.add("7zip", None);
        assert_eq!(opinions.differences("!7zip blkid"), Vec::<String>::new());
        assert_eq!(
            opinions.differences("7zip"),
            ["7zip differs: it does not see a", "blkid agrees, which the table does not say"]
        );
        assert_eq!(opinions.column("blkid debugfs"), "!7zip blkid debugfs");
        assert_eq!(Opinions::default().column("-"), "-");
    }

    #[test]
    fn files_differ_by_name_or_bytes() {
        let files = |list: &[(&str, &str)]| -> Files {
            list.iter().map(|(path, digest)| (path.as_bytes().to_vec(), (*digest).into())).collect()
        };
        let ours = files(&[("a", "1"), ("b", "2")]);
        assert_eq!(first_difference(&ours, &ours), None);
        for (theirs, said) in [
            (files(&[("a", "1")]), "it does not see b"),
            (files(&[("a", "1"), ("b", "3")]), "it reads other bytes of b"),
            (files(&[("a", "1"), ("b", "2"), ("c", "3")]), "it also sees c"),
        ] {
            assert_eq!(first_difference(&ours, &theirs).unwrap(), said);
        }
    }
}
