//! `.vmx`: VMware's description of a virtual machine, of which only the disks are read.
//!
//! The format is not published; lines are `KEY = "VALUE"`, keys in any case, and `|22` in a
//! value is the byte 0x22.
//!
//! **Invariant:** opens no file.

use std::collections::BTreeMap;

use super::encoding;
use super::error::Problem;
use super::name::FileName;

/// Most bytes of a description.
pub const MAX_LEN: usize = 1 << 20;

/// Where a disk is attached: bus, controller and unit, in the order in which the disks count.
type Slot = (usize, u8, u8);

/// Buses that disks are on.
const BUSES: [&[u8]; 4] = [b"ide", b"scsi", b"sata", b"nvme"];

/// The disks of a machine in the order of their slots: files called `.vmdk` of devices that are
/// present and no CD drives.
///
/// # Errors
/// [`Problem::Name`] for a disk by a name that is none.
pub fn disks(text: &[u8]) -> Result<Vec<FileName>, Problem> {
    let mut devices: BTreeMap<Slot, Device> = BTreeMap::new();
    let lines = || text.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
    let encoding = encoding::of_text(lines(), b".encoding");
    for line in lines() {
        let Some((slot, property, value)) = setting(line) else { continue };
        let device = devices.entry(slot).or_default();
        match property.to_ascii_lowercase().as_slice() {
            b"filename" => device.file = value,
            b"present" => device.is_absent = value.eq_ignore_ascii_case(b"false"),
            b"devicetype" => device.is_cd = contains(&value, b"cdrom"),
            _ => {}
        }
    }
    let disks = devices.into_values().filter(Device::is_disk);
    disks.map(|device| FileName::encoded(&device.file, encoding).map_err(Problem::Name)).collect()
}

/// What is attached somewhere.
#[derive(Default)]
struct Device {
    file: Vec<u8>,
    is_absent: bool,
    is_cd: bool,
}

impl Device {
    fn is_disk(&self) -> bool {
        !self.is_absent && !self.is_cd && self.file.to_ascii_lowercase().ends_with(b".vmdk")
    }
}

/// Splits `scsi0:1.property = "value"`.
fn setting(line: &[u8]) -> Option<(Slot, &[u8], Vec<u8>)> {
    let (key, value) = split_at(line, b'=')?;
    let (device, property) = split_at(key.trim_ascii(), b'.')?;
    let value = value.trim_ascii().strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    Some((slot(device)?, property, unescaped(value)))
}

/// Reads `scsi0:1`.
fn slot(device: &[u8]) -> Option<Slot> {
    let device = device.to_ascii_lowercase();
    let (bus, place) =
        (0..).zip(BUSES).find_map(|(i, name)| Some((i, device.strip_prefix(name)?)))?;
    let (controller, unit) = split_at(place, b':')?;
    Some((bus, number(controller)?, number(unit)?))
}

fn number(digits: &[u8]) -> Option<u8> {
    let only = digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| only)?.parse().ok()
}

/// Whether `text` has `part`, in any case, somewhere.
fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part))
}

fn split_at(bytes: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|&byte| byte == separator)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

fn unescaped(value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&byte, behind)) = rest.split_first() {
        let code = behind.first_chunk::<2>().and_then(|hex| std::str::from_utf8(hex).ok());
        let code = code.filter(|_| byte == b'|').and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(code.unwrap_or(byte));
        rest = if code.is_some() { &behind[2..] } else { behind };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        disks(text.as_bytes()).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn disks_are_listed_by_bus_controller_and_unit() {
        let text = "\
.encoding = \"UTF-8\"\r
scsi0:10.fileName = \"eleventh.vmdk\"\r
scsi0:2.fileName = \"third.vmdk\"\r
scsi0:2.present = \"TRUE\"\r
SCSI1:0.FILENAME = \"C:\\VMs\\other.vmdk\"\r
nvme0:0.fileName=\"last|22.vmdk\"
sata0:1.fileName = \"sata.VMDK\"
ide0:0.fileName = \"first.vmdk\"
ide0:0.deviceType = \"disk\"
";
        let expected = [
            "first.vmdk",
            "third.vmdk",
            "eleventh.vmdk",
            "C:\\VMs\\other.vmdk",
            "sata.VMDK",
            "last\".vmdk",
        ];
        assert_eq!(names(text), expected);
    }

    #[test]
    fn names_are_in_the_encoding_of_the_description() {
        let text = b".encoding = \"windows-1252\"\r\nscsi0:0.fileName = \"Pr\xfcf.vmdk\"\r\n";
        let expected = FileName::new("Prüf.vmdk".as_bytes()).unwrap();
        assert_eq!(disks(text).unwrap()[0].as_path(), expected.as_path());
    }

    #[test]
    fn what_is_no_disk_is_left_out() {
        for text in [
            "scsi0:0.fileName = \"a.iso\"",
            "scsi0:0.fileName = \"a.vmdk\"\nscsi0:0.present = \"FALSE\"",
            "ide1:0.deviceType = \"cdrom-image\"\nide1:0.fileName = \"a.vmdk\"",
            "ide1:0.deviceType = \"atapi-cdrom\"\nide1:0.fileName = \"auto detect\"",
            "floppy0.fileName = \"a.vmdk\"",
            "scsi0:999.fileName = \"a.vmdk\"",
            "scsi0.fileName = \"a.vmdk\"",
            "# scsi0:0.fileName = \"a.vmdk\"",
            "scsi0:0.fileName = a.vmdk",
            "scsi0:0.present = \"TRUE\"",
            "",
        ] {
            assert_eq!(names(text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for name in ["nbd:host:1/x.vmdk", "json:{}.vmdk", "a\tb.vmdk", "a|0Ab.vmdk", "a|00.vmdk"] {
            let text = format!("scsi0:0.fileName = \"{name}\"");
            assert!(matches!(disks(text.as_bytes()), Err(Problem::Name(_))), "{name}");
        }
    }
}
