//! Names as they are spelled in a filesystem that sees no difference between upper and lower case.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};

use crate::resolve;

/// `path`, from `root` on, as it is spelled there; `None` where it is not there. Of letters only those of
/// ASCII are the same in both cases. A folder is only searched where the usual spelling is not in it: a
/// Windows has some that are large.
pub fn spelled(root: BorrowedFd, path: &str) -> Option<String> {
    let mut found = String::new();
    for name in path.split('/') {
        let folder = if found.is_empty() { ".".to_owned() } else { found.clone() };
        let usual = format!("{folder}/{name}");
        found = match resolve::locate_following(root, &usual) {
            Ok(_) => usual,
            Err(_) => {
                let folder_fd = resolve::locate_following(root, &folder).ok()?;
                let entries = fs::read_dir(resolve::proc_path(folder_fd.as_fd())).ok()?;
                let mut names =
                    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
                let spelled = names.find(|entry| entry.eq_ignore_ascii_case(name))?;
                format!("{folder}/{spelled}")
            }
        };
    }
    Some(found)
}
