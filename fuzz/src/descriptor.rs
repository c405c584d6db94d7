//! Bytes as the text of a VMDK's descriptor. What is read must be in bounds, and what is written
//! for QEMU must say the same.

use guestmnt::image::{Descriptor, MAX_DESCRIPTOR, MAX_DISK_SIZE, MAX_EXTENTS, SECTOR_SIZE};

/// Reads them.
///
/// # Panics
/// Where what was read is not as promised.
pub fn run(bytes: &[u8]) {
    let Ok(descriptor) = Descriptor::parse(bytes) else { return };
    assert!(bytes.len() <= MAX_DESCRIPTOR);
    assert!((1..=MAX_EXTENTS).contains(&descriptor.extents.len()));
    assert!((1..=MAX_DISK_SIZE / SECTOR_SIZE).contains(&descriptor.sectors()));
    let text = descriptor.rewritten(|extent| format!("/dev/fdset/{extent}"));
    let lines = text.split(|&byte| byte == b'\n').filter(|line| line.starts_with(b"RW "));
    assert_eq!(lines.count(), descriptor.extents.len());
    // It names no parent, so that of a snapshot is none that we would open.
    assert!(!text.windows(4).any(|word| word.eq_ignore_ascii_case(b"hint")));
    if descriptor.parent.is_none() {
        let again = Descriptor::parse(&text).expect("what is written can be read");
        assert_eq!(again.sectors(), descriptor.sectors());
        assert_eq!(again.cid, descriptor.cid);
        assert_eq!(again.create_type.name(), descriptor.create_type.qemu_name());
    }
}
