//! The folders that were made here, and what was put into them: a name that nobody put there is
//! missing, which the guest need not be asked. Whoever unpacks an archive looks for each of its files
//! before he makes it.
//!
//! Only this mount changes the files, so nothing gets into such a folder unseen. Names are only ever
//! added: of one that was taken away the guest is asked.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};

use guestmnt_protocol::path::EntryName;

use super::nodes::NodeId;

/// Names kept of all folders, and folders; then all are forgotten, and the guest is asked again.
const MOST: usize = 1 << 16;

/// Bytes of the longest name that is answered for: of longer ones the filesystem says that they are
/// too long.
const LONGEST: usize = 255;

/// All of them, by node.
#[derive(Default)]
pub struct NewFolders(Mutex<State>);

#[derive(Default)]
struct State {
    folders: HashMap<NodeId, HashSet<EntryName>>,
    names: usize,
}

impl NewFolders {
    /// Notes that `folder` was just made, with nothing in it.
    pub fn made(&self, folder: NodeId) {
        let mut state = self.lock();
        state.forget(folder);
        state.make_room();
        state.folders.insert(folder, HashSet::new());
    }

    /// Notes that there will be something called `name` in `folder`.
    pub fn named(&self, folder: NodeId, name: &EntryName) {
        let mut state = self.lock();
        let Some(names) = state.folders.get_mut(&folder) else { return };
        if names.insert(name.clone()) {
            state.names += 1;
            state.make_room();
        }
    }

    /// Whether there is certainly nothing called `name` in `folder`.
    #[must_use]
    pub fn lacks(&self, folder: NodeId, name: &EntryName) -> bool {
        let is_short = name.as_bytes().len() <= LONGEST;
        is_short && self.lock().folders.get(&folder).is_some_and(|names| !names.contains(name))
    }

    /// Forgets a node, whose number may be given to another folder.
    pub fn forget(&self, node: NodeId) {
        self.lock().forget(node);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds the new folders")
    }
}

impl State {
    fn forget(&mut self, node: NodeId) {
        if let Some(names) = self.folders.remove(&node) {
            self.names -= names.len();
        }
    }

    fn make_room(&mut self) {
        if self.names + self.folders.len() >= MOST {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOLDER: NodeId = NodeId(7);

    fn name(text: &str) -> EntryName {
        EntryName::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_nobody_put_into_a_new_folder_is_missing() {
        let folders = NewFolders::default();
        assert!(!folders.lacks(FOLDER, &name("a")));
        folders.made(FOLDER);
        assert!(folders.lacks(FOLDER, &name("a")));
        folders.named(FOLDER, &name("a"));
        assert!(!folders.lacks(FOLDER, &name("a")));
        assert!(folders.lacks(FOLDER, &name("A")));
        assert!(folders.lacks(FOLDER, &name(&"b".repeat(255))));
        assert!(!folders.lacks(FOLDER, &name(&"b".repeat(256))));
        folders.forget(FOLDER);
        assert!(!folders.lacks(FOLDER, &name("b")));
    }

    #[test]
    fn a_number_that_is_given_again_begins_anew() {
        let folders = NewFolders::default();
        folders.made(FOLDER);
        folders.named(FOLDER, &name("a"));
        folders.made(FOLDER);
        assert!(folders.lacks(FOLDER, &name("a")));
        assert_eq!(folders.lock().names, 0);
    }

    #[test]
    fn many_names_are_forgotten_and_not_kept() {
        let folders = NewFolders::default();
        folders.made(FOLDER);
        for n in 0..2 * MOST {
            folders.named(FOLDER, &name(&n.to_string()));
        }
        assert!(folders.lock().names < MOST);
        assert!(!folders.lacks(FOLDER, &name("x")));
    }
}
