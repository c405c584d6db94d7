//! Bytes as a `.vmx`. The disks that it names must be in its folder.

use guestmnt::image::{OpenOptions, disks_of};

use crate::place::with_folder;

/// Reads them.
///
/// # Panics
/// Where what was read is not as promised.
pub fn run(bytes: &[u8]) {
    with_folder(|folder| {
        let file = folder.join("machine.vmx");
        std::fs::write(&file, bytes).expect("the folder is ours");
        std::fs::write(folder.join("disk.vmdk"), [0; 512]).expect("the folder is ours");
        for path in [folder, &file] {
            match disks_of(path, &OpenOptions::default()) {
                Ok(disks) => assert!(
                    disks.iter().all(|disk| {
                        disk.canonicalize().is_ok_and(|real| real.starts_with(folder))
                    }),
                    "{disks:?}"
                ),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
    });
}
