//! What the files on the host mean, and which of them may be opened.
