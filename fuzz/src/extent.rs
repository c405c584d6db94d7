//! Bytes as a sparse extent behind a descriptor, as VMware's, ESX' and ESXi's are. What opens is
//! read, through directory and tables that are untrusted as well.
//!
//! The first byte chooses the extent's type; the others are a file as in [`crate::place`].

use crate::image;
use crate::place::{with_folder, write_sparse};

/// Opens them.
///
/// # Panics
/// Where what was opened is not as promised.
pub fn run(bytes: &[u8]) {
    const KINDS: [&str; 3] = ["SPARSE", "VMFSSPARSE", "SESPARSE"];
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    let kind = KINDS[usize::from(kind) % KINDS.len()];
    with_folder(|folder| {
        let path = folder.join("disk.vmdk");
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
             createType=\"twoGbMaxExtentSparse\"\nRW 2048 {kind} \"extent\"\n"
        );
        std::fs::write(&path, text).expect("the folder is ours");
        write_sparse(&folder.join("extent"), bytes);
        image::open(&path);
    });
}
