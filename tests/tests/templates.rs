//! Templates: made once, restored by every mount, remade when they are of no use, private.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, SystemTime};

use guestmnt_tests::live::signal;
use guestmnt_tests::program::{Workplace, disks, given, text};
use nix::sys::signal::Signal;
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
            let mut command = place
                .command("guestmnt", &["-v", "-a", text(&disk), "-m", "/dev/sda1", text(&mnt)]);
            let stderr = fs::File::create(place.path().join(format!("said{n}"))).unwrap();
            (n, mnt, command.stderr(stderr).spawn().unwrap())
        })
        .collect();
    let mut made = 0;
    let mut folders = Vec::new();
    for (n, mnt, mut child) in running {
        assert!(child.wait().unwrap().success());
        let file = place.path().join(format!("said{n}"));
        let said = fs::read_to_string(&file).unwrap();
        made += usize::from(said.contains(MADE));
        assert!(said.contains("-incoming") && !said.contains(REMOVED), "not restored: {said}");
        assert!(mnt.join("Windows").is_dir());
        place.unmount(&mnt);
        fs::remove_file(file).unwrap();
        folders.push(format!("mnt{n}"));
    }
    assert_eq!(made, 1);
    let _ = template(&place);
    place.assert_clean(&folders.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Who has the lock on `file` and who waits for it, by the processes. Source: proc_locks(5).
fn lockers(file: &Path) -> (Vec<u32>, Vec<u32>) {
    let inode = fs::metadata(file).unwrap().ino().to_string();
    let (mut having, mut waiting) = (Vec::new(), Vec::new());
    for line in fs::read_to_string("/proc/locks").unwrap().lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let waits = words[1] == "->";
        let words = &words[1 + usize::from(waits)..];
        if words[4].rsplit(':').next() == Some(&inode) {
            let pid = words[3].parse().unwrap();
            if waits { waiting.push(pid) } else { having.push(pid) }
        }
    }
    (having, waiting)
}

#[test]
fn when_a_maker_is_killed_one_of_those_that_wait_makes_the_template() {
    let place = Workplace::with_own_cache();
    let disk = disks().path(SYSTEM);
    let start = |n: usize| {
        let mnt = place.folder(&format!("mnt{n}"));
        let mut command =
            place.command("guestmnt", &["-v", "-a", text(&disk), "-m", "/dev/sda1", text(&mnt)]);
        (mnt, command.stderr(Stdio::piped()).spawn().unwrap())
    };
    let until = |what: &dyn Fn() -> bool| {
        for _ in 0..20_000 {
            if what() {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("nothing happens");
    };
    let unfinished = || -> Vec<PathBuf> {
        let entries = fs::read_dir(folder(&place)).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path());
        paths.filter(|path| path.file_name().unwrap().as_encoded_bytes()[0] == b'm').collect()
    };
    let (_, maker) = start(0);
    until(&|| unfinished().iter().any(|folder| folder.join("ram").exists()));
    let lock = folder(&place).join("lock");
    let (having, _) = lockers(&lock);
    let [killed] = having[..] else { panic!("{having:?} have the lock") };
    // It is not to be done before the others wait.
    signal(killed, Signal::SIGSTOP);
    assert_eq!(unfinished().len(), 1, "it was done already");
    let others = [1, 2, 3].map(start);
    until(&|| lockers(&lock).1.len() == 3);
    signal(killed, Signal::SIGKILL);
    assert!(!maker.wait_with_output().unwrap().status.success());
    let mut made = 0;
    for (mnt, child) in others {
        // What it serves with has the other end for as long as it runs.
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && said.contains("-incoming"), "{said}");
        made += usize::from(said.contains(MADE));
        assert!(mnt.join("Windows").is_dir());
        place.unmount(&mnt);
    }
    assert_eq!(made, 1);
    assert!(unfinished().is_empty(), "{:?}", unfinished());
    let _ = template(&place);
    place.assert_clean(&["mnt0", "mnt1", "mnt2", "mnt3"]);
}

#[test]
fn without_a_template_none_is_made() {
    let place = Workplace::with_own_cache();
    let said = mount_once(&place, &["--no-template"]);
    assert!(!said.contains(MADE) && !said.contains("-incoming"), "{said}");
    assert!(!folder(&place).exists());
    place.assert_clean(&["mnt"]);
}

#[test]
fn damaged_templates_are_noticed_and_made_anew() {
    let place = Workplace::with_own_cache();
    mount_once(&place, &[]);
    let made = template(&place);
    type Damage = fn(&Path);
    let table: [(&str, Damage); 7] = [
        ("memory cut short", |t| {
            unprotected(&t.join("ram")).set_len(1 << 20).unwrap();
        }),
        ("state cut short", |t| {
            unprotected(&t.join("state")).set_len(99).unwrap();
        }),
        ("state changed", |t| {
            let state = fs::read(t.join("state")).unwrap();
            let middle = state.len() / 2;
            let byte = [!state[middle]];
            unprotected(&t.join("state")).write_all_at(&byte, middle as u64).unwrap();
        }),
        ("bulk memory cut short", |t| {
            unprotected(&t.join("bulk")).set_len(1 << 20).unwrap();
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
fn what_a_killed_maker_left_is_tidied_up_and_those_used_last_are_kept() {
    let place = Workplace::with_own_cache();
    let kept = || -> BTreeSet<PathBuf> {
        let entries = fs::read_dir(folder(&place)).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_dir()).collect()
    };
    mount_once(&place, &[]);
    let used_again = template(&place);
    for memory in ["257", "258", "259"] {
        mount_once(&place, &["--memsize", memory]);
    }
    let four = kept();
    assert_eq!(four.len(), 4);
    // The second one is the one that was not used for longest.
    let age = |path: &PathBuf| fs::metadata(path).unwrap().modified().unwrap();
    let oldest = four.iter().filter(|path| **path != used_again).min_by_key(|path| age(path));
    let oldest = oldest.unwrap().clone();
    mount_once(&place, &[]);
    let left = folder(&place).join("making-abc");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("ram"), "half").unwrap();
    assert!(mount_once(&place, &["--memsize", "260"]).contains(MADE));
    let now = kept();
    assert_eq!(now.len(), 4, "{now:?}");
    let removed: Vec<&PathBuf> = four.difference(&now).collect();
    assert_eq!(removed, [&oldest]);
    // Nobody makes another one for a month.
    let unused = SystemTime::now() - Duration::from_secs(31 * 24 * 3600);
    let old = now.iter().find(|path| **path != used_again).unwrap();
    fs::File::open(old).unwrap().set_modified(unused).unwrap();
    mount_once(&place, &[]);
    assert!(!old.exists());
    assert_eq!(kept().len(), 3);
}

#[test]
fn without_a_cache_folder_it_boots() {
    let place = Workplace::with_own_cache();
    let mnt = place.folder("mnt");
    let disk = disks().path(SYSTEM);
    let mut command =
        place.command("guestmnt", &["-v", "-a", text(&disk), "-m", "/dev/sda1", text(&mnt)]);
    let output = command.env_remove("HOME").env_remove("XDG_CACHE_HOME").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(!said.contains(MADE) && !said.contains("-incoming"), "{said}");
    assert!(said.contains("no template: there is no cache folder"), "{said}");
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

/// A stand-in for QEMU that does `first` with each of its arguments, and is the real one.
fn qemu_that(place: &Workplace, first: &str) -> PathBuf {
    let path = place.path().join("qemu-system-x86_64");
    let script = format!("#!/bin/sh\n{first}\nexec /usr/bin/qemu-system-x86_64 \"$@\"\n");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Debian 12 has QEMU 7.2, which refuses the first flag that it does not know in these words.
#[test]
fn flags_that_an_older_qemu_does_not_know_are_left_out_once() {
    let place = Workplace::with_own_cache();
    let qemu = qemu_that(
        &place,
        "for flag in fsrs fzrm fsrc; do case \"$*\" in *-cpu\\ max,*-$flag*) \
         echo \"qemu-system-x86_64: Property 'max-x86_64-cpu.$flag' not found\" >&2; exit 1;; esac; done",
    );
    let look = || {
        let disk = disks().path(SYSTEM);
        let mut command = place.command(
            "guestimg",
            &["ls", "-v", "--accel", "tcg", "-a", text(&disk), "-m", "/dev/sda1", "/"],
        );
        let output = command.env("GUESTMNT_QEMU", &qemu).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        said
    };
    let first = look();
    assert!(first.contains(MADE) && first.contains("no processor flag fzrm"), "{first}");
    let made = template(&place);
    let second = look();
    assert!(second.contains("-incoming"), "{second}");
    assert!(!second.contains(MADE) && !second.contains("no processor flag"), "{second}");
    assert_eq!(template(&place), made);
    place.assert_clean(&["qemu-system-x86_64"]);
}
