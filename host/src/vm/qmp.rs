//! A client for QEMU's machine protocol, over an inherited socket.
//!
//! Commands are sent in batches: a launch costs one round trip per step, not per command.
//! Source: docs/interop/qmp-spec.rst of QEMU.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Longest line that QEMU may send: its answers to our commands have some hundred bytes.
const MAX_LINE: usize = 1024 * 1024;

/// What went wrong between us and QEMU.
#[derive(Debug)]
pub enum QmpError {
    /// QEMU closed the socket, or did not answer in time.
    Io(io::Error),
    /// QEMU sent something that is not QMP.
    Malformed,
    /// QEMU refused a command.
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's reason.
        reason: String,
    },
}

impl fmt::Display for QmpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "no answer from QEMU: {error}"),
            Self::Malformed => f.write_str("QEMU sent a malformed answer"),
            Self::Refused { command, reason } => write!(f, "QEMU refused {command}: {reason}"),
        }
    }
}

impl std::error::Error for QmpError {}

impl From<io::Error> for QmpError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// One command of a batch.
pub struct Command<'fd> {
    name: &'static str,
    arguments: Value,
    file: Option<BorrowedFd<'fd>>,
}

impl<'fd> Command<'fd> {
    /// A command without arguments is given `json!({})`.
    pub fn new(name: &'static str, arguments: Value) -> Self {
        Self { name, arguments, file: None }
    }

    /// Gives QEMU `file` under the name `name`.
    pub fn get_file(name: &str, file: BorrowedFd<'fd>) -> Self {
        Self { name: "getfd", arguments: json!({ "fdname": name }), file: Some(file) }
    }
}

/// A monitor connection.
pub struct Qmp {
    stream: UnixStream,
    received: Vec<u8>,
    next_id: u64,
    version: Version,
}

/// A build of QEMU, as it calls itself in its greeting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// As in 10.0.2.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third.
    pub micro: u32,
    /// What the distribution calls its package; often empty.
    pub package: String,
}

impl Version {
    /// Takes it out of a greeting.
    fn of(greeting: &Value) -> Option<Self> {
        let version = greeting.pointer("/QMP/version")?;
        let number = |part: &str| version["qemu"][part].as_u64().and_then(|n| n.try_into().ok());
        let (major, minor, micro) = (number("major")?, number("minor")?, number("micro")?);
        let package = version["package"].as_str().unwrap_or_default().to_owned();
        Some(Self { major, minor, micro, package })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor, micro, package } = self;
        write!(f, "{major}.{minor}.{micro}")?;
        if package.is_empty() { Ok(()) } else { write!(f, " ({package})") }
    }
}

impl Qmp {
    /// Takes the greeting and leaves negotiation mode.
    ///
    /// # Errors
    /// [`QmpError`]; an end of file where QEMU did not start.
    pub fn connect(stream: UnixStream, timeout: Duration) -> Result<Self, QmpError> {
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let mut received = Vec::new();
        let version = Version::of(&receive(&stream, &mut received)?).ok_or(QmpError::Malformed)?;
        let mut qmp = Self { stream, received, next_id: 0, version };
        qmp.run(&[Command::new("qmp_capabilities", json!({}))])?;
        Ok(qmp)
    }

    /// Which QEMU it is, as it greeted.
    #[must_use]
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Runs `commands` in order and returns what each returned.
    ///
    /// # Errors
    /// The first refusal; the commands behind it may have run all the same.
    pub fn run(&mut self, commands: &[Command]) -> Result<Vec<Value>, QmpError> {
        let first = self.next_id;
        for command in commands {
            self.send(command)?;
        }
        let mut returned = Vec::with_capacity(commands.len());
        let mut refused = None;
        for (id, command) in (first..).zip(commands) {
            let mut answer = loop {
                let message = self.receive()?;
                if message.get("event").is_none() {
                    break message;
                }
            };
            if answer.get("id").and_then(Value::as_u64) != Some(id) {
                return Err(QmpError::Malformed);
            }
            match answer.get_mut("return") {
                Some(value) => returned.push(value.take()),
                None => {
                    let reason = answer.pointer("/error/desc").and_then(Value::as_str);
                    let reason = reason.ok_or(QmpError::Malformed)?.to_owned();
                    refused.get_or_insert(QmpError::Refused { command: command.name, reason });
                }
            }
        }
        refused.map_or(Ok(returned), Err)
    }

    /// Waits for the event `name` whose data `wanted` accepts, and returns the data.
    /// Events that came before are gone unless they were caught by this call.
    ///
    /// # Errors
    /// [`QmpError::Io`] when it does not come in time.
    pub fn wait_for(
        &mut self,
        name: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value, QmpError> {
        loop {
            let mut message = self.receive()?;
            if message.get("event").and_then(Value::as_str) == Some(name)
                && wanted(&message["data"])
            {
                return Ok(message["data"].take());
            }
        }
    }

    /// Asks QEMU to end, and does not wait for it.
    pub fn quit(&mut self) {
        // An error means that QEMU is gone already or will be killed; both are what is wanted.
        let _ = self.send(&Command::new("quit", json!({})));
    }

    fn send(&mut self, command: &Command) -> Result<(), QmpError> {
        let message =
            json!({ "execute": command.name, "arguments": command.arguments, "id": self.next_id });
        self.next_id += 1;
        let text = message.to_string();
        match command.file {
            None => self.stream.write_all(text.as_bytes())?,
            Some(file) => {
                let files = [file.as_raw_fd()];
                let rights = [ControlMessage::ScmRights(&files)];
                let bytes = [IoSlice::new(text.as_bytes())];
                let fd = self.stream.as_raw_fd();
                let sent = sendmsg::<()>(fd, &bytes, &rights, MsgFlags::MSG_NOSIGNAL, None)
                    .map_err(io::Error::from)?;
                self.stream.write_all(&text.as_bytes()[sent..])?;
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Value, QmpError> {
        receive(&self.stream, &mut self.received)
    }
}

/// The next message; what of the one behind it has come already stays in `received`.
fn receive(mut stream: &UnixStream, received: &mut Vec<u8>) -> Result<Value, QmpError> {
    let mut searched = 0;
    loop {
        if let Some(end) = received[searched..].iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = received.drain(..=searched + end).collect();
            return serde_json::from_slice(&line).map_err(|_| QmpError::Malformed);
        }
        searched = received.len();
        if searched > MAX_LINE {
            return Err(QmpError::Malformed);
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => received.extend_from_slice(&chunk[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::thread;

    use super::*;

    /// Talks to a peer that sends `lines` one by one, each after it read a command.
    fn against(lines: &[&'static str]) -> Result<Qmp, QmpError> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let lines = lines.to_vec();
        thread::spawn(move || {
            let mut peer = BufReader::new(theirs);
            for line in lines {
                if peer.get_mut().write_all(line.as_bytes()).is_err() {
                    return;
                }
                let mut command = Vec::new();
                let _ = peer.read_until(b'}', &mut command);
            }
        });
        Qmp::connect(ours, Duration::from_secs(5))
    }

    const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 2, \"minor\": 1, \"major\": 10}, \
        \"package\": \"of Debian\"}, \"capabilities\": [\"oob\"]}}\n";

    /// Were each sent only after the answer to the one before, both sides would wait.
    #[test]
    fn commands_of_a_batch_are_all_sent_before_the_first_is_answered() {
        const COMMANDS: u64 = 5;
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = thread::spawn(move || {
            let mut peer = theirs.try_clone().unwrap();
            let mut commands = serde_json::Deserializer::from_reader(theirs).into_iter::<Value>();
            let mut number_of_next = || commands.next().unwrap().unwrap()["id"].as_u64().unwrap();
            peer.write_all(GREETING.as_bytes()).unwrap();
            let negotiated = json!({ "return": {}, "id": number_of_next() });
            writeln!(peer, "{negotiated}").unwrap();
            let numbers: Vec<u64> = (0..COMMANDS).map(|_| number_of_next()).collect();
            for number in numbers {
                writeln!(peer, "{}", json!({ "return": number * 10, "id": number })).unwrap();
            }
        });
        let mut qmp = Qmp::connect(ours, Duration::from_secs(60)).unwrap();
        let disk = |n| Command::new("blockdev-add", json!({ "node-name": format!("link{n}") }));
        let commands: Vec<Command> = (0..COMMANDS).map(disk).collect();

        let returned = qmp.run(&commands).unwrap();

        // In the order of the commands; 0 were the capabilities.
        assert_eq!(returned, [10, 20, 30, 40, 50]);
        peer.join().unwrap();
    }

    #[test]
    fn events_between_answers_are_passed_over() {
        let answers = "{\"event\": \"RESUME\", \"data\": {}}\n{\"return\": {}, \"id\": 0}\n";
        let qmp = against(&[GREETING, answers]).unwrap();
        assert_eq!(qmp.version().to_string(), "10.1.2 (of Debian)");
    }

    #[test]
    fn refusals_name_the_command_and_the_reason() {
        let refusal = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 0}\n";
        let error = against(&[GREETING, refusal]).err().unwrap();
        assert_eq!(error.to_string(), "QEMU refused qmp_capabilities: no");
    }

    #[test]
    fn answers_to_other_commands_are_an_error() {
        let error = against(&[GREETING, "{\"return\": {}, \"id\": 7}\n"]).err().unwrap();
        assert!(matches!(error, QmpError::Malformed));
    }

    #[test]
    fn garbage_and_silence_are_errors() {
        assert!(matches!(against(&["garbage\n"]).err(), Some(QmpError::Malformed)));
        assert!(matches!(against(&[]).err(), Some(QmpError::Io(_))));
    }
}
