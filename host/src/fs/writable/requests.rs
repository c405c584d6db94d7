//! The kernel's requests to a mount that can be written, each with the call that carries it out.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use guestmnt_protocol::change::{
    NewAttributes, NewNode, NewTime, Owner, Removed, Renaming, Synced, XattrMode,
};
use guestmnt_protocol::limits::MAX_PAYLOAD;
use guestmnt_protocol::message::NameMatching;
use guestmnt_protocol::path::LinkTarget;
use nix::errno::Errno;

use super::WritableFs;
use crate::fs::nodes::NodeId;
use crate::fs::stats::Asked;
use crate::fs::view::since_1970;
use crate::fs::{GENERATION, Of, sized, stat_fs};
use crate::guest::Update;

fn done(result: Result<(), fuser::Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for WritableFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        self.reading.negotiate(config, self.targets);
        // A larger piece would not fit into a slot.
        let _ = config.set_max_write(u32::try_from(MAX_PAYLOAD).expect("a payload fits 32 bits"));
        // Where a directory has a default access control list, the umask does not apply.
        let _ = config.add_capabilities(InitFlags::FUSE_DONT_MASK);
        if self.names == NameMatching::Exact {
            let _ = config.add_capabilities(InitFlags::FUSE_WRITEBACK_CACHE);
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let call = || self.changes.look_up(NodeId(parent.0), name.as_bytes());
        let found = self.run(Asked::Lookup, parent, Of::Name(name), call);
        self.made(found, reply);
    }

    fn forget(&self, req: &Request, ino: INodeNo, nlookup: u64) {
        self.changes.forget(NodeId(ino.0));
        self.reading.forget(req, ino, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let call = || {
            // With a handle it is write(2) that asks.
            fh.map_or(Ok(()), |_| self.changes.check_written(NodeId(ino.0)))?;
            self.changes.get_attr(NodeId(ino.0))
        };
        match self.run(Asked::GetAttr, ino, Of::All, call) {
            Ok(attr) => reply.attr(&self.reading.lifetime, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let attributes = NewAttributes {
            size,
            owner: Owner { uid, gid },
            mode: mode.map(|mode| mode & 0o7777),
            accessed: atime.map(new_time),
            modified: mtime.map(new_time),
        };
        // Of files that it caches the kernel notes by itself when they were changed.
        let update = Update { attributes, changed: ctime.map(since_1970) };
        let call = || self.changes.set_attr(NodeId(ino.0), update);
        match self.run(Asked::SetAttr, ino, Of::All, call) {
            Ok(attr) => reply.attr(&self.reading.lifetime, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let _settled = self.changes.settled();
        self.reading.readlink(req, ino, reply);
    }

    fn mknod(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let call = || {
            let mode = self.changes.masked(NodeId(parent.0), mode, umask)?;
            let node = NewNode::Special { mode, device: rdev.into() };
            self.changes.make(NodeId(parent.0), name.as_bytes(), node)
        };
        self.made(self.run(Asked::Make, parent, Of::Name(name), call), reply);
    }

    fn mkdir(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let call = || {
            let mode = self.changes.masked(NodeId(parent.0), mode, umask)?;
            let node = NewNode::Directory(mode & 0o7777);
            self.changes.make(NodeId(parent.0), name.as_bytes(), node)
        };
        self.made(self.run(Asked::Make, parent, Of::Name(name), call), reply);
    }

    fn symlink(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let call = || {
            let target = LinkTarget::new(target.as_os_str().as_bytes());
            let node = NewNode::Link(target.map_err(|_| Errno::ENAMETOOLONG)?);
            self.changes.make(NodeId(parent.0), name.as_bytes(), node)
        };
        self.made(self.run(Asked::Make, parent, Of::Name(name), call), reply);
    }

    fn link(&self, _req: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let call = || self.changes.link(NodeId(ino.0), NodeId(parent.0), name.as_bytes());
        self.made(self.run(Asked::Link, parent, Of::Name(name), call), reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let call = || self.changes.remove(NodeId(parent.0), name.as_bytes(), Removed::File);
        done(self.run(Asked::Remove, parent, Of::Name(name), call), reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let call = || self.changes.remove(NodeId(parent.0), name.as_bytes(), Removed::Directory);
        done(self.run(Asked::Remove, parent, Of::Name(name), call), reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let call = || {
            let how = match flags {
                RenameFlags::RENAME_NOREPLACE => Renaming::NoReplace,
                RenameFlags::RENAME_EXCHANGE => Renaming::Exchange,
                RenameFlags::RENAME_WHITEOUT => Renaming::Whiteout,
                _ if flags == RenameFlags::RENAME_WHITEOUT | RenameFlags::RENAME_NOREPLACE => {
                    Renaming::WhiteoutNoReplace
                }
                _ if flags.is_empty() => Renaming::Replace,
                _ => return Err(Errno::EINVAL),
            };
            let from = (NodeId(parent.0), name.as_bytes());
            self.changes.rename(from, (NodeId(new_parent.0), new_name.as_bytes()), how)
        };
        done(self.run(Asked::Rename, parent, Of::Name(name), call), reply);
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let call = || {
            let mode = self.changes.masked(NodeId(parent.0), mode, umask)?;
            self.changes.create(NodeId(parent.0), name.as_bytes(), mode, flags)
        };
        match self.run(Asked::Create, parent, Of::Name(name), call) {
            Ok(attr) => {
                let (lifetime, opened) = (&self.reading.lifetime, self.opened());
                reply.created(lifetime, &attr, GENERATION, FileHandle(0), opened);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.run(Asked::Open, ino, Of::All, || self.changes.open(NodeId(ino.0), flags.0)) {
            Ok(()) => reply.opened(FileHandle(0), self.opened()),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut reply = Some(reply);
        let call = || {
            self.changes.read(NodeId(ino.0), offset, size, |bytes| {
                self.stats().asked.bytes(bytes.len());
                reply.take().expect("called once").data(bytes);
            })
        };
        let result = self.run(Asked::Read, ino, Of::Bytes(size as usize, offset), call);
        if let (Err(errno), Some(reply)) = (result, reply) {
            reply.error(errno);
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.stats().asked.bytes(data.len());
        let call = || self.changes.write(NodeId(ino.0), offset, data);
        match self.run(Asked::Write, ino, Of::Bytes(data.len(), offset), call) {
            Ok(()) => reply.written(u32::try_from(data.len()).expect("no more than a payload")),
            Err(errno) => {
                reply.error(errno);
                self.changes.not_written(NodeId(ino.0), offset, data.len());
            }
        }
    }

    fn flush(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let call = || self.changes.flush(NodeId(ino.0));
        done(self.run(Asked::Flush, ino, Of::All, call), reply);
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.changes.close(NodeId(ino.0));
        self.stats().asked.request(Asked::Release);
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let what = if datasync { Synced::Data } else { Synced::All };
        let call = || self.changes.sync(NodeId(ino.0), what);
        done(self.run(Asked::Sync, ino, Of::All, call), reply);
    }

    fn fsyncdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.fsync(req, ino, fh, datasync, reply);
    }

    fn opendir(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.reading.opendir(req, ino, flags, reply);
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let _settled = self.changes.settled_for_listing();
        self.reading.readdir(req, ino, fh, offset, reply);
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let _settled = self.changes.settled_for_listing();
        self.reading.readdirplus(req, ino, fh, offset, reply);
    }

    fn releasedir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.reading.releasedir(req, ino, fh, flags, reply);
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match self.run(Asked::StatFs, ino, Of::All, || self.changes.stat_fs(NodeId(ino.0))) {
            Ok(stat) => stat_fs(stat, reply),
            Err(errno) => reply.error(errno),
        }
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let call = || self.changes.get_xattr(NodeId(ino.0), name.as_bytes());
        match self.run(Asked::GetXattr, ino, Of::Name(name), call) {
            Ok(value) => sized(reply, size, value),
            Err(errno) => reply.error(errno),
        }
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.run(Asked::ListXattr, ino, Of::All, || self.changes.list_xattr(NodeId(ino.0))) {
            Ok(names) => sized(reply, size, names),
            Err(errno) => reply.error(errno),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let call = || {
            let how = match flags {
                0 => XattrMode::Set,
                libc::XATTR_CREATE => XattrMode::Create,
                libc::XATTR_REPLACE => XattrMode::Replace,
                _ => return Err(Errno::EINVAL),
            };
            self.changes.set_xattr(NodeId(ino.0), name.as_bytes(), value, how)?;
            self.changes.check_set_group_id(NodeId(ino.0), name.as_bytes(), req.uid(), req.gid())
        };
        done(self.run(Asked::SetXattr, ino, Of::Name(name), call), reply);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let call = || self.changes.remove_xattr(NodeId(ino.0), name.as_bytes());
        done(self.run(Asked::SetXattr, ino, Of::Name(name), call), reply);
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        self.reading.access(req, ino, mask, reply);
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let call = || self.changes.allocate(NodeId(ino.0), offset, length, mode);
        done(self.run(Asked::Allocate, ino, Of::All, call), reply);
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let call = || self.changes.seek(NodeId(ino.0), offset, whence);
        match self.run(Asked::Seek, ino, Of::All, call) {
            Ok(found) => reply.offset(found),
            Err(errno) => reply.error(errno),
        }
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = ((NodeId(ino_in.0), offset_in), (NodeId(ino_out.0), offset_out));
        match self.run(Asked::Copy, ino_out, Of::All, || self.changes.copy(from, to, len)) {
            Ok(copied) => reply.written(copied),
            Err(errno) => reply.error(errno),
        }
    }
}

fn new_time(time: TimeOrNow) -> NewTime {
    match time {
        TimeOrNow::Now => NewTime::Now,
        TimeOrNow::SpecificTime(time) => NewTime::At(since_1970(time)),
    }
}
