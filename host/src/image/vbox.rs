//! `.vbox`: VirtualBox's description of a virtual machine, of which only the disks of its current
//! state are read.
//!
//! Source: src/VBox/Main/xml/VirtualBox-settings.xsd of VirtualBox. The controllers are in
//! `Machine`, or in its `Hardware` since VirtualBox 7; those of a snapshot are in `Snapshot`.
//!
//! **Invariant:** opens no file.

use std::collections::HashMap;

use roxmltree::{Document, Node, ParsingOptions};

use super::error::Problem;
use super::guid::Guid;
use super::name::FileName;

/// Most bytes of a description: one with hundreds of snapshots.
pub const MAX_LEN: usize = 4 << 20;

/// Most elements, attributes and texts.
const MAX_NODES: u32 = 1 << 17;

/// A disk that a machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedDisk {
    /// What VirtualBox knows it by.
    pub id: Guid,
    /// Where it is; `None` where the list of media is elsewhere, as before VirtualBox 4.
    pub location: Option<FileName>,
}

/// What a description says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The disks of the current state, in the order of their controllers and ports.
    pub disks: Vec<AttachedDisk>,
    /// Where snapshots are, relative to the description.
    pub snapshots: FileName,
}

/// Reads a description.
///
/// # Errors
/// [`Problem::Damaged`] for a text that is none, [`Problem::Name`] for a disk by a name that is
/// none.
pub fn machine(text: &[u8]) -> Result<Machine, Problem> {
    let text = std::str::from_utf8(text)
        .map_err(|_| Problem::damaged("it is no XML in UTF-8, as VirtualBox writes it"))?;
    let text = text.trim_start_matches('\u{feff}');
    // Without DTDs there are no entities.
    let options =
        ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options)
        .map_err(|_| Problem::damaged("it is no description of a machine by VirtualBox"))?;
    let machine = document
        .root_element()
        .children()
        .find(|node| is(*node, "Machine"))
        .ok_or_else(|| Problem::damaged("it describes no machine"))?;
    let locations = media(machine)?;
    let mut found: Vec<(Slot, AttachedDisk)> = Vec::new();
    for controller in controllers(machine) {
        let bus = bus(controller);
        for device in controller.children().filter(|node| is(*node, "AttachedDevice")) {
            if !device.attribute("type").is_some_and(|kind| kind.eq_ignore_ascii_case("HardDisk")) {
                continue;
            }
            let image = device.children().find(|node| is(*node, "Image"));
            let Some(id) = image.and_then(|image| image.attribute("uuid")) else { continue };
            let id = parse_id(id)?;
            let location = locations.get(&id.0).cloned();
            let slot = (bus, number(device, "port"), number(device, "device"));
            found.push((slot, AttachedDisk { id, location }));
        }
    }
    // Controllers of one bus stay in their order.
    found.sort_by_key(|(slot, _)| *slot);
    let snapshots = machine.attribute("snapshotFolder").filter(|name| !name.is_empty());
    let snapshots = FileName::new(snapshots.unwrap_or("Snapshots").as_bytes());
    let disks = found.into_iter().map(|(_, disk)| disk).collect();
    Ok(Machine { disks, snapshots: snapshots.map_err(Problem::Name)? })
}

/// Bus, port and device.
type Slot = (usize, u32, u32);

/// The controllers of the current state.
fn controllers<'a, 'd: 'a>(machine: Node<'a, 'd>) -> impl Iterator<Item = Node<'a, 'd>> {
    let hardware = machine.children().filter(|node| is(*node, "Hardware"));
    let lists = [machine].into_iter().chain(hardware).flat_map(|node| node.children());
    lists
        .filter(|node| is(*node, "StorageControllers"))
        .flat_map(|list| list.children())
        .filter(|node| is(*node, "StorageController"))
}

/// In the order in which disks count: IDE, SCSI, SATA, NVMe, others.
fn bus(controller: Node) -> usize {
    match controller.attribute("type").unwrap_or_default() {
        "PIIX3" | "PIIX4" | "ICH6" => 0,
        "LsiLogic" | "LsiLogicSas" | "BusLogic" | "VirtioSCSI" => 1,
        "AHCI" => 2,
        "NVMe" => 3,
        _ => 4,
    }
}

/// Where the media are that the machine knows, by their ids.
fn media(machine: Node) -> Result<HashMap<[u8; 16], FileName>, Problem> {
    let registries = machine.children().filter(|node| is(*node, "MediaRegistry"));
    let mut locations = HashMap::new();
    for disk in registries.flat_map(|node| node.descendants()).filter(|n| is(*n, "HardDisk")) {
        if let (Some(id), Some(location)) = (disk.attribute("uuid"), disk.attribute("location")) {
            let name = FileName::new(location.as_bytes()).map_err(Problem::Name)?;
            locations.insert(parse_id(id)?.0, name);
        }
    }
    Ok(locations)
}

fn is(node: Node, name: &str) -> bool {
    node.is_element() && node.tag_name().name() == name
}

fn parse_id(text: &str) -> Result<Guid, Problem> {
    let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
    Guid::parse(inner).ok_or_else(|| Problem::damaged("it gives a disk an id that is none"))
}

fn number(node: Node, attribute: &str) -> u32 {
    node.attribute(attribute).and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As VirtualBox writes it, with controllers in the machine or in its hardware.
    fn text(machine: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?>\n<VirtualBox xmlns=\"http://www.virtualbox.org/\" \
             version=\"1.16-linux\"><Machine name=\"VM\" snapshotFolder=\"Snapshots\">{machine}\
             </Machine></VirtualBox>"
        )
    }

    fn id(n: u8) -> String {
        format!("{{00000000-0000-0000-0000-0000000000{n:02x}}}")
    }

    fn attached(n: u8, kind: &str, port: u8) -> String {
        let id = id(n);
        format!(
            "<AttachedDevice type=\"{kind}\" port=\"{port}\" device=\"0\"><Image uuid=\"{id}\"/>\
             </AttachedDevice>"
        )
    }

    fn controllers(kind: &str, devices: &str) -> String {
        format!("<StorageController name=\"x\" type=\"{kind}\">{devices}</StorageController>")
    }

    const MEDIA: &str = "<MediaRegistry><HardDisks>\
        <HardDisk uuid=\"{00000000-0000-0000-0000-000000000001}\" location=\"a.vdi\">\
        <HardDisk uuid=\"{00000000-0000-0000-0000-000000000002}\" location=\"Snapshots/{2}.vdi\"/>\
        </HardDisk></HardDisks></MediaRegistry>";

    fn ids(text: &str) -> Vec<(u8, Option<String>)> {
        let disks = machine(text.as_bytes()).unwrap().disks;
        let name = |disk: &AttachedDisk| disk.location.as_ref().map(ToString::to_string);
        disks.iter().map(|disk| (disk.id.0[15], name(disk))).collect()
    }

    #[test]
    fn the_disks_of_the_current_state_are_read() {
        let sata = [attached(2, "HardDisk", 1), attached(9, "DVD", 0), attached(3, "HardDisk", 0)];
        let list = [
            controllers("AHCI", &sata.concat()),
            controllers("PIIX4", &attached(1, "HardDisk", 0)),
            controllers("AHCI", "<AttachedDevice type=\"HardDisk\"/>"),
        ];
        let list = format!("<StorageControllers>{}</StorageControllers>", list.concat());
        let old = controllers("AHCI", &attached(7, "HardDisk", 0));
        let snapshot = format!(
            "<Snapshot><Hardware><StorageControllers>{old}</StorageControllers></Hardware>\
             <StorageControllers>{old}</StorageControllers></Snapshot>"
        );
        let expected =
            [(1, Some("a.vdi".to_owned())), (3, None), (2, Some("Snapshots/{2}.vdi".to_owned()))];
        for list in [list.clone(), format!("<Hardware>{list}</Hardware>")] {
            assert_eq!(ids(&text(&format!("{MEDIA}{snapshot}{list}"))), expected, "{list}");
        }
    }

    #[test]
    fn texts_that_are_no_description_are_refused() {
        let entity = "<!DOCTYPE x [<!ENTITY a \"b\">]>";
        let deep = format!("{}{}", "<a>".repeat(100_000), "</a>".repeat(100_000));
        let many = text(&"<a/>".repeat(MAX_NODES as usize));
        let bad_name = text(&MEDIA.replace("a.vdi", "nbd:h:1"));
        let bad_id = text(&MEDIA.replace("0001}", "01}"));
        let with_entity = text("").replace("<VirtualBox", &format!("{entity}<VirtualBox"));
        for bytes in [
            &b""[..],
            b"\xff\xfe<",
            b"scsi0:0.fileName = \"a.vmdk\"",
            b"<VirtualBox/>",
            with_entity.as_bytes(),
            deep.as_bytes(),
            many.as_bytes(),
            bad_name.as_bytes(),
            bad_id.as_bytes(),
        ] {
            assert!(
                machine(bytes).is_err(),
                "{:?}",
                String::from_utf8_lossy(&bytes[..bytes.len().min(80)])
            );
        }
    }
}
