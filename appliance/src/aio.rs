//! Reads that are under way at the same time without a thread for each: Linux' own asynchronous I/O.
//!
//! All reads of one call are submitted together, so that the disk has them all before the first
//! is waited for. Follows io_submit(2) and linux/aio_abi.h. io_uring would take a thread for each
//! read where a filesystem does not promise never to block, as ntfs3 does not.
//!
//! **Invariant:** no buffer is given back while the kernel may still write to it.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// One read, from a file's start.
pub struct Read<'a> {
    /// The file, open with `O_DIRECT`: other files are read one after the other.
    pub file: BorrowedFd<'a>,
    /// Where to. With `O_DIRECT` its address and length are multiples of the disk's sector.
    pub buffer: &'a mut [u8],
    /// How it ended: bytes that were read.
    pub outcome: nix::Result<usize>,
}

/// `struct iocb` for a little-endian machine.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ControlBlock {
    data: u64,
    key: u32,
    flags_of_write: u32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    length: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_file: u32,
}

/// `IOCB_CMD_PREAD`
const READ: u16 = 0;

/// `struct io_event`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    control_block: u64,
    result: i64,
    result2: i64,
}

/// A place in the kernel for reads under way.
pub struct Queue {
    context: libc::c_ulong,
    depth: usize,
}

impl Queue {
    /// One for `depth` reads at a time.
    ///
    /// # Errors
    /// As io_setup(2).
    pub fn new(depth: usize) -> nix::Result<Self> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one number, to `context`.
        let done = unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut context) };
        Errno::result(done).map(|_| Self { context, depth })
    }

    /// Carries out all `reads` and notes how each ended.
    pub fn read(&mut self, reads: &mut [Read<'_>]) {
        for some in reads.chunks_mut(self.depth) {
            self.read_at_once(some);
        }
    }

    fn read_at_once(&mut self, reads: &mut [Read<'_>]) {
        let block = |(index, read): (usize, &mut Read<'_>)| ControlBlock {
            data: index as u64,
            opcode: READ,
            file: read.file.as_raw_fd().unsigned_abs(),
            buffer: read.buffer.as_mut_ptr() as u64,
            length: read.buffer.len() as u64,
            ..ControlBlock::default()
        };
        let mut blocks: Vec<ControlBlock> = reads.iter_mut().enumerate().map(block).collect();
        let mut next = 0;
        while next < blocks.len() {
            // SAFETY: each block names a descriptor that is open and a buffer that is lent to
            // `reads` for longer than this function runs, and `collect` below waits for whatever
            // was submitted before it returns. Nobody else touches `reads` meanwhile.
            match unsafe { self.submit(&mut blocks[next..]) } {
                Ok(0) => break,
                Ok(count) => {
                    self.collect(count, reads);
                    next += count;
                }
                // The first of them cannot be submitted; the others may.
                Err(errno) => {
                    reads[next].outcome = Err(errno);
                    next += 1;
                }
            }
        }
    }

    /// Has the kernel begin with `blocks`; returns how many of them, from the first on, it took.
    ///
    /// # Safety
    /// What the blocks name must be open, and lent to this queue, until their events are collected.
    unsafe fn submit(&mut self, blocks: &mut [ControlBlock]) -> nix::Result<usize> {
        let mut pointers: Vec<*mut ControlBlock> =
            blocks.iter_mut().map(std::ptr::from_mut).collect();
        // SAFETY: the pointers are those of valid blocks, and as many as is said; the kernel copies
        // the blocks. What they name is the caller's promise.
        let taken = unsafe {
            libc::syscall(libc::SYS_io_submit, self.context, pointers.len(), pointers.as_mut_ptr())
        };
        Errno::result(taken).map(|taken| usize::try_from(taken).expect("checked for -1"))
    }

    /// Waits for all reads and gives the place in the kernel back.
    fn end(&mut self) {
        // SAFETY: the call takes a number only. A context that is gone already is refused.
        let _ = unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }

    /// Waits until `count` reads have ended.
    fn collect(&mut self, count: usize, reads: &mut [Read<'_>]) {
        let mut events = vec![Event::default(); count];
        let mut ended = 0;
        while ended < count {
            let left = count - ended;
            // SAFETY: the kernel writes at most `left` events, and there is room for so many.
            let some = unsafe {
                libc::syscall(
                    libc::SYS_io_getevents,
                    self.context,
                    left,
                    left,
                    events[ended..].as_mut_ptr(),
                    std::ptr::null_mut::<libc::timespec>(),
                )
            };
            match Errno::result(some) {
                Ok(some) => ended += usize::try_from(some).expect("checked for -1"),
                Err(Errno::EINTR) => {}
                // The arguments are good and the context is ours, so this does not happen. Ending
                // the queue waits for all reads, after which the buffers are the caller's again;
                // further reads fail.
                Err(_) => {
                    self.end();
                    return;
                }
            }
        }
        for event in &events {
            let read = usize::try_from(event.data).ok().and_then(|index| reads.get_mut(index));
            read.expect("the kernel gives back what it was given").outcome = outcome(event.result);
        }
    }
}

/// Bytes, or a negative error number.
fn outcome(result: i64) -> nix::Result<usize> {
    usize::try_from(result)
        .map_err(|_| Errno::from_raw(i32::try_from(result.saturating_neg()).unwrap_or(libc::EIO)))
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn more_reads_than_the_queue_is_deep_all_end() {
        let files: Vec<File> = (0..10u8).map(|n| file(&vec![n; usize::from(n) * 100])).collect();
        let mut buffers = vec![[0xff; 500]; 10];
        let reads = files.iter().zip(&mut buffers).map(|(file, buffer)| Read {
            file: file.as_fd(),
            buffer,
            outcome: Err(Errno::EIO),
        });
        let mut reads: Vec<Read> = reads.collect();
        Queue::new(4).unwrap().read(&mut reads);
        for (n, read) in (0..10u8).zip(&reads) {
            let length = (usize::from(n) * 100).min(500);
            assert_eq!(read.outcome, Ok(length));
            assert!(read.buffer[..length].iter().all(|&byte| byte == n));
        }
    }

    #[test]
    fn one_that_fails_does_not_keep_others_from_being_read() {
        let (good, folder) = (file(b"good"), File::open("/").unwrap());
        let mut buffers = [[0; 4]; 3];
        let [first, second, third] = &mut buffers;
        let read = |file, buffer| Read { file, buffer, outcome: Err(Errno::EIO) };
        let mut reads = [
            read(good.as_fd(), &mut first[..]),
            read(folder.as_fd(), &mut second[..]),
            read(good.as_fd(), &mut third[..]),
        ];
        Queue::new(8).unwrap().read(&mut reads);
        assert_eq!((reads[0].outcome, reads[2].outcome), (Ok(4), Ok(4)));
        assert!(reads[1].outcome.is_err());
        assert_eq!(buffers[2], *b"good");
    }
}
