//! The files that processes of the host have open, and which of them the guest holds open for it.
//!
//! A file that is only read is not held: it is read by its path. The guest holds it from when it
//! is opened for writing, or loses its last name while it is open, until nobody has it open, and
//! until no request that names it by its number is under way: the kernel does not wait for a file
//! to be closed.

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

/// A file that the guest holds as long as somebody has this.
pub struct Lease {
    file: HeldFile,
    let_go: LetGo,
}

/// Has the guest let a file go.
pub type LetGo = Arc<dyn Fn(HeldFile) + Send + Sync>;

impl Lease {
    /// Of a file that the guest holds from now on.
    #[must_use]
    pub fn new(file: HeldFile, let_go: &LetGo) -> Arc<Self> {
        Arc::new(Self { file, let_go: Arc::clone(let_go) })
    }

    /// Its number, good as long as this lease.
    #[must_use]
    pub fn file(&self) -> HeldFile {
        self.file
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        (self.let_go)(self.file);
    }
}

/// A file that is open.
#[derive(Default)]
pub struct OpenFile(Mutex<State>);

#[derive(Default)]
struct State {
    held: Option<(Arc<Lease>, Access)>,
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
    pub fn held(&self, node: NodeId) -> Option<Arc<Lease>> {
        self.get(node)?.held()
    }

    /// The nodes that the guest holds.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        let nodes = self.lock();
        nodes.iter().filter(|(_, open)| open.file.held().is_some()).map(|(&id, _)| id).collect()
    }

    /// Notes that a node is closed once. `None` while it is open still, else the file, whose lease
    /// ends with it and with the requests that are under way.
    #[must_use]
    pub fn close(&self, node: NodeId) -> Option<Arc<OpenFile>> {
        let mut nodes = self.lock();
        let open = nodes.get_mut(&node)?;
        open.count -= 1;
        if open.count > 0 { None } else { nodes.remove(&node).map(|open| open.file) }
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
    pub fn held(&self) -> Option<Arc<Lease>> {
        self.lock().held.as_ref().map(|(held, _)| Arc::clone(held))
    }

    /// What the guest holds for `access`; `hold` has it hold it where it does not, and is given
    /// what it holds so far.
    ///
    /// # Errors
    /// Those of `hold`.
    pub fn hold(
        &self,
        access: Access,
        hold: impl FnOnce(Option<HeldFile>) -> Result<Arc<Lease>, Errno>,
    ) -> Result<Arc<Lease>, Errno> {
        // Locked all the while: two that open it at once shall not have it held twice.
        let mut state = self.lock();
        let former = match &state.held {
            Some((held, as_now)) if *as_now == Access::Write || access == Access::Read => {
                return Ok(Arc::clone(held));
            }
            former => former.as_ref().map(|(held, _)| held.file()),
        };
        let held = hold(former)?;
        state.held = Some((Arc::clone(&held), access));
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

    /// Notes what is let go.
    fn noting() -> (Arc<Mutex<Vec<HeldFile>>>, LetGo) {
        let gone = Arc::new(Mutex::new(Vec::new()));
        let note = Arc::clone(&gone);
        (gone, Arc::new(move |file| note.lock().unwrap().push(file)))
    }

    fn held(file: &OpenFile, access: Access, number: u64, let_go: &LetGo) -> HeldFile {
        file.hold(access, |_| Ok(Lease::new(HeldFile(number), let_go))).unwrap().file()
    }

    #[test]
    fn a_file_is_held_once_however_often_it_is_open() {
        let (gone, let_go) = noting();
        let nodes = OpenNodes::default();
        let file = nodes.open(NODE);
        assert_eq!(held(&file, Access::Write, 1, &let_go), HeldFile(1));
        drop(file);
        assert_eq!(held(&nodes.open(NODE), Access::Read, 2, &let_go), HeldFile(1));
        assert!(nodes.close(NODE).is_none());
        assert_eq!(*gone.lock().unwrap(), []);
        assert!(nodes.close(NODE).is_some());
        assert_eq!(*gone.lock().unwrap(), [HeldFile(1)]);
        assert!(nodes.get(NODE).is_none());
    }

    #[test]
    fn what_is_held_for_reading_is_held_anew_for_writing() {
        let (gone, let_go) = noting();
        let nodes = OpenNodes::default();
        let file = nodes.open(NODE);
        assert_eq!(held(&file, Access::Read, 1, &let_go), HeldFile(1));
        let reading = nodes.held(NODE);
        let write = |former| {
            assert_eq!(former, Some(HeldFile(1)));
            Ok(Lease::new(HeldFile(2), &let_go))
        };
        assert_eq!(file.hold(Access::Write, write).unwrap().file(), HeldFile(2));
        assert_eq!(*gone.lock().unwrap(), []);
        drop(reading);
        assert_eq!(*gone.lock().unwrap(), [HeldFile(1)]);
    }

    #[test]
    fn what_a_request_names_is_held_until_it_is_answered() {
        let (gone, let_go) = noting();
        let nodes = OpenNodes::default();
        held(&nodes.open(NODE), Access::Write, 1, &let_go);
        let named = nodes.held(NODE);
        drop(nodes.close(NODE));
        assert_eq!(*gone.lock().unwrap(), []);
        drop(named);
        assert_eq!(*gone.lock().unwrap(), [HeldFile(1)]);
    }
}
