//! The files that processes of the host have open, and which of them the guest holds open for it.
//!
//! A file that is only read is not held: it is read by its path. The guest holds it from when it
//! is opened for writing, or loses its last name while it is open, until nobody has it open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use guestmnt_protocol::change::{Access, HeldFile};
use nix::errno::Errno;

use super::nodes::NodeId;

/// All of them, by node.
#[derive(Default)]
pub struct OpenNodes(Mutex<HashMap<NodeId, Open>>);

struct Open {
    /// How often it was opened and not yet closed.
    count: u64,
    file: Arc<OpenFile>,
}

/// A file that is open.
#[derive(Default)]
pub struct OpenFile(Mutex<State>);

#[derive(Default)]
struct State {
    held: Option<(HeldFile, Access)>,
    /// Files that were held for reading before one was for writing. Somebody may still use them.
    former: Vec<HeldFile>,
    /// That it has no capabilities (`security.capability`), for which the kernel asks at each
    /// write.
    without_capabilities: bool,
    /// What a write failed with, since nobody was told so.
    failed: Option<Errno>,
}

/// Nothing that holds one of these locks panics.
const NO_PANIC: &str = "nothing panics while it holds the open files";

impl OpenNodes {
    /// Notes that a node is opened once more.
    pub fn open(&self, node: NodeId) -> Arc<OpenFile> {
        let mut nodes = self.lock();
        let open = nodes.entry(node).or_insert_with(|| Open { count: 0, file: Arc::default() });
        open.count += 1;
        Arc::clone(&open.file)
    }

    /// The node, if it is open.
    #[must_use]
    pub fn get(&self, node: NodeId) -> Option<Arc<OpenFile>> {
        self.lock().get(&node).map(|open| Arc::clone(&open.file))
    }

    /// What the guest holds of a node, if it does.
    #[must_use]
    pub fn held(&self, node: NodeId) -> Option<HeldFile> {
        self.get(node)?.held()
    }

    /// The nodes that the guest holds.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        let nodes = self.lock();
        nodes.iter().filter(|(_, open)| open.file.held().is_some()).map(|(&id, _)| id).collect()
    }

    /// Notes that a node is closed once. `None` while it is open still, else what the guest need
    /// not hold any more.
    pub fn close(&self, node: NodeId) -> Option<Vec<HeldFile>> {
        let mut nodes = self.lock();
        let open = nodes.get_mut(&node)?;
        open.count -= 1;
        if open.count > 0 {
            return None;
        }
        let file = nodes.remove(&node)?.file;
        drop(nodes);
        let mut state = file.lock();
        let held = state.held.take().map(|(held, _)| held);
        Some(held.into_iter().chain(state.former.drain(..)).collect())
    }

    /// A file that is still open and that could not be written, without anybody having been told,
    /// and why.
    #[must_use]
    pub fn failed(&self) -> Option<(NodeId, Errno)> {
        self.lock().iter().find_map(|(&node, open)| Some((node, open.file.failed()?)))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Open>> {
        self.0.lock().expect(NO_PANIC)
    }
}

impl OpenFile {
    /// What the guest holds.
    #[must_use]
    pub fn held(&self) -> Option<HeldFile> {
        self.lock().held.map(|(held, _)| held)
    }

    /// What the guest holds for `access`; `hold` has it hold it where it does not, and is given
    /// what it holds so far.
    ///
    /// # Errors
    /// Those of `hold`.
    pub fn hold(
        &self,
        access: Access,
        hold: impl FnOnce(Option<HeldFile>) -> Result<HeldFile, Errno>,
    ) -> Result<HeldFile, Errno> {
        // Locked all the while: two that open it at once shall not have it held twice.
        let mut state = self.lock();
        let former = match state.held {
            Some((held, as_now)) if as_now == Access::Write || access == Access::Read => {
                return Ok(held);
            }
            former => former.map(|(held, _)| held),
        };
        let held = hold(former)?;
        state.former.extend(former);
        state.held = Some((held, access));
        Ok(held)
    }

    /// Notes whether it is known to have no capabilities.
    pub fn set_without_capabilities(&self, known: bool) {
        self.lock().without_capabilities = known;
    }

    /// Whether it is known to have no capabilities.
    #[must_use]
    pub fn is_without_capabilities(&self) -> bool {
        self.lock().without_capabilities
    }

    /// Notes what a write failed with.
    pub fn note_failure(&self, errno: Errno) {
        self.lock().failed = Some(errno);
    }

    /// What a write failed with, since nobody was told so.
    #[must_use]
    pub fn failed(&self) -> Option<Errno> {
        self.lock().failed
    }

    /// Notes that somebody is told of failed writes.
    pub fn failure_is_told(&self) {
        self.lock().failed = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect(NO_PANIC)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(7);

    #[test]
    fn a_file_is_held_once_however_often_it_is_open() {
        let nodes = OpenNodes::default();
        let file = nodes.open(NODE);
        assert_eq!(file.hold(Access::Write, |_| Ok(HeldFile(1))), Ok(HeldFile(1)));
        let again = nodes.open(NODE);
        assert_eq!(again.hold(Access::Read, |_| Err(Errno::EIO)), Ok(HeldFile(1)));
        assert_eq!(nodes.close(NODE), None);
        assert_eq!(nodes.close(NODE), Some(vec![HeldFile(1)]));
        assert!(nodes.get(NODE).is_none());
    }

    #[test]
    fn what_is_held_for_reading_is_held_anew_for_writing() {
        let nodes = OpenNodes::default();
        let file = nodes.open(NODE);
        assert_eq!(file.hold(Access::Read, |_| Ok(HeldFile(1))), Ok(HeldFile(1)));
        let write = |former| {
            assert_eq!(former, Some(HeldFile(1)));
            Ok(HeldFile(2))
        };
        assert_eq!(file.hold(Access::Write, write), Ok(HeldFile(2)));
        assert_eq!(nodes.held(NODE), Some(HeldFile(2)));
        assert_eq!(nodes.close(NODE), Some(vec![HeldFile(2), HeldFile(1)]));
    }

    #[test]
    fn a_file_that_is_not_held_takes_nothing_to_close() {
        let nodes = OpenNodes::default();
        nodes.open(NODE);
        assert_eq!(nodes.close(NODE), Some(Vec::new()));
    }
}
