//! `guestimg diff`: what an overlay changes of its image. Two VMs show the files before and after,
//! both without writing anything, and their trees are compared entry by entry.
//!
//! What the guests say is untrusted, and printed escaped.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::ArgMatches;
use guestmnt_protocol::attr::{Attr, DirEntry, Following, Time};
use guestmnt_protocol::path::{EntryName, GuestPath, Printable};
use log::warn;
use nix::errno::Errno;
use serde_json::{Value, json};

use super::boxed;
use super::output::Output;
use crate::cli::images::{ImageArguments, KeyArguments, OverlayArguments};
use crate::cli::selection::SelectionArguments;
use crate::cli::utc;
use crate::guest::Guest;
use crate::image::OnMissing;
use crate::session::fuse_options::FuseOptions;
use crate::session::keys;
use crate::session::launch::launch;
use crate::session::plan::{DEFAULT_MEMORY_MIB, DiskSpec, Plan, WritesTo};
use crate::session::selection::Selection;
use crate::session::timings::Timings;
use crate::vm::accelerator::AcceleratorChoice;
use crate::vm::confinement::Policy;

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Bytes of a directory's page.
const PAGE: u32 = 256 * 1024;

/// Lists what an overlay changes of its image: files added, removed and changed
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    images: ImageArguments,

    #[command(flatten)]
    overlays: OverlayArguments,

    #[command(flatten)]
    selection: SelectionArguments,

    #[command(flatten)]
    keys: KeyArguments,

    /// What runs the VMs
    #[arg(long, value_name = "auto|kvm|tcg", default_value = "auto")]
    accel: AcceleratorChoice,

    /// An array of objects
    #[arg(long)]
    json: bool,

    /// Say what is done
    #[arg(short = 'v', long)]
    pub(super) verbose: bool,
}

/// Lists the differences on standard output.
///
/// # Errors
/// Whatever stopped it, in words for people.
pub fn run(arguments: &Arguments, matches: &ArgMatches) -> Result<(), Box<dyn Display>> {
    let disks = arguments.overlays.disks(&arguments.images, matches)?;
    let disks: Vec<DiskSpec> = disks.into_iter().map(|(disk, _)| disk).collect();
    let selection = arguments.selection.of(disks.len()).map_err(boxed)?;
    let keys = arguments.keys.fetch().map_err(boxed)?;
    let memory_mib = if keys.is_empty() { DEFAULT_MEMORY_MIB } else { keys::MEMORY_MIB };
    let mut plan = Plan {
        disks: disks.iter().map(|disk| DiskSpec { overlay: None, ..disk.clone() }).collect(),
        allow_paths: arguments.images.allow_path.clone(),
        on_missing: OnMissing::default(),
        selection: selection.unwrap_or(Selection::Everything),
        keys,
        mountpoint: PathBuf::new(),
        fuse_options: FuseOptions::merged(&[]),
        accelerator: arguments.accel,
        use_template: true,
        memory_mib,
        declined: None,
        through_guest: true,
        bulk: true,
        timeout: TIMEOUT,
        confinement: Policy::BestEffort,
        stats: false,
        writes: WritesTo::Nothing,
    };
    let before = launch(&plan, &Timings::start()).map_err(boxed)?;
    plan.disks = disks;
    let after = launch(&plan, &Timings::start()).map_err(boxed)?;
    let mut out = Output::lock();
    let mut all = Vec::new();
    let printed = compare(&before.guest, &after.guest, |difference| {
        if arguments.json {
            all.push(difference.json());
            Ok(())
        } else {
            writeln!(out, "{difference}")
        }
    });
    printed.map_err(boxed)?;
    if !(before.complete && after.complete) {
        return Err(boxed("not all filesystems could be compared"));
    }
    if arguments.json {
        writeln!(out, "{:#}", Value::Array(all)).map_err(boxed)?;
    }
    Ok(())
}

/// A file that is not the same.
#[derive(Debug, PartialEq)]
struct Difference {
    path: GuestPath,
    before: Option<DirEntry>,
    after: Option<DirEntry>,
}

impl Difference {
    fn attrs(&self) -> (Option<Attr>, Option<Attr>) {
        let attr = |entry: &Option<DirEntry>| entry.as_ref().and_then(|entry| entry.attr);
        (attr(&self.before), attr(&self.after))
    }

    fn json(&self) -> Value {
        let rfc3339 = |Time { secs, nanos }: Time| utc::rfc3339(secs, nanos);
        let file = |entry: &Option<DirEntry>| -> Value {
            let Some(entry) = entry else { return Value::Null };
            let target = entry.target.as_ref().map(|to| Printable(to.as_bytes()).to_string());
            match entry.attr {
                None => json!({}),
                Some(attr) => json!({
                    "type": kind(attr.mode), "mode": format!("{:04o}", attr.mode & 0o7777),
                    "uid": attr.uid, "gid": attr.gid, "size": attr.size, "links": attr.nlink,
                    "modified": rfc3339(attr.modified), "changed": rfc3339(attr.changed),
                    "target": target,
                }),
            }
        };
        let change = match (&self.before, &self.after) {
            (None, _) => "added",
            (_, None) => "removed",
            _ => "changed",
        };
        json!({
            "path": self.path.to_string(), "change": change,
            "before": file(&self.before), "after": file(&self.after),
        })
    }
}

/// `+ /path`, `- /path`, `~ /path: size 3 -> 5`.
impl Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, before, after } = self;
        let (Some(old), Some(new)) = (before, after) else {
            return write!(f, "{} {path}", if before.is_none() { '+' } else { '-' });
        };
        write!(f, "~ {path}:")?;
        let mut what: Vec<String> = Vec::new();
        let mut note = |name: &str, old: &dyn Display, new: &dyn Display| {
            let (old, new) = (old.to_string(), new.to_string());
            if old != new {
                what.push(format!("{name} {old} -> {new}"));
            }
        };
        if let (Some(a), Some(b)) = self.attrs() {
            note("type", &kind(a.mode), &kind(b.mode));
            let mode = |attr: &Attr| format!("{:04o}", attr.mode & 0o7777);
            note("mode", &mode(&a), &mode(&b));
            note("uid", &a.uid, &b.uid);
            note("gid", &a.gid, &b.gid);
            if !is_directory(&a) || !is_directory(&b) {
                note("size", &a.size, &b.size);
                note("links", &a.nlink, &b.nlink);
                let time = |attr: &Attr| utc::date_and_time(attr.modified.secs);
                note("time", &time(&a), &time(&b));
            }
        }
        let target = |entry: &DirEntry| {
            entry
                .target
                .as_ref()
                .map_or_else(String::new, |to| Printable(to.as_bytes()).to_string())
        };
        note("target", &target(old), &target(new));
        if what.is_empty() {
            // Times that are finer than a second, or what only the time of this change tells.
            what.push("contents or attributes".to_owned());
        }
        write!(f, " {}", what.join(", "))
    }
}

/// Gives what differs between the trees of two guests to `take`, folder by folder.
fn compare(
    before: &Guest,
    after: &Guest,
    mut take: impl FnMut(Difference) -> io::Result<()>,
) -> Result<(), WalkError> {
    let mut folders = vec![Folder { path: GuestPath::root(), sides: [true; 2], above: Vec::new() }];
    while let Some(folder) = folders.pop() {
        let list = |guest: &Guest, wanted: bool| {
            if wanted { entries(guest, &folder.path) } else { Ok(BTreeMap::new()) }
        };
        let mut old = list(before, folder.sides[0])?;
        let new = list(after, folder.sides[1])?;
        let mut both: Vec<(EntryName, Option<DirEntry>, Option<DirEntry>)> = Vec::new();
        for (name, entry) in new {
            both.push((name.clone(), old.remove(&name), Some(entry)));
        }
        both.extend(old.into_iter().map(|(name, entry)| (name, Some(entry), None)));
        both.sort_by(|one, other| one.0.cmp(&other.0));
        let mut below = Vec::new();
        for (name, old, new) in both {
            let Ok(path) = folder.path.join(&name) else {
                warn!("{} holds names that are too long to look at", folder.path);
                continue;
            };
            let sides = [&old, &new].map(|entry| entry.as_ref().is_some_and(is_folder));
            if sides != [false; 2] {
                below.extend(folder.below(&path, sides, new.as_ref().or(old.as_ref())));
            }
            let same = matches!((&old, &new), (Some(old), Some(new)) if is_same(old, new));
            if !same {
                take(Difference { path, before: old, after: new }).map_err(WalkError::Print)?;
            }
        }
        folders.extend(below.into_iter().rev());
    }
    Ok(())
}

/// A folder that is to be looked at.
struct Folder {
    path: GuestPath,
    /// Whether it is there before, and after.
    sides: [bool; 2],
    /// The numbers of the folders that it is in.
    above: Vec<(u16, u64)>,
}

impl Folder {
    /// One below this. A damaged filesystem can have a folder in itself, which has no end.
    fn below(&self, path: &GuestPath, sides: [bool; 2], entry: Option<&DirEntry>) -> Option<Self> {
        let attr = entry?.attr?;
        let number = (attr.volume, attr.ino);
        if self.above.contains(&number) {
            warn!("{path} is a folder that it is in itself");
            return None;
        }
        let above = self.above.iter().copied().chain([number]).collect();
        Some(Self { path: path.clone(), sides, above })
    }
}

/// Why the trees cannot be compared.
#[derive(Debug)]
enum WalkError {
    Read(GuestPath, Errno),
    Print(io::Error),
}

impl Display for WalkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(path, errno) => write!(f, "cannot read {path}: {}", errno.desc()),
            Self::Print(error) => write!(f, "cannot print: {error}"),
        }
    }
}

/// What is in a folder, by name.
fn entries(guest: &Guest, path: &GuestPath) -> Result<BTreeMap<EntryName, DirEntry>, WalkError> {
    let failed = |errno| WalkError::Read(path.clone(), errno);
    let (mut all, mut from) = (BTreeMap::new(), 0);
    loop {
        let (page, following) = guest.read_dir(path.clone(), from, PAGE).map_err(failed)?;
        match page.last() {
            Some(last) if last.next != from => from = last.next,
            _ => return Ok(all),
        }
        all.extend(page.into_iter().map(|entry| (entry.name.clone(), entry)));
        if following == Following::Nothing {
            return Ok(all);
        }
    }
}

/// Whether a file is the same. A change of what it holds shows in the time when its attributes
/// changed last, which nobody can set; where a filesystem has no such time, in the other one. What
/// is in a folder is looked at by itself.
fn is_same(old: &DirEntry, new: &DirEntry) -> bool {
    let relevant = |entry: &DirEntry| {
        entry.attr.map(|attr| {
            let Attr { mode, uid, gid, rdev, .. } = attr;
            let (none, no_time) = ((0, 0), (Time::default(), Time::default()));
            let (extent, times) = if is_directory(&attr) {
                (none, no_time)
            } else {
                ((attr.size, attr.nlink), (attr.modified, attr.changed))
            };
            (mode, uid, gid, rdev, extent, times)
        })
    };
    relevant(old) == relevant(new) && old.target == new.target
}

fn is_folder(entry: &DirEntry) -> bool {
    entry.attr.as_ref().is_some_and(is_directory)
}

fn is_directory(attr: &Attr) -> bool {
    attr.mode & libc::S_IFMT == libc::S_IFDIR
}

fn kind(mode: u32) -> &'static str {
    match mode & libc::S_IFMT {
        libc::S_IFREG => "file",
        libc::S_IFDIR => "folder",
        libc::S_IFLNK => "link",
        libc::S_IFIFO => "fifo",
        libc::S_IFSOCK => "socket",
        libc::S_IFCHR => "character device",
        libc::S_IFBLK => "block device",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(mode: u32, size: u64, modified: i64) -> DirEntry {
        let modified = Time { secs: modified, nanos: 0 };
        let attr = Attr { mode, size, modified, nlink: 1, ..Attr::default() };
        let name = EntryName::new(b"f").unwrap();
        DirEntry { next: 1, name, attr: Some(attr), target: None }
    }

    fn difference(before: Option<DirEntry>, after: Option<DirEntry>) -> Difference {
        Difference { path: GuestPath::parse(b"/d/\x1bf").unwrap(), before, after }
    }

    #[test]
    fn differences_are_printed_escaped_with_what_changed() {
        let file = || entry(libc::S_IFREG | 0o644, 3, 0);
        let other = entry(libc::S_IFREG | 0o4755, 5, 1);
        let table = [
            (difference(None, Some(file())), "+ /d/\\u{1b}f"),
            (difference(Some(file()), None), "- /d/\\u{1b}f"),
            (
                difference(Some(file()), Some(other)),
                "~ /d/\\u{1b}f: mode 0644 -> 4755, size 3 -> 5, \
                 time 1970-01-01 00:00:00 -> 1970-01-01 00:00:01",
            ),
        ];
        for (difference, expected) in table {
            assert_eq!(difference.to_string(), expected);
        }
    }

    #[test]
    fn a_folders_own_size_and_times_are_no_difference() {
        let folder = |size, time| entry(libc::S_IFDIR | 0o755, size, time);
        let file = |size, time| entry(libc::S_IFREG | 0o644, size, time);
        assert!(is_same(&folder(1, 2), &folder(3, 4)));
        assert!(is_same(&file(1, 2), &file(1, 2)));
        assert!(!is_same(&file(1, 2), &file(1, 3)));
        assert!(!is_same(&file(1, 2), &file(2, 2)));
        assert!(!is_same(&file(1, 2), &folder(1, 2)));
    }
}
