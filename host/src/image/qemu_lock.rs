//! The locks by which programs with QEMU's block layer keep each other from a file: bytes of the
//! file, locked for its open description, stand for what its holder does with it, and for what
//! others must not do meanwhile. Source: block/file-posix.c of QEMU.
//!
//! QEMU takes these locks itself on the descriptors that it is given, which share our description:
//! its locks and ours do not keep each other out. Ours come earlier, so that nothing which was read
//! of the file is outdated when QEMU uses it; and a QEMU that is restored tells nobody when it does
//! not get its own.

use std::fs::File;

use libc::{c_int, c_short};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::error::Problem;
use super::unwritable::Unwritable;

/// Where the bytes begin that stand for what a holder does.
const DOES: i64 = 100;

/// Where those begin that stand for what it does not let others do.
const FORBIDS: i64 = 200;

/// What there is to do, by its number: reading what is consistent, writing, changing the length.
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Takes `file` for reading and writing, and forbids others to write. The lock is gone when the
/// file is closed, here and wherever its descriptor was passed to.
///
/// # Errors
/// [`Unwritable::InUse`] where somebody writes to it or counts on its not being written.
pub fn for_writing(file: &File) -> Result<(), Problem> {
    let taken = take(file, &[READ, WRITE, RESIZE]);
    match taken.map_err(|error| Unwritable::Refused(error.into()))? {
        Others::Agree => Ok(()),
        Others::Disagree => Err(Unwritable::InUse.into()),
    }
}

/// Takes `file` for reading, and forbids others to write, where its filesystem has such locks.
///
/// # Errors
/// [`Problem::BeingWritten`].
pub fn for_reading(file: &File) -> Result<(), Problem> {
    match take(file, &[READ]) {
        Ok(Others::Disagree) => Err(Problem::BeingWritten),
        // Without locks nobody can tell.
        Ok(Others::Agree) | Err(_) => Ok(()),
    }
}

/// What others have to say to it.
enum Others {
    Agree,
    Disagree,
}

/// Says that this does what is in `does`, and forbids others to write.
fn take(file: &File, does: &[i64]) -> Result<Others, Errno> {
    let mine = does.iter().map(|what| DOES + what).chain([FORBIDS + WRITE, FORBIDS + RESIZE]);
    for byte in mine {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&lock_of(byte, libc::F_RDLCK))) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(Others::Disagree),
            Err(errno) => return Err(errno),
        }
    }
    // As QEMU does: first said, then looked at, so that of two at once one sees the other.
    let theirs = does.iter().map(|what| FORBIDS + what).chain([DOES + WRITE, DOES + RESIZE]);
    for byte in theirs {
        let mut lock = lock_of(byte, libc::F_WRLCK);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
        if c_int::from(lock.l_type) != libc::F_UNLCK {
            return Ok(Others::Disagree);
        }
    }
    Ok(Others::Agree)
}

fn lock_of(byte: i64, kind: c_int) -> libc::flock {
    let short = |number: c_int| c_short::try_from(number).expect("these are small");
    libc::flock {
        l_type: short(kind),
        l_whence: short(libc::SEEK_SET),
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_may_read_and_one_may_write_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (one, other) = (File::open(file.path()).unwrap(), open());
        for_reading(&one).unwrap();
        for_reading(&other).unwrap();
        drop(other);
        let refused = |taken| matches!(taken, Err(Problem::Unwritable(Unwritable::InUse)));
        assert!(refused(for_writing(&open())));
        drop(one);

        let first = open();
        for_writing(&first).unwrap();
        // What shares the description, as a passed descriptor does, is no other.
        for_writing(&first.try_clone().unwrap()).unwrap();
        assert!(refused(for_writing(&open())));
        assert!(matches!(for_reading(&open()), Err(Problem::BeingWritten)));
        drop(first);
        for_writing(&open()).unwrap();
    }
}
