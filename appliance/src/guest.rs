//! What the daemon answers from: each request with the one call that carries it out.

use std::path::Path;
use std::sync::{PoisonError, RwLock};

use nix::errno::Errno;

use guestmnt_protocol::VERSION;
use guestmnt_protocol::limits::MAX_PAYLOAD;
use guestmnt_protocol::message::{Answer, Failure, Outcome, Request};
use guestmnt_protocol::path::GuestPath;

use crate::failure;
use crate::payload::Payload;
use crate::tree::Tree;

/// One guest, shared by all lanes.
pub struct Guest {
    /// What is mounted. Requests on files hold it shared, mounting and unmounting exclusively, so
    /// that nothing is in flight while the tree changes.
    tree: RwLock<Option<Tree>>,
}

impl Guest {
    /// A guest without a virtual machine: it answers for the files below `root`, and refuses
    /// what takes devices with `ENOSYS`. The host's side can be tested against it.
    ///
    /// # Errors
    /// As open(2) for the directory `root`.
    pub fn over(root: &Path) -> nix::Result<Self> {
        Ok(Self { tree: RwLock::new(Some(Tree::at(root)?)) })
    }

    /// Carries out `request`. Where the answer is [`Answer::Payload`], the bytes are in `payload`.
    pub(crate) fn answer(&self, request: &Request, payload: &mut Payload) -> Outcome {
        match request {
            Request::Hello => Ok(Answer::Hello { version: VERSION }),
            Request::Wake { .. } => Ok(Answer::Done),
            Request::AwaitDisks { .. } => Err(no_machine()),
            Request::Volumes => Err(no_machine()),
            Request::Mount(_) => Err(no_machine()),
            Request::Unmount => Ok(Answer::Done),

            Request::Stat(path) => self.on_files(|tree| tree.stat(path).map(Answer::Attr)),
            Request::ReadLink(path) => {
                self.on_files(|tree| tree.read_link(path, payload).map(|()| Answer::Payload))
            }
            Request::ReadDir { path, from, size } => {
                let size = usize::try_from(*size).unwrap_or(MAX_PAYLOAD);
                self.on_files(|tree| {
                    tree.read_dir(path, *from, size, payload).map(|()| Answer::Payload)
                })
            }
            Request::Read { path, offset, size } => self.read(path, *offset, *size, payload),
            Request::Seek { path, offset, what } => {
                self.on_files(|tree| tree.seek(path, *offset, *what).map(Answer::Offset))
            }
            Request::ListXattr(path) => {
                self.on_files(|tree| tree.list_xattr(path, payload).map(|()| Answer::Payload))
            }
            Request::GetXattr { path, name } => {
                self.on_files(|tree| tree.get_xattr(path, name, payload).map(|()| Answer::Payload))
            }
            Request::StatFs(path) => self.on_files(|tree| tree.stat_fs(path).map(Answer::StatFs)),
        }
    }

    fn read(&self, path: &GuestPath, offset: u64, size: u32, payload: &mut Payload) -> Outcome {
        let size = usize::try_from(size)
            .ok()
            .filter(|&size| size <= MAX_PAYLOAD)
            .ok_or_else(|| failure::plain(Errno::EINVAL))?;
        self.on_files(|tree| {
            let count = tree.read(path, offset, payload.space(size))?;
            payload.truncate(count);
            Ok(Answer::Payload)
        })
    }

    /// Runs a request on files. Before a root is mounted there are none: `ENODEV`.
    fn on_files(&self, carry_out: impl FnOnce(&Tree) -> nix::Result<Answer>) -> Outcome {
        // Nothing is done to the tree itself while it is shared, so poison would mean nothing.
        let mounted = self.tree.read().unwrap_or_else(PoisonError::into_inner);
        let tree = mounted.as_ref().ok_or_else(|| failure::plain(Errno::ENODEV))?;
        carry_out(tree).map_err(failure::plain)
    }
}

fn no_machine() -> Failure {
    failure::explained(Errno::ENOSYS, "this guest has no devices")
}
