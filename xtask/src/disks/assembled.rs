//! Disks whose filesystems only appear once something is assembled: LVM, software RAID, Btrfs on
//! several devices, LUKS. Made in the [`workshop`](super::workshop), all in one boot.
//!
//! In each is the content of the ext4 specimen: block by block, or file by file in Btrfs.

use std::fs;
use std::path::{Path, PathBuf};

use super::filesystems::Kind;
use super::partitions::gpt;
use super::specimens::{Specimen, Specimens, keep_file};
use super::{sparse, workshop};
use crate::Error;
use crate::places::Places;

/// The passphrase of the encrypted disks.
pub const PASSPHRASE: &str = "correct horse: battery/staple";

/// A disk that is made.
struct Recipe {
    name: &'static str,
    mebibytes: u64,
    /// Whether all of it is in one partition.
    partitioned: bool,
}

const fn disk(name: &'static str, mebibytes: u64) -> Recipe {
    Recipe { name, mebibytes, partitioned: false }
}

/// Disks that one boot makes.
struct Set {
    /// In the order in which the script sees them from `/dev/vdb` on; `vda` is the ext4 specimen.
    disks: &'static [Recipe],
    script: &'static str,
}

/// All of them.
const SETS: [Set; 4] = [
    Set { disks: &DISKS, script: SCRIPT },
    Set { disks: &REDUNDANT, script: REDUNDANT_SCRIPT },
    Set { disks: &NAMESAKES, script: NAMESAKES_SCRIPT },
    Set { disks: &SPROUT, script: SPROUT_SCRIPT },
];

const DISKS: [Recipe; 9] = [
    Recipe { name: "lvm-a.img", mebibytes: 128, partitioned: true },
    disk("lvm-b.img", 128),
    disk("raid-a.img", 48),
    disk("raid-b.img", 48),
    disk("btrfs-a.img", 160),
    disk("btrfs-b.img", 160),
    disk("luks1.img", 64),
    disk("luks2.img", 96),
    disk("raid-lvm.img", 64),
];

/// Disks of which each can be missing.
const REDUNDANT: [Recipe; 5] = [
    disk("raid5-a.img", 24),
    disk("raid5-b.img", 24),
    disk("raid5-c.img", 24),
    disk("btrfs-mirror-a.img", 160),
    disk("btrfs-mirror-b.img", 160),
];

/// Disks with volume groups of one name.
const NAMESAKES: [Recipe; 2] = [disk("namesake-a.img", 48), disk("namesake-b.img", 48)];

/// A Btrfs that is a seed, and one that grew out of it.
const SPROUT: [Recipe; 2] = [disk("seed.img", 160), disk("sprout.img", 160)];

const SCRIPT: &str = r#"
copy() { dd if=/dev/vda of=$1 bs=1M 2>/dev/null || fail "copy $1"; }
mount -t ext4 -o ro /dev/vda /source || fail source

# One volume striped over both disks, one in a thin pool.
lvm pvcreate /dev/vdb1 /dev/vdc || fail pvcreate
lvm vgcreate my-vg /dev/vdb1 /dev/vdc || fail vgcreate
lvm lvcreate -an -Zn -i2 -L 40M -n root my-vg || fail lvcreate
lvm lvchange -ay my-vg/root || fail lvchange
copy /dev/mapper/my--vg-root
lvm lvcreate -L 64M -T my-vg/pool -V 100M -n thin || fail thin
copy /dev/mapper/my--vg-thin
lvm vgchange -an my-vg || fail vgchange

# A mirror that another host made.
mdadm --create /dev/md0 --run --homehost=elsewhere --name=0 --metadata=1.2 --level=1 \
    --raid-devices=2 --assume-clean /dev/vdd /dev/vde || fail mirror
copy /dev/md0
mdadm --stop /dev/md0 || fail stop

# A volume group on an array that has one member and a name.
mdadm --create /dev/md5 --run --homehost=elsewhere --name=data --metadata=1.2 --level=1 --force \
    --raid-devices=1 /dev/vdj || fail array
lvm pvcreate /dev/md5 || fail pvcreate-array
lvm vgcreate array /dev/md5 || fail vgcreate-array
lvm lvcreate -an -Zn -L 40M -n root array || fail lvcreate-array
lvm lvchange -ay array/root || fail lvchange-array
copy /dev/mapper/array-root
lvm vgchange -an array || fail vgchange-array
mdadm --stop /dev/md5 || fail stop-array

# Two subvolumes on two devices.
mkfs_btrfs -q -L pair -d raid0 -m raid1 /dev/vdf /dev/vdg || fail mkfs.btrfs
btrfs device scan /dev/vdf /dev/vdg
mount -t btrfs -o device=/dev/vdf,device=/dev/vdg /dev/vdf /mnt || fail mount-btrfs
btrfs subvolume create /mnt/@ || fail subvolume
btrfs subvolume create /mnt/@home || fail subvolume
echo root > /mnt/@/name
(cd /source && tar cf - .) | (cd /mnt/@home && tar xf -) || fail fill
umount /mnt || fail umount-btrfs

# Encrypted: a filesystem, and a volume group.
printf %s 'PASSPHRASE' > /key
cryptsetup luksFormat -q --type luks1 --pbkdf-force-iterations 1000 --key-file /key /dev/vdh \
    || fail luks1
cryptsetup open --key-file /key /dev/vdh one || fail open-luks1
copy /dev/mapper/one
cryptsetup close one
cryptsetup luksFormat -q --type luks2 --pbkdf argon2id --pbkdf-force-iterations 4 \
    --pbkdf-memory 32768 --key-file /key /dev/vdi || fail luks2
cryptsetup open --key-file /key /dev/vdi two || fail open-luks2
lvm pvcreate /dev/mapper/two || fail pvcreate-luks
lvm vgcreate secret /dev/mapper/two || fail vgcreate-luks
lvm lvcreate -an -Zn -L 40M -n root secret || fail lvcreate-luks
lvm lvchange -ay secret/root || fail lvchange-luks
copy /dev/mapper/secret-root
lvm vgchange -an secret
cryptsetup close two
sync
"#;

const REDUNDANT_SCRIPT: &str = r#"
mount -t ext4 -o ro /dev/vda /source || fail source
mdadm --create /dev/md3 --run --homehost=elsewhere --name=3 --metadata=1.2 --level=5 --chunk=64 \
    --raid-devices=3 --force /dev/vdb /dev/vdc /dev/vdd || fail raid5
mdadm --wait /dev/md3
dd if=/dev/vda of=/dev/md3 bs=1M 2>/dev/null || fail copy
mdadm --stop /dev/md3 || fail stop

mkfs_btrfs -q -d raid1 -m raid1 /dev/vde /dev/vdf || fail mkfs.btrfs
mount -t btrfs -o device=/dev/vde,device=/dev/vdf /dev/vde /mnt || fail mount-btrfs
(cd /source && tar cf - .) | (cd /mnt && tar xf -) || fail fill
umount /mnt || fail umount-btrfs
sync
"#;

const NAMESAKES_SCRIPT: &str = r#"
for disk in /dev/vdb /dev/vdc; do
    lvm pvcreate --devices $disk $disk || fail pvcreate
    lvm vgcreate --devices $disk system $disk || fail vgcreate
    lvm lvcreate --devices $disk -an -Zn -L 40M -n root system || fail lvcreate
    lvm lvchange --devices $disk -ay system/root || fail lvchange
    dd if=/dev/vda of=/dev/mapper/system-root bs=1M 2>/dev/null || fail copy
    lvm vgchange --devices $disk -an system || fail vgchange
done
sync
"#;

const SPROUT_SCRIPT: &str = r#"
mount -t ext4 -o ro /dev/vda /source || fail source
mkfs_btrfs -q /dev/vdb || fail mkfs.btrfs
mount -t btrfs /dev/vdb /mnt || fail mount-seed
mkdir /mnt/seed
(cd /source && tar cf - .) | (cd /mnt/seed && tar xf -) || fail fill
umount /mnt || fail umount-seed
linked /bin/btrfstune -S 1 /dev/vdb || fail seed
mount -t btrfs -o ro /dev/vdb /mnt || fail mount-read-only
btrfs device add -f /dev/vdc /mnt || fail add
mount -o remount,rw /mnt || fail remount
echo sprout > /mnt/sprout
umount /mnt || fail umount-sprout
sync
"#;

/// Makes what is missing of the disks in the folder of `specimens`, or notes why it cannot.
///
/// # Errors
/// [`Error::File`]. That they cannot be made is none.
pub fn ensure(specimens: &Specimens, places: &Places) -> Result<(), Error> {
    let missing = missing_in(specimens);
    match make(specimens, places) {
        Ok(()) => Ok(()),
        Err(error) => fs::write(&missing, format!("assembled disks cannot be made here: {error}"))
            .map_err(Error::file("write", &missing)),
    }
}

/// Whether all are there.
#[must_use]
pub fn are_there(specimens: &Specimens) -> bool {
    SETS.iter().all(|set| set.is_there(specimens))
}

/// The image `name`, or why there is none.
///
/// # Errors
/// The reason.
pub fn image(specimens: &Specimens, name: &str) -> Result<PathBuf, String> {
    let path = specimens.folder().join(name);
    if path.exists() {
        return Ok(path);
    }
    let reason = fs::read_to_string(missing_in(specimens));
    Err(reason.unwrap_or_else(|_| format!("{name} was not made")))
}

fn missing_in(specimens: &Specimens) -> PathBuf {
    specimens.folder().join("assembled.missing")
}

fn make(specimens: &Specimens, places: &Places) -> Result<(), Error> {
    let missing = SETS.iter().filter(|set| !set.is_there(specimens));
    missing.into_iter().try_for_each(|set| set.make(specimens, places))
}

impl Set {
    fn is_there(&self, specimens: &Specimens) -> bool {
        self.disks.iter().all(|recipe| specimens.folder().join(recipe.name).exists())
    }

    fn make(&self, specimens: &Specimens, places: &Places) -> Result<(), Error> {
        let Specimen::Image { path: source, .. } = specimens.of(Kind::Ext4)? else {
            return Err(Error::unfit("there is no ext4 image", "cargo xtask setup"));
        };
        let staging = tempfile::tempdir_in(specimens.folder())
            .map_err(Error::file("write in", specimens.folder()))?;
        // The script mounts it, so it is a copy.
        let copy = staging.path().join("source");
        fs::copy(&source, &copy).map_err(Error::file("copy", &source))?;
        let mut disks = vec![copy];
        for recipe in self.disks {
            disks.push(recipe.blank(staging.path())?);
        }
        workshop::run(&self.script.replace("PASSPHRASE", PASSPHRASE), &disks, places)?;
        for (recipe, disk) in self.disks.iter().zip(&disks[1..]) {
            keep_file(disk, &specimens.folder().join(recipe.name))?;
        }
        Ok(())
    }
}

impl Recipe {
    /// The empty disk, in `folder`.
    fn blank(&self, folder: &Path) -> Result<PathBuf, Error> {
        let path = folder.join(self.name);
        if self.partitioned {
            let partition = folder.join("partition");
            sparse::create(&partition, self.mebibytes << 20)?;
            gpt(&path, &[&partition])?;
        } else {
            sparse::create(&path, self.mebibytes << 20)?;
        }
        Ok(path)
    }
}
