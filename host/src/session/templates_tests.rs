//! Tests of [`super`]: which templates stay, and in which folders they are kept.

use std::os::unix::fs::symlink;

use nix::unistd::geteuid;

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A user's cache folder with its templates.
fn kept() -> (tempfile::TempDir, Templates) {
    let cache = tempfile::tempdir().unwrap();
    let templates = Templates::in_cache(cache.path()).unwrap();
    (cache, templates)
}

/// Puts one there that was used `ago`.
fn add(templates: &Templates, name: &str, ago: Duration) {
    let key = TemplateKey::named(name);
    let place = templates.place(&key);
    fs::create_dir(&place).unwrap();
    key.pretend(&place);
    File::open(place).unwrap().set_modified(SystemTime::now() - ago).unwrap();
}

fn names(templates: &Templates) -> Vec<String> {
    let entries = fs::read_dir(&templates.folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
    names.retain(|name| name != "lock");
    names.sort();
    names
}

#[test]
fn those_unused_for_thirty_days_are_removed() {
    let (cache, templates) = kept();
    for (name, days) in [("new", 0), ("29", 29), ("31", 31), ("300", 300)] {
        add(&templates, name, DAY * days);
    }
    add(&templates, "making-of-a-dead-maker", Duration::ZERO);
    remove_unused(cache.path());
    assert_eq!(names(&templates), ["29", "new"]);
}

#[test]
fn nothing_is_removed_while_somebody_makes_one() {
    let (cache, templates) = kept();
    add(&templates, "making-one", Duration::ZERO);
    add(&templates, "31", DAY * 31);
    let lock = templates.lock().unwrap();
    remove_unused(cache.path());
    assert_eq!(names(&templates), ["31", "making-one"]);
    drop(lock);
    remove_unused(cache.path());
    assert_eq!(names(&templates), [""; 0]);
}

#[test]
fn where_there_are_no_templates_no_folder_is_made_for_them() {
    let cache = tempfile::tempdir().unwrap();
    remove_unused(cache.path());
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[test]
fn those_used_last_stay_when_another_one_comes() {
    let (_cache, templates) = kept();
    // Not in the order of their names, nor in that in which they were made.
    for (name, days) in [("c", 3), ("a", 5), ("e", 1), ("d", 2), ("b", 4)] {
        add(&templates, name, DAY * days);
    }
    templates.tidy(0);
    assert_eq!(names(&templates), ["b", "c", "d", "e"]);
    templates.tidy(1);
    assert_eq!(names(&templates), ["c", "d", "e"]);
}

#[test]
fn who_is_found_counts_as_used() {
    let (_cache, templates) = kept();
    add(&templates, "found", DAY * 29);
    let used = || {
        let found = fs::metadata(templates.place(&TemplateKey::named("found")));
        found.unwrap().modified().unwrap()
    };
    assert!(used() < SystemTime::now() - DAY);
    templates.find(&TemplateKey::named("found")).unwrap();
    assert!(used() > SystemTime::now() - DAY);
}

#[test]
fn one_that_does_not_work_is_removed_but_not_what_was_made_in_its_place() {
    let (_cache, templates) = kept();
    let key = TemplateKey::named("k");
    add(&templates, "k", Duration::ZERO);
    let bad = templates.find(&key).unwrap();
    templates.remove(&key);
    add(&templates, "k", Duration::ZERO);
    templates.discard(&key, bad);
    assert_eq!(names(&templates), ["k"], "it was another one");
    let bad = templates.find(&key).unwrap();
    let lock = templates.lock().unwrap();
    templates.discard(&key, bad);
    assert_eq!(names(&templates), ["k"], "somebody makes one");
    drop(lock);
    templates.discard(&key, templates.find(&key).unwrap());
    assert_eq!(names(&templates), [""; 0]);
}

fn refusal(cache: &Path, user: Uid) -> String {
    let refused = Templates::of_user(cache, user).err().expect("the folder is refused");
    assert!(matches!(refused, MakeError::Folder(..)));
    refused.to_string()
}

#[test]
fn a_link_in_the_folders_place_is_not_followed() {
    let cache = tempfile::tempdir().unwrap();
    fs::create_dir(cache.path().join("elsewhere")).unwrap();
    symlink("elsewhere", cache.path().join("templates")).unwrap();
    assert!(refusal(cache.path(), geteuid()).contains("not a folder of this user"));
}

#[test]
fn a_folder_of_somebody_else_is_not_used() {
    let cache = tempfile::tempdir().unwrap();
    let _ours = Templates::in_cache(cache.path()).unwrap();
    let somebody = Uid::from_raw(geteuid().as_raw() + 1);
    let refused = refusal(cache.path(), somebody);
    // What root owns, everybody's folder may be in.
    let reason =
        if geteuid().is_root() { "not a folder of this user" } else { "belongs to another user" };
    assert!(refused.contains(reason), "{refused}");
}

#[test]
fn a_cache_that_others_can_write_to_is_not_used() {
    for mode in [0o720, 0o702, 0o777] {
        let cache = tempfile::tempdir().unwrap();
        fs::set_permissions(cache.path(), Permissions::from_mode(mode)).unwrap();
        assert!(refusal(cache.path(), geteuid()).contains("others can write"), "{mode:o}");
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);
    }
}

#[test]
fn what_others_could_write_is_removed_and_what_they_could_read_stays() {
    for (mode, expected) in [(0o720, &[][..]), (0o702, &[]), (0o755, &["k"])] {
        let (cache, templates) = kept();
        add(&templates, "k", Duration::ZERO);
        fs::set_permissions(&templates.folder, Permissions::from_mode(mode)).unwrap();
        let templates = Templates::in_cache(cache.path()).unwrap();
        assert_eq!(names(&templates), expected, "{mode:o}");
        assert_eq!(fs::metadata(&templates.folder).unwrap().mode() & 0o777, 0o700);
    }
}
