//! Two disks with a Linux each, as its installer lays it out: one on subvolumes of Btrfs, one on LVM in
//! LUKS, with one more encrypted volume that its `crypttab` names. Made in the
//! [`workshop`](super::workshop).

use std::path::{Path, PathBuf};

use super::assembled::PASSPHRASE;
use super::content::Tree;
use super::filesystems::Kind;
use super::pair::Pair;
use super::partitions::gpt;
use super::specimens::Specimens;
use super::{mkfs, sparse, workshop};
use crate::Error;
use crate::places::Places;
use crate::process::Tool;

/// The disks.
pub const PAIR: Pair =
    Pair { disks: ["linux-btrfs.img", "linux-luks.img"], what: "disks of a Linux" };

/// UUIDs that fstab and crypttab name.
const BOOT: &str = "bbbbbbbb-0000-4000-8000-000000000001";
const BTRFS: &str = "bbbbbbbb-0000-4000-8000-000000000002";
const LUKS: &str = "bbbbbbbb-0000-4000-8000-000000000003";
const DATA: &str = "bbbbbbbb-0000-4000-8000-000000000004";

/// `vda` and `vdb` hold what goes into the roots and homes, `vdc` and `vdd` are the disks.
const SCRIPT: &str = r#"
mkdir -p /home
mount -t ext4 -o ro /dev/vda /source || fail source
mount -t ext4 -o ro /dev/vdb /home || fail home
printf %s 'PASSPHRASE' > /key

mkfs_btrfs -q -U BTRFS /dev/vdc2 || fail mkfs.btrfs
mount -t btrfs /dev/vdc2 /mnt || fail mount-btrfs
for path in root home root/opt; do btrfs subvolume create /mnt/$path || fail "subvolume $path"; done
cp -a /source/. /mnt/root/ || fail fill
cp -a /home/. /mnt/home/ || fail fill-home
mv /mnt/root/etc/fstab.btrfs /mnt/root/etc/fstab || fail fstab
rm /mnt/root/etc/crypttab /mnt/root/etc/fstab.luks || fail crypttab
echo opt > /mnt/root/opt/name
umount /mnt || fail umount-btrfs

format() {
    cryptsetup luksFormat -q --type luks2 --uuid $2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 \
        --key-file /key $1 || fail "format $1"
    cryptsetup open --key-file /key $1 $3 || fail "open $1"
}
format /dev/vdd2 LUKS system
lvm pvcreate /dev/mapper/system || fail pvcreate
lvm vgcreate sys /dev/mapper/system || fail vgcreate
for volume in root home; do
    lvm lvcreate -an -Zn -L 36M -n $volume sys || fail "lvcreate $volume"
    lvm lvchange -ay sys/$volume || fail "lvchange $volume"
done
dd if=/dev/vda of=/dev/mapper/sys-root bs=1M 2>/dev/null || fail copy-root
dd if=/dev/vdb of=/dev/mapper/sys-home bs=1M 2>/dev/null || fail copy-home
mount -t ext4 /dev/mapper/sys-root /mnt || fail mount-root
mv /mnt/etc/fstab.luks /mnt/etc/fstab || fail fstab-luks
umount /mnt || fail umount-root
lvm vgchange -an sys || fail vgchange
cryptsetup close system
format /dev/vdd3 DATA data
dd if=/dev/vdb of=/dev/mapper/data bs=1M 2>/dev/null || fail copy-data
cryptsetup close data
sync
"#;

/// Makes the disks in the folder of `specimens` if they are missing, or notes why it cannot.
///
/// # Errors
/// As [`Pair::ensure`].
pub fn ensure(specimens: &Specimens, places: &Places) -> Result<(), Error> {
    PAIR.ensure(specimens, |staging| make(staging, places))
}

fn make(staging: &Path, places: &Places) -> Result<(), Error> {
    let in_staging = |name: &str| staging.join(name);
    let ext4 = |name: &str, files: &[(&str, String)], folders: &[&str]| {
        let (folder, image) = (in_staging(&format!("{name}.tree")), in_staging(name));
        let tree = Tree::new(&folder)?;
        folders.iter().try_for_each(|folder| tree.folder(folder))?;
        files.iter().try_for_each(|(path, text)| tree.text(path, text))?;
        tree.finish()?;
        mkfs::make(Kind::Ext4, &folder, &image)?;
        Ok::<PathBuf, Error>(image)
    };
    let fstab = |lines: &[&str]| lines.join("\n") + "\n";
    let boot_line = format!("UUID={BOOT} /boot ext4 defaults 1 2");
    let subvolume =
        |path: &str, at: &str| format!("UUID={BTRFS} {at} btrfs subvol={path},compress=zstd:1 0 0");
    let (root, home, opt) =
        (subvolume("root", "/"), subvolume("home", "/home"), subvolume("/root/opt", "/opt"));
    let on_btrfs = fstab(&[&root, &boot_line, &home, &opt]);
    let on_luks = fstab(&[
        "/dev/mapper/sys-root / ext4 errors=remount-ro 0 1",
        &boot_line,
        "/dev/mapper/sys-home /home ext4 defaults 0 2",
        "/dev/mapper/data /data ext4 defaults 0 2",
        "/dev/mapper/sys-swap none swap sw 0 0",
    ]);
    let crypttab =
        fstab(&[&format!("sda2_crypt UUID={LUKS} none luks"), &format!("data UUID={DATA} none")]);
    let root = ext4(
        "root",
        &[
            ("etc/os-release", "PRETTY_NAME=\"Some Linux 2\"\n".to_owned()),
            ("etc/hostname", "laptop\n".to_owned()),
            ("etc/passwd", "ann:x:1000:1000::/home/ann:/bin/sh\n".to_owned()),
            ("etc/fstab.btrfs", on_btrfs),
            ("etc/fstab.luks", on_luks),
            ("etc/crypttab", crypttab),
        ],
        &["etc", "boot", "home", "data"],
    )?;
    let home = ext4("home", &[("ann/name", "ann\n".to_owned())], &["ann"])?;
    let boot = ext4("boot", &[("vmlinuz", "kernel\n".to_owned())], &[])?;
    Tool::new("tune2fs").args(["-U", BOOT]).arg(&boot).run()?;

    let blank = |name: &str, mebibytes: u64| {
        let path = in_staging(name);
        sparse::create(&path, mebibytes << 20)?;
        Ok::<PathBuf, Error>(path)
    };
    let disks = PAIR.disks.map(in_staging);
    gpt(&disks[0], &[&boot, &blank("btrfs", 160)?])?;
    gpt(&disks[1], &[&boot, &blank("system", 100)?, &blank("data", 52)?])?;
    let script = [("PASSPHRASE", PASSPHRASE), ("BTRFS", BTRFS), ("LUKS", LUKS), ("DATA", DATA)]
        .iter()
        .fold(SCRIPT.to_owned(), |script, (name, value)| script.replace(name, value));
    let [btrfs, luks] = disks;
    workshop::run(&script, &[root, home, btrfs, luks], places)
}
