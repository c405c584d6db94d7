//! Names that change: what the node table does on a mount that can be written. There it knows all
//! names of a node that the kernel was told of, since a file lives on under another when it loses
//! the one that its path is made of, and finds nodes by them.
//!
//! A number is another file's only once its own file is gone. A node that lost its last name, but
//! that the guest holds open, keeps its number; any other that lost it does not.

use guestmnt_protocol::attr::Attr;
use guestmnt_protocol::path::EntryName;

use super::nodes::{Node, NodeId, Nodes, ROOT, Table, natural_id, own_ids};
use crate::sys::give_back_freed;

/// Nodes for which there is room before any of it is given back.
const LEAST_ROOM: usize = 4096;

impl Nodes {
    /// The node that has this name, if the kernel was told of it.
    #[must_use]
    pub fn at(&self, parent: NodeId, name: &EntryName) -> Option<NodeId> {
        self.read().at(parent, name)
    }

    /// Whether a node has a name.
    #[must_use]
    pub fn is_named(&self, id: NodeId) -> bool {
        id == ROOT || self.read().nodes.get(&id).is_some_and(|node| node.named)
    }

    /// The type bits of a node that the kernel knows and that has no name.
    #[must_use]
    pub fn kind_of_nameless(&self, id: NodeId) -> Option<u32> {
        self.read().nodes.get(&id).filter(|node| !node.named).map(|node| node.kind)
    }

    /// Notes that a name was taken away.
    pub fn removed(&self, parent: NodeId, name: &EntryName) {
        let mut table = self.write();
        let node = table.at(parent, name);
        table.remove_name(parent, name);
        node.into_iter().chain([parent]).for_each(|id| table.drop_unneeded(id));
    }

    /// Notes that what had one name has the other now, and what had that has none.
    pub fn renamed(&self, from: (NodeId, &EntryName), to: (NodeId, &EntryName)) {
        let mut table = self.write();
        let (moved, replaced) = (table.at(from.0, from.1), table.at(to.0, to.1));
        if moved.is_some() && moved == replaced {
            // Two names of one file: renaming one to the other does nothing.
            return;
        }
        table.remove_name(to.0, to.1);
        table.remove_name(from.0, from.1);
        if let Some(id) = moved {
            table.add_name(id, to.0, to.1.clone());
        }
        replaced.into_iter().chain([from.0]).for_each(|id| table.drop_unneeded(id));
    }

    /// Notes that two files have each other's name now.
    pub fn exchanged(&self, one: (NodeId, &EntryName), other: (NodeId, &EntryName)) {
        let mut table = self.write();
        let (first, second) = (table.at(one.0, one.1), table.at(other.0, other.1));
        table.remove_name(one.0, one.1);
        table.remove_name(other.0, other.1);
        for (id, (parent, name)) in [(first, other), (second, one)] {
            if let Some(id) = id {
                table.add_name(id, parent, name.clone());
            }
        }
    }

    /// Notes that a node has one more name, which the kernel is told.
    pub fn linked(&self, id: NodeId, parent: NodeId, name: EntryName) {
        let mut table = self.write();
        if let Some(node) = table.nodes.get_mut(&id) {
            node.lookups += 1;
            table.add_name(id, parent, name);
        }
    }

    /// Notes whether the guest holds a node open.
    pub fn pin(&self, id: NodeId, pinned: bool) {
        if let Some(node) = self.write().nodes.get_mut(&id) {
            node.pinned = pinned;
        }
    }
}

impl Table {
    pub(super) fn at(&self, parent: NodeId, name: &EntryName) -> Option<NodeId> {
        self.names.as_ref()?.get(&(parent, name.clone())).copied()
    }

    /// The number for what was found by a name: of the node that has the name, of the one that
    /// is the same file by another name, or a new one.
    pub(super) fn id_by_name(
        &mut self,
        parent: NodeId,
        name: &EntryName,
        attr: &Attr,
        kind: u32,
        one_for_all: bool,
    ) -> NodeId {
        if let Some(id) = self.at(parent, name) {
            if self.nodes.get(&id).is_some_and(|node| node.kind == kind) {
                return id;
            }
            self.remove_name(parent, name);
        }
        let natural = natural_id(attr).filter(|id| {
            self.nodes
                .get(id)
                .is_none_or(|node| node.kind == kind && one_for_all && (node.named || node.pinned))
        });
        natural.unwrap_or_else(|| {
            let mut own = own_ids(parent, name);
            own.find(|id| *id != ROOT && !self.nodes.contains_key(id))
                .expect("the numbers of our own never end")
        })
    }

    /// Gives a node a name, unless it has it. Nothing where names do not change.
    pub(super) fn add_name(&mut self, id: NodeId, parent: NodeId, name: EntryName) {
        let Some(names) = &mut self.names else { return };
        if names.insert((parent, name.clone()), id) == Some(id) {
            return;
        }
        self.adopt(parent);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.named {
            node.rare_mut().more.push((parent, name));
        } else {
            (node.parent, node.name, node.named) = (parent, name, true);
        }
    }

    /// Takes a name away from the node that has it.
    pub(super) fn remove_name(&mut self, parent: NodeId, name: &EntryName) {
        let Some(names) = &mut self.names else { return };
        let Some(id) = names.remove(&(parent, name.clone())) else { return };
        if let Some(node) = self.nodes.get_mut(&id) {
            if node.parent == parent && node.name == *name {
                match node.rare.as_mut().and_then(|rare| rare.more.pop()) {
                    Some((parent, name)) => (node.parent, node.name) = (parent, name),
                    None => node.named = false,
                }
            } else if let Some(rare) = &mut node.rare {
                rare.more.retain(|(of, other)| *of != parent || other != name);
            }
        }
        self.disown(parent);
    }

    /// Drops a node that nobody needs any more, and then the folders that only it needed.
    pub(super) fn drop_unneeded(&mut self, id: NodeId) {
        let mut perhaps = vec![id];
        while let Some(id) = perhaps.pop() {
            let needed = |node: &Node| node.lookups > 0 || node.children > 0;
            if self.nodes.get(&id).is_none_or(|node| needed(node)) {
                continue;
            }
            for parent in self.remove(id) {
                self.disown(parent);
                perhaps.push(parent);
            }
        }
        self.give_back();
    }

    /// Gives back what the maps took when the kernel remembered many more files.
    fn give_back(&mut self) {
        let (held, room) = (self.nodes.len(), self.nodes.capacity());
        if room > LEAST_ROOM && held < room / 8 {
            self.nodes.shrink_to(2 * held);
            self.names.iter_mut().for_each(|names| names.shrink_to(2 * held));
            give_back_freed();
        }
    }

    /// Takes a node out; gives the folders that its names were in, once for each name.
    fn remove(&mut self, id: NodeId) -> Vec<NodeId> {
        let Some(node) = self.nodes.remove(&id) else { return Vec::new() };
        let Node { named, parent, name, rare, .. } = *node;
        let first = named.then_some((parent, name));
        let all: Vec<_> =
            first.into_iter().chain(rare.into_iter().flat_map(|rare| rare.more)).collect();
        if let Some(names) = &mut self.names {
            for name in &all {
                names.remove(name);
            }
        }
        all.into_iter().map(|(parent, _)| parent).collect()
    }

    /// Notes that a folder has one more name in it.
    pub(super) fn adopt(&mut self, parent: NodeId) {
        if let Some(node) = self.nodes.get_mut(&parent) {
            node.children += 1;
        }
    }

    /// Notes that a folder has one name less in it.
    fn disown(&mut self, parent: NodeId) {
        if let Some(node) = self.nodes.get_mut(&parent) {
            node.children -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

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

    fn path(nodes: &Nodes, id: NodeId) -> Result<String, Errno> {
        nodes.path(id).map(|path| path.to_string())
    }

    #[test]
    fn what_is_moved_takes_along_what_is_in_it() {
        let nodes = Nodes::with_names();
        let [a, b] = [("a", 64), ("b", 65)]
            .map(|(text, ino)| nodes.look_up(ROOT, name(text), &folder(ino)).unwrap());
        let f = nodes.look_up(a, name("f"), &file(66)).unwrap();
        nodes.renamed((ROOT, &name("a")), (b, &name("c")));
        assert_eq!(path(&nodes, f), Ok("/b/c/f".to_owned()));
        assert_eq!((nodes.at(ROOT, &name("a")), nodes.at(b, &name("c"))), (None, Some(a)));
        nodes.forget(b, 1);
        nodes.forget(a, 1);
        assert_eq!(nodes.read().nodes.len(), 3);
        nodes.forget(f, 1);
        assert!(nodes.read().nodes.is_empty());
        assert!(nodes.read().names.as_ref().unwrap().is_empty());
    }

    #[test]
    fn a_file_lives_on_under_its_other_name() {
        let nodes = Nodes::with_names();
        let one = nodes.look_up(ROOT, name("one"), &file(64)).unwrap();
        let linked = Attr { nlink: 2, ..file(64) };
        assert_eq!(nodes.look_up(ROOT, name("two"), &linked), Ok(one));
        nodes.removed(ROOT, &name("one"));
        assert_eq!(path(&nodes, one), Ok("/two".to_owned()));
        nodes.removed(ROOT, &name("two"));
        assert_eq!(path(&nodes, one), Err(Errno::ENOENT));
    }

    #[test]
    fn a_number_that_the_filesystem_gives_again_is_another_node() {
        let nodes = Nodes::with_names();
        let old = nodes.look_up(ROOT, name("f"), &file(64)).unwrap();
        nodes.removed(ROOT, &name("f"));
        let new = nodes.look_up(ROOT, name("f"), &file(64)).unwrap();
        assert_ne!(old, new);
        assert_eq!(path(&nodes, new), Ok("/f".to_owned()));
        assert_eq!(nodes.look_up(ROOT, name("f"), &file(64)), Ok(new));
    }

    #[test]
    fn a_file_that_is_held_is_the_same_by_a_name_that_was_not_known() {
        let nodes = Nodes::with_names();
        let held = nodes.look_up(ROOT, name("one"), &file(64)).unwrap();
        nodes.pin(held, true);
        nodes.removed(ROOT, &name("one"));
        assert_eq!(nodes.look_up(ROOT, name("two"), &file(64)), Ok(held));
        assert_eq!(path(&nodes, held), Ok("/two".to_owned()));
    }

    #[test]
    fn what_is_replaced_loses_its_name_and_what_is_exchanged_does_not() {
        let nodes = Nodes::with_names();
        let [a, b] = [("a", 64), ("b", 65)]
            .map(|(text, ino)| nodes.look_up(ROOT, name(text), &file(ino)).unwrap());
        nodes.exchanged((ROOT, &name("a")), (ROOT, &name("b")));
        assert_eq!([path(&nodes, a), path(&nodes, b)].map(Result::unwrap), ["/b", "/a"]);
        nodes.renamed((ROOT, &name("a")), (ROOT, &name("b")));
        assert_eq!((path(&nodes, a), path(&nodes, b)), (Err(Errno::ENOENT), Ok("/b".to_owned())));
    }
}
