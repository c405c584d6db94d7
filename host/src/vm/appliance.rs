//! Where the appliance is, and whether it is ours.

use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::path::{self, Path, PathBuf};

use serde::Deserialize;

/// Kernel and initramfs in a folder, with their manifest.
#[derive(Clone, Debug)]
pub struct Appliance {
    /// The kernel, an uncompressed ELF with a PVH note, or a bzImage.
    pub kernel: PathBuf,
    /// The initramfs with the daemon.
    pub initramfs: PathBuf,
    /// What the manifest says.
    pub manifest: Manifest,
}

/// `manifest.json`, as far as a launch needs it.
#[derive(Clone, Debug, Deserialize)]
pub struct Manifest {
    /// [`guestmnt_protocol::VERSION`] of the daemon.
    pub protocol: u32,
    /// Which kernel it is, as `uname -r` calls it.
    pub kernel: String,
}

/// Why there is no appliance.
#[derive(Debug)]
pub enum ApplianceError {
    /// None of the folders has one.
    Missing(Vec<PathBuf>),
    /// A file of it cannot be read.
    Unreadable(PathBuf, io::Error),
    /// It was built from another version of guestmnt.
    OtherVersion {
        /// Its folder.
        folder: PathBuf,
        /// Its protocol version.
        found: u32,
    },
}

impl fmt::Display for ApplianceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(folders) => {
                f.write_str("no appliance found; looked in")?;
                for folder in folders {
                    write!(f, "\n    {}", folder.display())?;
                }
                f.write_str("\n  hint: `cargo xtask build-appliance` builds it; $GUESTMNT_APPLIANCE names another folder")
            }
            Self::Unreadable(file, error) => {
                write!(f, "cannot read {}: {error}", file.display())?;
                f.write_str("\n  hint: `cargo xtask build-appliance` builds the appliance anew")
            }
            Self::OtherVersion { folder, found } => {
                let ours = guestmnt_protocol::VERSION;
                write!(f, "the appliance in {} is of another version", folder.display())?;
                write!(f, ": protocol {found}, this guestmnt needs {ours}")?;
                f.write_str("\n  hint: `cargo xtask build-appliance` builds the right one")
            }
        }
    }
}

impl std::error::Error for ApplianceError {}

impl Appliance {
    /// Looks in `$GUESTMNT_APPLIANCE`, else beside the binary, in the user's data folder and in
    /// `/usr/lib/guestmnt`, in this order.
    ///
    /// # Errors
    /// [`ApplianceError`]. The first folder that holds a manifest decides.
    pub fn find() -> Result<Self, ApplianceError> {
        let folders = candidates();
        let found = folders.iter().find(|folder| folder.join("manifest.json").exists());
        match found {
            Some(folder) => Self::open(folder),
            None => Err(ApplianceError::Missing(folders)),
        }
    }

    fn open(folder: &Path) -> Result<Self, ApplianceError> {
        let file = folder.join("manifest.json");
        let manifest = fs::read(&file)
            .and_then(|text| serde_json::from_slice(&text).map_err(io::Error::from))
            .map_err(|error| ApplianceError::Unreadable(file, error))?;
        let appliance = Self {
            kernel: folder.join("vmlinux"),
            initramfs: folder.join("initramfs.cpio"),
            manifest,
        };
        for file in [&appliance.kernel, &appliance.initramfs] {
            fs::File::open(file)
                .map_err(|error| ApplianceError::Unreadable(file.clone(), error))?;
        }
        let found = appliance.manifest.protocol;
        if found != guestmnt_protocol::VERSION {
            return Err(ApplianceError::OtherVersion { folder: folder.to_owned(), found });
        }
        Ok(appliance)
    }
}

fn candidates() -> Vec<PathBuf> {
    if let Some(folder) = env::var_os("GUESTMNT_APPLIANCE") {
        // This process may be in another folder when it boots another VM.
        let folder = PathBuf::from(folder);
        return vec![path::absolute(&folder).unwrap_or(folder)];
    }
    let mut folders = Vec::new();
    if let Some(target) =
        env::current_exe().ok().as_deref().and_then(Path::parent).and_then(Path::parent)
    {
        folders.push(target.join("appliance"));
    }
    let data = env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".local/share")));
    folders.extend(data.map(|folder| folder.join("guestmnt")));
    folders.push("/usr/lib/guestmnt".into());
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(manifest: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("manifest.json"), manifest).unwrap();
        fs::write(folder.path().join("vmlinux"), "").unwrap();
        folder
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let folder = folder_with(r#"{"protocol": 999, "kernel": "6"}"#);
        fs::write(folder.path().join("initramfs.cpio"), "").unwrap();
        let text = Appliance::open(folder.path()).unwrap_err().to_string();
        assert!(text.contains("protocol 999"), "{text}");
        assert!(text.contains("build-appliance"), "{text}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = folder_with(r#"{"protocol": 1, "kernel": "6"}"#);
        let text = Appliance::open(folder.path()).unwrap_err().to_string();
        assert!(text.contains("initramfs.cpio"), "{text}");
    }

    #[test]
    fn a_broken_manifest_is_named() {
        let folder = folder_with("{");
        let text = Appliance::open(folder.path()).unwrap_err().to_string();
        assert!(text.contains("manifest.json"), "{text}");
    }
}
