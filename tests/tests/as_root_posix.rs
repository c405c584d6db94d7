//! POSIX behaviour of a mount that several users may use: the suite acts in their names, as only root
//! can. What one attribute changes of another is compared with a plain folder.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use guestmnt_tests::posix::suite;
use guestmnt_tests::program::is_root;
use guestmnt_tests::specimens::specimen;
use guestmnt_tests::worlds::writable::{OverImage, Writable};
use xtask::disks::filesystems::Kind;
use xtask::process::find_program;
use xtask::skips::skip;

/// Prints modes and access control lists after each change of one of them.
const LISTS: &str = r#"
show() { for f; do stat -c '%n %A' $f; getfacl -cp $f | tr -s '\n' ' '; echo; done; }
echo hi > f; chmod 664 f; show f
setfacl -m u:nobody:rwx f; show f
setfacl -m m::r f; show f
chmod 750 f; show f
chacl u::rw-,g::r--,o::--- f; show f
setfacl -m u:daemon:rw f; show f; setfacl -b f; show f
chmod 640 f; setfacl -m u:daemon:rwx,m::rx f; setfattr -x system.posix_acl_access f; show f
mkdir d e; setfacl -d -m u:nobody:rwx,g::r-x,o::- d; umask 027
touch d/f e/f; mkdir d/s e/s; mknod d/p p; mknod e/p p; touch d/s/f e/s/f; show d d/* d/s/f e/* e/s/f
setfacl -k d; setfacl -d -m u:nobody:rwx e; touch d/g e/g; mkdir d/t e/t; show d/g e/g d/t e/t
"#;

/// Prints which of them other users may do what by, and what their doing it takes away.
const ACCESS: &str = r#"
show() { stat -c '%n %A' $1; getfacl -cp $1 | tr -s '\n' ' '; echo; getfattr --absolute-names -d -m security.capability -e hex $1; }
as() { user=$1; shift; setpriv --reuid $user --regid $user --clear-groups "$@" 2>&1; }
nobody() { setpriv --reuid nobody --regid nogroup --clear-groups "$@" 2>&1; }
echo hi > f
chmod 700 f; setfacl -m u:nobody:r f; nobody cat f; as daemon cat f; setfacl -x u:nobody f; nobody cat f
chmod 755 f; setfacl -m u:nobody:- f; nobody cat f; as daemon cat f; chmod 705 f; as daemon cat f
setfacl -b f; setfacl -m u:nobody:rw f; chmod 600 f; nobody cat f; chmod 660 f; nobody cat f
mkdir d; chmod 700 d; echo in > d/f; setfacl -m g:nogroup:rx d; nobody ls d; nobody touch d/g; as daemon ls d
for by in nobody root; do
  for change in 'echo more >> f' 'truncate -s 1 f' 'chown daemon f' 'chmod 777 f' 'chgrp daemon f'; do
    chown nobody:nogroup f; setfacl -b f; chmod 6777 f
    setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 f
    if [ $by = root ]; then sh -c "$change"; else nobody sh -c "$change"; fi
    echo "$by: $change"; show f
  done
done
chown nobody:daemon f; chmod 2755 f; nobody setfacl -m u:daemon:rwx f; show f
chown nobody:nogroup f; chmod 2755 f; nobody setfacl -m u:daemon:rwx f; show f
"#;

/// What a script prints in a new folder of this one.
fn output_in(folder: &Path, script: &str) -> String {
    let place = tempfile::tempdir_in(folder).unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut shell = Command::new("sh");
    let output = shell.args(["-c", script]).current_dir(place.path()).output().unwrap();
    let [printed, errors] = [output.stdout, output.stderr].map(String::from_utf8);
    format!("{}{}", printed.unwrap(), errors.unwrap())
}

/// Runs a script in a plain folder and in a mount with these options, and compares.
fn ends_as_in_a_plain_folder(options: &str, script: &str) {
    if !is_root() {
        skip("the tests were not started by root");
        return;
    }
    if let Some(missing) =
        ["setfacl", "setfattr", "setpriv"].into_iter().find(|name| find_program(name).is_none())
    {
        skip(&format!("there is no {missing}"));
        return;
    }
    let Some((image, _)) = specimen(Kind::Ext4) else { return };
    let plain = tempfile::tempdir().unwrap();
    fs::set_permissions(plain.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let expected = output_in(plain.path(), script);
    if expected.contains("Operation not supported") {
        skip("the folder for temporary files has no access control lists");
        return;
    }
    let shown = OverImage::with_options(&image, &["-o", options]);
    let found = output_in(shown.path(), script);
    let differing: Vec<_> =
        found.lines().zip(expected.lines()).filter(|(found, expected)| found != expected).collect();
    assert!(found == expected, "found, expected: {differing:#?}\n{found}");
}

#[test]
fn modes_follow_access_lists_and_lists_follow_modes() {
    ends_as_in_a_plain_folder("allow_other,default_permissions", LISTS);
}

#[test]
fn modes_follow_access_lists_that_are_not_enforced() {
    ends_as_in_a_plain_folder("allow_other", LISTS);
}

#[test]
fn access_lists_are_enforced_and_changes_take_privileges_away() {
    ends_as_in_a_plain_folder("allow_other,default_permissions", ACCESS);
}

#[test]
fn a_mount_for_everybody_differs_from_a_plain_folder_as_listed() {
    if !is_root() {
        skip("the tests were not started by root");
        return;
    }
    let Some((image, _)) = specimen(Kind::Ext4) else { return };
    let Some(suite) = suite() else { return };
    let plain = tempfile::tempdir().unwrap();
    // The other users go through it.
    fs::set_permissions(plain.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let options = ["-o", "allow_other,default_permissions"];
    let shown = OverImage::with_options(&image, &options);
    suite.assert_differs_as_listed("root", shown.path(), plain.path());
}
