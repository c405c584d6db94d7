//! What can be done with files, on a real VM.

use guestmnt_tests::worlds::vm::Vm;

guestmnt_tests::operations_in!(Vm);
guestmnt_tests::walks_in!(Vm);
