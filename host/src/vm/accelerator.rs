//! Which accelerator runs the guest. A `/dev/kvm` that opens proves nothing: QEMU may abort on
//! it, or the guest spin forever. KVM works when the daemon has said hello, for which it is waited as
//! long as the guest prints; the verdict is kept until the machine boots again or QEMU changes.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use log::debug;
use serde::{Deserialize, Serialize};

/// Runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The processor, through `/dev/kvm`.
    Kvm,
    /// QEMU's translator. Slower, needs nothing of the host.
    Tcg,
}

/// What the user asked for with `--accel`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AcceleratorChoice {
    /// KVM where it works, else TCG.
    #[default]
    Auto,
    /// This one or none.
    Only(Accelerator),
}

impl Accelerator {
    /// The name that QEMU gives it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for AcceleratorChoice {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Only(Accelerator::Kvm)),
            "tcg" => Ok(Self::Only(Accelerator::Tcg)),
            _ => Err("expected auto, kvm or tcg".to_owned()),
        }
    }
}

/// What is remembered of KVM on this machine.
pub struct Verdict {
    file: Option<PathBuf>,
    key: Key,
    kvm_device: PathBuf,
}

/// What a verdict is good for.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    boot_id: String,
    qemu: PathBuf,
    qemu_size: u64,
    qemu_mtime: i64,
}

#[derive(Serialize, Deserialize)]
struct Record {
    key: Key,
    kvm_works: bool,
}

impl Verdict {
    /// The verdict for the QEMU at `qemu`, kept in `folder` if there is one.
    #[must_use]
    pub fn of(qemu: &Path, folder: Option<&Path>) -> Self {
        Self::with_device(qemu, folder, Path::new("/dev/kvm"))
    }

    fn with_device(qemu: &Path, folder: Option<&Path>, kvm_device: &Path) -> Self {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let stat = fs::metadata(qemu).ok();
        Self {
            file: folder.map(|folder| folder.join("accelerator.json")),
            key: Key {
                boot_id: boot_id.trim().to_owned(),
                qemu: qemu.to_owned(),
                qemu_size: stat.as_ref().map_or(0, fs::Metadata::len),
                qemu_mtime: stat.as_ref().map_or(0, fs::Metadata::mtime),
            },
            kvm_device: kvm_device.to_owned(),
        }
    }

    /// The accelerators to try, in order.
    #[must_use]
    pub fn candidates(&self, choice: AcceleratorChoice) -> Vec<Accelerator> {
        if let AcceleratorChoice::Only(only) = choice {
            return vec![only];
        }
        let openable = fs::OpenOptions::new().read(true).write(true).open(&self.kvm_device).is_ok();
        if !openable || self.remembered() == Some(false) {
            debug!(
                "KVM is passed over ({})",
                if openable { "it failed before" } else { "no access" }
            );
            return vec![Accelerator::Tcg];
        }
        vec![Accelerator::Kvm, Accelerator::Tcg]
    }

    /// Whether KVM worked when it was tried last; `None` where that is not known.
    #[must_use]
    pub fn remembered(&self) -> Option<bool> {
        let record: Record = serde_json::from_slice(&fs::read(self.file.as_ref()?).ok()?).ok()?;
        (record.key == self.key).then_some(record.kvm_works)
    }

    /// Keeps whether KVM worked. Failing to is no error: the next mount tries again.
    pub fn remember(&self, kvm_works: bool) {
        let Some(file) = &self.file else { return };
        if self.remembered() == Some(kvm_works) {
            return;
        }
        let record = Record { key: self.key.clone(), kvm_works };
        let text = serde_json::to_vec(&record).expect("a record has no map keys that can fail");
        let written = tempfile::NamedTempFile::new_in(file.parent().unwrap_or(Path::new(".")))
            .and_then(|mut temp| {
                std::io::Write::write_all(&mut temp, &text)?;
                temp.persist(file).map_err(|error| error.error)
            });
        if let Err(error) = written {
            debug!("cannot keep {}: {error}", file.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Accelerator::{Kvm, Tcg};

    fn device() -> tempfile::NamedTempFile {
        tempfile::NamedTempFile::new().unwrap()
    }

    #[test]
    fn kvm_is_tried_until_it_failed() {
        let (folder, kvm) = (tempfile::tempdir().unwrap(), device());
        let qemu = device();
        let verdict = Verdict::with_device(qemu.path(), Some(folder.path()), kvm.path());
        assert_eq!(verdict.candidates(AcceleratorChoice::Auto), [Kvm, Tcg]);
        verdict.remember(true);
        assert_eq!(verdict.candidates(AcceleratorChoice::Auto), [Kvm, Tcg]);
        verdict.remember(false);
        assert_eq!(verdict.candidates(AcceleratorChoice::Auto), [Tcg]);
        assert_eq!(verdict.candidates(AcceleratorChoice::Only(Kvm)), [Kvm]);
    }

    #[test]
    fn another_qemu_is_tried_anew() {
        let (folder, kvm, qemu) = (tempfile::tempdir().unwrap(), device(), device());
        Verdict::with_device(qemu.path(), Some(folder.path()), kvm.path()).remember(false);
        fs::write(qemu.path(), "another build").unwrap();
        let verdict = Verdict::with_device(qemu.path(), Some(folder.path()), kvm.path());
        assert_eq!(verdict.candidates(AcceleratorChoice::Auto), [Kvm, Tcg]);
    }

    #[test]
    fn without_a_device_there_is_only_tcg() {
        let verdict = Verdict::with_device(Path::new("/"), None, Path::new("/nonexistent"));
        assert_eq!(verdict.candidates(AcceleratorChoice::Auto), [Tcg]);
    }

    #[test]
    fn a_broken_record_counts_as_none() {
        let (folder, kvm) = (tempfile::tempdir().unwrap(), device());
        fs::write(folder.path().join("accelerator.json"), "{\"key\":").unwrap();
        let verdict = Verdict::with_device(Path::new("/"), Some(folder.path()), kvm.path());
        assert_eq!(verdict.candidates(AcceleratorChoice::Auto), [Kvm, Tcg]);
    }
}
