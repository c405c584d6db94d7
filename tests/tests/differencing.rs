//! Snapshots of VirtualBox and Hyper-V over bases that qemu-img made, through a real VM.

use std::fs;

use guestmnt_tests::differencing::{Changes, vdi, vdi_ids, vhd, vhd_id, vhdx, vhdx_id};
use guestmnt_tests::showing::Showing;

const SECTOR: usize = 512;

/// What the middle image of a chain has: whole MiBs, and parts of others.
fn middle_has(sector: usize) -> bool {
    match sector >> 11 & 3 {
        0 => false,
        1 => true,
        _ => (sector / 3).is_multiple_of(2),
    }
}

/// What the youngest one has, partly the same.
fn youngest_has(sector: usize) -> bool {
    sector >> 12 & 1 == 1 && sector % 7 < 3
}

/// The MiB that a sector is in, for VDI, which tells no others apart.
fn whole(has: fn(usize) -> bool) -> impl Fn(usize) -> bool {
    move |sector| (sector >> 11 << 11..(sector >> 11 << 11) + 2048).any(has)
}

/// The disk with nonsense in the sectors that are mended above.
fn spoiled(disk: &[u8], above: &dyn Fn(usize) -> bool) -> Vec<u8> {
    let mut bytes = disk.to_vec();
    for (_, sector) in bytes.chunks_mut(SECTOR).enumerate().filter(|&(i, _)| above(i)) {
        sector.fill(0x55);
    }
    bytes
}

/// Writes a base, a child and a grandchild, and shows each chain that must be whole.
fn show(
    format: &str,
    [base, middle, youngest]: [&str; 3],
    has: [&dyn Fn(usize) -> bool; 2],
    child: impl Fn(&[u8], Changes, u8, &str) -> Vec<u8>,
) {
    let Some(showing) = Showing::new() else { return };
    let place = showing.place.path();
    let disk = showing.bytes();
    let raw = place.join("raw");
    fs::write(&raw, spoiled(&disk, &|i| has[0](i) || has[1](i))).unwrap();
    let options = if format == "vpc" { &["-o", "force_size=on"][..] } else { &[] };
    let arguments = [&["convert", "-f", "raw", "-O", format], options, &["raw", base]].concat();
    showing.make("qemu-img", &arguments);
    fs::remove_file(raw).unwrap();

    let parent = fs::read(place.join(base)).unwrap();
    let both = |i: usize| has[0](i) || has[1](i);
    let alone = child(&parent, Changes { disk: &disk, has: &both }, 1, base);
    fs::write(place.join(youngest), alone).unwrap();
    showing.assert_shown(&["-a", youngest]);

    let stale = spoiled(&disk, has[1]);
    let parent = child(&parent, Changes { disk: &stale, has: has[0] }, 2, base);
    fs::write(place.join(middle), &parent).unwrap();
    let top = child(&parent, Changes { disk: &disk, has: has[1] }, 3, middle);
    fs::write(place.join(youngest), top).unwrap();
    showing.assert_shown(&["-a", youngest]);
    showing.assert_shown(&["-a", "."]);
    fs::remove_file(place.join(base)).unwrap();
    showing.assert_refused(&["-a", youngest], &["its parent", "missing", "hint: "]);
}

#[test]
fn snapshots_of_virtualbox_are_shown() {
    show(
        "vdi",
        ["base.vdi", "{1}.vdi", "{2}.vdi"],
        [&whole(middle_has), &whole(youngest_has)],
        |parent, changes, id, _| vdi(changes, [id; 32], vdi_ids(parent)),
    );
}

#[test]
fn differencing_vhds_are_shown() {
    show(
        "vpc",
        ["base.vhd", "1.avhd", "2.avhd"],
        [&middle_has, &youngest_has],
        |parent, changes, id, name| vhd(changes, [id; 16], vhd_id(parent), name),
    );
}

#[test]
fn differencing_vhdxs_are_shown() {
    show(
        "vhdx",
        ["base.vhdx", "1.avhdx", "2.avhdx"],
        [&middle_has, &youngest_has],
        |parent, changes, id, name| vhdx(changes, [id; 16], vhdx_id(parent), name),
    );
}
