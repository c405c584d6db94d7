//! What is fuzzed: each module takes bytes of whoever may be hostile, gives them to the code that
//! reads such bytes, and checks what that promises. A panic is a finding.
//!
//! The functions are plain, so that an ordinary test runs them over the seeds; `cargo xtask fuzz`
//! gives them to libFuzzer.

pub mod answers;
pub mod descriptor;
pub mod extent;
pub mod frames;
pub mod image;
pub mod machine;
mod place;
pub mod record;
pub mod requests;
mod sealed;
pub mod tar;
pub mod vbox;
pub mod vhdx_log;
pub mod wof;
mod writing;

/// Something that is fuzzed.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, which is that of its folder of seeds.
    pub name: &'static str,
    /// What is done with some bytes.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 12] = [
    Target { name: "frames", run: frames::run },
    Target { name: "answers", run: answers::run },
    Target { name: "requests", run: requests::run },
    Target { name: "descriptor", run: descriptor::run },
    Target { name: "image", run: image::run },
    Target { name: "extent", run: extent::run },
    Target { name: "machine", run: machine::run },
    Target { name: "tar", run: tar::run },
    Target { name: "record", run: record::run },
    Target { name: "vhdx_log", run: vhdx_log::run },
    Target { name: "vbox", run: vbox::run },
    Target { name: "wof", run: wof::run },
];
