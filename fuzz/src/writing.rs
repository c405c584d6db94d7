//! What the kernel asks of a mount that can be written, over whatever guest there is: part of
//! [`crate::answers`].

use std::sync::Arc;

use guestmnt::fs::changes::Changes;
use guestmnt::fs::nodes::{NodeId, ROOT};
use guestmnt::fs::operations::Operations;
use guestmnt::fs::view::View;
use guestmnt::guest::Guest;
use guestmnt_protocol::change::{
    NewAttributes, NewNode, Owner, Removed, Renaming, Synced, XattrMode,
};
use guestmnt_protocol::message::NameMatching;
use nix::libc;

/// Bytes that are asked for at a time.
const SIZE: u32 = 4096;

/// Asks, and holds the file that it was told of last.
pub struct Writing {
    changes: Changes,
    node: NodeId,
}

/// Its questions. Further ones come at the end: seeds name them by number.
pub const QUESTIONS: [fn(&mut Writing); 17] = [
    Writing::create,
    Writing::open,
    Writing::write,
    Writing::read,
    Writing::get_attributes,
    Writing::set_attributes,
    Writing::make,
    Writing::link,
    Writing::rename,
    Writing::remove,
    Writing::sync,
    Writing::change_xattrs,
    Writing::copy,
    Writing::seek,
    Writing::close,
    Writing::write_first,
    Writing::flush,
];

impl Writing {
    /// Of the files of `guest`.
    pub fn over(guest: &Arc<Guest>) -> Self {
        let operations = Arc::new(Operations::changing(Arc::clone(guest), View::default()));
        let changes =
            Changes::new(Arc::clone(guest), operations, Owner::default(), NameMatching::Exact);
        Self { changes, node: ROOT }
    }

    fn create(&mut self) {
        if let Ok(attr) = self.changes.create(ROOT, b"new", 0o644, libc::O_RDWR) {
            told(&attr);
            self.node = NodeId(attr.ino.0);
        }
    }

    fn open(&mut self) {
        let _ = self.changes.open(self.node, libc::O_RDWR);
    }

    fn write(&mut self) {
        let _ = self.changes.write(self.node, 7, b"bytes");
    }

    fn read(&mut self) {
        let _ = self.changes.read(self.node, 7, SIZE, |bytes| {
            assert!(bytes.len() <= SIZE as usize);
        });
    }

    fn get_attributes(&mut self) {
        self.changes.get_attr(self.node).iter().for_each(told);
    }

    fn set_attributes(&mut self) {
        let new = NewAttributes { size: Some(1), mode: Some(0o600), ..NewAttributes::default() };
        self.changes.set_attr(self.node, new).iter().for_each(told);
    }

    fn make(&mut self) {
        let made = self.changes.make(ROOT, b"folder", NewNode::Directory(0o755));
        made.iter().for_each(told);
    }

    fn link(&mut self) {
        self.changes.link(self.node, ROOT, b"second").iter().for_each(told);
    }

    fn rename(&mut self) {
        let (from, to) = ((ROOT, &b"new"[..]), (ROOT, &b"second"[..]));
        let _ = self.changes.rename(from, to, Renaming::Replace);
    }

    fn remove(&mut self) {
        let _ = self.changes.remove(ROOT, b"new", Removed::File);
    }

    fn sync(&mut self) {
        let _ = self.changes.sync(self.node, Synced::All);
    }

    fn change_xattrs(&mut self) {
        let _ = self.changes.set_xattr(self.node, b"user.name", b"value", XattrMode::Set);
        let _ = self.changes.remove_xattr(self.node, b"user.name");
    }

    fn copy(&mut self) {
        let _ = self.changes.allocate(self.node, 0, SIZE.into(), 0);
        if let Ok(copied) = self.changes.copy((self.node, 0), (self.node, 9000), SIZE.into()) {
            assert!(copied <= SIZE);
        }
    }

    fn seek(&mut self) {
        if let Ok(found) = self.changes.seek(self.node, 7, libc::SEEK_DATA) {
            assert!(found >= 7);
        }
    }

    fn write_first(&mut self) {
        let _ = self.changes.write(self.node, 0, b"bytes");
        let new = NewAttributes { mode: Some(0o600), ..NewAttributes::default() };
        self.changes.set_attr(self.node, new).iter().for_each(told);
    }

    fn flush(&mut self) {
        let _ = self.changes.flush(self.node);
    }

    fn close(&mut self) {
        self.changes.close(self.node);
    }
}

/// The kernel was told of a file.
pub fn told(attr: &fuser::FileAttr) {
    assert!(i64::try_from(attr.size).is_ok());
    assert!(attr.ino.0 != 0 && attr.perm <= 0o7777);
}
