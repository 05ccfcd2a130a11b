//! The program while it runs: for commands that go on until they are told to end.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

use crate::fake::{Fake, LIMIT, Ran};

/// A program that runs, and what it prints.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    /// Starts it with these arguments.
    pub(crate) fn start(fake: &Fake, arguments: &[&str]) -> Self {
        let mut command = fake.command(arguments);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Waits for the next line.
    pub(crate) async fn line(&mut self) -> String {
        timeout(LIMIT, self.lines.next_line())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    }

    /// Waits for the end; what was printed and not read yet is in the answer.
    pub(crate) async fn end(self) -> Ran {
        let Self { child, mut lines } = self;
        let mut stdout = String::new();
        while let Some(line) = timeout(LIMIT, lines.next_line()).await.unwrap().unwrap() {
            stdout += &(line + "\n");
        }
        let output = timeout(LIMIT, child.wait_with_output()).await.unwrap().unwrap();
        Ran {
            stdout,
            ..output.into()
        }
    }
}
