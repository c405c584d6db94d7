//! Linux: os-release(5), hostname(5), passwd(5), and fstab for what belongs where.

use guestmnt_protocol::system::{Family, System, User};
use guestmnt_protocol::volume::Mountable;

use super::fstab::mount_points;
use super::named::Volumes;
use super::{MAX_ITEMS, Mounted, words};

/// The Linux on `mounted`, if there is one.
pub fn system_on(mounted: &Mounted, root: &Mountable, volumes: &Volumes) -> Option<System> {
    let release = mounted.text("etc/os-release").or_else(|| mounted.text("usr/lib/os-release"));
    let fstab = mounted.text("etc/fstab");
    let passwd = mounted.text("etc/passwd");
    if release.is_none() && (fstab.is_none() || passwd.is_none()) {
        return None;
    }
    let release = release.unwrap_or_default();
    let crypttab = mounted.text("etc/crypttab").unwrap_or_default();
    let fstab = fstab.unwrap_or_default();
    let (mounts, missing) = mount_points(&fstab, &crypttab, volumes, root.volume());
    let product = value(&release, "PRETTY_NAME").or_else(|| value(&release, "NAME"));
    Some(System {
        root: root.clone(),
        family: Family::Linux,
        product: product.unwrap_or_default(),
        version: value(&release, "VERSION_ID").unwrap_or_default(),
        host_name: words(&mounted.text("etc/hostname").unwrap_or_default()),
        users: users(&passwd.unwrap_or_default()),
        mounts,
        drives: Vec::new(),
        missing,
    })
}

/// The value of a variable in a text of assignments.
fn value(text: &str, key: &str) -> Option<String> {
    let mut values =
        text.lines().filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
    let value = values.next()?.trim();
    let quoted = |quote| value.strip_prefix(quote).and_then(|value| value.strip_suffix(quote));
    Some(words(quoted('"').or_else(|| quoted('\'')).unwrap_or(value)))
}

/// Root, and people: their numbers begin at 1000 by everybody's convention.
fn users(passwd: &str) -> Vec<User> {
    let user = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let number: u32 = fields.nth(1)?.parse().ok()?;
        let home = fields.nth(2)?;
        let is_person = number == 0 || (1000..60_000).contains(&number);
        is_person.then(|| User { name: words(name), home: words(home) })
    };
    passwd.lines().filter_map(user).take(MAX_ITEMS).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::super::named::tests::volumes;
    use super::*;

    #[test]
    fn a_linux_says_what_it_is_and_links_lead_inside() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for name in ["etc", "usr/lib"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        // As on the disk, where `/` is the image's.
        symlink("/usr/lib/os-release", root.join("etc/os-release")).unwrap();
        let release = "NAME=\"Debian GNU/Linux\"\nVERSION_ID='12'\nPRETTY_NAME=\"Debian 12\"\n";
        fs::write(root.join("usr/lib/os-release"), release).unwrap();
        fs::write(root.join("etc/hostname"), "pc\n").unwrap();
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbin:x:2:2::/bin:/x\nann:x:1000:1000:A:/home/ann:/bin/sh\nbroken";
        fs::write(root.join("etc/passwd"), passwd).unwrap();
        let found =
            system_on(&Mounted::folder(root).unwrap(), &"/dev/sda1".parse().unwrap(), &volumes());
        let user = |name: &str, home: &str| User { name: name.to_owned(), home: home.to_owned() };
        let expected = System {
            root: "/dev/sda1".parse().unwrap(),
            family: Family::Linux,
            product: "Debian 12".to_owned(),
            version: "12".to_owned(),
            host_name: "pc".to_owned(),
            users: vec![user("root", "/root"), user("ann", "/home/ann")],
            mounts: Vec::new(),
            drives: Vec::new(),
            missing: Vec::new(),
        };
        assert_eq!(found, Some(expected));
    }

    #[test]
    fn files_of_a_system_alone_make_none() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("etc")).unwrap();
        fs::write(folder.path().join("etc/passwd"), "").unwrap();
        // A FIFO in the place of a file is nothing to wait for.
        nix::unistd::mkfifo(&folder.path().join("etc/fstab"), nix::sys::stat::Mode::S_IRUSR)
            .unwrap();
        let mounted = Mounted::folder(folder.path()).unwrap();
        assert_eq!(system_on(&mounted, &"/dev/sda1".parse().unwrap(), &volumes()), None);
    }
}
