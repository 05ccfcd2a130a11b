//! Tests that cannot be done on this machine, which must not look as if they had been.

use std::env;
use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::thread;

/// Names a file that a line is added to for each test that was skipped.
const LIST: &str = "TUNNELD_SKIPPED";

/// Says why the test of this thread is skipped: past the harness, which shows nothing of a test that passes.
pub(crate) fn skip(why: impl Display) {
    let thread = thread::current();
    let line = format!("skipped: {}: {why}\n", thread.name().unwrap_or("a test"));
    io::stderr().write_all(line.as_bytes()).unwrap();
    if let Some(list) = env::var_os(LIST) {
        let mut list = OpenOptions::new().append(true).create(true).open(list).unwrap();
        list.write_all(line.as_bytes()).unwrap();
    }
}
