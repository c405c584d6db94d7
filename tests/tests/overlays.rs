//! Overlays from outside: what they change is listed, and forgotten.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use guestmnt_tests::fsck::assert_sound;
use guestmnt_tests::program::{Workplace, text};
use guestmnt_tests::specimens::{sha256, specimen};
use guestmnt_tests::worlds::writable::{OverImage, Writable};
use xtask::disks::filesystems::Kind;
use xtask::disks::sparse;
use xtask::process::Tool;

#[test]
fn what_an_overlay_changes_is_listed_and_forgotten() {
    let Some((image, _)) = specimen(Kind::Ext4) else { return };
    let mut shown = OverImage::new(&image);
    let at = |name: &str| shown.path().join(name);
    fs::create_dir(at("desk")).unwrap();
    for name in ["desk/kept", "desk/changed", "desk/removed"] {
        fs::write(at(name), "before").unwrap();
    }
    shown.unmount();
    let first = shown.overlay();
    let overlay = text(&first).to_owned();
    let arguments = ["-a", text(&image), "--overlay", &overlay];
    let run = |shown: &OverImage, words: &[&str]| {
        let words = [words, &["--format", "raw"], &arguments].concat();
        let finished = shown.place().run("guestimg", &words);
        assert_eq!(finished.status, Some(0), "{finished:?}");
        finished.stdout
    };
    let added = "+ /sda/desk\n+ /sda/desk/changed\n+ /sda/desk/kept\n+ /sda/desk/removed\n";
    let before = sha256(&first);
    assert_eq!(run(&shown, &["diff"]), added);
    assert_eq!(sha256(&first), before, "the overlay was changed");

    shown.mount();
    let at = |name: &str| shown.path().join(name);
    fs::write(at("desk/changed"), "and after").unwrap();
    fs::set_permissions(at("desk/changed"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(at("desk/removed")).unwrap();
    shown.unmount();
    let json: serde_json::Value =
        serde_json::from_str(&run(&shown, &["diff", "--json", "-m", "/dev/sda"])).unwrap();
    let listed: Vec<_> = json.as_array().unwrap().iter().map(|one| &one["path"]).collect();
    assert_eq!(listed, ["/desk", "/desk/changed", "/desk/kept"]);
    assert_eq!((&json[1]["change"], &json[1]["after"]["size"]), (&"added".into(), &9.into()));
    assert_eq!(json[1]["after"]["mode"], "0600");

    // Out of the disk, as the overlay shows it.
    let out = shown.place().folder("out");
    let before = sha256(&first);
    let disk = ["--format", "raw", "-a", text(&image), "--from-overlay", &overlay];
    let read = |words: &[&str]| shown.place().run("guestimg", words);
    let copied = read(&[&["cp"], &disk[..], &["/desk", text(&out)]].concat());
    assert_eq!(copied.status, Some(0), "{copied:?}");
    assert_eq!(fs::read_to_string(out.join("desk/changed")).unwrap(), "and after");
    assert!(!out.join("desk/removed").exists());
    let listed = read(&[&["cat"], &disk[..], &["/desk/kept"]].concat());
    assert_eq!((listed.status, listed.stdout.as_str()), (Some(0), "before"));
    let both = read(&[&["cp"], &disk[..], &["--rw", "/desk", "/"]].concat());
    assert!(both.status == Some(1) && both.stderr.contains("hint: copy them"), "{both:?}");
    assert_eq!(sha256(&first), before, "the overlay was changed");
    fs::remove_dir_all(out).unwrap();
    let told: serde_json::Value =
        serde_json::from_str(&run(&shown, &["discard", "--json"])).unwrap();
    assert_eq!(told, serde_json::json!([{ "image": image, "overlay": overlay }]));
    assert!(!first.exists());
}

/// Without the kernel's module for them it cannot be mounted for writing.
#[test]
fn an_ext4_that_keeps_quotas_counts_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let image = folder.path().join("disk");
    sparse::create(&image, 64 << 20).unwrap();
    Tool::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-O", "quota"]).arg(&image).run().unwrap();
    let mut shown = OverImage::new(&image);
    fs::write(shown.path().join("file"), [7; 100_000]).unwrap();
    shown.unmount();
    assert_sound(Kind::Ext4, shown.flattened().path());
}

/// More disks than a restored machine has a place for.
#[test]
fn each_of_several_disks_takes_what_is_written_to_it() {
    let Some((image, _)) = specimen(Kind::Ext4) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let disks = ["a", "b", "c"].map(|name| {
        fs::copy(&image, place.path().join(name)).unwrap();
        ["-a".to_owned(), name.to_owned(), "--overlay".to_owned(), format!("{name}.qcow2")]
    });
    let disks: Vec<&str> = disks.iter().flatten().map(String::as_str).collect();
    let arguments = [&["--format", "raw"], &disks[..], &["--all", text(&mnt)]].concat();
    place.mount(&arguments);
    for name in ["sda", "sdb", "sdc"] {
        fs::write(mnt.join(name).join("written"), name).unwrap();
    }
    place.unmount(&mnt);
    place.mount(&arguments);
    for name in ["sda", "sdb", "sdc"] {
        assert_eq!(fs::read_to_string(mnt.join(name).join("written")).unwrap(), name);
    }
    place.unmount(&mnt);
}
