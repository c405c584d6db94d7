//! What can be done with files, on a real VM.

use std::fs;

use guestmnt_tests::worlds::World;
use guestmnt_tests::worlds::vm::Vm;

guestmnt_tests::operations_in!(Vm);
guestmnt_tests::walks_in!(Vm);
guestmnt_tests::reading_in!(Vm);

mod through_the_guest {
    use guestmnt_tests::worlds::vm::VmWith;

    guestmnt_tests::reading_in!(VmWith(&["--through-guest"]));
}

mod without_bulk_memory {
    use guestmnt_tests::worlds::vm::VmWith;

    guestmnt_tests::reading_in!(VmWith(&["--through-guest", "--no-bulk-memory"]));
}

/// The guest says where it is, with some bytes to try that by, once for all threads that want it.
#[test]
fn a_large_file_costs_the_guest_one_layout() {
    let source = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..8u32 << 20).map(|n| (n / 3 % 251).to_le_bytes()[0]).collect();
    fs::write(source.path().join("large"), &bytes).unwrap();
    let shown = Vm.show(source.path(), "");
    let large = shown.path().join("large");
    fs::metadata(&large).unwrap();
    let before = shown.requests();
    assert!(fs::read(&large).unwrap() == bytes);
    assert_eq!(shown.requests() - before, 1);
}
