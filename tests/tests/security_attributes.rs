//! Access control lists and capabilities of the image, byte by byte, through a real VM.

use std::fs;
use std::path::Path;

use guestmnt_tests::program::{Workplace, text};
use xtask::disks::sparse;
use xtask::process::Tool;

/// `cap_net_raw+ep`: version 2, effective; permitted; inheritable.
/// Source: include/uapi/linux/capability.h, `struct vfs_cap_data`.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// `user::rw-, user:1000:r--, group::r--, mask::r--, other::---`: version, then tag, permissions
/// and id of each. Source: include/uapi/linux/posix_acl_xattr.h.
const ACCESS: [u8; 44] = [
    2, 0, 0, 0, //
    1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff, //
    2, 0, 4, 0, 0xe8, 3, 0, 0, //
    4, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, //
    0x10, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, //
    0x20, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
];

/// An SELinux label ends in NUL.
const LABEL: &[u8] = b"system_u:object_r:ping_exec_t:s0\0";

const ALL: [(&str, &[u8]); 3] = [
    ("security.capability", &CAPABILITY),
    ("system.posix_acl_access", &ACCESS),
    ("security.selinux", LABEL),
];

#[test]
fn lists_capabilities_and_labels_are_what_the_image_stores() {
    let place = Workplace::new();
    let (tree, mnt, image) =
        (place.folder("tree"), place.folder("mnt"), place.path().join("image"));
    for name in ["ping", "plain"] {
        fs::write(tree.join(name), name).unwrap();
    }
    sparse::create(&image, 16 << 20).unwrap();
    let mke2fs = Tool::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-I", "256", "-d"]);
    mke2fs.args([&tree, &image]).run().unwrap();
    for (name, value) in ALL {
        let file = place.path().join("value");
        fs::write(&file, value).unwrap();
        let request = format!("ea_set -f {} /ping {name}", text(&file));
        Tool::new("debugfs").args(["-w", "-R", &request]).arg(&image).run().unwrap();
    }
    place.mount(&["-a", text(&image), "-m", "/dev/sda", text(&mnt)]);
    let get = |file: &str, name: &str| xattr::get(mnt.join(file), name).ok().flatten();
    for (name, value) in ALL {
        assert_eq!(get("ping", name).as_deref(), Some(value), "{name}");
        assert_eq!(get("plain", name), None, "{name}");
    }
    assert_eq!(listed(&mnt.join("ping")), listed_names());
    assert!(listed(&mnt.join("plain")).is_empty());
    place.unmount(&mnt);
}

fn listed(file: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        xattr::list(file).unwrap().map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

fn listed_names() -> Vec<String> {
    let mut names = ALL.map(|(name, _)| name.to_owned());
    names.sort();
    names.into()
}
