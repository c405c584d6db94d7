//! The daemon in the guest. It is the only code that stands between an image's filesystem,
//! as the guest kernel shows it, and the host; it never panics on what the host sends.
