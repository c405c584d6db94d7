//! `guestimg filesystems`: what virt-filesystems lists, with its options, columns and order.

use std::fmt;

use clap::{ArgMatches, Args};
use guestmnt_protocol::device::DeviceName;
use guestmnt_protocol::foreign::Foreign;
use guestmnt_protocol::message::{Content, Listing, Volume};
use guestmnt_protocol::path::Printable;
use guestmnt_protocol::volume::{Mountable, VolumeName};

use super::output;
use super::table::{self, Row};
use crate::cli::look::LookArguments;
use crate::session::foreign;

/// The options, by virt-filesystems' names.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct Arguments {
    #[command(flatten)]
    pub(super) look: LookArguments,

    /// Columns with type, size and more, and a title
    #[arg(short = 'l', long)]
    long: bool,

    /// Everything: filesystems, swap, partitions, disks, LVM
    #[arg(long)]
    all: bool,

    /// Filesystems, the default; encrypted volumes among them
    #[arg(long)]
    filesystems: bool,

    /// Swap and unknown contents as well
    #[arg(long)]
    extra: bool,

    /// Partitions
    #[arg(long, alias = "parts")]
    partitions: bool,

    /// Disks and arrays
    #[arg(long, aliases = ["blkdevs", "block-devs"])]
    block_devices: bool,

    /// Logical volumes
    #[arg(long, aliases = ["logvols", "logical-volumes"])]
    lvs: bool,

    /// Volume groups
    #[arg(long, aliases = ["volgroups", "volume-groups"])]
    vgs: bool,

    /// Physical volumes
    #[arg(long, aliases = ["physvols", "physical-volumes"])]
    pvs: bool,

    /// A column with UUIDs (with --long)
    #[arg(long, alias = "uuids")]
    uuid: bool,

    /// Sizes as people read them
    #[arg(short = 'h', long, conflicts_with = "csv")]
    human_readable: bool,

    /// Comma-separated values
    #[arg(long)]
    csv: bool,

    /// No title
    #[arg(long)]
    no_title: bool,

    /// An array of objects with all columns, sizes in bytes
    #[arg(long, conflicts_with_all = ["csv", "human_readable"])]
    json: bool,

    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// What a row is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Filesystem,
    LogicalVolume,
    VolumeGroup,
    PhysicalVolume,
    Partition,
    Device,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filesystem => "filesystem",
            Self::LogicalVolume => "lv",
            Self::VolumeGroup => "vg",
            Self::PhysicalVolume => "pv",
            Self::Partition => "partition",
            Self::Device => "device",
        })
    }
}

/// One line of the listing, with all that could be shown of it.
#[derive(Debug, PartialEq, Eq)]
struct Item {
    name: String,
    kind: Kind,
    vfs: Option<String>,
    label: Option<String>,
    mbr: Option<u8>,
    size: Option<u64>,
    parents: Vec<String>,
    uuid: Option<String>,
}

/// Lists what the arguments ask for on standard output.
///
/// # Errors
/// Whatever stopped it, in words for people.
pub fn run(arguments: &Arguments, matches: &ArgMatches) -> Result<(), Box<dyn fmt::Display>> {
    let launched = arguments.look.launch(matches)?;
    let listing = launched.guest.listing();
    drop(launched.guest);
    launched.vm.quit();
    let listing = listing.map_err(boxed)?;
    let items = arguments.items(&listing);
    output::print(format_args!("{}", arguments.shown(&items)));
    for (name, Foreign { what, advice }) in foreign::among(&listing.volumes) {
        eprintln!("guestimg: {name} {what}\n  hint: {advice}");
    }
    // An empty list says that there is nothing, which is not known here.
    match launched.tables.iter().find(|table| !table.usable) {
        Some(table) if items.iter().all(|item| item.kind == Kind::Device) => {
            Err(boxed(format!("no partition of {} could be found", table.disk)))
        }
        _ => Ok(()),
    }
}

fn boxed(error: impl fmt::Display + 'static) -> Box<dyn fmt::Display> {
    Box::new(error)
}

impl Arguments {
    fn wants(&self, kind: Kind) -> bool {
        let others =
            self.extra || self.partitions || self.block_devices || self.lvs || self.vgs || self.pvs;
        self.all
            || match kind {
                Kind::Filesystem => self.filesystems || self.extra || !others,
                Kind::LogicalVolume => self.lvs,
                Kind::VolumeGroup => self.vgs,
                Kind::PhysicalVolume => self.pvs,
                Kind::Partition => self.partitions,
                Kind::Device => self.block_devices,
            }
    }

    /// The lines that are wanted, in virt-filesystems' order.
    fn items(&self, listing: &Listing) -> Vec<Item> {
        let groups = [
            filesystems(listing, self.all || self.extra),
            logical_volumes(listing),
            volume_groups(listing),
            physical_volumes(listing),
            partitions(listing),
            devices(listing),
        ];
        groups.into_iter().flatten().filter(|item| self.wants(item.kind)).collect()
    }

    fn shown(&self, items: &[Item]) -> String {
        if self.json {
            return json(items);
        }
        let mut rows = Vec::new();
        if self.long && !self.no_title {
            rows.push(self.title());
        }
        rows.extend(items.iter().map(|item| self.row(item)));
        if self.csv { table::separated(&rows) } else { table::lined_up(&rows) }
    }

    fn title(&self) -> Row {
        let titles = ["Name", "Type", "VFS", "Label", "MBR", "Size", "Parent", "UUID"];
        self.chosen(titles.map(|title| Some(title.to_owned())))
    }

    fn row(&self, item: &Item) -> Row {
        let size = item
            .size
            .map(|size| if self.human_readable { table::human(size) } else { size.to_string() });
        self.chosen([
            Some(item.name.clone()),
            Some(item.kind.to_string()),
            item.vfs.clone(),
            item.label.clone(),
            item.mbr.map(|kind| format!("{kind:02x}")),
            size,
            Some(item.parents.join(",")),
            item.uuid.clone(),
        ])
    }

    /// The columns that are shown: the name, and with `--long` those that the kinds have.
    fn chosen(&self, cells: [Option<String>; 8]) -> Row {
        let filesystems = self.wants(Kind::Filesystem);
        let partitions = self.wants(Kind::Partition);
        let shown = [true, true, filesystems, filesystems, partitions, true, true, self.uuid];
        let columns = if self.long { shown.len() } else { 1 };
        cells
            .into_iter()
            .zip(shown)
            .take(columns)
            .filter(|(_, shown)| *shown)
            .map(|(c, _)| c)
            .collect()
    }
}

fn json(items: &[Item]) -> String {
    let object = |item: &Item| {
        serde_json::json!({
            "name": item.name,
            "type": item.kind.to_string(),
            "vfs": item.vfs,
            "label": item.label,
            "mbr": item.mbr,
            "size": item.size,
            "parents": item.parents,
            "uuid": item.uuid,
        })
    };
    let array: Vec<serde_json::Value> = items.iter().map(object).collect();
    let text = serde_json::to_string_pretty(&array).expect("strings and numbers");
    format!("{text}\n")
}

/// Text of the image, fit for a terminal; `None` where there is none.
fn printable(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| Printable(text.as_bytes()).to_string())
}

fn filesystems(listing: &Listing, extra: bool) -> Vec<Item> {
    let kind_of = |content: &Content| match content {
        Content::Filesystem(kind) => Some(kind.clone()),
        // What members are of is listed itself.
        Content::Other(kind) if kind.ends_with("_member") && Foreign::of(kind).is_none() => None,
        Content::Other(kind) if kind == "swap" => extra.then(|| kind.clone()),
        Content::Other(kind) => Some(kind.clone()),
        Content::Unknown => extra.then(|| "unknown".to_owned()),
        Content::Partitions(_) | Content::Extended => None,
    };
    let item = |volume: &Volume| {
        let vfs = kind_of(&volume.content)?;
        let is_subvolume = matches!(volume.device, Mountable::Subvolume { .. });
        Some(Item {
            name: volume.device.to_string(),
            kind: Kind::Filesystem,
            vfs: printable(&vfs),
            label: printable(&volume.label),
            mbr: None,
            size: (!is_subvolume).then_some(volume.size),
            parents: members_of(listing, volume.device.volume()),
            uuid: printable(&volume.uuid),
        })
    };
    listing.volumes.iter().filter_map(item).collect()
}

/// The members of an array; none of anything else.
fn members_of(listing: &Listing, name: &VolumeName) -> Vec<String> {
    let arrays = listing.arrays.iter().filter(|(array, _)| array == name);
    arrays.flat_map(|(_, members)| members).map(VolumeName::to_string).collect()
}

fn plain(name: String, kind: Kind) -> Item {
    let (vfs, label, mbr, size, uuid) = (None, None, None, None, None);
    Item { name, kind, vfs, label, mbr, size, parents: Vec::new(), uuid }
}

fn logical_volumes(listing: &Listing) -> Vec<Item> {
    let item = |(name, uuid): &(VolumeName, String)| {
        let VolumeName::Logical { group, .. } = name else { return None };
        let volume = listing.volumes.iter().find(|volume| volume.device.volume() == name);
        Some(Item {
            size: volume.map(|volume| volume.size),
            parents: vec![format!("/dev/{group}")],
            uuid: printable(uuid),
            ..plain(name.to_string(), Kind::LogicalVolume)
        })
    };
    listing.logical.iter().filter_map(item).collect()
}

fn volume_groups(listing: &Listing) -> Vec<Item> {
    let groups = listing.groups.iter().map(|group| {
        let members = listing.physical.iter().filter(|one| one.group.as_ref() == Some(&group.name));
        Item {
            size: Some(group.size),
            parents: members.map(|one| one.device.to_string()).collect(),
            uuid: printable(&without_hyphens(&group.uuid)),
            ..plain(format!("/dev/{}", group.name), Kind::VolumeGroup)
        }
    });
    groups.collect()
}

fn physical_volumes(listing: &Listing) -> Vec<Item> {
    let volumes = listing.physical.iter().map(|volume| Item {
        size: Some(volume.size),
        uuid: printable(&without_hyphens(&volume.uuid)),
        ..plain(volume.device.to_string(), Kind::PhysicalVolume)
    });
    volumes.collect()
}

/// As virt-filesystems shows UUIDs of groups and of physical volumes, though not of logical ones.
fn without_hyphens(uuid: &str) -> String {
    uuid.replace('-', "")
}

fn partitions(listing: &Listing) -> Vec<Item> {
    given(listing)
        .filter(|(device, _)| device.partition != 0)
        .map(|(device, size)| {
            let types = &listing.partition_types;
            Item {
                mbr: types.iter().find(|(of, _)| *of == device).map(|(_, kind)| *kind),
                size: Some(size),
                parents: vec![DeviceName::whole(device.disk).to_string()],
                ..plain(device.to_string(), Kind::Partition)
            }
        })
        .collect()
}

fn devices(listing: &Listing) -> Vec<Item> {
    let disks = given(listing)
        .filter(|(device, _)| device.partition == 0)
        .map(|(device, size)| Item { size: Some(size), ..plain(device.to_string(), Kind::Device) });
    let arrays = listing.arrays.iter().map(|(name, _)| {
        let volume = listing.volumes.iter().find(|volume| volume.device.volume() == name);
        Item {
            size: volume.map(|volume| volume.size),
            parents: members_of(listing, name),
            ..plain(name.to_string(), Kind::Device)
        }
    });
    disks.chain(arrays).collect()
}

/// Disks and partitions with their sizes, each once.
fn given(listing: &Listing) -> impl Iterator<Item = (DeviceName, u64)> {
    listing.volumes.iter().filter_map(|volume| match &volume.device {
        Mountable::Volume(VolumeName::Partition(device)) => Some((*device, volume.size)),
        _ => None,
    })
}
