//! The confinement of a QEMU that root starts: it is nobody, and as shut in as a user's.

use guestmnt::vm::confinement::{Confinement, Policy};
use guestmnt_tests::canary::{Aims, duties};
use guestmnt_tests::program::is_root;
use xtask::skips::skip;

#[test]
fn roots_canary_gets_nowhere_and_each_layer_does_something() {
    if !is_root() {
        skip("the tests were not started by root");
        return;
    }
    let aims = Aims::new();
    let (outcomes, report) = aims.canary(&Confinement::default());
    if let Some(state) = report.missing().next() {
        skip(&format!("this host does not offer root all of the confinement: {state}"));
        return;
    }
    let done: Vec<_> = outcomes.iter().filter(|(_, error)| error.is_none()).collect();
    assert!(done.is_empty(), "{done:?}");
    assert!(aims.started(&Confinement::new(Policy::Required)).is_ok());
    for (part, prevented) in duties() {
        let (outcomes, _) = aims.canary(&Confinement::default().without(part));
        for name in prevented {
            assert_eq!(outcomes[*name], None, "without {part:?}: {name}");
        }
    }
}
