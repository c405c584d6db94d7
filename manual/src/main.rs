//! Writes the manual pages and the shells' completions of guestmnt's programs into a folder, laid
//! out as below `/usr/share`. A program of its own, so that the chores need not wait for the host's
//! library to be built.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap_complete::{Shell, generate};

/// Where each shell looks, and what stands before and behind a program's name there.
const SHELLS: [(Shell, &str, &str, &str); 3] = [
    (Shell::Bash, "bash-completion/completions", "", ""),
    (Shell::Zsh, "zsh/vendor-completions", "_", ""),
    (Shell::Fish, "fish/vendor_completions.d", "", ".fish"),
];

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: guestmnt-manual FOLDER");
        return ExitCode::FAILURE;
    };
    match write(&folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guestmnt-manual: cannot write in {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path) -> io::Result<()> {
    let pages = folder.join("man/man1");
    fs::create_dir_all(&pages)?;
    for command in guestmnt::cli::commands() {
        clap_mangen::generate_to(command.clone(), &pages)?;
        for (shell, place, before, behind) in SHELLS {
            let program = command.get_name();
            let mut text = Vec::new();
            generate(shell, &mut command.clone(), program, &mut text);
            fs::create_dir_all(folder.join(place))?;
            fs::write(folder.join(place).join(format!("{before}{program}{behind}")), text)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_and_subcommand_has_a_page_and_each_shell_its_completions() {
        let folder = std::env::temp_dir().join(format!("guestmnt-manual-{}", std::process::id()));
        write(&folder).expect("the folder is ours");
        let text = |path: &str| fs::read_to_string(folder.join(path)).unwrap_or_default();
        for (page, word) in [
            ("guestmnt.1", "blocks"),
            ("guestunmnt.1", "retry"),
            ("guestimg.1", "guestimg\\-export"),
            ("guestimg-export.1", "output\\-format"),
            ("guestimg-tar.1", "OPTIONS"),
        ] {
            let text = text(&format!("man/man1/{page}"));
            assert!(text.starts_with(".ie") && text.contains(word), "{page}: {text}");
        }
        assert!(!folder.join("man/man1/guestimg-canary.1").exists());
        for path in [
            "bash-completion/completions/guestimg",
            "zsh/vendor-completions/_guestimg",
            "fish/vendor_completions.d/guestimg.fish",
        ] {
            assert!(text(path).contains("filesystems"), "{path}");
            assert!(!text(path).contains("canary"), "{path} offers what is hidden");
        }
        fs::remove_dir_all(&folder).expect("it was made above");
    }
}
