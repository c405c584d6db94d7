//! A throw-away boot of the appliance's kernel in which a script assembles disks with the
//! distribution's own programs. What takes root, device-mapper and loop devices elsewhere takes
//! nothing here but QEMU.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::appliance::{INITRAMFS, KERNEL};
use crate::initramfs::Initramfs;
use crate::places::Places;
use crate::process::Tool;
use crate::programs::Programs;

/// What the script prints last when all went well.
const DONE: &str = "workshop: done";

/// Programs that the appliance lacks.
const EXTRAS: [&str; 3] = ["busybox", "mkfs.btrfs", "btrfstune"];

/// Before the script: what it needs to run, and the names of the programs as functions.
const PROLOGUE: &str = r#"#!/bin/busybox sh
fail() { echo "workshop: failed: $1"; reboot -f; }
/bin/busybox --install -s /bin
export PATH=/bin DM_DISABLE_UDEV=1 MDADM_NO_UDEV=1
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
load() {
    for name in $(sed -n "s/^$1: //p" /modules/list) $1; do
        if [ -f /modules/$name.ko ]; then insmod /modules/$name.ko 2>/dev/null; fi
    done
}
for name in virtio_blk loop squashfs ext4 btrfs dm_mod dm_thin_pool dm_crypt \
    raid1 raid456 crypto-aes crypto-xts crypto-sha256 crypto-crc32c crypto-xxhash64 crypto-sha1 \
    crypto-ecb crypto-cbc crypto-essiv; do
    load $name
done
losetup /dev/loop0 /programs.squashfs 2>/dev/null || losetup -f /programs.squashfs
mount -t squashfs -o ro /dev/loop0 /programs || fail programs
mkdir -p /run/lock/lvm /run/lvm /run/mdadm /run/cryptsetup /mnt /source
linked() { name=$1; shift; /programs/lib/ld-linux-x86-64.so.2 --library-path /programs/lib $name "$@"; }
lvm() {
    command=$1; shift
    linked /programs/bin/lvm $command --config 'activation{udev_sync=0 udev_rules=0 monitoring=0}
        devices{use_devicesfile=0} backup{backup=0 archive=0} global{thin_check_executable=""}' "$@"
}
for name in mdadm cryptsetup btrfs; do
    eval "$name() { linked /programs/bin/$name \"\$@\"; }"
done
mkfs_btrfs() { linked /bin/mkfs.btrfs "$@"; }
"#;

/// Runs `script` with `disks` as `/dev/vda`, `/dev/vdb` and so on. The shell's functions `lvm`,
/// `mdadm`, `cryptsetup`, `btrfs` and `mkfs_btrfs` are the programs; a step of the script that may
/// not fail ends in `|| fail STEP`.
///
/// # Errors
/// [`Error::Unfit`] with what was printed, where the script did not come to its end.
pub fn run(script: &str, disks: &[PathBuf], places: &Places) -> Result<(), Error> {
    let folder = tempfile::tempdir().map_err(Error::file("write in", std::env::temp_dir()))?;
    let initramfs = folder.path().join("initramfs");
    write_initramfs(&initramfs, script, places)?;
    let mut qemu = Tool::new("timeout")
        .args(["300", "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-m", "1024"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-serial", "stdio", "-append", "console=ttyS0 quiet panic=-1 rdinit=/workshop"])
        .arg("-kernel")
        .arg(places.appliance().join(KERNEL))
        .arg("-initrd")
        .arg(&initramfs);
    for disk in disks {
        let drive = format!("if=virtio,format=raw,cache=unsafe,file={}", disk.display());
        qemu = qemu.args(["-drive", &drive]);
    }
    let printed = qemu.output()?;
    let printed = String::from_utf8_lossy(&printed);
    if printed.contains(DONE) {
        return Ok(());
    }
    Err(Error::unfit(
        format!("the disks could not be made:\n{printed}"),
        "the script's last step tells",
    ))
}

/// The appliance's archive, and behind it one with the script and what that needs: the kernel
/// unpacks both into the same tree.
fn write_initramfs(path: &Path, script: &str, places: &Places) -> Result<(), Error> {
    let programs = Programs::present(places)
        .ok_or_else(|| Error::unfit("the packages are missing", "cargo xtask build-appliance"))?;
    let appliance = places.appliance().join(INITRAMFS);
    fs::copy(&appliance, path).map_err(Error::file("copy", &appliance))?;
    let file = File::options().append(true).open(path).map_err(Error::file("open", path))?;
    let mut archive = Initramfs::new(BufWriter::new(file)).map_err(Error::file("write", path))?;
    let script = format!("{PROLOGUE}{script}\necho '{DONE}'\nreboot -f\n");
    archive.folder("bin").map_err(Error::file("write", path))?;
    archive.file("workshop", 0o755, script.as_bytes()).map_err(Error::file("write", path))?;
    for name in EXTRAS {
        let program = programs.find(name)?;
        let bytes = fs::read(&program).map_err(Error::file("read", &program))?;
        let name = format!("bin/{name}");
        archive.file(&name, 0o755, &bytes).map_err(Error::file("write", path))?;
    }
    archive.finish().map(drop).map_err(Error::file("write", path))
}
