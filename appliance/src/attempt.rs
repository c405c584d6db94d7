//! One filesystem that the kernel is asked to mount.
//!
//! The block device itself is writable, since it is an overlay: so a journal is replayed although
//! the mount is read-only, and the image stays as it is. A filesystem is mounted for writing where
//! that was asked for and does no harm; else read-only, and the reason is told.

use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use guestmnt_protocol::limits::MAX_DETAIL;
use guestmnt_protocol::message::{Dirty, Failure, MountedAs, NameMatching};
use guestmnt_protocol::path::Printable;

use crate::failure::explained;
use crate::filesystems::{Filesystem, ForWriting, character_sets, join_options};
use crate::hibernation;
use crate::kmsg;
use crate::modules::Modules;
use crate::xfs;

/// Nothing of an image runs, opens a device or gains rights, even if something tried.
pub const FLAGS: MsFlags =
    MsFlags::MS_RDONLY.union(MsFlags::MS_NOSUID).union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// Reading is no change: the host keeps what it read and would not know of it.
const FLAGS_FOR_WRITING: MsFlags = FLAGS.difference(MsFlags::MS_RDONLY).union(MsFlags::MS_NOATIME);

/// What can be done about a dirty NTFS.
const CHECK_IT: &str =
    "hint: chkdsk of Windows makes it clean; --force-dirty writes to it all the same";

/// Whether a filesystem may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writing {
    /// It may not.
    Never,
    /// It may, but for what this says of one that is dirty.
    Unless(Dirty),
}

/// What became of a filesystem's journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journal {
    /// There is none, or it was replayed into the overlay if need be.
    Replayed,
    /// It could not be replayed.
    Left,
}

/// One filesystem, about to be mounted.
pub struct Attempt<'a> {
    /// Its device's node.
    pub node: &'a Path,
    /// The directory to mount on.
    pub target: &'a Path,
    /// How the kernel knows it.
    pub filesystem: Filesystem<'a>,
    /// For the filesystem itself: the user's, and those that say what of it is meant.
    pub options: &'a str,
}

impl Attempt<'_> {
    /// Loads what the kernel would otherwise look for in vain. A module that is missing here can be
    /// built into the kernel; if it is not, mounting fails and says so.
    pub fn load_modules(&self, modules: &Modules) {
        let kind = self.filesystem.kernel_name;
        let own = modules.load(&format!("fs-{kind}")).or_else(|_| modules.load(kind));
        let sets = character_sets(self.options);
        let others = self.filesystem.modules.iter().copied().chain(sets.iter().map(String::as_str));
        let outcomes = others.map(|name| (name, modules.load(name)));
        for (name, outcome) in std::iter::once((kind, own)).chain(outcomes) {
            if let Err(errno) = outcome
                && errno != Errno::ENOENT
            {
                let name = Printable(name.as_bytes());
                kmsg::warn(format_args!("cannot load module {name}: {}", errno.desc()));
            }
        }
    }

    /// Mounts, for writing where that may be.
    ///
    /// # Errors
    /// Of mount(2), with what the kernel logged.
    pub fn run_for(&self, writing: Writing) -> Result<(MountedAs, Journal), Failure> {
        let refused = match (writing, self.filesystem.writing) {
            (Writing::Never, _) => None,
            (Writing::Unless(_), None) => {
                let kind = Printable(self.filesystem.kernel_name.as_bytes());
                Some(format!("{kind} is never written to"))
            }
            (Writing::Unless(dirty), Some(how)) => match self.write(dirty, how) {
                Ok(()) => {
                    let how = MountedAs { read_only: None, names: how.names };
                    return Ok((how, Journal::Replayed));
                }
                Err(reason) => Some(reason),
            },
        };
        let journal = self.run()?;
        Ok((MountedAs { read_only: refused, names: NameMatching::Exact }, journal))
    }

    /// Mounts for writing, or says why not.
    fn write(&self, dirty: Dirty, how: ForWriting) -> Result<(), String> {
        let force = how.force.filter(|_| dirty == Dirty::Force).unwrap_or_default();
        if how.force.is_some() && dirty == Dirty::ReadOnly {
            let read_only = |place: &Path| {
                let kind = self.filesystem.kernel_name;
                let options = join_options(&[self.filesystem.options, self.options]);
                mount(Some(self.node), place, Some(kind), FLAGS, Some(options.as_str()))
            };
            hibernation::check(read_only)?;
        }
        let log = kmsg::Tail::from_now();
        let options = [self.filesystem.options, how.options, force, self.options];
        self.call(FLAGS_FOR_WRITING, &options).map_err(|errno| {
            let log = log.read(MAX_DETAIL);
            if how.force.is_some() && log.contains("dirty") {
                return format!(
                    "it is dirty, since who used it last did not unmount it\n{CHECK_IT}"
                );
            }
            self.why(errno, &log)
        })
    }

    /// Mounts read-only; where that fails and the filesystem has a journal, once more without replaying it:
    /// a damaged journal must not hide the files.
    fn run(&self) -> Result<Journal, Failure> {
        let log = kmsg::Tail::from_now();
        let Err(errno) = self.call(FLAGS, &[self.filesystem.options, self.options]) else {
            return Ok(Journal::Replayed);
        };
        let log = log.read(MAX_DETAIL);
        if let Some(without) = self.filesystem.without_journal
            && self.call(FLAGS, &[self.filesystem.options, without, self.options]).is_ok()
        {
            return Ok(Journal::Left);
        }
        Err(explained(errno, self.why(errno, &log)))
    }

    fn call(&self, flags: MsFlags, options: &[&str]) -> nix::Result<()> {
        let options = join_options(options);
        let kind = self.filesystem.kernel_name;
        mount(Some(self.node), self.target, Some(kind), flags, Some(options.as_str()))
    }

    /// What a person should know: the error, and what the kernel logged meanwhile.
    fn why(&self, errno: Errno, log: &str) -> String {
        let kind = Printable(self.filesystem.kernel_name.as_bytes());
        let error = match errno {
            Errno::ENOENT => "there is no such subvolume".to_owned(),
            Errno::ENODEV => format!("the appliance's kernel has no filesystem {kind}"),
            Errno::EINVAL => format!("not a good {kind} filesystem, or an option that it refuses"),
            other => format!("{kind}: {}", other.desc()),
        };
        let advice = match self.filesystem.kernel_name {
            "xfs" => xfs::advice(log),
            _ => None,
        };
        let lines = [error.as_str(), log.trim_end(), advice.unwrap_or_default()];
        lines.into_iter().filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
    }
}
