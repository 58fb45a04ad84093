//! A batch's changes as the bytes that a sink takes.

pub mod copy;
pub mod json;
pub mod kafka;
