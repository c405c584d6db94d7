//! Where things stand in the workspace and its target folder.

use std::path::{Path, PathBuf};

/// The folders that the chores read and write.
#[derive(Clone, Debug)]
pub struct Places {
    root: PathBuf,
    target: PathBuf,
}

impl Places {
    /// The workspace that this binary was built from; its target folder is `$CARGO_TARGET_DIR`
    /// or `target`.
    #[must_use]
    pub fn of_workspace() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("xtask is a folder of the workspace")
            .to_path_buf();
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
        Self { target: root.join(target), root }
    }

    /// The workspace's folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Everything that is built or cached.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Kernel, initramfs and manifest.
    #[must_use]
    pub fn appliance(&self) -> PathBuf {
        self.target.join("appliance")
    }

    /// Binaries of `cargo build --release`.
    #[must_use]
    pub fn release(&self) -> PathBuf {
        self.target.join("release")
    }

    /// The daemon's own target folder: its flags differ from the host's, and sharing one folder
    /// would rebuild everything by turns.
    #[must_use]
    pub fn guest(&self) -> PathBuf {
        self.target.join("guest")
    }

    /// Unpacked kernel packages.
    #[must_use]
    pub fn kernels(&self) -> PathBuf {
        self.target.join("kernel")
    }

    /// Unpacked packages of the appliance's programs.
    #[must_use]
    pub fn programs(&self) -> PathBuf {
        self.target.join("programs")
    }

    /// The suite of POSIX behaviour.
    #[must_use]
    pub fn pjdfstest(&self) -> PathBuf {
        self.target.join("pjdfstest")
    }

    /// apt's private state for downloads.
    #[must_use]
    pub fn apt(&self) -> PathBuf {
        self.target.join("apt/download")
    }

    /// apt's private state for the source packages of `suite`.
    #[must_use]
    pub fn apt_of_sources(&self, suite: &str) -> PathBuf {
        self.target.join("apt/sources").join(suite)
    }

    /// Archives of public disk images.
    #[must_use]
    pub fn corpora(&self) -> PathBuf {
        self.target.join("corpora")
    }

    /// apt's private state for installing, which is root's.
    #[must_use]
    pub fn apt_of_root(&self) -> PathBuf {
        self.target.join("apt/install")
    }

    /// The Debian package, and what it is made of.
    #[must_use]
    pub fn dist(&self) -> PathBuf {
        self.target.join("dist")
    }

    /// Disks that the demo and the tests use.
    #[must_use]
    pub fn disks(&self) -> PathBuf {
        self.target.join("disks")
    }
}
