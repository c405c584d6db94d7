//! The real server in this process, on a socket pair, over a folder of this machine.

#[cfg(test)]
mod client;
#[cfg(test)]
mod files;
#[cfg(test)]
mod lanes;
