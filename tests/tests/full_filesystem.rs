//! Writing more than fits: write(2) reports it, and what did not fit is not shown.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::Duration;

use guestmnt_tests::specimens::specimen;
use guestmnt_tests::worlds::writable::{OverImage, Writable};
use nix::errno::Errno;
use xtask::disks::filesystems::Kind;

const MIB: usize = 1 << 20;

/// Far more than the filesystem holds and the kernel caches of what is written.
const FAR_TOO_MUCH: usize = 4096;

/// Fills the filesystem with a file of this name. The bytes that write(2) took, and its error.
fn fill(folder: &Path, name: &str) -> (u64, Option<Errno>) {
    let mut file = File::create(folder.join(name)).unwrap();
    let mut written = 0;
    for _ in 0..FAR_TOO_MUCH {
        match file.write(&[7; MIB]) {
            Ok(count) => written += count as u64,
            Err(error) => return (written, error.raw_os_error().map(Errno::from_raw)),
        }
    }
    (written, None)
}

/// The bytes of a file, once the kernel has forgotten those that did not fit.
fn settled_bytes(path: &Path, written: u64) -> Vec<u8> {
    for _ in 0..100 {
        if fs::metadata(path).unwrap().len() < written {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    fs::read(path).unwrap()
}

#[test]
fn write_fails_on_a_full_filesystem_and_only_what_fitted_is_shown() {
    let Some((image, _)) = specimen(Kind::Ext4) else { return };
    let mut shown = OverImage::new(&image);
    let (written, error) = fill(shown.path(), "filled");
    assert_eq!(error, Some(Errno::ENOSPC), "{written}");
    let path = shown.path().join("filled");
    let bytes = settled_bytes(&path, written);
    shown.remount();
    assert!(fs::read(&path).unwrap() == bytes, "a remount shows something else");

    // A program that waits for room goes on once there is some.
    let mut waiting = File::create(shown.path().join("waiting")).unwrap();
    let mut failed = None;
    for _ in 0..FAR_TOO_MUCH {
        failed = waiting.write_all(&[8; MIB]).err().and_then(|error| error.raw_os_error());
        if failed.is_some() {
            break;
        }
    }
    assert_eq!(failed, Some(Errno::ENOSPC as i32));
    fs::remove_file(&path).unwrap();
    assert_eq!(waiting.sync_all().unwrap_err().raw_os_error(), failed);
    waiting.set_len(0).unwrap();
    let rest = Write::write(&mut File::create(shown.path().join("rest")).unwrap(), &[9; MIB]);
    assert_eq!(rest.unwrap(), MIB);
    drop(waiting);

    let rest = shown.path().join("rest");
    assert!(fs::read(&rest).unwrap() == [9; MIB]);
    shown.remount();
    assert!(fs::read(rest).unwrap() == [9; MIB]);
}
