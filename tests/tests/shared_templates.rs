//! What mounts have in common through their template, and what they have not: its memory is mapped
//! by all of them, and nothing that one of them reads gets into it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use guestmnt_tests::live::{Live, qemu_of, server};
use guestmnt_tests::program::{Workplace, disks, text};
use guestmnt_tests::specimens::{assembled, sha256};
use xtask::disks::assembled::PASSPHRASE;
use xtask::disks::filesystems::Kind;
use xtask::disks::{SYSTEM, mkfs};

/// A workplace with the template that its mounts find, in this folder.
fn prepared() -> (Workplace, PathBuf) {
    let place = Workplace::with_own_cache();
    let finished = place.run("guestmnt", &["--prepare"]);
    assert_eq!(finished.status, Some(0), "{finished:?}");
    let template = template(&place);
    (place, template)
}

/// The one template of a workplace.
fn template(place: &Workplace) -> PathBuf {
    let templates = fs::read_dir(place.path().join(".cache/guestmnt/templates")).unwrap();
    let mut folders = templates.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let template = folders.next().unwrap();
    assert_eq!(folders.next(), None);
    template
}

/// What a template is made of, by name: which file, and the hash of what it holds.
fn content(template: &Path) -> BTreeMap<String, (u64, String)> {
    let files = fs::read_dir(template).unwrap().map(|entry| entry.unwrap());
    let content = files.map(|file| {
        let name = file.file_name().into_string().unwrap();
        (name, (file.metadata().unwrap().ino(), sha256(&file.path())))
    });
    content.collect()
}

/// Whether `file` holds `words`.
fn holds(file: &Path, words: &str) -> bool {
    let grep = ["--quiet", "--text", "--fixed-strings", "--", words, text(file)];
    match Command::new("grep").args(grep).status().unwrap().code() {
        Some(0) => true,
        Some(1) => false,
        other => panic!("grep: {other:?}"),
    }
}

/// Words that are nowhere else.
fn marker() -> String {
    fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap().trim().to_owned()
}

/// An image of ext4 with one file, `name`, that holds `words` over and over.
fn image(place: &Workplace, name: &str, words: &str) -> PathBuf {
    let source = place.folder(&format!("source-{name}"));
    fs::write(source.join(name), words.repeat(4000)).unwrap();
    let image = place.path().join(format!("{name}.img"));
    mkfs::make(Kind::Ext4, &source, &image).unwrap_or_else(|error| panic!("{error}"));
    fs::remove_dir_all(source).unwrap();
    image
}

/// Mounts with `arguments` from the template, does `look` and unmounts.
fn visit(place: &Workplace, arguments: &[&str], look: impl FnOnce(&Path)) {
    let mnt = place.path().join("mnt");
    let _ = fs::create_dir(&mnt);
    let finished = place.run("guestmnt", &[&["-v"], arguments, &[text(&mnt)]].concat());
    assert_eq!(finished.status, Some(0), "{finished:?}");
    assert!(finished.stderr.contains("-incoming"), "it was not restored: {finished:?}");
    look(&mnt);
    place.unmount(&mnt);
}

#[test]
fn what_a_mount_reads_is_neither_in_the_template_nor_in_the_next_mount() {
    let (place, template) = prepared();
    let before = content(&template);
    let names: Vec<&str> = before.keys().map(String::as_str).collect();
    assert_eq!(names, ["bulk", "ram", "state", "template.json"]);
    let marker = marker();
    let first = image(&place, "first", &marker);
    let second = image(&place, "second", "nothing in particular");
    assert!(holds(&first, &marker), "what is looked for would not be found");

    // Once through the guest's page cache, once through bulk memory.
    for further in [&["--through-guest"][..], &[]] {
        let arguments = ["--format", "raw", "-a", text(&first), "-m", "/dev/sda"];
        visit(&place, &[further, &arguments].concat(), |mnt| {
            assert!(fs::read_to_string(mnt.join("first")).unwrap() == marker.repeat(4000));
        });
    }

    assert_eq!(content(&template), before);
    for name in names {
        assert!(!holds(&template.join(name), &marker), "{name}");
    }
    visit(&place, &["--format", "raw", "-a", text(&second), "-m", "/dev/sda"], |mnt| {
        let found = fs::read_dir(mnt).unwrap().map(|entry| entry.unwrap().file_name());
        let mut found: Vec<String> = found.map(|name| name.into_string().unwrap()).collect();
        found.sort();
        assert_eq!(found, ["second"]);
    });
    assert_eq!(content(&template), before);
    place.assert_clean(&["mnt", "first.img", "second.img"]);
}

#[test]
fn the_key_of_an_encrypted_volume_is_not_in_the_template() {
    let Some([disk]) = assembled(["luks1.img"]) else { return };
    let place = Workplace::with_own_cache();
    let key = format!("all:key:{PASSPHRASE}");
    let arguments =
        ["--key", &key, "--through-guest", "--format", "raw", "-a", text(&disk), "-m", "/dev/sda"];
    let look = |mnt: &Path| assert!(fs::read_dir(mnt).unwrap().count() > 1);
    // A machine for encrypted volumes has memory of another size, so the first mount makes its template.
    visit(&place, &arguments, look);
    let template = template(&place);
    let before = content(&template);
    visit(&place, &arguments, look);
    assert_eq!(content(&template), before);
    for name in before.keys() {
        assert!(!holds(&template.join(name), PASSPHRASE), "{name}");
    }
    place.assert_clean(&["mnt"]);
}

/// The mappings of `file` in the memory of a process, by how they may be used: `rw-p`.
/// Source: proc_pid_maps(5).
fn mappings(process: u32, file: &Path) -> Vec<String> {
    let inode = fs::metadata(file).unwrap().ino().to_string();
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let fields = maps.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let of_file = fields.filter(|fields| fields[4] == inode);
    of_file.map(|fields| fields[1].to_owned()).collect()
}

#[test]
fn mounts_at_the_same_time_share_the_templates_memory_and_none_can_write_it() {
    let (place, template) = prepared();
    let disk = disks().path(SYSTEM);
    let arguments = ["-a", text(&disk), "-m", "/dev/sda1"];
    let other = place.folder("other");
    place.mount(&[&arguments[..], &[text(&other)]].concat());
    let live = Live::mount(place, &arguments);
    let other_server = server(&other);
    for qemu in [live.qemu(), qemu_of(other_server)] {
        let found = mappings(qemu, &template.join("ram"));
        assert!(!found.is_empty(), "QEMU {qemu} has no memory of the template");
        assert!(found.iter().all(|how| how.ends_with('p')), "{found:?}");
        assert_eq!(
            mappings(qemu, &template.join("bulk")),
            [""; 0],
            "bulk memory is each one's own"
        );
    }
    live.place.unmount(&other);
    live.end(&["other"]);
}
