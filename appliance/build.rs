//! Finds the static libblkid, which tells filesystems apart. Static in every build: the daemon has
//! no dynamic linker beside it, and the tests are to run the same code.

use std::path::{Path, PathBuf};
use std::process::{Command, exit};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=CC");
    // libblkid makes its UUIDs with libuuid.
    for library in ["blkid", "uuid"] {
        let archive = format!("lib{library}.a");
        let Some(folder) = folder_of(&archive) else {
            eprintln!("{archive} is missing: install libblkid-dev and uuid-dev");
            exit(1);
        };
        println!("cargo:rerun-if-changed={}", folder.join(&archive).display());
        println!("cargo:rustc-link-search=native={}", folder.display());
        println!("cargo:rustc-link-lib=static={library}");
    }
}

/// Where the C compiler would take `archive` from. It prints the bare name where it knows of none.
fn folder_of(archive: &str) -> Option<PathBuf> {
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let output = Command::new(compiler).arg(format!("-print-file-name={archive}")).output().ok()?;
    let found = String::from_utf8(output.stdout).ok()?;
    let found = Path::new(found.trim_end());
    if found.is_absolute() { found.parent().map(Path::to_path_buf) } else { None }
}
