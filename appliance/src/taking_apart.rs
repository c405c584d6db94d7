//! Takes apart what was assembled, at the end of a mount that was written to: an array that is not
//! stopped is one that whoever assembles it next brings in step from one end to the other.

use std::fs;

use nix::errno::Errno;

use guestmnt_protocol::message::Failure;

use crate::failure::explained;
use crate::modules::Modules;
use crate::programs::Programs;

/// Removes all devices of device-mapper, those that others are made of last, and stops all arrays.
/// Nothing of them may be mounted.
///
/// # Errors
/// `EBUSY` with what the program said.
pub fn take_apart(programs: &Programs, modules: &Modules) -> Result<(), Failure> {
    let run = |program: &str, arguments: &[&str], what: &str| {
        let done = programs.run(modules, program, arguments, &[])?;
        done.map(drop).map_err(|failed| failed.explained(Errno::EBUSY, what))
    };
    // On an array there may be volumes, and an array may be on volumes.
    let mut before = usize::MAX;
    loop {
        let (mapped, arrays) = (devices("dm-"), devices("md"));
        let left = mapped.len() + arrays.len();
        if left == 0 {
            return Ok(());
        }
        if left == before {
            let left = [mapped, arrays].concat().join(", ");
            return Err(explained(Errno::EBUSY, format!("{left} cannot be taken apart")));
        }
        before = left;
        if !mapped.is_empty() {
            run("dmsetup", &["remove_all"], "dmsetup cannot remove the volumes")?;
        }
        for array in arrays.iter().filter(|array| !is_held(array)) {
            run("mdadm", &["--stop", &format!("/dev/{array}")], "mdadm cannot stop an array")?;
        }
    }
}

/// Names of the block devices that begin so.
fn devices(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// Whether another device is made of this one.
fn is_held(device: &str) -> bool {
    let holders = fs::read_dir(format!("/sys/block/{device}/holders"));
    holders.is_ok_and(|mut holders| holders.next().is_some())
}
