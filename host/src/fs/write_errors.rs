//! Errors of writes that the kernel was answered for before the guest did them, and the calls that
//! report them.
//!
//! With FUSE's writeback cache write(2) only fills the kernel's page cache, and the kernel keeps what
//! the guest's error was for fsync(2) and close(2). A program that does neither goes on writing into
//! a full filesystem. But before each write(2) the kernel asks for the attributes of a file if they
//! are not valid, and fails write(2) if it gets an error instead. So the next write(2) after an error
//! fails with it as well.
//! Source: `fuse_cache_write_iter()` and `fuse_writepage_end()` in fs/fuse/file.c (Linux 6.12, 6.18).

use nix::errno::Errno;

/// The errors of one open file.
#[derive(Debug, Default)]
pub struct WriteErrors {
    /// What the kernel was answered, and will report to fsync(2) or close(2).
    kernel_reports: Option<Errno>,
    /// What the kernel does not know, since the bytes were kept here when they were written.
    deferred: Option<Errno>,
    /// What the next write(2) fails with.
    next_write: Option<Errno>,
    /// Whether write(2) has failed, and none has succeeded since. What fails then was written before.
    write_knows: bool,
    /// Whether there was one since the file was opened.
    any: bool,
}

impl WriteErrors {
    /// The kernel's write failed.
    pub fn failed(&mut self, errno: Errno) {
        self.kernel_reports = (!self.write_knows).then_some(errno);
        self.next_write = Some(errno);
        self.any = true;
    }

    /// The guest did not take what was kept of an earlier write.
    pub fn defer(&mut self, errno: Errno) {
        self.deferred.get_or_insert(errno);
        self.next_write = Some(errno);
        self.any = true;
    }

    /// close(2) reports an error at this moment.
    pub fn reported_by_close(&mut self) {
        self.any = true;
    }

    /// The kernel reports to fsync(2) or close(2) what it was answered.
    pub fn reported_by_kernel(&mut self) {
        self.kernel_reports = None;
        self.next_write = None;
    }

    /// What fsync(2) or close(2) has to report besides.
    ///
    /// # Errors
    /// That, once.
    pub fn take_deferred(&mut self) -> Result<(), Errno> {
        self.deferred.take().map_or(Ok(()), Err)
    }

    /// What write(2) has to report. The kernel asks after each error.
    ///
    /// # Errors
    /// The last error, once.
    pub fn take_for_write(&mut self) -> Result<(), Errno> {
        let reported = self.next_write.take();
        self.write_knows = reported.is_some();
        if self.write_knows {
            // close(2) fails as well, but the kernel does not send FUSE_FLUSH then.
            self.kernel_reports = None;
        }
        reported.map_or(Ok(()), Err)
    }

    /// What neither fsync(2) nor close(2) has reported yet.
    #[must_use]
    pub fn unreported(&self) -> Option<Errno> {
        self.kernel_reports.or(self.deferred)
    }

    /// Whether the kernel may cache what the guest does not have.
    #[must_use]
    pub fn any(&self) -> bool {
        self.any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_write_reports_an_error_once() {
        for errno in [Errno::ENOSPC, Errno::EDQUOT, Errno::EFBIG, Errno::EIO] {
            let mut errors = WriteErrors::default();
            assert_eq!((errors.take_for_write(), errors.any()), (Ok(()), false));
            errors.failed(errno);
            assert_eq!(errors.unreported(), Some(errno));
            assert_eq!((errors.take_for_write(), errors.unreported()), (Err(errno), None));
            // Of what was written before.
            errors.failed(errno);
            assert_eq!((errors.take_for_write(), errors.unreported()), (Err(errno), None));
            // Of what is written afterwards.
            assert_eq!(errors.take_for_write(), Ok(()));
            errors.failed(errno);
            assert_eq!((errors.unreported(), errors.take_deferred()), (Some(errno), Ok(())));
            errors.reported_by_kernel();
            assert_eq!((errors.unreported(), errors.any()), (None, true));
        }
    }

    #[test]
    fn what_the_kernel_does_not_know_is_deferred_until_close() {
        let mut errors = WriteErrors::default();
        errors.defer(Errno::ENOSPC);
        assert_eq!(errors.take_for_write(), Err(Errno::ENOSPC));
        errors.reported_by_kernel();
        assert_eq!(errors.unreported(), Some(Errno::ENOSPC));
        assert_eq!((errors.take_deferred(), errors.take_deferred()), (Err(Errno::ENOSPC), Ok(())));
        assert_eq!(errors.unreported(), None);
    }
}
