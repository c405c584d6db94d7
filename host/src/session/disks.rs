//! The disks of a VM: opened as the plan says, with what takes their changes, and with what this
//! process can tell of them by itself.

use std::io;

use log::{info, warn};

use super::launch::LaunchError;
use super::plan::{Plan, WritesTo};
use crate::disk::DiskReader;
use crate::guest::room::{self, Room};
use crate::image::{Disk, OpenOptions};
use crate::vm::kept_overlay::KeptOverlay;

/// Open disks.
pub struct Disks {
    /// The disks, sda first.
    pub opened: Vec<Disk>,
    /// What takes their changes, if these are kept: one for each.
    pub kept: Vec<KeptOverlay>,
}

impl Disks {
    /// Opens and locks what `plan` names, and says what the user should know of it.
    ///
    /// # Errors
    /// [`LaunchError::Image`], [`LaunchError::Overlay`].
    pub fn open(plan: &Plan) -> Result<Self, LaunchError> {
        let mut disks = Self { opened: Vec::with_capacity(plan.disks.len()), kept: Vec::new() };
        for spec in &plan.disks {
            let options = OpenOptions {
                format: spec.format,
                block_size: spec.block_size,
                allow_paths: plan.allow_paths.clone(),
                on_missing: plan.on_missing,
            };
            let opened = match plan.writes {
                WritesTo::Images(_) => Disk::open_for_writing(&spec.path, &options),
                WritesTo::Nothing | WritesTo::Overlays(_) => Disk::open(&spec.path, &options),
            };
            let disk = opened.map_err(LaunchError::Image)?;
            disk.lock().map_err(LaunchError::Image)?;
            for warning in &disk.warnings {
                warn!("{warning}");
            }
            if let Some(path) = &spec.overlay {
                let overlay = match plan.writes {
                    WritesTo::Overlays(_) => KeptOverlay::over(path, &disk),
                    WritesTo::Nothing | WritesTo::Images(_) => KeptOverlay::existing(path, &disk),
                };
                disks.kept.push(overlay.map_err(LaunchError::Overlay)?);
            }
            disks.opened.push(disk);
        }
        Ok(disks)
    }

    /// Room for what is written: below the overlays, or below the images that grow.
    ///
    /// # Errors
    /// Where there can be no further descriptors.
    pub fn room(&self, plan: &Plan) -> io::Result<Room> {
        let mut files = Vec::new();
        match plan.writes {
            WritesTo::Nothing => return Ok(Room::default()),
            WritesTo::Overlays(_) => {
                for overlay in &self.kept {
                    files.push(overlay.file().try_clone()?);
                }
            }
            WritesTo::Images(_) => {
                for disk in &self.opened {
                    files.extend(disk.growing_files()?);
                }
            }
        }
        Ok(Room::below(files, room::RESERVE, u64::from(plan.memory_mib) << 20))
    }

    /// Readers of those disks that this process can read as well, where the user does not want all
    /// to go through the guest, and where the images say what the files hold.
    pub fn readers(&self, plan: &Plan) -> Vec<Option<DiskReader>> {
        if plan.through_guest || !plan.shows_images() {
            return Vec::new();
        }
        let reader = |disk: &Disk| {
            DiskReader::of(disk).unwrap_or_else(|error| {
                info!("{} is read by QEMU alone: {error}", disk.path.display());
                None
            })
        };
        self.opened.iter().map(reader).collect()
    }
}
