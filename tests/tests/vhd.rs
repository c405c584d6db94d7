//! VHDs whose footers QEMU's driver refuses, through a real VM.

use std::fs;

use guestmnt_tests::showing::Showing;

#[test]
fn damaged_and_short_footers_are_mended_in_memory() {
    let Some(showing) = Showing::new() else { return };
    showing.convert("vpc", "subformat=fixed,force_size=on", "whole.vhd");
    showing.convert("vpc", "subformat=dynamic,force_size=on", "grows.vhd");
    let place = showing.place.path();
    let read = |name: &str| fs::read(place.join(name)).unwrap();
    let (fixed, grows) = (read("whole.vhd"), read("grows.vhd"));
    let flipped = |bytes: &[u8], at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 0x55;
        bytes
    };
    let footer = fixed.len() - 512;
    let rows: [(&str, Vec<u8>, Option<&str>); 4] = [
        ("short.vhd", fixed[..fixed.len() - 1].to_vec(), None),
        ("sum.vhd", flipped(&fixed, footer + 66), Some("its footer has a wrong checksum")),
        ("start.vhd", flipped(&grows, 50), Some("the copy of its footer at the start is damaged")),
        ("magic.vhd", flipped(&grows, 3), Some("the copy of its footer at the start is damaged")),
    ];
    for (name, bytes, warning) in rows {
        fs::write(place.join(name), bytes).unwrap();
        let shown = showing.assert_shown(&["-a", name]);
        assert_eq!(shown.stderr.contains("its footer"), warning.is_some(), "{name}: {shown:?}");
        assert!(warning.is_none_or(|words| shown.stderr.contains(words)), "{name}: {shown:?}");
        fs::remove_file(place.join(name)).unwrap();
    }
}
