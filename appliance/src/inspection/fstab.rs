//! Which filesystems `/etc/fstab` puts where; fstab(5), crypttab(5).

use guestmnt_protocol::path::GuestPath;
use guestmnt_protocol::system::MountPoint;
use guestmnt_protocol::volume::{Mountable, VolumeName};

use super::named::Volumes;
use super::{MAX_ITEMS, words};

/// A line of fstab.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    spec: String,
    at: GuestPath,
    options: Vec<String>,
}

/// What fstab says of a system on `root`: where the other filesystems belong, and in words which of
/// them are not there.
pub fn mount_points(
    fstab: &str,
    crypttab: &str,
    volumes: &Volumes,
    root: &VolumeName,
) -> (Vec<MountPoint>, Vec<String>) {
    let (mut mounts, mut missing) = (Vec::new(), Vec::new());
    for line in fstab.lines().filter_map(Line::parse).take(MAX_ITEMS) {
        match line.volume(crypttab, volumes, root) {
            Some(volume) => mounts.push(line.mount_point(volume)),
            None if line.may_be_missing() => {}
            None => missing.push(words(&format!("{}: {} is not there", line.at, line.spec))),
        }
    }
    (mounts, missing)
}

impl Line {
    /// The line `text`; `None` where it says nothing of a disk's filesystem, or of that of `/`.
    fn parse(text: &str) -> Option<Self> {
        if text.trim_start().starts_with('#') {
            return None;
        }
        let mut fields = text.split_whitespace().map(unescaped);
        let (spec, at) = (fields.next()?, fields.next()?);
        let kind = fields.next()?;
        let options = fields.next().unwrap_or_default();
        let options: Vec<String> = options.split(',').map(str::to_owned).collect();
        let is_device = spec.starts_with("/dev/") || spec.contains('=');
        let is_bound = options.iter().any(|option| option == "bind" || option == "rbind");
        let at = at.strip_prefix('/').and_then(|at| GuestPath::parse(at.as_bytes()).ok())?;
        (is_device && !is_bound && kind != "swap" && !at.is_root()).then_some(Self {
            spec,
            at,
            options,
        })
    }

    fn volume(&self, crypttab: &str, volumes: &Volumes, root: &VolumeName) -> Option<VolumeName> {
        let find = |spec: &str| volumes.find(spec, root).cloned();
        find(&self.spec).or_else(|| {
            // What crypttab opens is known here by the name of the encrypted volume.
            let name = self.spec.strip_prefix("/dev/mapper/")?;
            let lines = crypttab.lines().map(str::split_whitespace);
            let mut specs =
                lines.filter_map(|mut line| (line.next()? == name).then(|| line.next()).flatten());
            find(specs.next()?)
        })
    }

    /// Whether its owner does without it at times.
    fn may_be_missing(&self) -> bool {
        let drives = ["/dev/sr", "/dev/cdrom", "/dev/fd"];
        drives.iter().any(|drive| self.spec.starts_with(drive))
            || self.options.iter().any(|option| option == "noauto")
    }

    fn mount_point(self, volume: VolumeName) -> MountPoint {
        let value = |key: &str| {
            let found = |option: &String| Some(option.strip_prefix(key)?.to_owned());
            self.options.iter().find_map(found)
        };
        let subvolume = value("subvol=").and_then(|path| GuestPath::parse(path.as_bytes()).ok());
        let (device, options) = match subvolume.filter(|path| !path.is_root()) {
            Some(path) => (Mountable::Subvolume { volume, path }, String::new()),
            None => {
                let number = value("subvolid=").and_then(|number| number.parse::<u64>().ok());
                let options = number.map(|number| format!("subvolid={number}"));
                (volume.into(), options.unwrap_or_default())
            }
        };
        MountPoint { device, at: self.at, options }
    }
}

/// A field with its octal escapes, `\040` for a space, undone.
fn unescaped(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut rest = field;
    while let Some((before, behind)) = rest.split_once('\\') {
        text.push_str(before);
        let byte = behind.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match byte.filter(u8::is_ascii) {
            Some(byte) => {
                text.push(char::from(byte));
                rest = &behind[3..];
            }
            None => {
                text.push('\\');
                rest = behind;
            }
        }
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::super::named::tests::volumes;
    use super::*;

    fn mount_points_of(fstab: &str, crypttab: &str) -> (Vec<String>, Vec<String>) {
        let root = "/dev/sda1".parse().unwrap();
        let (mounts, missing) = mount_points(fstab, crypttab, &volumes(), &root);
        let shown = |mount: MountPoint| {
            format!("{} {} {}", mount.at, mount.device, mount.options).trim_end().to_owned()
        };
        (mounts.into_iter().map(shown).collect(), missing)
    }

    #[test]
    fn filesystems_are_put_where_fstab_says() {
        let fstab = "\
# a comment
#UUID=ffff /was ext4 defaults 0 2
  #UUID=ffff /was/too ext4 defaults 0 2
UUID=aaaa-1 / ext4 errors=remount-ro 0 1
UUID=aaaa-2\t/boot/efi vfat umask=0077 0 1
/dev/mapper/vg-home /ho\\040me\\x ext4 defaults
UUID=aaaa-2 /var btrfs subvol=/@var,compress=zstd 0 0
UUID=aaaa-2 /srv btrfs subvolid=257 0 0
UUID=cccc none swap sw 0 0
tmpfs /tmp tmpfs defaults 0 0
/srv/x /mnt none bind 0 0
/dev/sr0 /media/cdrom udf,iso9660 user,noauto 0 0
server:/export /nfs nfs defaults 0 0
UUID=eeee /data xfs defaults 0 2
UUID=eeee /more xfs noauto 0 2
LABEL=x /up/../../etc ext4 defaults
";
        let (mounts, missing) = mount_points_of(fstab, "");
        let expected = [
            "/boot/efi /dev/sda2",
            "/ho me\\x /dev/vg/home",
            "/var btrfsvol:/dev/sda2/@var",
            "/srv /dev/sda2 subvolid=257",
        ];
        assert_eq!(mounts, expected);
        assert_eq!(missing, ["/data: UUID=eeee is not there"]);
    }

    #[test]
    fn encrypted_volumes_are_found_by_crypttab() {
        let fstab = "/dev/mapper/secret /home ext4 defaults\n/dev/mapper/other /x ext4 defaults";
        let (mounts, missing) = mount_points_of(fstab, "# c\nsecret UUID=dddd none luks\n");
        assert_eq!(mounts, ["/home /dev/sdc1"]);
        assert_eq!(missing, ["/x: /dev/mapper/other is not there"]);
    }
}
