//! `guestimg cp` and `tar` into a disk.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use guestmnt_tests::program::{Finished, Workplace, text};
use guestmnt_tests::showing::Showing;
use guestmnt_tests::specimens::sha256;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xtask::disks::filesystems::Kind;
use xtask::disks::mkfs;
use xtask::process::Tool;

/// Mounts the whole of the disk that `arguments` name, and looks at what is there.
fn look(place: &Workplace, arguments: &[&str], at: impl FnOnce(&Path)) {
    let mnt = place.path().join("mnt");
    let options = ["-m", "/dev/sda", "-o", "symlinks=raw", text(&mnt)];
    place.mount(&[arguments, &options].concat());
    at(&mnt);
    place.unmount(&mnt);
}

/// An empty ext4 called `disk`.
fn empty(place: &Workplace) {
    let tree = place.folder("tree");
    mkfs::make(Kind::Ext4, &tree, &place.path().join("disk")).unwrap();
}

fn said(finished: &Finished, status: i32) -> &str {
    assert_eq!(finished.status, Some(status), "{finished:?}");
    &finished.stderr
}

#[test]
fn files_of_the_host_go_into_a_disk_by_its_overlay() {
    let Some(showing) = Showing::new() else { return };
    let place = &showing.place;
    let at = |name: &str| place.path().join(name);
    showing.convert("raw", "", "disk");
    let before = sha256(&at("disk"));
    let tree = place.folder("new");
    let long_ago = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    fs::create_dir(tree.join("below")).unwrap();
    let file = File::create(tree.join("below/file")).unwrap();
    file.write_all_at(&[7; 1_200_000], 3 << 20).unwrap();
    file.set_len(8 << 20).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o4640)).unwrap();
    file.set_modified(long_ago).unwrap();
    fs::hard_link(tree.join("below/file"), tree.join("other")).unwrap();
    symlink("/somewhere", tree.join("link")).unwrap();
    File::open(tree.join("below")).unwrap().set_modified(long_ago).unwrap();

    let disk = ["--format", "raw", "-a", "disk", "--overlay", "o.qcow2"];
    let copy = |options: &[&str], to: &str| {
        place.run("guestimg", &[&["cp"], options, &disk, &["new", to]].concat())
    };
    said(&copy(&[], "/"), 0);
    assert!(said(&copy(&[], "/"), 1).contains("--force replaces it"));
    assert!(said(&copy(&[], "/new/other"), 1).contains("not a folder in the image"));
    let forced = copy(&["--force", "--json"], "/");
    said(&forced, 0);
    assert_eq!(forced.stdout, "{\"files\":5,\"troubles\":0}\n");
    assert_eq!(sha256(&at("disk")), before, "the image was written");

    look(place, &disk, |mnt| {
        let new = mnt.join("new");
        let stat = new.join("below/file").metadata().unwrap();
        assert!(fs::read(new.join("other")).unwrap() == fs::read(tree.join("other")).unwrap());
        assert_eq!((stat.nlink(), stat.mode() & 0o7777), (2, 0o640));
        assert_eq!((stat.uid(), stat.modified().unwrap()), (0, long_ago));
        assert!(stat.blocks() * 512 < 2 << 20, "its holes were filled");
        assert_eq!(new.join("below").metadata().unwrap().modified().unwrap(), long_ago);
        assert_eq!(fs::read_link(new.join("link")).unwrap(), Path::new("/somewhere"));
    });
}

#[test]
fn what_tar_takes_out_of_a_disk_it_puts_into_another_with_all_there_is() {
    let Some(showing) = Showing::new() else { return };
    let place = &showing.place;
    empty(place);
    let image = text(&showing.image);
    let words = ["tar", "--format", "raw", "-a", image, "-o", "all.tar"];
    said(&place.run("guestimg", &words), 0);
    let into = ["--format", "raw", "-a", "disk", "--rw"];
    let unpack = [&["tar"], &into[..], &["--input", "all.tar"]].concat();
    said(&place.run("guestimg", &unpack), 0);
    fs::remove_file(place.path().join("all.tar")).unwrap();
    // Every file with its attributes, as the specimen has them.
    showing.assert_shown(&["--format", "raw", "-a", "disk"]);
}

#[test]
fn a_stream_leads_nowhere_but_into_the_folder_and_says_where_it_ends_too_early() {
    let place = Workplace::new();
    let _ = place.folder("mnt");
    empty(&place);
    let at = |name: &str| place.path().join(name);
    let tree = place.folder("t");
    fs::create_dir(tree.join("in")).unwrap();
    fs::write(tree.join("in/file"), "in").unwrap();
    fs::write(tree.join("evil"), "evil").unwrap();
    symlink("/lost+found", tree.join("way")).unwrap();
    let tar = |words: &[&str]| {
        let status = Command::new("tar").current_dir(&tree).args(words).status().unwrap();
        assert!(status.success());
    };
    let (all, owner) = (at("all.tar"), ["--owner=:1234", "--group=:56", "--format=pax", "-P"]);
    let all = text(&all);
    let sparse = File::create(tree.join("in/sparse")).unwrap();
    sparse.write_all_at(b"data", 2 << 20).unwrap();
    sparse.set_len(4 << 20).unwrap();
    tar(&[&owner[..], &["--sparse", "-cf", all, "in/file", "in/sparse", "way"]].concat());
    tar(&[&owner[..], &["-rf", all, "--transform=s,^,../,", "evil"]].concat());
    tar(&[&owner[..], &["-rf", all, "--transform=s,^,/way/,", "evil"]].concat());

    let unpack = |words: &[&str], input: &Path| {
        let words = [&["tar", "--format", "raw", "-a", "disk", "--rw"], words].concat();
        let mut command = place.command("guestimg", &words);
        command.stdin(File::open(input).unwrap()).stdout(Stdio::null());
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        Finished { status: output.status.code(), stdout: String::new(), stderr }
    };
    let finished = unpack(&["--force"], Path::new(all));
    let told = said(&finished, 1);
    assert!(told.contains("../evil: left out"), "{told}");
    assert!(
        told.contains("/way/evil: a symbolic link or a file of the image is on the way"),
        "{told}"
    );
    look(&place, &["--format", "raw", "-a", "disk"], |mnt| {
        let stat = mnt.join("in/file").metadata().unwrap();
        assert_eq!((stat.uid(), stat.gid()), (1234, 56));
        let sparse = mnt.join("in/sparse");
        assert!(fs::read(&sparse).unwrap() == fs::read(tree.join("in/sparse")).unwrap());
        assert!(sparse.metadata().unwrap().blocks() < 64, "its holes were filled");
        let mut names: Vec<_> =
            fs::read_dir(mnt).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["in", "way"]);
    });

    fs::write(at("cut.tar"), &fs::read(all).unwrap()[..1300]).unwrap();
    let finished = unpack(&["--force"], &at("cut.tar"));
    let told = said(&finished, 1);
    assert!(told.contains("files were written before that and are kept"), "{told}");
    fs::remove_file(all).unwrap();
}

/// Whether the ext4 called `disk` was unmounted, so that its journal has nothing to be replayed.
fn is_unmounted(place: &Workplace) -> bool {
    let features = Tool::new("dumpe2fs").arg("-h").arg(place.path().join("disk")).output().unwrap();
    !String::from_utf8_lossy(&features).contains("needs_recovery")
}

#[test]
fn who_interrupts_it_finds_whole_files_and_a_filesystem_that_was_unmounted() {
    let place = Workplace::new();
    let _ = place.folder("mnt");
    empty(&place);
    let tree = place.folder("t");
    for (name, length) in [("a", 100_000), ("b", 100_000), ("c", 4 << 20)] {
        fs::write(tree.join(name), vec![7; length]).unwrap();
    }
    let tar = Command::new("tar").current_dir(&tree).args(["-c", "a", "b", "c"]).output().unwrap();
    let words = ["tar", "--format", "raw", "-a", "disk", "--rw"];
    let mut running = place.command("guestimg", &words);
    let mut running =
        running.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    // Not all of the last file. What a pipe took was read, but for the last of it.
    let mut stdin = running.stdin.take().unwrap();
    stdin.write_all(&tar.stdout[..3 << 20]).unwrap();
    kill(Pid::from_raw(running.id().cast_signed()), Signal::SIGTERM).unwrap();
    let output = running.wait_with_output().unwrap();
    drop(stdin);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("interrupted; 2 files were written before that and are kept"), "{told}");
    assert!(is_unmounted(&place));
    look(&place, &["--format", "raw", "-a", "disk"], |mnt| {
        assert!(fs::read(mnt.join("b")).unwrap() == vec![7; 100_000]);
        assert_eq!(fs::read_dir(mnt).unwrap().count(), 2);
    });
}

#[test]
fn a_folder_that_is_not_there_leaves_the_filesystem_unmounted() {
    let place = Workplace::new();
    empty(&place);
    let words = ["cp", "--format", "raw", "-a", "disk", "--rw", "disk", "/missing"];
    assert!(said(&place.run("guestimg", &words), 1).contains("/missing: No such file"));
    assert!(is_unmounted(&place));
}
