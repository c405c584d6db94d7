//! The real server in this process, on a socket pair, over a folder of this machine.

mod client;
mod files;
mod lanes;
