//! Makes a template of a running VM, and a running VM of a template.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use serde_json::json;

use super::qmp::{Command, Qmp, QmpError};
use super::template::{Record, STATE, Template, TemplateKey};
use super::{Vm, VmError};

impl Vm {
    /// Saves a VM that was started with [`super::Boot::ToSave`] for `folder`, and ends it. The
    /// guest is to be idle; it goes on from here in each VM that is restored.
    ///
    /// # Errors
    /// [`VmError`]; the folder holds no template then.
    pub fn save(mut self, folder: &Path, key: &TemplateKey) -> Result<(), VmError> {
        let failed = |error| VmError::Save(folder.to_owned(), error);
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let mut state = File::create_new(folder.join(STATE)).map_err(failed)?;
        // QEMU writes into a socket, since it will write a file only until some version.
        let writer = thread::spawn(move || io::copy(&mut &ours, &mut state));
        self.qmp.run(&[Command::get_file("state", theirs.as_fd())])?;
        drop(theirs);
        self.qmp
            .run(&[set_capabilities(), Command::new("migrate", json!({ "uri": "fd:state" }))])?;
        let outcome = wait_for_end(&mut self.qmp);
        let version = self.qmp.version().clone();
        drop(self);
        writer.join().expect("copying does not panic").map_err(failed)?;
        outcome?;
        Record::write(folder, key, &version).map_err(failed)
    }

    /// Has a VM that was started with [`super::Boot::Restore`] go on where `template` was saved.
    ///
    /// # Errors
    /// [`VmError`]; the VM is of no more use then.
    pub fn restore(&mut self, template: &Template) -> Result<(), VmError> {
        // Where a script starts QEMU, the template's key is the script's, whichever QEMU that starts.
        let (saved, found) = (&template.qemu_version, self.qmp.version());
        if saved != found {
            return Err(VmError::OtherQemu { saved: saved.clone(), found: found.clone() });
        }
        let (mut ours, theirs) = UnixStream::pair().map_err(QmpError::Io)?;
        self.qmp.run(&[
            Command::get_file("state", theirs.as_fd()),
            set_capabilities(),
            Command::new("migrate-incoming", json!({ "uri": "fd:state" })),
        ])?;
        drop(theirs);
        ours.write_all(&template.state).map_err(QmpError::Io)?;
        drop(ours);
        Ok(wait_for_end(&mut self.qmp)?)
    }
}

/// The memory is in its file, so that only the devices' state is in the stream.
fn set_capabilities() -> Command<'static> {
    let capabilities = json!({ "capabilities": [
        { "capability": "x-ignore-shared", "state": true },
        { "capability": "events", "state": true },
    ]});
    Command::new("migrate-set-capabilities", capabilities)
}

fn wait_for_end(qmp: &mut Qmp) -> Result<(), QmpError> {
    let data = qmp.wait_for("MIGRATION", |data| {
        data["status"] == "completed" || data["status"] == "failed"
    })?;
    if data["status"] == "completed" {
        return Ok(());
    }
    let reason = "the machine's state could not be saved or restored".to_owned();
    Err(QmpError::Refused { command: "migrate", reason })
}
