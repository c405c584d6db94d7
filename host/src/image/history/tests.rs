//! Histories found from each of their members, whole and broken.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::super::fixtures::*;
use super::*;

/// What was found, as lines of depth, name and problem.
fn lines(folder: &Folder, history: &History) -> Vec<String> {
    let mut lines = Vec::new();
    for root in history.roots() {
        for (index, depth) in history.tree(root) {
            let member = &history.members[index];
            let name = member.path.strip_prefix(&folder.path).unwrap().display();
            let broken = if member.problem.is_some() { " broken" } else { "" };
            lines.push(format!("{}{name}{broken}", ".".repeat(depth)));
        }
    }
    lines
}

fn of(folder: &Folder, name: &str) -> History {
    history(&[folder.path.join(name)], &OpenOptions::default()).unwrap()
}

fn age(path: &Path, seconds: u64) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
}

/// A base with a branch of two snapshots and one of one, in three folders.
fn family() -> Folder {
    let folder = Folder::new();
    folder.write("vm/base/base-s001.vmdk", sparse(128, None));
    folder.write("vm/base/base.vmdk", base(1, "RW 128 SPARSE \"base-s001.vmdk\""));
    folder.write("vm/snap/a.vmdk", child(2, 1, "../base/base.vmdk", "RW 128 ZERO"));
    folder.write("vm/snap/deep/b.vmdk", child(3, 2, "../a.vmdk", "RW 128 ZERO"));
    folder.write("vm/snap/c.vmdk", child(3, 2, "C:\\x\\a.vmdk", "RW 128 ZERO"));
    folder.write("vm/snap/other.vmdk", base(7, "RW 128 ZERO"));
    folder
}

#[test]
fn every_member_leads_to_the_whole_family_over_folders() {
    let folder = family();
    let expected =
        ["vm/base/base.vmdk", ".vm/snap/a.vmdk", "..vm/snap/c.vmdk", "..vm/snap/deep/b.vmdk"];
    for start in ["vm/base/base.vmdk", "vm/snap/a.vmdk", "vm/snap/c.vmdk", "vm/snap/deep/b.vmdk"] {
        let history = of(&folder, start);
        assert_eq!(lines(&folder, &history), expected, "{start}");
        assert!(!history.cut_short);
    }
    let whole = of(&folder, "vm");
    assert_eq!(lines(&folder, &whole)[4..], ["vm/snap/other.vmdk"]);
    let base = &whole.members[whole.roots()[0]];
    let files: Vec<_> = base.files.iter().map(|file| file.path.file_name().unwrap()).collect();
    assert_eq!(files, ["base.vmdk", "base-s001.vmdk"]);
    assert_eq!((base.size, base.files[1].len), (Some(65_536), 8192));
}

#[test]
fn the_youngest_is_the_leaf_that_was_changed_last() {
    let folder = family();
    for (name, seconds) in [("vm/base/base.vmdk", 9), ("vm/base/base-s001.vmdk", 9)] {
        age(&folder.path.join(name), seconds);
    }
    let youngest = |history: &History| {
        let youngest = history.youngest(history.roots()[0]);
        history.members[youngest].path.file_name().unwrap().to_owned()
    };
    for (b, c, expected) in [(1, 2, "c.vmdk"), (2, 1, "b.vmdk")] {
        age(&folder.path.join("vm/snap/deep/b.vmdk"), b);
        age(&folder.path.join("vm/snap/c.vmdk"), c);
        assert_eq!(youngest(&of(&folder, "vm/snap/a.vmdk")), expected);
    }
    // A younger one that cannot be opened is not it.
    let broken = folder.write("vm/snap/d.vmdk", child(3, 9, "a.vmdk", "RW 128 ZERO"));
    age(&broken, 10_000);
    assert_eq!(youngest(&of(&folder, "vm/snap/a.vmdk")), "b.vmdk");
}

#[test]
fn broken_links_are_shown_with_the_reason() {
    let folder = family();
    folder.write("vm/snap/a.vmdk", child(2, 9, "../base/base.vmdk", "RW 128 ZERO"));
    fs::remove_file(folder.path.join("vm/base/base-s001.vmdk")).unwrap();
    let history = of(&folder, "vm/snap/c.vmdk");
    let expected = [
        "vm/base/base.vmdk broken",
        ".vm/snap/a.vmdk",
        "..vm/snap/c.vmdk",
        "..vm/snap/deep/b.vmdk",
    ];
    assert_eq!(lines(&folder, &history), expected);
    let problem = history.members[0].problem.as_ref().unwrap().to_string();
    assert!(problem.contains("its extent base-s001.vmdk does not exist"), "{problem}");

    folder.write("vm/base/base-s001.vmdk", sparse(128, None));
    let history = of(&folder, "vm/snap/c.vmdk");
    assert_eq!(lines(&folder, &history)[..2], ["vm/base/base.vmdk", ".vm/snap/a.vmdk broken"]);
    let a = history.tree(0)[1].0;
    let problem = history.members[a].problem.as_ref().unwrap().to_string();
    assert!(problem.contains("parent CID 00000009 expected"), "{problem}");
}

#[test]
fn an_orphan_is_shown_with_the_parent_that_was_moved() {
    let folder = family();
    let moved = folder.path.join("vm/moved.vmdk");
    fs::write(&moved, base(1, "RW 128 ZERO")).unwrap();
    fs::remove_dir_all(folder.path.join("vm/base")).unwrap();
    let history = of(&folder, "vm/snap/c.vmdk");
    let expected =
        ["vm/moved.vmdk", "vm/snap/a.vmdk broken", ".vm/snap/c.vmdk", ".vm/snap/deep/b.vmdk"];
    assert_eq!(lines(&folder, &history), expected);
    let orphan = history.roots()[1];
    let could_be: Vec<&Path> = history
        .could_be_parents(orphan)
        .iter()
        .map(|&n| history.members[n].path.as_path())
        .collect();
    assert_eq!(could_be, [moved]);
}

#[test]
fn circles_are_opened_and_told() {
    let folder = Folder::new();
    folder.write("a.vmdk", child(1, 2, "b.vmdk", "RW 1 ZERO"));
    folder.write("b.vmdk", child(2, 1, "a.vmdk", "RW 1 ZERO"));
    folder.write("c.vmdk", child(3, 1, "a.vmdk", "RW 1 ZERO"));
    let history = of(&folder, "c.vmdk");
    assert_eq!(history.roots().len(), 1);
    assert_eq!(history.tree(history.roots()[0]).len(), 3);
    let told = history.members.iter().filter_map(|member| member.problem.as_ref());
    let told: Vec<String> = told.map(ToString::to_string).collect();
    assert!(told.len() == 1 && told[0].contains("is also its child"), "{told:?}");
}

#[test]
fn all_formats_with_parents_have_a_history() {
    const ID: [u8; 16] = [0x11; 16];
    const STATE: [u8; 16] = [0x22; 16];
    let folder = Folder::new();
    let mut base = vdi(2 << 20);
    base[392..408].copy_from_slice(&ID);
    base[408..424].copy_from_slice(&STATE);
    folder.write("vdi/base.vdi", &base);
    folder.write(
        "vdi/Snapshots/{1}.vdi",
        vdi_over(2 << 20, [[5; 16], [6; 16], ID, STATE], &[u32::MAX; 2]),
    );
    folder.write("q/base.img", [0; 512]);
    folder.write("q/a.qcow2", qcow2_over(512, b"base.img", "raw"));
    folder.write("vhd/base.vhd", vhd_base(ID));
    folder.write("vhd/child.avhd", vhd_over(ID, ["base.vhd"; 3], [0; 8]));
    let table = [
        ("vdi/base.vdi", ["vdi/base.vdi", ".vdi/Snapshots/{1}.vdi"]),
        ("q/base.img", ["q/base.img", ".q/a.qcow2"]),
        ("vhd/base.vhd", ["vhd/base.vhd", ".vhd/child.avhd"]),
    ];
    for (start, expected) in table {
        assert_eq!(lines(&folder, &of(&folder, start)), expected, "{start}");
    }
    // A state that changed since is said to have, and is still the parent.
    base[408..424].copy_from_slice(&[0x23; 16]);
    folder.write("vdi/base.vdi", &base);
    let expected = ["vdi/base.vdi", ".vdi/Snapshots/{1}.vdi broken"];
    assert_eq!(lines(&folder, &of(&folder, "vdi/Snapshots/{1}.vdi")), expected);
}

#[test]
fn what_is_no_image_is_refused_with_the_reason() {
    let folder = family();
    fs::create_dir(folder.path.join("empty")).unwrap();
    let refusal = |name: &str| {
        let refused = history(&[folder.path.join(name)], &OpenOptions::default());
        refused.unwrap_err().to_string()
    };
    assert!(refusal("gone.vmdk").contains("No such file"));
    assert!(refusal("empty").contains("it holds no disk"));
    let extent = refusal("vm/base/base-s001.vmdk");
    assert!(extent.contains("only an extent") && extent.contains("base.vmdk"), "{extent}");
}

#[test]
fn a_neighbourhood_without_end_is_cut_short_and_that_is_said() {
    let folder = Folder::new();
    folder.write("vm/base.vmdk", base(1, "RW 1 ZERO"));
    for n in 0..MAX_FOLDERS {
        fs::create_dir(folder.path.join(format!("vm/{n}"))).unwrap();
    }
    let history = of(&folder, "vm/base.vmdk");
    assert!(history.cut_short);
    assert_eq!(lines(&folder, &history), ["vm/base.vmdk"]);
}
