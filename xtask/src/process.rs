//! Child processes that either do their work or say why not.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use crate::Error;

/// Bytes at the end of a program's output that an error shows.
const TAIL: usize = 2000;

/// A command that runs without a terminal: nothing to answer, output kept for the error.
pub struct Tool {
    command: Command,
}

impl Tool {
    /// `program`, looked up in `$PATH` and where Debian keeps the tools of root.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).env("PATH", search_path()).env("LC_ALL", "C.UTF-8");
        Self { command }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs in `folder`.
    pub fn within(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Runs it and returns what it printed on stdout.
    ///
    /// # Errors
    /// [`Error::Start`], or [`Error::Program`] with the tail of stderr.
    pub fn output(mut self) -> Result<Vec<u8>, Error> {
        let output = self.command.output().map_err(|source| self.start_error(source))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
        Err(self.failed(output.status, said))
    }

    /// Runs it for its effect.
    ///
    /// # Errors
    /// As [`Tool::output`].
    pub fn run(self) -> Result<(), Error> {
        self.output().map(drop)
    }

    /// Runs it with its output going to our own, for programs whose progress people want to see.
    ///
    /// # Errors
    /// [`Error::Start`]; the status is the caller's to judge.
    pub fn shown(mut self) -> Result<ExitStatus, Error> {
        self.command.status().map_err(|source| self.start_error(source))
    }

    /// Runs it with its output appended to the file `log`.
    ///
    /// # Errors
    /// As [`Tool::output`], with the tail of the log.
    pub fn logged(mut self, log: &Path) -> Result<(), Error> {
        let mut file = File::options()
            .create(true)
            .append(true)
            .read(true)
            .open(log)
            .map_err(Error::file("open", log))?;
        let start = file.seek(SeekFrom::End(0)).map_err(Error::file("seek in", log))?;
        let copy = || file.try_clone().map_err(Error::file("duplicate", log));
        self.command.stdout(copy()?).stderr(copy()?);
        let status = self.command.status().map_err(|source| self.start_error(source))?;
        if status.success() {
            return Ok(());
        }
        let mut said = Vec::new();
        file.seek(SeekFrom::Start(start)).map_err(Error::file("seek in", log))?;
        file.read_to_end(&mut said).map_err(Error::file("read", log))?;
        Err(self.failed(status, &said))
    }

    /// Runs it with `input` on stdin and returns what it printed on stdout.
    ///
    /// # Errors
    /// As [`Tool::output`].
    pub fn filter(mut self, input: &[u8]) -> Result<Vec<u8>, Error> {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().map_err(|source| self.start_error(source))?;
        let mut stdin = child.stdin.take().expect("piped above");
        let output = std::thread::scope(|scope| {
            // A program that stops reading has found its end, or says why on stderr.
            scope.spawn(move || drop(stdin.write_all(input)));
            child.wait_with_output()
        })
        .map_err(|source| self.start_error(source))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(self.failed(output.status, &output.stderr))
    }

    fn start_error(&self, source: std::io::Error) -> Error {
        Error::Start { program: self.command.get_program().to_string_lossy().into_owned(), source }
    }

    fn failed(&self, status: ExitStatus, said: &[u8]) -> Error {
        let said = said.trim_ascii_end();
        let tail = &said[said.len().saturating_sub(TAIL)..];
        Error::Program { command: self.line(), status, tail: tail.to_vec() }
    }

    /// The command line, for people.
    fn line(&self) -> String {
        let mut words = vec![self.command.get_program().to_string_lossy()];
        words.extend(self.command.get_args().map(OsStr::to_string_lossy));
        words.join(" ")
    }
}

/// `$PATH` and the folders of root's tools, which Debian leaves out for other users.
pub fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin")
}

/// Where `program` is found in the [`search_path`].
pub fn find_program(program: &str) -> Option<std::path::PathBuf> {
    std::env::split_paths(&search_path())
        .map(|folder| folder.join(program))
        .find(|path| nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok())
}
