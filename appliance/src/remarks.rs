//! What the user has to know of filesystems that are mounted, but not as they should be: with a disk
//! missing, by another driver, without their journal.

use std::cell::RefCell;
use std::fmt::Display;

use guestmnt_protocol::limits::MAX_REMARKS;

use crate::kmsg;

/// Such remarks, one sentence each.
#[derive(Default)]
pub struct Remarks(RefCell<Vec<String>>);

impl Remarks {
    /// Adds `remark`, unless it was made already.
    pub fn add(&self, remark: impl Display) {
        let remark = remark.to_string();
        kmsg::warn(format_args!("{remark}"));
        let mut all = self.0.borrow_mut();
        if all.len() < MAX_REMARKS && !all.contains(&remark) {
            all.push(remark);
        }
    }

    /// All of them.
    #[must_use]
    pub fn into_lines(self) -> Vec<String> {
        self.0.into_inner()
    }
}
