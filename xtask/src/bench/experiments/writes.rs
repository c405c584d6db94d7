//! Writing, with the changes in a file beside the image, each time a new one.

use super::walks::check;
use super::{Experiment, Values, Who};
use crate::Error;
use crate::bench::disk::{FILES_IN_TREE, TREE};
use crate::bench::figure::{Figure, Unit};
use crate::bench::ground::Ground;
use crate::bench::sides::{Mounted, Side};

const WRITE: Figure =
    Figure::new("write", "200 MiB file written, with fsync", Unit::MegabytesPerSecond)
        .bound(150.0)
        .times_guestmount(4.0);
const UNPACK: Figure =
    Figure::new("unpack", "tar of 2,000 files unpacked", Unit::Seconds).times_guestmount(5.0);
const CREATE: Figure =
    Figure::new("create", "1,000 files made, each with fsync", Unit::Seconds).times_guestmount(3.0);

const MEBIBYTES: u32 = 200;
const FILES: u32 = 1_000;

pub(super) fn experiments() -> Vec<Experiment> {
    vec![
        Experiment::new(Who::Guests, [WRITE], write),
        Experiment::new(Who::Guests, [UNPACK], unpack),
        Experiment::new(Who::Guests, [CREATE], create),
    ]
}

fn write(ground: &Ground, side: &dyn Side) -> Result<Values, Error> {
    let mounted = Mounted::new(ground, side, &ground.disks().written())?;
    let file = mounted.path("large").into_os_string();
    let size = MEBIBYTES.to_string().into();
    let written = mounted.task(&["write".into(), "--mebibytes".into(), size, file])?;
    mounted.unmount()?;
    Ok(Values::of(WRITE.name, written.megabytes_per_second()))
}

/// Until tar has closed the last file; what the kernel still has then is brought to the disk after
/// that, on both sides.
fn unpack(ground: &Ground, side: &dyn Side) -> Result<Values, Error> {
    let mounted = Mounted::new(ground, side, &ground.disks().written())?;
    let (archive, folder) = (ground.disks().archive(), mounted.path(""));
    // The owners in the archive are nobody's concern here, and not everybody may set them.
    let words = ["tar", "--no-same-owner", "-xf"].map(AsRef::as_ref);
    let more = [archive.as_ref(), "-C".as_ref(), folder.as_ref()];
    let unpacked = mounted.run(&[&words[..], &more[..]].concat())?;
    let tree = mounted.path(TREE);
    let found = mounted.run(&["find".as_ref(), tree.as_ref(), "-type".as_ref(), "f".as_ref()])?;
    check("tar", "files", found.lines, u64::from(FILES_IN_TREE))?;
    mounted.unmount()?;
    Ok(Values::of(UNPACK.name, unpacked.seconds))
}

fn create(ground: &Ground, side: &dyn Side) -> Result<Values, Error> {
    let mounted = Mounted::new(ground, side, &ground.disks().written())?;
    let folder = mounted.path("").into_os_string();
    let files = FILES.to_string().into();
    let created = mounted.task(&["create".into(), "--files".into(), files, folder])?;
    mounted.unmount()?;
    Ok(Values::of(CREATE.name, created.seconds))
}
