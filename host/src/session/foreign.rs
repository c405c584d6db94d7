//! What the disks hold that cannot be mounted, for those who look for filesystems.

use guestmnt_protocol::foreign::Foreign;
use guestmnt_protocol::message::{Content, Volume};
use guestmnt_protocol::volume::VolumeName;

/// Those of `volumes` that hold something of another kind, with what that is.
pub fn among(volumes: &[Volume]) -> impl Iterator<Item = (&VolumeName, Foreign)> {
    volumes.iter().filter_map(|volume| match &volume.content {
        Content::Other(kind) | Content::Filesystem(kind) => {
            Some((volume.device.volume(), Foreign::of(kind)?))
        }
        Content::Partitions(_) | Content::Extended | Content::Unknown => None,
    })
}
