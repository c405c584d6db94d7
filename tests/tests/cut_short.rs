//! Images of which a copy was interrupted, through a real VM: what the file lacks is an error by
//! every way, and never zeros.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use guestmnt_tests::images::cowd;
use guestmnt_tests::images::descriptor;
use guestmnt_tests::program::text;
use guestmnt_tests::showing::Showing;
use guestmnt_tests::specimens::{sha256, specimen};
use xtask::digest;
use xtask::disks::filesystems::Kind;
use xtask::disks::manifest::Entry;

/// Removes the end of a file, with a tenth of the blocks that hold something.
fn cut(path: &Path) {
    const BLOCK: usize = 4096;
    let bytes = fs::read(path).unwrap();
    let blocks = bytes.chunks(BLOCK).enumerate();
    let held: Vec<usize> =
        blocks.filter(|(_, block)| block.iter().any(|&b| b != 0)).map(|(n, _)| n).collect();
    let len = held[held.len() * 9 / 10] * BLOCK + 1000;
    File::options().write(true).open(path).unwrap().set_len(len as u64).unwrap();
}

/// How many files of `mnt` can be read, all of which have to be right, and how many not.
fn read_all(mnt: &Path, entries: &BTreeMap<String, Entry>) -> (usize, usize) {
    let files = entries.iter().filter_map(|(name, entry)| Some((name, entry.file.as_ref()?)));
    let (mut right, mut errors) = (0, 0);
    for (name, wanted) in files {
        match digest::of_file(&mnt.join(name)) {
            Ok(hash) => {
                assert_eq!(hash, wanted.sha256, "{name} is made up");
                right += 1;
            }
            Err(_) => errors += 1,
        }
    }
    (right, errors)
}

/// Reads the disk `name` by every way; its files were cut short.
fn assert_missing(showing: &Showing, entries: &BTreeMap<String, Entry>, name: &str) {
    let mnt = showing.place.path().join("mnt");
    let ways: [&[&str]; 2] = [&[], &["--through-guest"]];
    for way in ways {
        let arguments = [way, &["-a", name, "-m", "/dev/sda", text(&mnt)]].concat();
        let mounted = showing.place.run("guestmnt", &arguments);
        assert_eq!(mounted.status, Some(0), "{name}: {mounted:?}");
        assert!(mounted.stderr.contains("the file was cut short: it lacks "), "{mounted:?}");
        // The second time, what can be read past the VM is.
        for _ in 0..2 {
            let (right, errors) = read_all(&mnt, entries);
            assert!(right > 0 && errors > 0, "{name} {way:?}: {right} {errors}");
        }
        showing.place.unmount(&mnt);
    }
    let tar = showing.place.run("guestimg", &["tar", "-a", name, "-m", "/dev/sda", "/"]);
    assert_eq!(tar.status, Some(1), "{name}: {}", tar.stderr);
    assert!(tar.stderr.contains("I/O error"), "{name}: {}", tar.stderr);

    let refused = showing.place.run("guestimg", &["export", name, "out"]);
    assert_eq!(refused.status, Some(1), "{name}: {refused:?}");
    assert!(!showing.place.path().join("out").exists(), "{name}");
    let arguments = ["export", "--check", "--allow-truncated", name, "out"];
    let exported = showing.place.run("guestimg", &arguments);
    assert_eq!(exported.status, Some(0), "{name}: {exported:?}");
    assert!(exported.stderr.contains("zeros are in the place of "), "{name}: {exported:?}");
    let hash = sha256(&showing.place.path().join("out"));
    assert!(exported.stdout.contains(&hash), "{name}: {exported:?}");
    let (whole, out) = (showing.bytes(), fs::read(showing.place.path().join("out")).unwrap());
    assert_eq!(whole.len(), out.len(), "{name}");
    assert!(whole.iter().zip(&out).all(|(whole, out)| out == whole || *out == 0), "{name}");
    fs::remove_file(showing.place.path().join("out")).unwrap();

    let rw = ["-a", name, "-m", "/dev/sda", "--rw", text(&mnt)];
    let refused = showing.place.run("guestmnt", &rw);
    assert_eq!(refused.status, Some(1), "{name}: {refused:?}");
}

fn showing() -> Option<(Showing, BTreeMap<String, Entry>)> {
    let (_, entries) = specimen(Kind::Ext4)?;
    Some((Showing::new()?, entries))
}

#[test]
fn what_a_file_lacks_is_an_error() {
    let Some((showing, entries)) = showing() else { return };
    let table = [
        ("vmdk", "subformat=monolithicSparse", "a.vmdk", "a.vmdk"),
        ("vmdk", "subformat=twoGbMaxExtentSparse", "b.vmdk", "b-s001.vmdk"),
        ("vmdk", "subformat=monolithicFlat", "c.vmdk", "c-flat.vmdk"),
        ("qcow2", "", "a.qcow2", "a.qcow2"),
        ("vdi", "", "a.vdi", "a.vdi"),
        ("vpc", "force_size=on", "a.vhd", "a.vhd"),
        ("vhdx", "", "a.vhdx", "a.vhdx"),
    ];
    for (format, options, name, file) in table {
        showing.convert(format, options, name);
        let path = showing.place.path().join(file);
        cut(&path);
        assert_missing(&showing, &entries, name);
        fs::remove_file(path).unwrap();
    }
    let disk = cowd(&showing.bytes());
    let line = format!("RW {} VMFSSPARSE \"esx-delta.vmdk\"", showing.bytes().len() / 512);
    fs::write(showing.place.path().join("esx.vmdk"), descriptor("vmfsSparse", &line)).unwrap();
    fs::write(showing.place.path().join("esx-delta.vmdk"), disk).unwrap();
    cut(&showing.place.path().join("esx-delta.vmdk"));
    assert_missing(&showing, &entries, "esx.vmdk");
}

/// A snapshot that has all that its parent lacks is whole; one that has nothing shows the holes.
#[test]
fn a_snapshot_shows_what_its_parent_lacks_unless_it_has_it() {
    let Some((showing, entries)) = showing() else { return };
    for format in ["vmdk", "qcow2"] {
        let (base, child) = (format!("base.{format}"), format!("child.{format}"));
        showing.convert(format, "", &base);
        let create = ["create", "-q", "-f", format, "-b", &base, "-F", format, &child];
        showing.make("qemu-img", &create);
        let whole = fs::read(showing.place.path().join(&base)).unwrap();
        cut(&showing.place.path().join(&base));
        assert_missing(&showing, &entries, &child);
        fs::write(showing.place.path().join(&base), whole).unwrap();
        let write = format!("write -q -s {} 0 {}", text(&showing.image), showing.bytes().len());
        showing.make("qemu-io", &["-f", format, "-c", &write, &child]);
        cut(&showing.place.path().join(&base));
        let shown = showing.assert_shown(&["-a", &child]);
        assert!(shown.stderr.contains(&format!("{base}: the file was cut short")), "{shown:?}");
    }
}
