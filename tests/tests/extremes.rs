//! Disks of the most bytes, and as many as a VM takes.

use std::fs;
use std::path::Path;

use guestmnt_protocol::device::DeviceName;
use guestmnt_protocol::limits::MAX_DISKS;
use guestmnt_tests::program::text;
use guestmnt_tests::showing::{Showing, assert_refused};
use xtask::disks::sparse;
use xtask::process::Tool;
use xtask::skips::skip;

/// VMware's largest.
const LARGEST: u64 = 62 << 40;

#[test]
fn a_partition_at_the_end_of_62_tib_is_shown_in_every_format_that_holds_it() {
    let Some(showing) = Showing::new() else { return };
    // Few other filesystems have files of this size.
    let Ok(memory) = tempfile::tempdir_in("/dev/shm") else {
        skip("no tmpfs in /dev/shm");
        return;
    };
    let disk = memory.path().join("disk.img");
    let len = showing.bytes().len() as u64;
    let (start, count) = ((LARGEST >> 9) - 131_072, len >> 9);
    let file = sparse::create(&disk, LARGEST).unwrap();
    let script = format!("label: gpt\nstart=2048, size=2048\nstart={start}, size={count}\n");
    let sfdisk = Tool::new("sfdisk").args(["--quiet", "--no-reread"]).arg(&disk);
    sfdisk.filter(script.as_bytes()).unwrap();
    sparse::copy_into(&showing.image, &file, start << 9).unwrap();
    let mount = |path: &Path| showing.assert_mounted(&["-a", text(path), "-m", "/dev/sda2"]);
    mount(&disk);
    for (format, options) in [("qcow2", ""), ("vmdk", "subformat=monolithicSparse"), ("vhdx", "")] {
        let copy = showing.place.path().join(format!("disk.{format}"));
        let mut arguments = vec!["convert", "-f", "raw", "-O", format];
        if !options.is_empty() {
            arguments.extend(["-o", options]);
        }
        showing.make("qemu-img", &[&arguments[..], &[text(&disk), text(&copy)]].concat());
        mount(&copy);
        fs::remove_file(copy).unwrap();
    }
}

#[test]
fn as_many_disks_as_have_names_are_shown_and_one_more_is_refused() {
    let Some(showing) = Showing::new() else { return };
    let names: Vec<String> = (0..MAX_DISKS).map(|i| format!("{i}.img")).collect();
    for name in &names[..MAX_DISKS - 1] {
        fs::write(showing.place.path().join(name), [0; 4096]).unwrap();
    }
    let mut arguments: Vec<&str> = names.iter().flat_map(|name| ["-a", name]).collect();
    // The last, and one that every disk after it interrupts while the kernel gets to know it.
    for number in [MAX_DISKS - 1, 2] {
        showing.convert("raw", "", &names[number]);
        let name = DeviceName::whole(u8::try_from(number).unwrap()).to_string();
        showing.assert_mounted(&[&arguments[..], &["-m", &name]].concat());
    }
    arguments.extend(["-a", "0.img", "-m", "/dev/sda"]);
    assert_refused(&showing.place, &arguments, &["more than 255 disks"]);
}
