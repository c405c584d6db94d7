//! `guestimg commit`: writes what an overlay holds into its image.

use std::fmt::Display;

use clap::ArgMatches;
use log::warn;
use serde_json::{Value, json};

use super::boxed;
use super::output::say;
use crate::cli::images::{ImageArguments, OverlayArguments};
use crate::cli::progress::Progress;
use crate::image::{Disk, OpenOptions};
use crate::path_json;
use crate::vm::commit::commit;
use crate::vm::find_qemu;
use crate::vm::kept_overlay::KeptOverlay;

/// Writes the changes that an overlay holds into its image, and removes the overlay. What they are,
/// `guestimg diff` lists; they cannot be taken back. If it is interrupted, the same command goes on
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    images: ImageArguments,

    #[command(flatten)]
    overlays: OverlayArguments,

    /// Print the images and their overlays as JSON, when it is done
    #[arg(long)]
    json: bool,
}

/// Commits the overlays that the arguments name.
///
/// # Errors
/// Whatever stopped it, in words for people. Nothing was written where one of the images cannot be.
pub fn run(arguments: &Arguments, matches: &ArgMatches) -> Result<(), Box<dyn Display>> {
    let mut found = Vec::new();
    let mut done = Vec::new();
    for (spec, overlay) in arguments.overlays.disks(&arguments.images, matches)? {
        let options = OpenOptions {
            format: spec.format,
            block_size: spec.block_size,
            allow_paths: arguments.images.allow_path.clone(),
            ..OpenOptions::default()
        };
        let disk = Disk::open_for_writing(&spec.path, &options).map_err(boxed)?;
        disk.lock().map_err(boxed)?;
        for warning in &disk.warnings {
            warn!("{warning}");
        }
        let overlay = KeptOverlay::to_commit(&overlay, &disk).map_err(boxed)?;
        found.push((disk, overlay));
    }
    let qemu = find_qemu().map_err(boxed)?;
    for (disk, overlay) in found {
        let progress = Progress::of_bytes(disk.size);
        commit(&qemu, &disk, &overlay, &mut |done, total| progress.set(done, total))
            .map_err(boxed)?;
        drop(progress);
        let path = overlay.path().to_owned();
        let failed =
            |error| format!("all is committed, and {} cannot be removed: {error}", path.display());
        overlay.remove().map_err(|error| boxed(failed(error)))?;
        done.push(
            json!({ "image": path_json::value(&disk.path), "overlay": path_json::value(&path) }),
        );
    }
    if arguments.json {
        say!("{}", Value::from(done));
    }
    Ok(())
}
