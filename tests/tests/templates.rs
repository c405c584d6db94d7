//! Templates: made once, restored by every mount, remade when they are of no use, private.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use guestmnt_tests::program::{Workplace, disks, given, text};
use xtask::disks::SYSTEM;

/// What is said when a template is made.
const MADE: &str = "preparing the VM for quick starts";

/// What is said when one cannot be restored.
const REMOVED: &str = "the template does not work; starting without";

fn folder(place: &Workplace) -> PathBuf {
    place.path().join(".cache/guestmnt/templates")
}

/// The one template of a workplace.
fn template(place: &Workplace) -> PathBuf {
    let entries = fs::read_dir(folder(place)).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// Mounts the system disk with `options` besides, looks at it, unmounts it; gives what was said.
fn mount_once(place: &Workplace, options: &[&str]) -> String {
    let mnt = place.path().join("mnt");
    if !mnt.exists() {
        let _ = place.folder("mnt");
    }
    let disk = disks().path(SYSTEM);
    let arguments = [options, &["-v", "-a", text(&disk), "-m", "/dev/sda1", text(&mnt)]].concat();
    let finished = place.run("guestmnt", &arguments);
    assert_eq!(finished.status, Some(0), "{}", finished.stderr);
    assert!(mnt.join("Windows").is_dir());
    place.unmount(&mnt);
    finished.stderr
}

#[test]
fn the_first_mount_makes_a_template_and_the_next_restores_it() {
    let place = Workplace::with_own_cache();
    assert!(mount_once(&place, &[]).contains(MADE));
    let made = template(&place);
    let before = fs::metadata(made.join("ram")).unwrap();
    let said = mount_once(&place, &[]);
    assert!(!said.contains(MADE) && said.contains("-incoming"), "{said}");
    let after = fs::metadata(made.join("ram")).unwrap();
    assert_eq!((before.mtime_nsec(), before.ino()), (after.mtime_nsec(), after.ino()));
    for path in [folder(&place), made] {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0, "{path:?}");
    }
    let said = mount_once(&place, &["--no-template"]);
    assert!(!said.contains("-incoming"), "{said}");
    place.assert_clean(&["mnt"]);
}

#[test]
fn twenty_first_mounts_at_once_make_one_template() {
    let place = Workplace::with_own_cache();
    let disk = disks().path(SYSTEM);
    let running: Vec<_> = (0..20)
        .map(|n| {
            let mnt = place.folder(&format!("mnt{n}"));
            let mut command =
                place.command("guestmnt", &["-a", text(&disk), "-m", "/dev/sda1", text(&mnt)]);
            let stderr = fs::File::create(place.path().join(format!("said{n}"))).unwrap();
            (n, mnt, command.stderr(stderr).spawn().unwrap())
        })
        .collect();
    let mut made = 0;
    for (n, mnt, mut child) in running {
        assert!(child.wait().unwrap().success());
        made += usize::from(
            fs::read_to_string(place.path().join(format!("said{n}"))).unwrap().contains(MADE),
        );
        assert!(mnt.join("Windows").is_dir());
        place.unmount(&mnt);
    }
    assert_eq!(made, 1);
    let _ = template(&place);
}

#[test]
fn damaged_templates_are_noticed_and_made_anew() {
    let place = Workplace::with_own_cache();
    mount_once(&place, &[]);
    let made = template(&place);
    type Damage = fn(&Path);
    let table: [(&str, Damage); 5] = [
        ("memory cut short", |t| {
            unprotected(&t.join("ram")).set_len(1 << 20).unwrap();
        }),
        ("state cut short", |t| {
            unprotected(&t.join("state")).set_len(99).unwrap();
        }),
        ("half written", |t| fs::remove_file(t.join("template.json")).unwrap()),
        ("no JSON", |t| fs::write(t.join("template.json"), "{").unwrap()),
        ("memory missing", |t| fs::remove_file(t.join("ram")).unwrap()),
    ];
    for (what, damage) in table {
        damage(&made);
        assert!(mount_once(&place, &[]).contains(MADE), "{what}");
        assert!(!mount_once(&place, &[]).contains(MADE), "{what}");
    }
    place.assert_clean(&["mnt"]);
}

/// A file of a template, open for writing, which is what its mode is there against.
fn unprotected(path: &Path) -> fs::File {
    assert!(
        fs::File::options().write(true).open(path).is_err(),
        "{} is not protected",
        path.display()
    );
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::File::options().write(true).open(path).unwrap()
}

#[test]
fn a_template_that_does_not_run_is_replaced_by_a_boot() {
    let place = Workplace::with_own_cache();
    mount_once(&place, &[]);
    let made = template(&place);
    // The right length, but no guest in it: it never says hello, or its machine breaks down.
    let length = fs::metadata(made.join("ram")).unwrap().len();
    let ram = unprotected(&made.join("ram"));
    ram.set_len(0).unwrap();
    ram.set_len(length).unwrap();
    let said = mount_once(&place, &[]);
    assert!(said.contains(REMOVED), "{said}");
    assert!(mount_once(&place, &[]).contains(MADE));
    place.assert_clean(&["mnt"]);
}

#[test]
fn another_machine_has_another_template() {
    let place = Workplace::with_own_cache();
    assert!(mount_once(&place, &[]).contains(MADE));
    let first = template(&place);
    assert!(mount_once(&place, &["--memsize", "300"]).contains(MADE));
    assert!(!mount_once(&place, &[]).contains(MADE));
    // A template under a name that is not its own is not used.
    let mut second = fs::read_dir(folder(&place)).unwrap().map(|entry| entry.unwrap().path());
    let second = second.find(|path| path.is_dir() && *path != first).unwrap();
    fs::remove_dir_all(&first).unwrap();
    fs::rename(&second, &first).unwrap();
    assert!(mount_once(&place, &[]).contains(MADE));
}

#[test]
fn an_appliance_that_was_built_anew_has_another_template() {
    let place = Workplace::with_own_cache();
    let appliance = place.folder("appliance");
    for file in fs::read_dir(given("GUESTMNT_APPLIANCE")).unwrap().map(|entry| entry.unwrap()) {
        fs::copy(file.path(), appliance.join(file.file_name())).unwrap();
    }
    let prepare = || {
        let mut command = place.command("guestmnt", &["--prepare"]);
        let output = command.env("GUESTMNT_APPLIANCE", &appliance).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        said.contains(MADE)
    };
    assert!(prepare());
    assert!(!prepare());
    let initramfs = fs::File::options().append(true).open(appliance.join("initramfs.cpio"));
    initramfs.unwrap().set_modified(SystemTime::now()).unwrap();
    assert!(prepare());
    place.assert_clean(&["appliance"]);
}

/// A script may start another QEMU than it did, and is the same.
#[test]
fn the_template_of_another_qemu_is_not_restored_but_replaced() {
    let place = Workplace::with_own_cache();
    mount_once(&place, &[]);
    let record = template(&place).join("template.json");
    let text = fs::read_to_string(&record).unwrap();
    let micro = text.lines().find(|line| line.contains("\"micro\"")).unwrap();
    fs::write(&record, text.replace(micro, "\"micro\": 1000,")).unwrap();
    let said = mount_once(&place, &[]);
    assert!(
        said.contains("saved the template, and this one is") && said.contains(REMOVED),
        "{said}"
    );
    assert!(mount_once(&place, &[]).contains(MADE));
    place.assert_clean(&["mnt"]);
}

#[test]
fn what_a_killed_maker_left_is_tidied_up_and_templates_do_not_pile_up() {
    let place = Workplace::with_own_cache();
    mount_once(&place, &[]);
    let left = folder(&place).join("making-abc");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("ram"), "half").unwrap();
    for memory in ["257", "258", "259", "260"] {
        mount_once(&place, &["--memsize", memory]);
    }
    assert!(!left.exists());
    let kept =
        fs::read_dir(folder(&place)).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir());
    assert!(kept.count() <= 4);
}

#[test]
fn without_a_cache_folder_it_boots() {
    let place = Workplace::with_own_cache();
    let mnt = place.folder("mnt");
    let disk = disks().path(SYSTEM);
    let mut command =
        place.command("guestmnt", &["-a", text(&disk), "-m", "/dev/sda1", text(&mnt)]);
    let status = command.env_remove("HOME").env_remove("XDG_CACHE_HOME").status().unwrap();
    assert!(status.success());
    assert!(mnt.join("Windows").is_dir());
    place.unmount(&mnt);
    place.assert_clean(&["mnt"]);
}

/// How old a template is to be for a guest that goes on with its clock to be told from one whose clock
/// was set.
const OLD: Duration = Duration::from_secs(12);

#[test]
fn clock_and_random_pool_are_not_those_of_the_template() {
    let place = Workplace::with_own_cache();
    mount_once(&place, &[]);
    // The clock that was saved stood then.
    let record = fs::metadata(template(&place).join("template.json")).unwrap();
    let age = || record.modified().unwrap().elapsed().unwrap();
    thread::sleep(OLD.saturating_sub(age()));
    let mut pools = BTreeSet::new();
    for _ in 0..3 {
        let age = age();
        let said = mount_once(&place, &[]);
        let line = said.lines().find(|line| line.contains("the guest's clock")).unwrap();
        let (clock, pool) = line.split_once(" ms, its random pool gives ").unwrap();
        let difference = clock.rsplit(' ').next().unwrap().parse().unwrap();
        assert!(Duration::from_millis(difference) < age / 2, "{line}, {age:?} after it was saved");
        pools.insert(pool.to_owned());
    }
    assert_eq!(pools.len(), 3, "{pools:?}");
}

#[test]
fn prepare_makes_the_template_that_a_mount_uses() {
    let place = Workplace::with_own_cache();
    let finished = place.run("guestmnt", &["--prepare"]);
    assert_eq!(finished.status, Some(0), "{finished:?}");
    assert!(finished.stderr.contains(MADE));
    assert!(!mount_once(&place, &[]).contains(MADE));
    assert_eq!(place.run("guestmnt", &["--prepare"]).stderr, "");
}

#[test]
fn a_qemu_named_from_the_folder_that_one_is_in_is_the_same_everywhere() {
    let place = Workplace::with_own_cache();
    let mnt = place.folder("mnt");
    let disk = disks().path(SYSTEM);
    let run = |arguments: &[&str], folder: &str, qemu: &str| {
        let mut command = place.command("guestmnt", arguments);
        let output = command.current_dir(folder).env("GUESTMNT_QEMU", qemu).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        said
    };
    assert!(run(&["--prepare"], "/usr/bin", "qemu-system-x86_64").contains(MADE));
    for (folder, qemu) in [("/usr/bin", "qemu-system-x86_64"), ("/usr", "bin/qemu-system-x86_64")] {
        let said = run(&["-v", "-a", text(&disk), "-m", "/dev/sda1", text(&mnt)], folder, qemu);
        assert!(!said.contains(MADE) && said.contains("-incoming"), "{said}");
        assert!(mnt.join("Windows").is_dir());
        place.unmount(&mnt);
    }
    place.assert_clean(&["mnt"]);
}

#[test]
fn a_hundred_mounts_leave_everything_as_it_was() {
    let place = Workplace::with_own_cache();
    mount_once(&place, &[]);
    let used = |path: &Path| -> BTreeSet<PathBuf> {
        walk(path).into_iter().filter(|path| !path.ends_with("lock")).collect()
    };
    let before = used(place.path());
    for _ in 0..100 {
        mount_once(&place, &[]);
    }
    assert_eq!(used(place.path()), before);
    place.assert_clean(&["mnt"]);
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path.clone()] }).collect()
}
