//! `guestimg discard`: forgets what an overlay holds.

use std::fmt::Display;

use clap::ArgMatches;
use serde_json::{Value, json};

use super::boxed;
use super::output::say;
use crate::cli::images::{ImageArguments, OverlayArguments};
use crate::image::{Disk, OpenOptions};
use crate::path_json;
use crate::vm::kept_overlay::KeptOverlay;

/// Forgets the changes of an image: removes its overlay, unless a mount has it or it is another's
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

/// Removes the overlays that the arguments name.
///
/// # Errors
/// Whatever stopped it, in words for people; nothing was removed where one of them cannot be.
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
        let disk = Disk::open(&spec.path, &options).map_err(boxed)?;
        let overlay = KeptOverlay::existing(&overlay, &disk).map_err(boxed)?;
        found.push((disk, overlay));
    }
    for (disk, overlay) in found {
        let path = overlay.path().to_owned();
        let failed = |error| format!("cannot remove {}: {error}", path.display());
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
