//! The files that processes of the host have open, and which of them the guest holds open for it.
//!
//! A file that is only read is not held: it is read by its path. The guest holds it from when it
//! is opened for writing, or loses its last name while it is open, until nobody has it open, and
//! until no request that names it by its number is under way: the kernel does not wait for a file
//! to be closed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use guestmnt_protocol::attr::Attr;
use guestmnt_protocol::change::{Access, HeldFile};
use nix::errno::Errno;

use super::new_files::NewFile;
use super::nodes::NodeId;
use super::write_errors::WriteErrors;

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
    /// `None` where something else lets it go.
    let_go: Option<LetGo>,
}

/// Has the guest let a file go.
pub type LetGo = Arc<dyn Fn(HeldFile) + Send + Sync>;

impl Lease {
    /// Of a file that the guest holds from now on.
    #[must_use]
    pub fn new(file: HeldFile, let_go: &LetGo) -> Arc<Self> {
        Arc::new(Self { file, let_go: Some(Arc::clone(let_go)) })
    }

    /// Its number, good as long as this lease.
    #[must_use]
    pub fn file(&self) -> HeldFile {
        self.file
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(let_go) = &self.let_go {
            let_go(self.file);
        }
    }
}

/// A file that is open.
#[derive(Default)]
pub struct OpenFile {
    state: Mutex<State>,
    errors: Mutex<WriteErrors>,
    /// What is kept of it since it was made, until somebody asks the guest about it.
    new: Mutex<Option<NewFile>>,
}

#[derive(Default)]
struct State {
    held: Option<(Arc<Lease>, Access)>,
    /// That it is open for writing and was let go all the same, since a process closed it.
    let_go: bool,
    /// That it has no capabilities (`security.capability`), for which the kernel asks at each
    /// write.
    without_capabilities: bool,
}

/// Nothing that holds one of these locks panics.
const NO_PANIC: &str = "nothing panics while it holds the open files";

impl OpenNodes {
    /// Notes that a node is opened once more.
    pub fn open(&self, node: NodeId) -> Arc<OpenFile> {
        self.open_as(node, OpenFile::default)
    }

    /// The same for a node that may just have been made, of which this is known.
    pub fn open_new(&self, node: NodeId, attr: Attr) -> Arc<OpenFile> {
        // One with several names could be asked for by another of them.
        let new = || (attr.nlink == 1).then(|| NewFile::new(attr));
        self.open_as(node, || OpenFile { new: Mutex::new(new()), ..OpenFile::default() })
    }

    fn open_as(&self, node: NodeId, first: impl FnOnce() -> OpenFile) -> Arc<OpenFile> {
        let mut nodes = self.lock();
        let open = nodes.entry(node).or_insert_with(|| Open { count: 0, file: Arc::new(first()) });
        open.count += 1;
        Arc::clone(&open.file)
    }

    /// All nodes that are open.
    #[must_use]
    pub fn all(&self) -> Vec<NodeId> {
        self.lock().keys().copied().collect()
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

    /// The nodes that are open for writing, or that the guest holds for another reason.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        let nodes = self.lock();
        let counts = |open: &Open| {
            let state = open.file.lock();
            state.held.is_some() || state.let_go
        };
        nodes.iter().filter(|(_, open)| counts(open)).map(|(&id, _)| id).collect()
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
        self.lock().iter().find_map(|(&node, open)| Some((node, open.file.errors().unreported()?)))
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

    /// The same, if it is held for writing.
    #[must_use]
    pub fn held_for_writing(&self) -> Option<Arc<Lease>> {
        let state = self.lock();
        let held = state.held.as_ref().filter(|(_, access)| *access == Access::Write);
        held.map(|(lease, _)| Arc::clone(lease))
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
        state.let_go = false;
        Ok(held)
    }

    /// What the guest holds, which is the caller's to let go, where no request that names it is under
    /// way.
    pub fn take_unused(&self) -> Option<HeldFile> {
        let mut state = self.lock();
        let (lease, access) = state.held.take()?;
        match Arc::try_unwrap(lease) {
            Ok(mut lease) => {
                lease.let_go = None;
                state.let_go = true;
                Some(lease.file)
            }
            Err(lease) => {
                state.held = Some((lease, access));
                None
            }
        }
    }

    /// What is kept of it since it was made. Locked while the guest takes that, so that nothing
    /// overtakes it.
    pub fn new_file(&self) -> MutexGuard<'_, Option<NewFile>> {
        self.new.lock().expect(NO_PANIC)
    }

    /// The errors of its writes.
    pub fn errors(&self) -> MutexGuard<'_, WriteErrors> {
        self.errors.lock().expect(NO_PANIC)
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(NO_PANIC)
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
    fn what_no_request_names_can_be_let_go_by_another() {
        let (gone, let_go) = noting();
        let nodes = OpenNodes::default();
        let file = nodes.open(NODE);
        held(&file, Access::Write, 1, &let_go);
        let named = nodes.held(NODE);
        assert_eq!(file.take_unused(), None);
        drop(named);
        assert_eq!(file.take_unused(), Some(HeldFile(1)));
        // It may be written again.
        assert!(file.held().is_none() && nodes.nodes() == [NODE]);
        drop((file, nodes.close(NODE)));
        assert_eq!(*gone.lock().unwrap(), []);
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
