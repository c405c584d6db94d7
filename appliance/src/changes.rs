//! Requests of writable mounts, each with the one call that carries it out.

use guestmnt_protocol::change::{Change, HeldFile, HeldRequest};
use guestmnt_protocol::limits::MAX_PAYLOAD;
use guestmnt_protocol::message::{Answer, Outcome};
use nix::errno::Errno;

use crate::changing::Copied;
use crate::failure;
use crate::guest::Guest;
use crate::payload::Payload;

impl Guest {
    /// Carries out a change, with the bytes `given` that came with it.
    pub(crate) fn change(&self, change: &Change, given: &[u8]) -> Outcome {
        match change {
            Change::SetAttrAt { file, attributes, changed } => self
                .on_files_at(*changed, |tree, at| {
                    tree.set_attr_at(file, attributes, at).map(Answer::Attr)
                }),
            Change::FinishAt { file, offset, attributes, afterwards, changed } => self
                .on_files_at(*changed, |tree, at| {
                    tree.finish(*file, *offset, given, attributes, at, *afterwards)
                }),
            other => self.change_now(other, given),
        }
    }

    fn change_now(&self, change: &Change, given: &[u8]) -> Outcome {
        let done = |()| Answer::Done;
        self.on_files(|tree| match change {
            Change::SetAttrAt { .. } | Change::FinishAt { .. } => Err(Errno::EINVAL),
            Change::Create { entry, mode, owner, existing } => {
                let (held, attr) = tree.create(entry, *mode, *owner, *existing)?;
                Ok(Answer::Created(held, attr))
            }
            Change::Hold { file, access } => tree.hold(file, *access).map(Answer::Held),
            Change::Write { file, offset } => tree.write(*file, *offset, given).map(done),
            Change::SetAttr { file, attributes } => {
                tree.set_attr(file, attributes).map(Answer::Attr)
            }
            Change::Allocate { file, offset, length, mode } => {
                tree.allocate(*file, *offset, *length, *mode).map(done)
            }
            Change::CopyRange { from, from_offset, to, to_offset, length } => {
                let (from, to) = ((*from, *from_offset), (*to, *to_offset));
                tree.copy_range(&Copied { from, to, length: *length }).map(Answer::Offset)
            }
            Change::Make { entry, node, owner } => tree.make(entry, node, *owner).map(Answer::Attr),
            Change::Link { file, entry } => tree.link(file, entry).map(Answer::Attr),
            Change::Remove { entry, kind } => tree.remove(entry, *kind).map(done),
            Change::Rename { from, to, how } => tree.rename(from, to, *how).map(done),
            Change::SetXattr { file, name, how } => {
                tree.set_xattr(file, name, given, *how).map(done)
            }
            Change::RemoveXattr { file, name } => tree.remove_xattr(file, name).map(done),
            Change::Sync { file, what } => tree.sync(file, *what).map(done),
            Change::Finish { file, offset, attributes, afterwards } => {
                tree.finish(*file, *offset, given, attributes, None, *afterwards)
            }
        })
    }

    /// Answers a request about a file that is held.
    pub(crate) fn held(
        &self,
        file: HeldFile,
        request: &HeldRequest,
        payload: &mut Payload,
    ) -> Outcome {
        match request {
            HeldRequest::Stat => self.on_files(|tree| tree.stat_held(file).map(Answer::Attr)),
            HeldRequest::Read { offset, size } => {
                let size = usize::try_from(*size).ok().filter(|&size| size <= MAX_PAYLOAD);
                let size = size.ok_or_else(|| failure::plain(Errno::EINVAL))?;
                self.on_files(|tree| {
                    let contents = tree.held.get(file)?;
                    let count = contents.read(*offset, payload.bulk_space(size))?;
                    payload.truncate(count);
                    Ok(Answer::Payload)
                })
            }
            HeldRequest::Seek { offset, what } => {
                self.on_files(|tree| tree.held.get(file)?.seek(*offset, *what).map(Answer::Offset))
            }
            HeldRequest::Release => {
                self.on_files(|tree| tree.held.release(file).map(|()| Answer::Done))
            }
            HeldRequest::GetXattr { name } => self.on_files(|tree| {
                tree.get_xattr_held(file, name, payload).map(|()| Answer::Payload)
            }),
            HeldRequest::ListXattr => {
                self.on_files(|tree| tree.list_xattr_held(file, payload).map(|()| Answer::Payload))
            }
        }
    }
}
