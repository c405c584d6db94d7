//! Bytes as a `.vbox`, and as the descriptor of a Parallels disk, which is XML too. The disks that
//! they name must be in their folder.

use guestmnt::image::{OpenOptions, disks_of};

use crate::place::with_folder;

/// Reads them.
///
/// # Panics
/// Where what was read is not as promised.
pub fn run(bytes: &[u8]) {
    for name in ["machine.vbox", "DiskDescriptor.xml"] {
        with_folder(|folder| {
            std::fs::write(folder.join(name), bytes).expect("the folder is ours");
            std::fs::write(folder.join("disk.vdi"), [0; 512]).expect("the folder is ours");
            match disks_of(folder, &OpenOptions::default()) {
                Ok(disks) => assert!(
                    disks.iter().all(|disk| {
                        disk.canonicalize().is_ok_and(|real| real.starts_with(folder))
                    }),
                    "{disks:?}"
                ),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        });
    }
}
