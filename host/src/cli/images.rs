//! The options that say which images are meant and how encrypted volumes in them are opened, as all
//! programs have them.

use std::fmt::Display;
use std::path::PathBuf;

use clap::{ArgMatches, Args};
use log::info;

use crate::image::{BlockSize, Format, ImageError, OpenOptions, disks_of};
use crate::session::keys::{self, Key, KeyError, KeySpec};
use crate::session::plan::{DiskSpec, PlanError, check_count, check_overlays};

/// Which images.
#[derive(Args)]
pub struct ImageArguments {
    /// Disk image, x.ova:DISK, .vmx, .vbox or folder with a VM; the first disk is /dev/sda, the next /dev/sdb, …
    #[arg(short = 'a', long = "add", value_name = "FILE")]
    pub add: Vec<PathBuf>,

    /// Format of the images named after this: raw, vmdk, qcow2, vdi, vpc, vhdx, qed,
    /// parallels; auto looks
    #[arg(long, value_name = "FMT", value_parser = format)]
    format: Vec<FormatChoice>,

    /// Bytes of the sectors of the images named after this: 512 or 4096; unless said, what a VHDX
    /// says, and 512 for others
    #[arg(long, value_name = "BYTES")]
    blocksize: Vec<BlockSize>,

    /// Folder whose files an image elsewhere may name: extents, backing files, disks of a .vmx
    #[arg(long, value_name = "DIR")]
    pub allow_path: Vec<PathBuf>,
}

/// Which overlays take the changes of which images.
#[derive(Args)]
pub struct OverlayArguments {
    /// qcow2 file that takes all changes of the image named before this, which stays as it is; it is
    /// made where it is not there, and gone on with where it is
    #[arg(long, value_name = "FILE", group = "writing")]
    overlay: Vec<PathBuf>,
}

impl OverlayArguments {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.overlay.is_empty()
    }

    /// Gives the overlays to the images that stood before them.
    ///
    /// # Errors
    /// [`PlanError::OverlayOfNothing`].
    pub fn assign(&self, matches: &ArgMatches, disks: &mut [DiskSpec]) -> Result<(), PlanError> {
        assign(matches, "overlay", &self.overlay, disks)
    }

    /// The disks that `images` mean, each with its overlay.
    ///
    /// # Errors
    /// Where one of them has none, among others; in words for people.
    pub fn disks(
        &self,
        images: &ImageArguments,
        matches: &ArgMatches,
    ) -> Result<Vec<(DiskSpec, PathBuf)>, Box<dyn Display>> {
        let mut disks = images.disks(matches);
        self.assign(matches, &mut disks).map_err(boxed)?;
        let disks = images.resolved(disks).map_err(boxed)?;
        check_count(disks.len()).map_err(boxed)?;
        check_overlays(&disks).map_err(boxed)?;
        let with_overlay = |disk: DiskSpec| match disk.overlay.clone() {
            Some(overlay) => Ok((disk, overlay)),
            None => Err(boxed(PlanError::NoOverlay(disk.path))),
        };
        disks.into_iter().map(with_overlay).collect()
    }
}

/// Overlays that are read.
#[derive(Args)]
pub struct ReadOverlayArguments {
    /// qcow2 file that holds changes of the image named before this, as --overlay has made it: files
    /// are read as they are with these changes
    #[arg(long, value_name = "FILE")]
    from_overlay: Vec<PathBuf>,
}

impl ReadOverlayArguments {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.from_overlay.is_empty()
    }

    /// As [`OverlayArguments::assign`].
    ///
    /// # Errors
    /// As [`OverlayArguments::assign`].
    pub fn assign(&self, matches: &ArgMatches, disks: &mut [DiskSpec]) -> Result<(), PlanError> {
        assign(matches, "from_overlay", &self.from_overlay, disks)
    }
}

/// Gives overlays, the values of the option `id`, to the images that stood before them.
fn assign(
    matches: &ArgMatches,
    id: &str,
    overlays: &[PathBuf],
    disks: &mut [DiskSpec],
) -> Result<(), PlanError> {
    let images: Vec<usize> = matches.indices_of("add").into_iter().flatten().collect();
    for (place, overlay) in placed(matches, id, overlays) {
        let before = images.iter().filter(|&&image| image < place).count();
        let disk = before.checked_sub(1).and_then(|last| disks.get_mut(last));
        match disk {
            Some(disk) if disk.overlay.is_none() => disk.overlay = Some(overlay.clone()),
            _ => return Err(PlanError::OverlayOfNothing(overlay.clone())),
        }
    }
    Ok(())
}

/// Keys of encrypted volumes.
#[derive(Args)]
pub struct KeyArguments {
    /// Key of an encrypted volume: DEVICE, UUID or all, and key:PASSPHRASE (which others can see
    /// in the list of processes), file:PATH or fd:N
    #[arg(long, value_name = "SELECTOR:KIND:VALUE")]
    key: Vec<String>,

    /// Read keys for all encrypted volumes from standard input, one on each line
    #[arg(long)]
    keys_from_stdin: bool,
}

impl KeyArguments {
    /// The keys that the options name. To be called before anything is started: standard input and
    /// descriptors are the caller's.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn fetch(&self) -> Result<Vec<Key>, KeyError> {
        let fetched = self.key.iter().map(|spec| spec.parse::<KeySpec>()?.fetch());
        let mut keys: Vec<Key> = fetched.collect::<Result<_, _>>()?;
        if self.keys_from_stdin {
            keys.extend(keys::from_lines(std::io::stdin().lock())?);
        }
        Ok(keys)
    }
}

/// What `--format` says.
#[derive(Clone, Copy)]
struct FormatChoice(Option<Format>);

fn format(text: &str) -> Result<FormatChoice, String> {
    if text == "auto" {
        return Ok(FormatChoice(None));
    }
    text.parse()
        .map(|format| FormatChoice(Some(format)))
        .map_err(|error: <Format as std::str::FromStr>::Err| error.to_string())
}

impl ImageArguments {
    /// The images, each with the `--format` and `--blocksize` that stood before it.
    #[must_use]
    pub fn disks(&self, matches: &ArgMatches) -> Vec<DiskSpec> {
        let formats = placed(matches, "format", &self.format);
        let block_sizes = placed(matches, "blocksize", &self.blocksize);
        let specs = placed(matches, "add", &self.add).into_iter().map(|(place, path)| DiskSpec {
            path: path.clone(),
            format: last_before(place, &formats).and_then(|choice| choice.0),
            block_size: last_before(place, &block_sizes).copied(),
            overlay: None,
        });
        specs.collect()
    }

    /// The image `path`, which is the value of the option or argument `id`, with the `--format` and
    /// `--blocksize` that stood before it.
    #[must_use]
    pub fn disk(&self, matches: &ArgMatches, id: &str, path: PathBuf) -> DiskSpec {
        let place = matches.index_of(id).unwrap_or_default();
        let formats = placed(matches, "format", &self.format);
        let block_sizes = placed(matches, "blocksize", &self.blocksize);
        DiskSpec {
            path,
            format: last_before(place, &formats).and_then(|choice| choice.0),
            block_size: last_before(place, &block_sizes).copied(),
            overlay: None,
        }
    }

    /// Puts the disks of virtual machines in the place of their folders.
    ///
    /// # Errors
    /// As [`disks_of`].
    pub fn resolved(&self, specs: Vec<DiskSpec>) -> Result<Vec<DiskSpec>, ImageError> {
        let mut disks = Vec::with_capacity(specs.len());
        for spec in specs {
            let allow_paths = self.allow_path.clone();
            let options =
                OpenOptions { format: spec.format, allow_paths, ..OpenOptions::default() };
            for path in disks_of(&spec.path, &options)? {
                if path != spec.path {
                    info!("{} stands for {}", spec.path.display(), path.display());
                }
                disks.push(DiskSpec { path, ..spec.clone() });
            }
        }
        Ok(disks)
    }
}

fn boxed(error: impl Display + 'static) -> Box<dyn Display> {
    Box::new(error)
}

/// The values of an option with their places on the command line.
fn placed<'v, T>(matches: &ArgMatches, id: &str, values: &'v [T]) -> Vec<(usize, &'v T)> {
    matches.indices_of(id).into_iter().flatten().zip(values).collect()
}

fn last_before<'v, T>(place: usize, values: &[(usize, &'v T)]) -> Option<&'v T> {
    values.iter().rev().find(|(at, _)| *at < place).map(|&(_, value)| value)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches, Parser};

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        images: ImageArguments,
        #[command(flatten)]
        overlays: OverlayArguments,
        folder: Option<PathBuf>,
    }

    fn parse(words: &[&str]) -> Result<Vec<DiskSpec>, clap::Error> {
        let words = ["program"].iter().chain(words);
        let matches = Program::command().try_get_matches_from(words)?;
        Ok(Program::from_arg_matches(&matches)?.images.disks(&matches))
    }

    #[test]
    fn a_format_counts_for_the_images_behind_it() {
        let words = [
            "-a", "a", "--format", "raw", "-a", "b", "-a", "c", "--format", "auto", "-a", "d",
            "/mnt",
        ];
        let formats: Vec<_> = parse(&words).unwrap().into_iter().map(|disk| disk.format).collect();
        assert_eq!(formats, [None, Some(Format::Raw), Some(Format::Raw), None]);
    }

    #[test]
    fn an_overlay_belongs_to_the_image_before_it() {
        let assigned = |words: &[&str]| {
            let matches = Program::command().try_get_matches_from(["program"].iter().chain(words));
            let matches = matches.unwrap();
            let program = Program::from_arg_matches(&matches).unwrap();
            let mut disks = program.images.disks(&matches);
            program.overlays.assign(&matches, &mut disks)?;
            Ok::<_, PlanError>(disks.into_iter().map(|disk| disk.overlay).collect::<Vec<_>>())
        };
        let some = |name: &str| Some(PathBuf::from(name));
        let two = ["-a", "a", "--overlay", "x", "-a", "b", "-a", "c", "--overlay", "y"];
        assert_eq!(assigned(&two), Ok(vec![some("x"), None, some("y")]));
        for (words, name) in [
            (["--overlay", "x", "-a", "a"].as_slice(), "x"),
            (&["-a", "a", "--overlay", "x", "--overlay", "y"], "y"),
        ] {
            assert_eq!(assigned(words), Err(PlanError::OverlayOfNothing(name.into())));
        }
    }

    #[test]
    fn a_block_size_counts_for_the_images_behind_it() {
        let words =
            ["-a", "a", "--blocksize", "4096", "-a", "b", "--blocksize=512", "-a", "c", "/mnt"];
        let disks = parse(&words).unwrap();
        let sizes: Vec<_> =
            disks.iter().map(|disk| disk.block_size.map(BlockSize::bytes)).collect();
        assert_eq!(sizes, [None, Some(4096), Some(512)]);
        assert!(parse(&["--blocksize", "1024"]).is_err());
    }
}
