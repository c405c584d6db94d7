//! Where the image's symbolic links lead, as it is shown to the host.
//!
//! A target means a place in the image. Handed out as it is stored, an absolute one, or one that
//! climbs out of the mount, would lead whoever follows it to a file of the host. So targets are
//! shown such that they resolve inside the mount, as in a chroot: what is shown climbs at most to the
//! mount's root, and only at its beginning, so that no link on the way can carry it further.

use guestmnt_protocol::path::GuestPath;

/// Links that are followed on the way; Linux' own limit.
const MAX_FOLLOWED: usize = 40;

/// Longest path that is worked on.
const MAX_LENGTH: usize = 64 << 10;

/// The target to be shown for the link at `link`, whose stored one is `stored`. `None` where that
/// cannot be told: too many links on the way.
///
/// `follow` gives the stored target of the link at a path, or `None` where there is no link. It is
/// asked only where `..` follows a name, since that name may be a link to somewhere else.
pub fn shown(
    link: &GuestPath,
    stored: &[u8],
    follow: impl Fn(&GuestPath) -> Option<Vec<u8>>,
) -> Option<Vec<u8>> {
    let parents: Vec<&[u8]> = parent_names(link);
    if is_harmless(stored, parents.len()) {
        return Some(stored.to_vec());
    }
    let resolved = resolve(&parents, stored, follow)?;
    let mut shown = b"../".repeat(parents.len());
    if resolved.is_empty() {
        // Of the link in the root to the root nothing would be left.
        shown.push(b'.');
    }
    shown.extend(resolved.join(&b'/'));
    if stored.ends_with(b"/") && !resolved.is_empty() {
        shown.push(b'/');
    }
    Some(shown)
}

/// Whether a target climbs only at its beginning, and not beyond the root of the mount, `depth`
/// folders above.
fn is_harmless(stored: &[u8], depth: usize) -> bool {
    let mut names = stored.split(|&byte| byte == b'/').filter(|name| !is_here(name)).peekable();
    let mut climbed = 0;
    while names.next_if(|name| name == b"..").is_some() {
        climbed += 1;
    }
    !stored.starts_with(b"/") && climbed <= depth && names.all(|name| name != b"..")
}

/// The names on the way from the mount's root to what `stored`, in the folder `parents`, means.
fn resolve(
    parents: &[&[u8]],
    stored: &[u8],
    follow: impl Fn(&GuestPath) -> Option<Vec<u8>>,
) -> Option<Vec<Vec<u8>>> {
    let mut at: Vec<Vec<u8>> = parents.iter().map(|name| name.to_vec()).collect();
    // What is still to be walked, the next name last.
    let mut ahead: Vec<Vec<u8>> = Vec::new();
    let mut length = 0;
    let mut walk = |target: &[u8], at: &mut Vec<Vec<u8>>, ahead: &mut Vec<Vec<u8>>| {
        if target.starts_with(b"/") {
            at.clear();
        }
        length += target.len();
        let names = target.split(|&byte| byte == b'/').filter(|name| !is_here(name));
        ahead.extend(names.rev().map(<[u8]>::to_vec));
        length <= MAX_LENGTH
    };
    walk(stored, &mut at, &mut ahead);
    let mut followed = 0;
    while let Some(name) = ahead.pop() {
        if name == b".." {
            at.pop();
            continue;
        }
        at.push(name);
        if !ahead.iter().any(|name| name == b"..") {
            continue;
        }
        let Some(target) = GuestPath::new(at.join(&b'/')).ok().and_then(|path| follow(&path))
        else {
            continue;
        };
        followed += 1;
        at.pop();
        if followed > MAX_FOLLOWED || !walk(&target, &mut at, &mut ahead) {
            return None;
        }
    }
    Some(at)
}

fn is_here(name: &[u8]) -> bool {
    matches!(name, b"" | b".")
}

/// The names of the folders that a file is in, from the root on.
fn parent_names(path: &GuestPath) -> Vec<&[u8]> {
    let mut names: Vec<_> =
        path.as_bytes().split(|&byte| byte == b'/').filter(|name| !name.is_empty()).collect();
    names.pop();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> GuestPath {
        GuestPath::parse(text.as_bytes()).unwrap()
    }

    /// What is shown in an image with a few links.
    fn show(link: &str, stored: &str) -> String {
        let follow = |path: &GuestPath| {
            let target: &[u8] = match path.to_string().as_str() {
                "/a/to-root" => b"/",
                "/a/to-deep" => b"/d/e/f",
                "/a/loop" => b"loop/..",
                _ => return None,
            };
            Some(target.to_vec())
        };
        let shown = shown(&path(link), stored.as_bytes(), follow);
        shown.map_or_else(|| "-".to_owned(), |shown| String::from_utf8(shown).unwrap())
    }

    #[test]
    fn targets_resolve_inside_the_mount() {
        let table = [
            // As it is stored.
            ("/l", "file", "file"),
            ("/a/l", "../b/file", "../b/file"),
            ("/a/b/l", "../../c", "../../c"),
            ("/a/l", "./b//c/", "./b//c/"),
            // Absolute.
            ("/l", "/etc/passwd", "etc/passwd"),
            ("/a/l", "/etc/passwd", "../etc/passwd"),
            ("/a/b/l", "/", "../../."),
            ("/l", "/", "."),
            ("/a/l", "//etc/./passwd/", "../etc/passwd/"),
            // Climbing.
            ("/l", "../etc/passwd", "etc/passwd"),
            ("/a/l", "../../../etc/passwd", "../etc/passwd"),
            ("/a/l", "/../../etc", "../etc"),
            ("/a/l", "..", ".."),
            ("/l", "..", "."),
            // Climbing behind a name, which may be a link.
            ("/a/l", "b/../c", "../a/c"),
            ("/a/l", "to-root/../../etc/passwd", "../etc/passwd"),
            ("/a/l", "to-deep/../x", "../d/e/x"),
            ("/a/l", "/a/to-deep/../../../../etc", "../etc"),
            ("/a/l", "loop/../x", "-"),
        ];
        for (link, stored, expected) in table {
            assert_eq!(show(link, stored), expected, "{link} -> {stored}");
        }
    }

    #[test]
    fn whatever_is_stored_climbs_at_most_to_the_root() {
        let parts = ["..", ".", "", "a", "to-root", "to-deep", "b"];
        for number in 0..parts.len().pow(4) {
            let pick = |digit: u32| parts[number / parts.len().pow(digit) % parts.len()];
            let stored = [pick(0), pick(1), pick(2), pick(3)].join("/");
            for (link, depth) in [("/l", 0), ("/a/l", 1), ("/a/b/l", 2)] {
                let shown = show(link, &stored);
                let names: Vec<&str> =
                    shown.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
                let climbs = names.iter().take_while(|name| **name == "..").count();
                assert!(!shown.starts_with('/'), "{link} -> {stored}: {shown}");
                assert!(climbs <= depth, "{link} -> {stored}: {shown}");
                assert!(!names[climbs..].contains(&".."), "{link} -> {stored}: {shown}");
            }
        }
    }
}
