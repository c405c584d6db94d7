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
}

impl CreateType {
    /// Reads the value of a `createType` line.
    ///
    /// # Errors
    /// [`LineProblem::Device`] for those that stand for a physical device,
    /// [`LineProblem::CreateType`] for the unknown.
    pub fn parse(value: &[u8]) -> Result<Self, LineProblem> {
        // The names with 2Gb and the variants of vmfs are those of older products.
        Ok(match value {
            b"monolithicSparse" => Self::MonolithicSparse,
            b"monolithicFlat" => Self::MonolithicFlat,
            b"twoGbMaxExtentSparse" | b"2GbMaxExtentSparse" => Self::TwoGbMaxExtentSparse,
            b"twoGbMaxExtentFlat" | b"2GbMaxExtentFlat" => Self::TwoGbMaxExtentFlat,
            b"streamOptimized" => Self::StreamOptimized,
            b"vmfs" | b"vmfsPreallocated" | b"vmfsEagerZeroedThick" | b"vmfsThin" => Self::Vmfs,
            b"vmfsSparse" => Self::VmfsSparse,
            b"seSparse" => Self::SeSparse,
            b"fullDevice"
            | b"partitionedDevice"
            | b"vmfsRaw"
            | b"vmfsRDM"
            | b"vmfsRDMP"
            | b"vmfsRawDeviceMap"
            | b"vmfsPassthroughRawDeviceMap" => {
                return Err(LineProblem::Device(String::from_utf8_lossy(value).into_owned()));
            }
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
        }
    }

    /// Whether the descriptor lies within the file that holds the data.
    #[must_use]
    pub fn is_embedded(self) -> bool {
        matches!(self, Self::MonolithicSparse | Self::StreamOptimized)
    }
}
