//! Names that could steer a terminal reach it escaped only, in whatever is said of them: errors,
//! listings, logs.

use std::fs::{self, File};
use std::io::Read;
use std::process::Stdio;

use guestmnt_tests::program::{Workplace, text};
use xtask::disks::filesystems::Kind;
use xtask::disks::mkfs;
use xtask::process::Tool;

/// Sets the colour, the title, and the direction of writing.
const EVIL: &str = "\x1b[31m\x1b]0;title\x07\u{202e}";

/// Checks that a terminal shows `said` and is not steered by it.
fn assert_does_not_steer(what: &str, said: &str) {
    let steers = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!said.is_empty() && !said.contains(steers), "{what}: {said:?}");
}

/// The same, and that the names are in it.
fn assert_harmless(what: &str, said: &str) {
    assert_does_not_steer(what, said);
    assert!(said.contains("\\u{1b}"), "{what} says nothing of the name: {said}");
}

#[test]
fn errors_of_images_and_files_escape_their_names() {
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let missing = format!("{EVIL}.vmdk");
    let descriptor = format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
         createType=\"twoGbMaxExtentFlat\"\nRW 8 FLAT \"{EVIL}-f001.vmdk\" 0\n"
    );
    fs::write(place.path().join("disk.vmdk"), descriptor).unwrap();
    // The name in the descriptor is refused and not repeated.
    for (image, check) in [
        (missing.as_str(), assert_harmless as fn(&str, &str)),
        ("disk.vmdk", assert_does_not_steer),
    ] {
        let mounted = place.run("guestmnt", &["-a", image, "-m", "/dev/sda", text(&mnt)]);
        check(image, &mounted.stderr);
        let listed = place.run("guestimg", &["filesystems", "-a", image]);
        check(image, &listed.stderr);
    }
    let ended = place.run("guestunmnt", &["--no-retry", &missing]);
    assert_harmless("guestunmnt", &ended.stderr);
    let status = place.run("guestimg", &["status", &missing]);
    assert_harmless("status", &status.stderr);
    place.assert_clean(&["mnt", "disk.vmdk"]);
}

#[test]
fn listings_and_logs_escape_what_a_filesystem_holds() {
    let place = Workplace::new();
    let (source, mnt) = (place.folder("source"), place.folder("mnt"));
    fs::write(source.join(EVIL), "contents").unwrap();
    let image = place.path().join("image");
    mkfs::make(Kind::Ext4, &source, &image).unwrap_or_else(|error| panic!("{error}"));
    Tool::new("tune2fs").args(["-L", "\x1b[31mlabel"]).arg(&image).run().unwrap();
    let of_image = ["--format", "raw", "-a", text(&image)];
    let list = ["filesystems", "--all", "--long", "--uuid"];
    let listed = place.run("guestimg", &[&list[..], &of_image].concat());
    assert_eq!(listed.status, Some(0), "{listed:?}");
    assert_harmless("the listing", &listed.stdout);

    let log = place.path().join("log");
    let arguments = [&["-x", "-v", "--fd", "1"], &of_image[..], &["-m", "/dev/sda", text(&mnt)]];
    let mut running = place
        .command("guestmnt", &arguments.concat())
        .stdout(Stdio::piped())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    running.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    assert_eq!(fs::read_to_string(mnt.join(EVIL)).unwrap(), "contents");
    assert!(fs::metadata(mnt.join(format!("{EVIL}none"))).is_err());
    place.unmount(&mnt);
    assert!(running.wait().unwrap().success());
    assert_harmless("the log", &fs::read_to_string(&log).unwrap());
    place.assert_clean(&["source", "mnt", "image", "log"]);
}
