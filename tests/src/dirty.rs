//! An NTFS that nobody unmounted, as its own mark says.

/// A whole NTFS without that mark, and then with it.
///
/// # Panics
/// Where it is no NTFS, or marked already.
#[must_use]
pub fn marked_dirty(mut ntfs: Vec<u8>) -> Vec<u8> {
    let number =
        |bytes: &[u8], at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    // The flags are in $VOLUME_INFORMATION of the file with the number 3.
    let cluster = number(&ntfs, 0x0b) * usize::from(ntfs[0x0d]);
    let record = number(&ntfs, 0x30) * cluster + 3 * 1024;
    let mut attribute = record + number(&ntfs, record + 0x14);
    while ntfs[attribute] != 0x70 {
        attribute += number(&ntfs, attribute + 4);
    }
    let flags = attribute + number(&ntfs, attribute + 0x14) + 10;
    assert_eq!(ntfs[flags], 0);
    ntfs[flags] = 1;
    ntfs
}
