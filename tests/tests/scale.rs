//! More entries than anybody expects in one folder, through a real VM.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::process::Stdio;

use guestmnt_tests::program::{Workplace, text};
use xtask::process::Tool;
use xtask::skips::skip;

/// Entries of one folder.
const CROWD: usize = 200_000;

/// Requests to the guest that bring them, in pages of up to 256 KiB. A screenful each would take
/// thousands.
const PAGES: usize = 120;

#[test]
fn a_folder_of_200_000_entries_is_read_whole_in_pages() {
    // On a disk, making so many files takes minutes.
    let Ok(tree) = tempfile::tempdir_in("/dev/shm") else {
        skip("no tmpfs in /dev/shm");
        return;
    };
    let crowd = tree.path().join("crowd");
    fs::create_dir(&crowd).unwrap();
    for number in 0..CROWD {
        File::create(crowd.join(number.to_string())).unwrap();
    }
    let place = Workplace::new();
    let (mnt, image) = (place.folder("mnt"), place.path().join("image"));
    let mksquashfs = Tool::new("mksquashfs").args([tree.path(), &image]);
    mksquashfs.args(["-quiet", "-no-progress"]).run().unwrap();
    drop(tree);

    let log = place.path().join("log");
    let arguments = ["-x", "--fd", "1", "-a", text(&image), "-m", "/dev/sda", text(&mnt)];
    let mut command = place.command("guestmnt", &arguments);
    command.stdout(Stdio::piped()).stderr(File::create(&log).unwrap());
    let mut server = command.spawn().unwrap();
    let ready = server.stdout.take().unwrap().read_exact(&mut [0]);
    assert!(ready.is_ok(), "{}", fs::read_to_string(&log).unwrap());

    let mut numbers = HashSet::with_capacity(CROWD);
    for entry in fs::read_dir(mnt.join("crowd")).unwrap().map(Result::unwrap) {
        assert!(entry.file_type().unwrap().is_file());
        let number: usize = entry.file_name().to_str().unwrap().parse().unwrap();
        assert!(number < CROWD && numbers.insert(number), "{number}");
    }
    assert_eq!(numbers.len(), CROWD);
    assert!(mnt.join("crowd/199999").is_file() && !mnt.join("crowd/200000").exists());

    place.unmount(&mnt);
    assert!(server.wait().unwrap().success());
    let log = fs::read_to_string(&log).unwrap();
    let requests = log.lines().filter(|line| line.starts_with("guestmnt: -> ")).count();
    assert!(requests <= PAGES, "{requests} requests");
}
