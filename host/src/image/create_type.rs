//! `createType`: how a VMDK is stored.

use super::line_problem::LineProblem;

/// The kinds of VMDK that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateType {
    /// One growing file with the descriptor in it.
    MonolithicSparse,
    /// One file of the disk's size beside the descriptor.
    MonolithicFlat,
    /// Growing files of at most 2 GB.
    TwoGbMaxExtentSparse,
    /// Files of their full size of at most 2 GB.
    TwoGbMaxExtentFlat,
    /// One compressed file with the descriptor in it, written once.
    StreamOptimized,
    /// Plain sectors on an ESX server's own filesystem.
    Vmfs,
    /// A growing snapshot there.
    VmfsSparse,
    /// Its successor.
    SeSparse,
    /// A whole physical disk, or an image of one.
    FullDevice,
    /// Some partitions of a physical disk, or images of them.
    PartitionedDevice,
    /// A disk of a storage network that an ESX server hands through, or an image of one.
    RawDeviceMap,
    /// Of any extents; not said, too.
    Custom,
}

impl CreateType {
    /// Reads the value of a `createType` line.
    ///
    /// # Errors
    /// [`LineProblem::CreateType`] for the unknown.
    pub fn parse(value: &[u8]) -> Result<Self, LineProblem> {
        // The names with 2Gb and the variants of vmfs are those of older products.
        Ok(match value.to_ascii_lowercase().as_slice() {
            b"monolithicsparse" => Self::MonolithicSparse,
            b"monolithicflat" => Self::MonolithicFlat,
            b"twogbmaxextentsparse" | b"2gbmaxextentsparse" => Self::TwoGbMaxExtentSparse,
            b"twogbmaxextentflat" | b"2gbmaxextentflat" => Self::TwoGbMaxExtentFlat,
            b"streamoptimized" => Self::StreamOptimized,
            b"vmfs" | b"vmfspreallocated" | b"vmfseagerzeroedthick" | b"vmfsthin" => Self::Vmfs,
            b"vmfssparse" => Self::VmfsSparse,
            b"sesparse" => Self::SeSparse,
            b"fulldevice" => Self::FullDevice,
            b"partitioneddevice" => Self::PartitionedDevice,
            b"vmfsraw"
            | b"vmfsrdm"
            | b"vmfsrdmp"
            | b"vmfsrawdevicemap"
            | b"vmfspassthroughrawdevicemap" => Self::RawDeviceMap,
            b"custom" => Self::Custom,
            _ => {
                return Err(LineProblem::CreateType(String::from_utf8_lossy(value).into_owned()));
            }
        })
    }

    /// The value in a descriptor.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::MonolithicSparse => "monolithicSparse",
            Self::MonolithicFlat => "monolithicFlat",
            Self::TwoGbMaxExtentSparse => "twoGbMaxExtentSparse",
            Self::TwoGbMaxExtentFlat => "twoGbMaxExtentFlat",
            Self::StreamOptimized => "streamOptimized",
            Self::Vmfs => "vmfs",
            Self::VmfsSparse => "vmfsSparse",
            Self::SeSparse => "seSparse",
            Self::FullDevice => "fullDevice",
            Self::PartitionedDevice => "partitionedDevice",
            Self::RawDeviceMap => "vmfsRawDeviceMap",
            Self::Custom => "custom",
        }
    }

    /// The value in a descriptor for QEMU, which goes by the extents in any case, but knows fewer
    /// of them.
    #[must_use]
    pub fn qemu_name(self) -> &'static str {
        match self {
            Self::FullDevice | Self::PartitionedDevice | Self::RawDeviceMap | Self::Custom => {
                Self::TwoGbMaxExtentFlat.name()
            }
            known => known.name(),
        }
    }

    /// Whether the descriptor lies within the file that holds the data.
    #[must_use]
    pub fn is_embedded(self) -> bool {
        matches!(self, Self::MonolithicSparse | Self::StreamOptimized)
    }
}
