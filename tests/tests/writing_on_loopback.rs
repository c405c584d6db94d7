//! What can be written, on the loopback guest.

use guestmnt_tests::model::{ALL, same_as_a_plain_folder};
use guestmnt_tests::worlds::writable::OverFolder;

guestmnt_tests::writing_in!(OverFolder::new());

#[test]
fn random_changes_end_as_in_a_plain_folder() {
    for seed in 1..=4 {
        same_as_a_plain_folder(&mut OverFolder::new(), &ALL, seed, 400);
    }
}
