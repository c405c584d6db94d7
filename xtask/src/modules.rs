//! Which kernel modules the appliance carries, and in what order they load.
//!
//! `depmod` reads the modules; its text (modules.dep, modules.alias, modules.softdep) is all that
//! is parsed here. Source: modules.dep(5), modprobe.d(5).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::kernel::Kernel;
use crate::process::Tool;
use crate::thunks;

/// Folders of `kernel/fs` whose modules are wanted, all of them: the filesystems that live on a
/// disk of one machine. Those of networks and clusters are not there.
const FILESYSTEMS: &[&str] = &[
    "adfs", "affs", "bcachefs", "befs", "bfs", "btrfs", "cramfs", "efs", "erofs", "exfat", "ext2",
    "ext4", "f2fs", "fat", "freevxfs", "fuse", "hfs", "hfsplus", "hpfs", "isofs", "jfs", "minix",
    "nilfs2", "nls", "ntfs3", "omfs", "qnx4", "qnx6", "reiserfs", "romfs", "squashfs", "sysv",
    "udf", "ufs", "xfs", "zonefs",
];

/// Further modules by name, each with what it depends on: disks, volumes, and the algorithms that
/// the kernel asks for by alias when a volume or a filesystem uses them.
#[rustfmt::skip]
const NAMES: &[&str] = &[
    // disks
    "virtio_scsi", "virtio_blk", "sd_mod", "loop",
    // LVM, LUKS and the like
    "dm_mod", "dm_bio_prison", "dm_bufio", "dm_cache", "dm_cache_smq", "dm_crypt", "dm_integrity",
    "dm_log", "dm_mirror", "dm_raid", "dm_region_hash", "dm_snapshot", "dm_thin_pool",
    "dm_unstripe", "dm_verity", "dm_writecache", "dm_zero",
    // MD RAID
    "md_mod", "linear", "raid0", "raid1", "raid10", "raid456",
    // ciphers and modes of disk encryption
    "adiantum", "aes_generic", "aesni_intel", "authenc", "blowfish_generic", "camellia_generic",
    "cast5_generic", "cast6_generic", "cbc", "ccm", "chacha_generic", "chacha20poly1305", "cts",
    "des_generic", "ecb", "essiv", "gcm", "lrw", "nhpoly1305", "poly1305_generic",
    "serpent_generic", "twofish_generic", "xts",
    // checksums and hashes
    "blake2b_generic", "crc32_generic", "crc32c_generic", "crc32c_intel", "hmac", "rmd160",
    "sha1_generic", "sha1_ssse3", "sha256_generic", "sha256_ssse3", "sha512_generic",
    "sha512_ssse3", "wp512", "xxhash_generic",
    // compression
    "deflate", "lz4", "lz4hc", "lzo", "lzo_rle", "zstd",
];

/// Without these no disk is ever seen.
const INDISPENSABLE: &[&str] = &["virtio_blk", "virtio_scsi", "sd_mod"];

/// Aliases that the kernel or the daemon asks for, by how they begin.
const ALIASES: &[&str] = &["crypto-", "dm-", "fs-", "md-", "nls_"];

/// Modules that ask for another, when they start or when a filesystem that keeps quotas is mounted
/// for writing, which no dependency says: they rely on modprobe, and the guest has none.
const ASKED_FOR: &[(&str, &str)] = &[
    ("ext4", "quota_v2"),
    ("f2fs", "quota_v2"),
    ("nls_euc_jp", "nls_cp932"),
    ("nls_koi8_ru", "nls_koi8_u"),
];

/// The modules of an appliance.
#[derive(Debug)]
pub struct Selection {
    /// Name (`_` for `-`) and file of each, sorted by name.
    pub files: BTreeMap<String, PathBuf>,
    /// The text of `/modules/list`: `name: dependency dependency …` in load order, for modules and
    /// for aliases. Soft dependencies are among them; failing to load one of those is no failure.
    pub list: String,
}

impl Selection {
    /// Chooses from the modules of `kernel`.
    ///
    /// # Errors
    /// [`Error::Unfit`] where the kernel could not see a disk.
    pub fn of(kernel: &Kernel) -> Result<Self, Error> {
        let index = Index::parse(&run_depmod(kernel)?);
        let builtin = kernel.modules.join("modules.builtin");
        let builtin = fs::read_to_string(&builtin).map_err(Error::file("read", &builtin))?;
        let builtin: BTreeSet<String> = builtin.lines().filter_map(module_name).collect();
        for name in INDISPENSABLE {
            if !index.modules.contains_key(*name) && !builtin.contains(*name) {
                return Err(Error::unfit(
                    format!("kernel {} lacks {name}", kernel.release),
                    "take a distribution's ordinary kernel, not its cloud variant",
                ));
            }
        }
        let chosen = index.chosen();
        let files = chosen
            .iter()
            .map(|name| (name.clone(), kernel.modules.join(&index.modules[name].path)))
            .collect();
        Ok(Self { files, list: index.list(&chosen) })
    }
}

/// Sections of a module that serve tracing, stack traces, other processors, and mitigations that the
/// guest runs without; what the kernel would do by them is done beforehand, see [`thunks`]. It sorts
/// and patches by them when it loads the module, which under TCG takes
/// longer than all the rest: all modules together loaded in 1.0 s instead of 8.8 s without them and
/// without the signature, which objcopy leaves out as well.
///
/// Static calls are left as the compiler made them, through a trampoline that the kernel patches by
/// its key and not by these sites.
const NEEDLESS_SECTIONS: [&str; 16] = [
    ".BTF",
    ".BTF.base",
    ".orc_unwind",
    ".orc_unwind_ip",
    ".orc_header",
    "__mcount_loc",
    ".call_sites",
    ".return_sites",
    ".retpoline_sites",
    ".ibt_endbr_seal",
    ".smp_locks",
    ".static_call_sites",
    "__bpf_raw_tp_map",
    "__tracepoints_ptrs",
    "_ftrace_eval_map",
    "_ftrace_events",
];

/// The bytes of a module's file, decompressed and without what only slows loading down.
///
/// # Errors
/// [`Error::Unfit`] for a compression that no kernel uses, [`Error::Program`].
pub fn read_module(path: &Path) -> Result<Vec<u8>, Error> {
    let bytes = decompressed(path)?;
    let temp = std::env::temp_dir();
    let file = tempfile::NamedTempFile::new_in(&temp).map_err(Error::file("write in", &temp))?;
    fs::write(file.path(), bytes).map_err(Error::file("write", file.path()))?;
    let sections = NEEDLESS_SECTIONS.iter().flat_map(|section| ["--remove-section", section]);
    Tool::new("objcopy").arg("--strip-debug").args(sections).arg(file.path()).run()?;
    let mut module = fs::read(file.path()).map_err(Error::file("read", file.path()))?;
    thunks::replace(&mut module).ok_or_else(|| {
        let what = format!("{} is no kernel module for x86-64", path.display());
        Error::unfit(what, "give --modules a folder as depmod knows it")
    })?;
    Ok(module)
}

fn decompressed(path: &Path) -> Result<Vec<u8>, Error> {
    let unpack = |program: &str| Tool::new(program).arg("-dcq").arg(path).output();
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => fs::read(path).map_err(Error::file("read", path)),
        Some("xz") => unpack("xz"),
        Some("zst") => unpack("zstd"),
        Some("gz") => unpack("gzip"),
        _ => Err(Error::unfit(
            format!("{} is no kernel module", path.display()),
            "give --modules a folder as depmod knows it",
        )),
    }
}

/// What `depmod` would write for the kernel's modules, which may be in a folder that is not ours
/// to write to, or where modules.dep was never made.
fn run_depmod(kernel: &Kernel) -> Result<String, Error> {
    let base = tempfile::tempdir().map_err(Error::file("write in", std::env::temp_dir()))?;
    let folder = base.path().join("lib/modules");
    fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
    let link = folder.join(&kernel.release);
    symlink(&kernel.modules, &link).map_err(Error::file("create", &link))?;
    let text = Tool::new("depmod")
        .args(["--dry-run", "--basedir"])
        .arg(base.path())
        .arg(&kernel.release)
        .output()?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[derive(Debug)]
struct Module {
    /// From the kernel's modules folder.
    path: PathBuf,
    dependencies: Vec<String>,
}

/// All modules of a kernel.
#[derive(Debug, Default)]
struct Index {
    modules: BTreeMap<String, Module>,
    aliases: BTreeMap<String, Vec<String>>,
    soft: BTreeMap<String, Vec<String>>,
}

impl Index {
    fn parse(text: &str) -> Self {
        let mut index = Self::default();
        for &(module, asked_for) in ASKED_FOR {
            index.soft.insert(module.to_owned(), vec![asked_for.to_owned()]);
        }
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["alias", alias, module] => {
                    index.aliases.entry(alias.to_owned()).or_default().push(module.to_owned());
                }
                ["softdep", module, ref rest @ ..] => {
                    let before = rest
                        .iter()
                        .skip_while(|&&word| word != "pre:")
                        .skip(1)
                        .take_while(|&&word| word != "post:")
                        .map(|&word| word.to_owned());
                    index.soft.entry(module.to_owned()).or_default().extend(before);
                }
                [first, ref rest @ ..] => {
                    let Some(path) = first.strip_suffix(':') else { continue };
                    let Some(name) = module_name(path) else { continue };
                    let dependencies = rest.iter().filter_map(|path| module_name(path)).collect();
                    index.modules.insert(name, Module { path: path.into(), dependencies });
                }
                [] => {}
            }
        }
        index
    }

    /// Names of the wanted modules that exist, and of what they depend on.
    fn chosen(&self) -> BTreeSet<String> {
        let mut order = Vec::new();
        for (name, module) in &self.modules {
            let by_folder = module
                .path
                .strip_prefix("kernel/fs")
                .ok()
                .and_then(|path| path.components().next())
                .is_some_and(|folder| FILESYSTEMS.iter().any(|name| folder.as_os_str() == *name));
            if by_folder || NAMES.contains(&name.as_str()) {
                self.visit(name, &mut order);
            }
        }
        order.into_iter().collect()
    }

    /// Appends `name` to `order`, after everything that has to be loaded before it.
    fn visit(&self, name: &str, order: &mut Vec<String>) {
        let Some(module) = self.modules.get(name) else { return };
        if order.iter().any(|known| known == name) {
            return;
        }
        // Hard dependencies cannot form a circle, soft ones could: their own are not followed
        // further once they are in the list, and a module is put there only when it is done.
        for dependency in &module.dependencies {
            self.visit(dependency, order);
        }
        for soft in self.soft.get(name).into_iter().flatten() {
            for provider in self.providers(soft) {
                if provider != name {
                    self.visit(&provider, order);
                }
            }
        }
        order.push(name.to_owned());
    }

    /// The modules behind a name or an alias.
    fn providers(&self, name: &str) -> Vec<String> {
        let module = name.replace('-', "_");
        if self.modules.contains_key(&module) {
            return vec![module];
        }
        self.aliases.get(name).cloned().unwrap_or_default()
    }

    fn list(&self, chosen: &BTreeSet<String>) -> String {
        let mut list = String::new();
        for name in chosen {
            let mut order = Vec::new();
            self.visit(name, &mut order);
            order.pop();
            list.push_str(&format!("{name}: {}\n", order.join(" ")));
        }
        for (alias, providers) in &self.aliases {
            if !ALIASES.iter().any(|prefix| alias.starts_with(prefix)) {
                continue;
            }
            let mut order = Vec::new();
            for name in providers.iter().filter(|name| chosen.contains(*name)) {
                self.visit(name, &mut order);
            }
            if !order.is_empty() {
                list.push_str(&format!("{alias}: {}\n", order.join(" ")));
            }
        }
        list
    }
}

/// `kernel/fs/nls/nls_iso8859-1.ko.xz` is `nls_iso8859_1`.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (name, _) = file.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPMOD: &str = "\
kernel/fs/ext4/ext4.ko.xz: kernel/lib/crc16.ko.xz kernel/fs/jbd2/jbd2.ko.xz kernel/fs/mbcache.ko.xz
kernel/fs/jbd2/jbd2.ko.xz: kernel/lib/crc16.ko.xz
kernel/fs/mbcache.ko.xz:
kernel/lib/crc16.ko.xz:
kernel/fs/nfs/nfs.ko.xz:
kernel/fs/isofs/isofs.ko.xz:
kernel/crypto/crc32c_generic.ko.xz:
kernel/arch/x86/crypto/crc32c-intel.ko.xz:
kernel/drivers/net/dummy.ko.xz:
# Aliases extracted from modules themselves.
alias fs-ext4 ext4
alias fs-iso9660 isofs
alias fs-nfs nfs
alias pci:v1 dummy
alias crypto-crc32c crc32c_intel
alias crypto-crc32c crc32c_generic
softdep ext4 pre: crypto-crc32c missing
softdep crc32c_generic pre: crc32c_intel post: dummy
# Device nodes to trigger on-demand module loading.
loop loop-control c10:237
";

    #[test]
    fn dependencies_stand_in_load_order() {
        let index = Index::parse(DEPMOD);
        let list = index.list(&index.chosen());
        let lines: Vec<&str> = list.lines().collect();
        assert_eq!(
            lines,
            [
                "crc16: ",
                "crc32c_generic: crc32c_intel",
                "crc32c_intel: ",
                "ext4: crc16 jbd2 mbcache crc32c_intel crc32c_generic",
                "isofs: ",
                "jbd2: crc16",
                "mbcache: ",
                "crypto-crc32c: crc32c_intel crc32c_generic",
                "fs-ext4: crc16 jbd2 mbcache crc32c_intel crc32c_generic ext4",
                "fs-iso9660: isofs",
            ]
        );
    }

    #[test]
    fn network_filesystems_and_other_drivers_stay_out() {
        let chosen = Index::parse(DEPMOD).chosen();
        assert!(!chosen.contains("nfs") && !chosen.contains("dummy"));
    }

    #[test]
    fn names_are_spelled_as_the_kernel_spells_them() {
        for (path, name) in [
            ("kernel/fs/nls/nls_iso8859-1.ko.xz", Some("nls_iso8859_1")),
            ("kernel/drivers/md/dm-mod.ko", Some("dm_mod")),
            ("loop-control", None),
        ] {
            assert_eq!(module_name(path).as_deref(), name);
        }
    }
}
