//! What can be written, on a real VM with an overlay; the image stays as it is.

use std::path::PathBuf;

use guestmnt_tests::model::{ALL, EXFAT, FAT, Keeps, same_as_a_plain_folder};
use guestmnt_tests::specimens::specimen;
use guestmnt_tests::worlds::writable::OverImage;
use xtask::disks::filesystems::Kind;

fn ext4() -> PathBuf {
    specimen(Kind::Ext4).expect("mke2fs is there").0
}

guestmnt_tests::writing_in!(OverImage::new(&ext4()));

/// What NTFS cannot do: ntfs3 exchanges no names and punches holes in sparse files only.
const NTFS: Keeps = Keeps { exchange: false, holes: false, ..ALL };

fn random_changes_end_as_in_a_plain_folder(kind: Kind, keeps: &Keeps, seed: u64) {
    let Some((image, _)) = specimen(kind) else { return };
    same_as_a_plain_folder(&mut OverImage::new(&image), keeps, seed, 150);
}

/// Makes a test of each kind.
macro_rules! each_kind {
    ($($name:ident: $kind:ident $keeps:expr,)*) => {
        mod random_changes_end_as_in_a_plain_folder {
            use super::*;

            $(
                #[test]
                fn $name() {
                    super::random_changes_end_as_in_a_plain_folder(Kind::$kind, &$keeps, 7);
                }
            )*
        }
    };
}

each_kind! {
    ext4: Ext4 ALL,
    xfs: Xfs ALL,
    btrfs: Btrfs ALL,
    ntfs: Ntfs NTFS,
    vfat: Vfat FAT,
    exfat: Exfat EXFAT,
}
