//! Whether Windows is hibernated on an NTFS: it goes on with what it had in memory, so that whoever
//! writes to its disk meanwhile has it destroy both. Its fast start is a hibernation too.
//!
//! Follows `ntfs_volume_check_hiberfile()` of ntfs-3g.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

/// Where a filesystem is looked into before it is mounted in its place.
const PLACE: &str = "/look";

/// The file that holds the memory, and how it begins while that counts.
const FILE: &str = "hiberfil.sys";
const HIBERNATED: &[u8] = b"hibr";

/// What can be done about it.
const END_IT: &str =
    "hint: a restart of Windows ends that; --force-dirty writes to it all the same";

/// Checks that Windows is not hibernated on the filesystem that `mount` mounts, read-only.
///
/// # Errors
/// The reason not to write to it, as the end of the sentence "It is read-only: …".
pub fn check(mount: impl FnOnce(&Path) -> nix::Result<()>) -> Result<(), String> {
    let place = Path::new(PLACE);
    let unclear = |errno: Errno| format!("it cannot be looked into first: {}", errno.desc());
    fs::create_dir_all(place).map_err(|error| unclear(crate::failure::errno_of(&error)))?;
    mount(place).map_err(unclear)?;
    let hibernated = is_hibernated(place);
    umount2(place, MntFlags::UMOUNT_NOFOLLOW).map_err(unclear)?;
    if hibernated { Err(format!("Windows is hibernated on it\n{END_IT}")) } else { Ok(()) }
}

/// Whether the filesystem whose root is `root` holds the memory of a Windows that will go on.
fn is_hibernated(root: &Path) -> bool {
    let names = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut found = names.filter(|name| name.eq_ignore_ascii_case(FILE));
    found.any(|name| {
        let path = root.join(name);
        let mut start = [0; HIBERNATED.len()];
        let is_file = path.symlink_metadata().is_ok_and(|stat| stat.is_file());
        let mut read = || File::open(&path)?.read_exact(&mut start);
        is_file && read().is_ok() && start.eq_ignore_ascii_case(HIBERNATED)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_will_be_gone_on_with_is_known_by_its_first_bytes() {
        let table: [(&str, &[u8], bool); 6] = [
            ("hiberfil.sys", b"hibr and memory", true),
            ("HIBERFIL.SYS", b"HIBR and memory", true),
            ("hiberfil.sys", b"wake", false),
            ("hiberfil.sys", &[0; 4096], false),
            ("hiberfil.sys", b"", false),
            ("pagefile.sys", b"hibr", false),
        ];
        for (name, bytes, expected) in table {
            let root = tempfile::tempdir().unwrap();
            fs::write(root.path().join(name), bytes).unwrap();
            assert_eq!(is_hibernated(root.path()), expected, "{name}");
        }
    }
}
