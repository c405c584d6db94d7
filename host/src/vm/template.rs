//! A template: a booted appliance, saved in a folder. Mounts map its memory privately, so that
//! all mounts of a user share one copy until they write to it.
//!
//! | file | what |
//! | --- | --- |
//! | `ram` | the guest's memory |
//! | `bulk` | its second node's, without the slots; missing where the machine has none |
//! | `state` | the devices' state, QEMU's migration stream without the memory |
//! | `template.json` | written last: what made it, and the lengths of the others |
//!
//! **Invariant:** a template is never changed after it got its name, and never opened for writing.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use guestmnt_protocol::bay;
use nix::sys::signal::SigSet;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::arguments::{self, BootFiles, Channels, Machine, Memory};
use super::processor::Processor;
use super::qmp::Version;
use super::{VmConfig, boot, bulk};

/// Raised when what is saved, or how, changes without a change of QEMU's arguments.
const LAYOUT: u32 = 4;

/// Longest stream of devices' state; it has some 200 KiB.
const MAX_STATE: u64 = 64 << 20;

pub(super) const RAM: &str = "ram";
pub(super) const BULK: &str = "bulk";
pub(super) const STATE: &str = "state";
const RECORD: &str = "template.json";

/// What identifies a template: whatever could make the saved state mean something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateKey(String);

impl TemplateKey {
    /// The key of what `config` would start: kernel, initramfs, QEMU's program, its arguments
    /// and, under KVM, the processor.
    ///
    /// # Errors
    /// Where one of the files cannot be looked at.
    pub fn of(config: &VmConfig) -> io::Result<Self> {
        let mut hash = Sha256::new();
        let mut add = |text: &str| {
            hash.update(text.len().to_le_bytes());
            hash.update(text);
        };
        add(&LAYOUT.to_string());
        for file in [config.qemu, &config.appliance.kernel, &config.appliance.initramfs] {
            let stat = fs::metadata(file)?;
            let (seconds, nanoseconds) = (stat.mtime(), stat.mtime_nsec());
            let found = [stat.dev(), stat.ino(), stat.len()];
            add(&format!("{} {found:?} {seconds}.{nanoseconds}", file.display()));
        }
        // Descriptors have other numbers each time; the state does not depend on them.
        let lanes = vec![0; config.lanes];
        let channels = Channels { qmp: 0, console: 0, lanes: &lanes };
        let bays = vec![String::new(); bay::BAYS.into()];
        let machine = Machine {
            boot: Some(BootFiles { kernel: 0, initramfs: 0 }),
            memory: Memory::Anonymous,
            bulk: None,
        };
        // Which flags QEMU does not know depends on the QEMU alone, and may not be known yet.
        let every_flag = Processor::default();
        let config = &VmConfig { processor: &every_flag, ..*config };
        for word in arguments::arguments(config, &channels, &machine, &bays) {
            add(&word.to_string_lossy());
        }
        add(if config.bulk { "bulk" } else { "" });
        if config.accelerator == super::accelerator::Accelerator::Kvm {
            add(&processor()?);
        }
        let digest = hash.finalize();
        Ok(Self(digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()))
    }
}

impl fmt::Display for TemplateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The first processor's description, without what changes from moment to moment.
fn processor() -> io::Result<String> {
    let text = fs::read_to_string("/proc/cpuinfo")?;
    let first = text.split("\n\n").next().unwrap_or_default();
    Ok(first.lines().filter(|line| !line.contains("MHz")).collect())
}

/// `template.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub key: String,
    pub qemu_version: Version,
    pub ram_len: u64,
    /// 0 where there is none.
    pub bulk_len: u64,
    pub state_len: u64,
    pub state_sha256: String,
}

impl Record {
    /// Writes the record into `folder`, whose other files are complete.
    pub fn write(folder: &Path, key: &TemplateKey, qemu_version: &Version) -> io::Result<()> {
        let state = fs::read(folder.join(STATE))?;
        let record = Self {
            key: key.0.clone(),
            qemu_version: qemu_version.clone(),
            ram_len: fs::metadata(folder.join(RAM))?.len(),
            bulk_len: fs::metadata(folder.join(BULK)).map_or(0, |stat| stat.len()),
            state_len: state.len() as u64,
            state_sha256: sha256(&state),
        };
        let bulk = (record.bulk_len > 0).then_some(BULK);
        for name in [RAM, STATE].into_iter().chain(bulk) {
            boot::protect(&folder.join(name), qemu_version)?;
        }
        let text = serde_json::to_vec_pretty(&record)?;
        fs::write(folder.join(RECORD), text)
    }
}

/// Why a template cannot be used.
#[derive(Debug)]
pub enum TemplateError {
    /// There is none.
    Missing,
    /// It is not whole, or not what its name says.
    Damaged(PathBuf, String),
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("there is no template yet"),
            Self::Damaged(folder, what) => {
                write!(f, "the template in {} is damaged: {what}", folder.display())
            }
        }
    }
}

impl std::error::Error for TemplateError {}

/// A template whose files are open, so that it may be removed meanwhile.
#[derive(Debug)]
pub struct Template {
    /// Where it is new: its way to the place where others find it.
    pub publication: Option<Publication>,
    pub(super) ram: File,
    pub(super) bulk: Option<File>,
    pub(super) state: Vec<u8>,
    /// What saved it.
    pub(super) qemu_version: Version,
}

impl Template {
    /// Opens the template in `folder`, which has to have the key `key`.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn open(folder: &Path, key: &TemplateKey) -> Result<Self, TemplateError> {
        let damaged = |what: String| TemplateError::Damaged(folder.to_owned(), what);
        let text = match fs::read(folder.join(RECORD)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(TemplateError::Missing);
            }
            Err(error) => return Err(damaged(format!("{RECORD}: {error}"))),
        };
        let record: Record =
            serde_json::from_slice(&text).map_err(|error| damaged(format!("{RECORD}: {error}")))?;
        if record.key != key.0 {
            return Err(damaged("it has another key".to_owned()));
        }
        let open = |name: &str, length: u64| {
            let file = File::open(folder.join(name));
            let file = file.map_err(|error| damaged(format!("{name}: {error}")))?;
            let found = file.metadata().map_or(0, |stat| stat.len());
            if found != length {
                return Err(damaged(format!("{name} has {found} of {length} bytes")));
            }
            Ok(file)
        };
        let ram = open(RAM, record.ram_len)?;
        let bulk = match record.bulk_len {
            0 => None,
            bulk::SIZE => Some(open(BULK, bulk::SIZE)?),
            other => return Err(damaged(format!("{BULK} has {other} bytes"))),
        };
        let mut state = Vec::new();
        open(STATE, record.state_len)?
            .take(MAX_STATE)
            .read_to_end(&mut state)
            .map_err(|error| damaged(format!("{STATE}: {error}")))?;
        if sha256(&state) != record.state_sha256 {
            return Err(damaged(format!("{STATE} has other bytes than were written")));
        }
        let (qemu_version, publication) = (record.qemu_version, None);
        Ok(Self { publication, ram, bulk, state, qemu_version })
    }

    /// Whether it is this one that is in `folder`. Its memory is open, so that no other file has the
    /// same number.
    #[must_use]
    pub fn lies_in(&self, folder: &Path) -> bool {
        let number = |stat: fs::Metadata| (stat.dev(), stat.ino());
        let there = fs::metadata(folder.join(RAM)).map(number).ok();
        there.is_some() && there == self.ram.metadata().map(number).ok()
    }
}

#[cfg(test)]
impl TemplateKey {
    /// One of no machine.
    pub fn named(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// Puts what looks like a template with this key into `folder`.
    pub fn pretend(&self, folder: &Path) {
        fs::write(folder.join(RAM), [7; 4096]).unwrap();
        File::create(folder.join(BULK)).unwrap().set_len(bulk::SIZE).unwrap();
        fs::write(folder.join(STATE), "devices").unwrap();
        let version = Version { major: 10, minor: 0, micro: 2, package: String::new() };
        Record::write(folder, self, &version).unwrap();
    }
}

/// A new template is brought to the disk, and only then gets its name: after a power failure there
/// is a whole one or none. That takes a fifth of a second, in which it is in use already. Dropping
/// this waits for the end.
#[derive(Debug)]
pub struct Publication(Option<JoinHandle<()>>);

impl Publication {
    /// Brings the files in `unfinished` to the disk, then has `name` make them known.
    pub fn start(unfinished: PathBuf, name: impl FnOnce(io::Result<()>) + Send + 'static) -> Self {
        Self(Some(thread::spawn(move || {
            // Signals are the main thread's. Blocking them cannot fail with a valid set.
            let _ = SigSet::all().thread_block();
            name(sync(&unfinished));
        })))
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // If it panicked, there is no template; the next mount makes one.
            let _ = thread.join();
        }
    }
}

/// Brings all files of a folder to the disk.
fn sync(folder: &Path) -> io::Result<()> {
    fs::read_dir(folder)?.try_for_each(|entry| File::open(entry?.path())?.sync_all())
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs::Permissions;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::vm::accelerator::Accelerator;
    use crate::vm::appliance::{Appliance, Manifest};
    use crate::vm::confinement::Policy;

    use TemplateKey as Key;

    fn made() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        Key::named("k").pretend(folder.path());
        folder
    }

    #[test]
    fn a_whole_template_opens() {
        let template = Template::open(made().path(), &Key::named("k")).unwrap();
        let version = template.qemu_version.to_string();
        assert_eq!((&template.state[..], version.as_str()), (&b"devices"[..], "10.0.2"));
    }

    #[test]
    fn an_empty_or_missing_folder_has_no_template() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path(), Path::new("/nonexistent")] {
            assert!(matches!(Template::open(path, &Key::named("k")), Err(TemplateError::Missing)));
        }
    }

    #[test]
    fn damage_is_noticed() {
        type Damage = fn(&Path);
        let table: [(&str, Damage); 8] = [
            ("memory cut short", |f| {
                File::options().write(true).open(f.join(RAM)).unwrap().set_len(4095).unwrap()
            }),
            ("bulk memory cut short", |f| {
                File::options().write(true).open(f.join(BULK)).unwrap().set_len(4095).unwrap()
            }),
            ("bulk memory missing", |f| fs::remove_file(f.join(BULK)).unwrap()),
            ("memory missing", |f| fs::remove_file(f.join(RAM)).unwrap()),
            ("state cut short", |f| fs::write(f.join(STATE), "device").unwrap()),
            ("state changed", |f| fs::write(f.join(STATE), "devicez").unwrap()),
            ("record cut short", |f| fs::write(f.join(RECORD), "{\"key\":").unwrap()),
            ("record empty", |f| fs::write(f.join(RECORD), "").unwrap()),
        ];
        for (what, damage) in table {
            let folder = made();
            for name in [RAM, BULK, STATE] {
                let path = folder.path().join(name);
                assert_eq!(fs::metadata(&path).unwrap().mode() & 0o222, 0, "{name}");
                fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            }
            damage(folder.path());
            let opened = Template::open(folder.path(), &Key::named("k"));
            assert!(matches!(opened, Err(TemplateError::Damaged(..))), "{what}");
        }
    }

    #[test]
    fn a_template_of_another_key_is_not_used() {
        let opened = Template::open(made().path(), &Key::named("other"));
        assert!(matches!(opened, Err(TemplateError::Damaged(..))));
    }

    /// Stand-ins for QEMU and an appliance, in a folder.
    struct Parts(tempfile::TempDir);

    const KERNEL: &str = "vmlinux";
    const INITRAMFS: &str = "initramfs.cpio";
    const QEMU: &str = "qemu";

    impl Parts {
        fn new() -> Self {
            let parts = Self(tempfile::tempdir().unwrap());
            for name in [QEMU, KERNEL, INITRAMFS] {
                fs::write(parts.path(name), "same length").unwrap();
            }
            parts
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        /// The key of the machine that `change` makes of the usual one.
        fn key(&self, change: impl FnOnce(&mut VmConfig)) -> TemplateKey {
            let (kernel, initramfs) = (self.path(KERNEL), self.path(INITRAMFS));
            let manifest = Manifest { protocol: 1, kernel: "6.12".to_owned() };
            let appliance = Appliance { kernel, initramfs, manifest };
            let mut config = VmConfig {
                qemu: &self.path(QEMU),
                appliance: &appliance,
                accelerator: Accelerator::Tcg,
                processor: &Processor::default(),
                memory_mib: 256,
                bulk: true,
                confinement: Policy::default(),
                lanes: 9,
            };
            change(&mut config);
            TemplateKey::of(&config).unwrap()
        }
    }

    #[test]
    fn the_same_machine_has_the_same_key() {
        let parts = Parts::new();
        assert_eq!(parts.key(|_| {}), parts.key(|_| {}));
        // What it is made of is not changed by being read, or by what it is confined by.
        fs::read(parts.path(KERNEL)).unwrap();
        assert_eq!(parts.key(|_| {}), parts.key(|config| config.confinement = Policy::Required));
    }

    #[test]
    fn another_machine_has_another_key() {
        let parts = Parts::new();
        let keys = [
            parts.key(|_| {}),
            parts.key(|config| config.memory_mib = 257),
            parts.key(|config| config.bulk = false),
            parts.key(|config| config.lanes = 8),
            parts.key(|config| config.accelerator = Accelerator::Kvm),
        ];
        let different: BTreeSet<String> = keys.iter().map(ToString::to_string).collect();
        assert_eq!(different.len(), keys.len(), "{keys:?}");
    }

    #[test]
    fn another_qemu_kernel_or_initramfs_has_another_key() {
        type Change = fn(&Path);
        let table: [(&str, Change); 3] = [
            ("touched", |path| {
                let later = SystemTime::now() + Duration::from_secs(1);
                File::options().write(true).open(path).unwrap().set_modified(later).unwrap();
            }),
            ("replaced by one as long and as old", |path| {
                let modified = fs::metadata(path).unwrap().modified().unwrap();
                let new = path.with_extension("new");
                fs::write(&new, "SAME LENGTH").unwrap();
                File::options().write(true).open(&new).unwrap().set_modified(modified).unwrap();
                fs::rename(new, path).unwrap();
            }),
            ("longer, and as old", |path| {
                let mut file = File::options().append(true).open(path).unwrap();
                let modified = file.metadata().unwrap().modified().unwrap();
                file.write_all(b"!").unwrap();
                file.set_modified(modified).unwrap();
            }),
        ];
        for name in [QEMU, KERNEL, INITRAMFS] {
            for (what, change) in table {
                let parts = Parts::new();
                let before = parts.key(|_| {});
                change(&parts.path(name));
                assert_ne!(parts.key(|_| {}), before, "{name} {what}");
            }
        }
    }
}
