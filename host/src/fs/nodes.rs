//! The node table: which files of the image the kernel knows by number, and their paths.
//!
//! The host owns it, so a guest can neither confuse two nodes nor lose them when it dies. A
//! node's number is the number that the filesystem gives the file, where that is unambiguous:
//! `st_ino` is then what the guest would show, and hard links share one node.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use guestmnt_protocol::attr::Attr;
use guestmnt_protocol::path::{EntryName, GuestPath, LinkTarget};
use nix::errno::Errno;

/// A node's number in the FUSE protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId(pub u64);

/// The mounted root, as FUSE fixes it.
pub const ROOT: NodeId = NodeId(1);

/// The root is known as long as the mount lives.
const OF_ROOT: Lifetime = Lifetime(0);

/// Numbers with this bit are ours; no filesystem's number is passed on with it.
const OURS: u64 = 1 << 63;

/// Where the number of the volume stands in a node's number. The first volume's files keep
/// their own numbers; those of nested mounts are told apart by the bits from here to 62.
const VOLUME_SHIFT: u32 = 48;

/// A node for as long as the kernel knows it: unlike its number, never another's afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lifetime(u64);

/// A file as an entry of the folder that it is in.
pub struct Entry {
    /// The folder.
    pub folder: Lifetime,
    /// The folder's node.
    pub parent: NodeId,
    /// The file's name.
    pub name: EntryName,
    /// The volume that it is on.
    pub volume: u16,
    /// The type bits of its mode.
    pub kind: u32,
    /// Its bytes, as the kernel was told; 0 where it is no regular file.
    pub size: u64,
}

pub(super) struct Node {
    lifetime: Lifetime,
    pub(super) parent: NodeId,
    pub(super) name: EntryName,
    /// The volume that it is on.
    volume: u16,
    /// The type bits of the mode.
    pub(super) kind: u32,
    /// Its bytes when the kernel was told of it last, where it is a regular file. Where files can
    /// change, these are others by now.
    size: u64,
    /// How often the kernel was told of this node and has not forgotten it.
    pub(super) lookups: u64,
    /// Names in the table that are in this folder.
    pub(super) children: u64,
    /// Whether it still has the name above.
    pub(super) named: bool,
    /// Whether the guest holds it open, so that no other file gets its number.
    pub(super) pinned: bool,
    pub(super) rare: Option<Box<Rare>>,
}

/// What most nodes do not have.
#[derive(Default)]
pub(super) struct Rare {
    /// Where a symbolic link leads, if that came with a directory's entry.
    target: Option<LinkTarget>,
    /// Where names can change: the node's further names that the kernel was told of.
    pub(super) more: Vec<(NodeId, EntryName)>,
}

// The kernel remembers a million files where there is memory, and each is a node here.
const _: () = assert!(size_of::<Node>() <= 72);

impl Node {
    pub(super) fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }
}

/// The table. All methods take `&self`.
pub struct Nodes {
    table: RwLock<Table>,
    lifetimes: AtomicU64,
}

#[derive(Default)]
pub(super) struct Table {
    /// In boxes, since a map has room for up to twice as many as it holds.
    pub(super) nodes: HashMap<NodeId, Box<Node>>,
    /// Nodes by their names, where these can change.
    pub(super) names: Option<HashMap<(NodeId, EntryName), NodeId>>,
}

impl Default for Nodes {
    fn default() -> Self {
        Self::new()
    }
}

impl Nodes {
    /// A table that holds only the root.
    #[must_use]
    pub fn new() -> Self {
        Self { table: RwLock::default(), lifetimes: AtomicU64::new(OF_ROOT.0 + 1) }
    }

    /// The same for a mount on which names can change.
    #[must_use]
    pub fn with_names() -> Self {
        let nodes = Self::new();
        nodes.write().names = Some(HashMap::new());
        nodes
    }

    /// Notes that the kernel is told of the file `name` in `parent`, and gives its number.
    ///
    /// # Errors
    /// `ESTALE` where `parent` is unknown.
    pub fn look_up(&self, parent: NodeId, name: EntryName, attr: &Attr) -> Result<NodeId, Errno> {
        let mut table = self.write();
        if parent != ROOT && !table.nodes.contains_key(&parent) {
            return Err(Errno::ESTALE);
        }
        let kind = attr.mode & libc::S_IFMT;
        // Where a symbolic link is shown to lead depends on the folder that it is in.
        let one_for_all = kind != libc::S_IFDIR && kind != libc::S_IFLNK;
        let id = if table.names.is_some() {
            table.id_by_name(parent, &name, attr, kind, one_for_all)
        } else {
            let shares = |node: &Node| {
                let same_entry = node.parent == parent && node.name == name;
                let hard_link = attr.nlink > 1 && one_for_all;
                node.kind == kind && (same_entry || hard_link)
            };
            std::iter::once(natural_id(attr))
                .chain(own_ids(parent, &name).map(Some))
                .flatten()
                .find(|id| *id != ROOT && table.nodes.get(id).is_none_or(|node| shares(node)))
                .expect("the numbers of our own never end")
        };
        let size = if kind == libc::S_IFREG { attr.size } else { 0 };
        if let Some(node) = table.nodes.get_mut(&id) {
            node.lookups += 1;
            node.size = size;
            table.add_name(id, parent, name);
            return Ok(id);
        }
        let lifetime = Lifetime(self.lifetimes.fetch_add(1, Ordering::Relaxed));
        let node = Node {
            lifetime,
            parent,
            name: name.clone(),
            volume: attr.volume,
            kind,
            size,
            lookups: 1,
            children: 0,
            named: true,
            pinned: false,
            rare: None,
        };
        table.nodes.insert(id, Box::new(node));
        if let Some(names) = &mut table.names {
            names.insert((parent, name), id);
        }
        table.adopt(parent);
        Ok(id)
    }

    /// Counts one more look-up of a node, so that its number is no other file's until that is taken
    /// back. False for an unknown node.
    #[must_use]
    pub fn hold(&self, id: NodeId) -> bool {
        let mut table = self.write();
        let node = table.nodes.get_mut(&id);
        node.map(|node| node.lookups += 1).is_some()
    }

    /// Keeps a symbolic link's target for as long as the kernel knows the link.
    pub fn keep_target(&self, id: NodeId, target: &LinkTarget) {
        if let Some(node) = self.write().nodes.get_mut(&id)
            && node.kind == libc::S_IFLNK
        {
            node.rare_mut().target.get_or_insert_with(|| target.clone());
        }
    }

    /// The target that was kept.
    #[must_use]
    pub fn target(&self, id: NodeId) -> Option<LinkTarget> {
        self.read().nodes.get(&id)?.rare.as_ref()?.target.clone()
    }

    /// Takes back `count` look-ups of a node. Nodes that nobody needs any more are dropped.
    pub fn forget(&self, id: NodeId, count: u64) {
        let mut table = self.write();
        if let Some(node) = table.nodes.get_mut(&id) {
            node.lookups = node.lookups.saturating_sub(count);
        }
        table.drop_unneeded(id);
    }

    /// The path of a node from the mounted root.
    ///
    /// # Errors
    /// `ESTALE` for an unknown node, `ENOENT` for one that lost its name, `ENAMETOOLONG`.
    pub fn path(&self, id: NodeId) -> Result<GuestPath, Errno> {
        path_in(&self.read(), id)
    }

    /// The node that a directory is in; the root is in itself.
    #[must_use]
    pub fn parent(&self, id: NodeId) -> NodeId {
        self.read().nodes.get(&id).map_or(ROOT, |node| node.parent)
    }

    /// The node as an entry of its folder. `None` for the root and for an unknown node.
    #[must_use]
    pub fn entry(&self, id: NodeId) -> Option<Entry> {
        let table = self.read();
        let node = table.nodes.get(&id)?;
        let folder = match node.parent {
            ROOT => OF_ROOT,
            parent => table.nodes.get(&parent)?.lifetime,
        };
        let Node { parent, volume, kind, size, .. } = **node;
        Some(Entry { folder, parent, name: node.name.clone(), volume, kind, size })
    }

    /// The lifetime of a node.
    #[must_use]
    pub fn lifetime(&self, id: NodeId) -> Option<Lifetime> {
        if id == ROOT { Some(OF_ROOT) } else { Some(self.read().nodes.get(&id)?.lifetime) }
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().expect("no code panics while it holds the table")
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().expect("no code panics while it holds the table")
    }
}

/// The path of a node from the mounted root. It is walked twice, so that it is allocated once.
fn path_in(table: &Table, id: NodeId) -> Result<GuestPath, Errno> {
    // Ends: a node's parent was in the table before it, and no folder is moved into itself, so
    // there are no circles.
    let each_name = |take: &mut dyn FnMut(&[u8])| {
        let mut at = id;
        while at != ROOT {
            let node = table.nodes.get(&at).ok_or(Errno::ESTALE)?;
            if !node.named {
                return Err(Errno::ENOENT);
            }
            take(node.name.as_bytes());
            at = node.parent;
        }
        Ok(())
    };
    let mut length = 0;
    each_name(&mut |name| length += name.len() + 1)?;
    // From the end on, with a slash before each name but the first.
    let mut path = vec![b'/'; length.saturating_sub(1)];
    let mut end = path.len();
    each_name(&mut |name| {
        path[end - name.len()..end].copy_from_slice(name);
        end = (end - name.len()).saturating_sub(1);
    })?;
    GuestPath::new(path).map_err(|_| Errno::ENAMETOOLONG)
}

/// The number that shows the filesystem's own, if that can be told apart from all others.
#[must_use]
pub fn natural_id(attr: &Attr) -> Option<NodeId> {
    let volume = u64::from(attr.volume);
    let fits = match volume {
        0 => attr.ino & OURS == 0,
        _ => attr.ino < 1 << VOLUME_SHIFT && volume < 1 << (63 - VOLUME_SHIFT),
    };
    let id = attr.ino | volume << VOLUME_SHIFT;
    (fits && id > ROOT.0).then_some(NodeId(id))
}

/// Numbers of our own for an entry, the same ones each time.
pub(super) fn own_ids(parent: NodeId, name: &EntryName) -> impl Iterator<Item = NodeId> {
    let mut hasher = DefaultHasher::new();
    (parent, name).hash(&mut hasher);
    let first = hasher.finish();
    (0..).map(move |n| NodeId(first.wrapping_add(n) | OURS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> EntryName {
        EntryName::new(text.as_bytes()).unwrap()
    }

    fn file(ino: u64) -> Attr {
        Attr { ino, mode: libc::S_IFREG, nlink: 1, ..Attr::default() }
    }

    fn folder(ino: u64) -> Attr {
        Attr { ino, mode: libc::S_IFDIR, nlink: 2, ..Attr::default() }
    }

    #[test]
    fn numbers_are_the_filesystems_own() {
        let nodes = Nodes::new();
        let a = nodes.look_up(ROOT, name("a"), &folder(64)).unwrap();
        let b = nodes.look_up(a, name("b"), &file(65)).unwrap();
        assert_eq!((a, b), (NodeId(64), NodeId(65)));
        assert_eq!(nodes.path(b).unwrap().to_string(), "/a/b");
        assert_eq!(nodes.path(a).unwrap().to_string(), "/a");
        assert_eq!(nodes.path(ROOT), Ok(GuestPath::root()));
        assert_eq!(nodes.parent(b), a);
        assert_eq!(nodes.parent(a), ROOT);
    }

    #[test]
    fn a_number_that_is_used_again_is_another_lifetime() {
        let nodes = Nodes::new();
        let folder_of = |name| {
            let folder = nodes.look_up(ROOT, self::name(name), &folder(64)).unwrap();
            let file = nodes.look_up(folder, self::name("f"), &file(65)).unwrap();
            let entry = nodes.entry(file).unwrap();
            assert_eq!(nodes.lifetime(folder), Some(entry.folder));
            nodes.forget(file, 1);
            nodes.forget(folder, 1);
            (folder, entry.folder)
        };
        let (first, second) = (folder_of("a"), folder_of("b"));
        assert_eq!(first.0, second.0);
        assert_ne!(first.1, second.1);
        let top = nodes.look_up(ROOT, name("top"), &file(66)).unwrap();
        assert_eq!(Some(nodes.entry(top).unwrap().folder), nodes.lifetime(ROOT));
        assert!(nodes.entry(ROOT).is_none() && nodes.entry(first.0).is_none());
    }

    #[test]
    fn targets_are_kept_with_links_only() {
        let nodes = Nodes::new();
        let target = |text: &str| LinkTarget::new(text.as_bytes()).unwrap();
        let link = Attr { mode: libc::S_IFLNK, ..file(64) };
        let link = nodes.look_up(ROOT, name("l"), &link).unwrap();
        let file = nodes.look_up(ROOT, name("f"), &file(65)).unwrap();
        for id in [link, file] {
            nodes.keep_target(id, &target("there"));
            nodes.keep_target(id, &target("elsewhere"));
        }
        assert_eq!((nodes.target(link), nodes.target(file)), (Some(target("there")), None));
        nodes.forget(link, 1);
        assert_eq!(nodes.target(link), None);
    }

    #[test]
    fn hard_links_share_a_node_and_other_files_never_do() {
        let nodes = Nodes::new();
        let linked = Attr { nlink: 2, ..file(70) };
        let first = nodes.look_up(ROOT, name("one"), &linked).unwrap();
        assert_eq!(nodes.look_up(ROOT, name("two"), &linked).unwrap(), first);
        let clash = nodes.look_up(ROOT, name("three"), &file(70)).unwrap();
        assert_ne!(clash, first);
        assert_eq!(nodes.look_up(ROOT, name("three"), &file(70)).unwrap(), clash);
        assert_eq!(nodes.path(clash).unwrap().to_string(), "/three");
    }

    #[test]
    fn what_was_forgotten_takes_no_room() {
        let nodes = Nodes::new();
        let ids = (0..100_000).map(|n| nodes.look_up(ROOT, name(&n.to_string()), &file(n + 2)));
        let ids: Vec<_> = ids.map(Result::unwrap).collect();
        let room = || nodes.read().nodes.capacity();
        let at_most = room();
        let (most, last) = ids.split_at(ids.len() - 100);
        most.iter().for_each(|id| nodes.forget(*id, 1));
        assert!(at_most >= ids.len() && room() < 10_000, "{at_most}, then {}", room());
        assert!(last.iter().all(|id| nodes.path(*id).is_ok()));
        last.iter().for_each(|id| nodes.forget(*id, 1));
        assert!(nodes.read().nodes.is_empty());
    }

    #[test]
    fn a_folder_that_contains_itself_makes_no_circle() {
        let nodes = Nodes::new();
        let mut at = ROOT;
        for _ in 0..100 {
            at = nodes.look_up(at, name("self"), &folder(5)).unwrap();
        }
        assert_eq!(nodes.path(at).unwrap().depth(), 100);
    }

    #[test]
    fn numbers_that_are_taken_or_out_of_range_are_replaced() {
        let nodes = Nodes::new();
        for ino in [0, 1, 1 << 63, u64::MAX] {
            let id = nodes.look_up(ROOT, name(&format!("f{ino}")), &file(ino)).unwrap();
            assert!(id.0 & OURS != 0, "{ino}");
        }
        let nested = Attr { volume: 1, ..file(65) };
        assert_ne!(nodes.look_up(ROOT, name("nested"), &nested).unwrap(), NodeId(65));
    }

    #[test]
    fn forgotten_nodes_go_with_their_parents() {
        let nodes = Nodes::new();
        let a = nodes.look_up(ROOT, name("a"), &folder(64)).unwrap();
        let b = nodes.look_up(a, name("b"), &file(65)).unwrap();
        nodes.look_up(a, name("b"), &file(65)).unwrap();
        nodes.forget(a, 1);
        assert!(nodes.path(b).is_ok());
        nodes.forget(b, 1);
        assert_eq!(nodes.read().nodes.len(), 2);
        nodes.forget(b, 1);
        assert!(nodes.read().nodes.is_empty());
        assert_eq!(nodes.path(b), Err(Errno::ESTALE));
        nodes.forget(b, 9);
    }
}
