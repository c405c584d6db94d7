//! Tests of [`super`]: which templates stay.

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
