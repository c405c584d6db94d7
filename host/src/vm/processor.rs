//! The guest's processor model on one QEMU.
//!
//! TCG's processor is named with flags that are turned off. A QEMU refuses to start over a flag that it
//! does not know: 7.2 has no `fsrs`, `fzrm` and `fsrc`. A flag that a QEMU does not know is one that its
//! processor does not have, so it is left out. Nobody asks a QEMU for its flags first, which would cost
//! every first start; the one that refuses is started again, and what it refused is kept until that QEMU
//! changes.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use log::{debug, info};
use serde::{Deserialize, Serialize};

use super::accelerator::Accelerator;

/// TCG's model.
const TCG_MODEL: &str = "max";

/// What TCG's processor is to do without: the promises that make the guest's kernel copy and clear
/// memory with `rep movsb` and `rep stosb`. TCG carries those out byte by byte, which took a third of a
/// walk over cold directories. `rep_good` on the guest's command line is the same promise for
/// `rep stosq`; it is the kernel's own conclusion from the processor's name. Leaving out `xsave`, `la57`
/// or `smap` as well measured no faster. The instruction of `sse4.2` for the checksums of ext4, XFS and
/// Btrfs is a loop over each bit in TCG; a tar of 2,000 files is unpacked 3 % faster without.
const TCG_DISABLED: [&str; 6] = ["erms", "fsrm", "fsrs", "fzrm", "fsrc", "sse4.2"];

/// The name of the file in the cache directory.
const FILE: &str = "processor.json";

/// A QEMU program, as told from another by looking at it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Program {
    path: PathBuf,
    size: u64,
    modified: (i64, i64),
}

#[derive(Serialize, Deserialize)]
struct Record {
    qemu: Program,
    unknown: BTreeSet<String>,
}

/// The processor models that one QEMU takes. By default, the QEMU knows every flag.
#[derive(Debug, Default)]
pub struct Processor {
    qemu: Program,
    file: Option<PathBuf>,
    unknown: Mutex<BTreeSet<String>>,
}

impl Processor {
    /// That of the QEMU at `qemu`, with what was kept of it in the cache directory, if there is one.
    #[must_use]
    pub fn new(qemu: &Path, cache: Option<&Path>) -> Self {
        let stat = fs::metadata(qemu).ok();
        let modified = |stat: &fs::Metadata| (stat.mtime(), stat.mtime_nsec());
        let qemu = Program {
            path: qemu.to_owned(),
            size: stat.as_ref().map_or(0, fs::Metadata::len),
            modified: stat.as_ref().map_or((0, 0), modified),
        };
        let file = cache.map(|cache| cache.join(FILE));
        let kept = file.as_ref().and_then(|file| {
            let record: Record = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
            (record.qemu == qemu).then_some(record.unknown)
        });
        Self { qemu, file, unknown: Mutex::new(kept.unwrap_or_default()) }
    }

    /// What `-cpu` is given.
    #[must_use]
    pub fn model(&self, accelerator: Accelerator) -> String {
        match accelerator {
            Accelerator::Kvm => "host".to_owned(),
            Accelerator::Tcg => {
                let unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
                let known = TCG_DISABLED.iter().filter(|flag| !unknown.contains(**flag));
                known.fold(TCG_MODEL.to_owned(), |model, flag| format!("{model},-{flag}"))
            }
        }
    }

    /// Leaves out the flag over which QEMU refused to start with `reason`. `false` where the reason is
    /// another, or the flag was left out already. Failing to keep it is no error: the next start is
    /// refused again.
    pub(super) fn leave_out(&self, reason: &str) -> bool {
        let Some(flag) = unknown_flag(reason) else { return false };
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        if !unknown.insert(flag.to_owned()) {
            return false;
        }
        info!("this QEMU has no processor flag {flag}, it is left out");
        if let Some(file) = &self.file
            && let Err(error) = self.keep(file, &unknown)
        {
            debug!("cannot keep {}: {error}", file.display());
        }
        true
    }

    fn keep(&self, file: &Path, unknown: &BTreeSet<String>) -> std::io::Result<()> {
        let record = Record { qemu: self.qemu.clone(), unknown: unknown.clone() };
        let text = serde_json::to_vec(&record)?;
        let mut written = tempfile::NamedTempFile::new_in(file.parent().unwrap_or(Path::new(".")))?;
        written.write_all(&text)?;
        written.persist(file).map(drop).map_err(|error| error.error)
    }
}

/// The flag of ours in a message such as `Property 'max-x86_64-cpu.fsrs' not found`.
fn unknown_flag(reason: &str) -> Option<&'static str> {
    let (_, rest) = reason.split_once("Property '")?;
    let (property, rest) = rest.split_once('\'')?;
    let (_, name) = property.split_once("-cpu.")?;
    let is_unknown = rest.trim_start().starts_with("not found");
    TCG_DISABLED.into_iter().find(|flag| is_unknown && *flag == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    use Accelerator::{Kvm, Tcg};

    const ALL: &str = "max,-erms,-fsrm,-fsrs,-fzrm,-fsrc,-sse4.2";

    /// What QEMU 7.2 prints.
    fn refusal(flag: &str) -> String {
        format!("qemu-system-x86_64: Property 'max-x86_64-cpu.{flag}' not found")
    }

    #[test]
    fn flags_that_a_qemu_does_not_know_are_left_out_until_it_changes() {
        let (cache, qemu) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
        let processor = || Processor::new(qemu.path(), Some(cache.path()));
        let first = processor();
        assert_eq!((first.model(Tcg).as_str(), first.model(Kvm).as_str()), (ALL, "host"));
        for flag in ["fsrs", "fzrm", "fsrc"] {
            assert!(first.leave_out(&refusal(flag)), "{flag}");
            assert!(!first.leave_out(&refusal(flag)), "{flag} was left out before");
        }
        assert_eq!(first.model(Tcg), "max,-erms,-fsrm,-sse4.2");
        assert_eq!(processor().model(Tcg), first.model(Tcg), "it was not kept");
        fs::write(qemu.path(), "another build").unwrap();
        assert_eq!(processor().model(Tcg), ALL);
    }

    #[test]
    fn without_a_cache_they_are_left_out_as_well() {
        let processor = Processor::new(Path::new("/nonexistent"), None);
        assert!(processor.leave_out(&refusal("fsrs")));
        assert_eq!(processor.model(Tcg), "max,-erms,-fsrm,-fzrm,-fsrc,-sse4.2");
    }

    #[test]
    fn other_reasons_leave_out_nothing() {
        let processor = Processor::default();
        for reason in [
            "Property 'max-x86_64-cpu.avx' not found",
            "Property 'virtio-blk-device.fsrs' not found",
            "Property 'max-x86_64-cpu.fsrs' is read-only",
            "Property 'max-x86_64-cpu.fsrs",
            "failed to set MSR",
            "",
        ] {
            assert!(!processor.leave_out(reason), "{reason}");
        }
        assert_eq!(processor.model(Tcg), ALL);
    }

    #[test]
    fn a_broken_record_counts_as_none() {
        let cache = tempfile::tempdir().unwrap();
        fs::write(cache.path().join(FILE), "{\"qemu\":").unwrap();
        assert_eq!(Processor::new(Path::new("/"), Some(cache.path())).model(Tcg), ALL);
    }
}
