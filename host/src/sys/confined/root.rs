//! Puts a root together from pieces of the host's, by the system calls of new mounts (Linux 5.12):
//! they copy a mount before it is attached anywhere, and need not remount to make it read-only.
//!
//! **Invariant:** system calls only; see the module above.

use std::ffi::CStr;
use std::os::fd::RawFd;
use std::ptr;

use libc::{c_int, c_ulong};

use super::Shown;
use super::child::check;

/// Where the new root is put together: a folder that every machine has. What it hides are only
/// this process's own names.
const STAGE: &CStr = c"/tmp";

/// Entries that a root may have; each takes a descriptor on the way.
pub const MOST_SHOWN: usize = 64;

/// Puts a root together from pieces of the old one, and leaves the old one behind.
pub unsafe fn show(shown: &[Shown]) -> Result<(), c_int> {
    let mut trees = [-1; MOST_SHOWN];
    // SAFETY: system calls on NUL-terminated paths and live structs, as each documents.
    unsafe {
        let private = libc::MS_REC | libc::MS_PRIVATE;
        mount(c"none", c"/", None, private, None)?;
        for (tree, item) in trees.iter_mut().zip(shown) {
            if let Shown::Tree { path, devices, .. } = item {
                *tree = detached(path, *devices)?;
            }
        }
        let own_files = detached(c"/proc/self/fd", false)?;
        let flags = libc::MS_NOSUID | libc::MS_NODEV;
        mount(c"guestmnt", STAGE, Some(c"tmpfs"), flags, Some(c"mode=755,size=64k"))?;
        check(libc::chdir(STAGE.as_ptr()))?;
        for (tree, item) in trees.iter().zip(shown) {
            match item {
                Shown::Folder(path) => check(libc::mkdir(relative(path).as_ptr(), 0o755))?,
                Shown::Link(path, text) => {
                    check(libc::symlink(text.as_ptr(), relative(path).as_ptr()))?;
                }
                Shown::Tree { path, is_folder: true, .. } => {
                    check(libc::mkdir(relative(path).as_ptr(), 0o755))?;
                    attach(*tree, relative(path))?;
                }
                Shown::Tree { path, is_folder: false, .. } => {
                    let made = libc::open(
                        relative(path).as_ptr(),
                        libc::O_CREAT | libc::O_WRONLY | libc::O_CLOEXEC,
                        0o444,
                    );
                    check(made)?;
                    libc::close(made);
                    attach(*tree, relative(path))?;
                }
            }
        }
        // What is inherited is opened by these names, and nothing else of /proc is there.
        for folder in [c"proc", c"proc/self", c"proc/self/fd"] {
            check(libc::mkdir(folder.as_ptr(), 0o755))?;
        }
        attach(own_files, c"proc/self/fd")?;
        let here = c".";
        read_only(libc::AT_FDCWD, here, 0, 0)?;
        check(libc::syscall(libc::SYS_pivot_root, here.as_ptr(), here.as_ptr()))?;
        check(libc::umount2(here.as_ptr(), libc::MNT_DETACH))?;
        check(libc::chdir(c"/".as_ptr()))
    }
}

/// An absolute path from the stage, where we are.
fn relative(path: &CStr) -> &CStr {
    let bytes = path.to_bytes_with_nul();
    CStr::from_bytes_with_nul(bytes.strip_prefix(b"/").unwrap_or(bytes)).unwrap_or(path)
}

/// A copy of the mount below `path`, attached to nothing yet, and not to be written to.
unsafe fn detached(path: &CStr, devices: bool) -> Result<RawFd, c_int> {
    let flags = libc::OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE;
    // SAFETY: a system call on a NUL-terminated path.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let tree = RawFd::try_from(tree).expect("descriptors and -1 fit");
    check(tree)?;
    let devices = if devices { 0 } else { libc::MOUNT_ATTR_NODEV };
    // SAFETY: as above.
    unsafe { read_only(tree, c"", AT_RECURSIVE, devices)? };
    Ok(tree)
}

const AT_RECURSIVE: libc::c_uint = 0x8000;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC.cast_unsigned();

unsafe fn read_only(
    folder: RawFd,
    path: &CStr,
    flags: libc::c_uint,
    more: u64,
) -> Result<(), c_int> {
    // SAFETY: a plain struct of numbers.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | more;
    let empty = libc::AT_EMPTY_PATH.cast_unsigned();
    // SAFETY: a system call on a NUL-terminated path and a live struct with its size.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            folder,
            path.as_ptr(),
            flags | empty,
            &raw const attributes,
            size_of_val(&attributes),
        )
    })
}

unsafe fn attach(tree: RawFd, path: &CStr) -> Result<(), c_int> {
    // SAFETY: a system call on NUL-terminated paths.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree,
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
}

unsafe fn mount(
    source: &CStr,
    target: &CStr,
    kind: Option<&CStr>,
    flags: c_ulong,
    data: Option<&CStr>,
) -> Result<(), c_int> {
    let pointer = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: a system call on NUL-terminated strings.
    check(unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), pointer(kind), flags, pointer(data).cast())
    })
}
