//! `guestimg cp` and `tar` into a disk.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use guestmnt_tests::program::{Finished, Workplace, text};
use guestmnt_tests::showing::Showing;
use guestmnt_tests::specimens::sha256;
use xtask::disks::filesystems::Kind;
use xtask::disks::mkfs;

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
