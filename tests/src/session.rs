//! A psql session that stays open across statements.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// An open session. Dropping it disconnects, which rolls back what is in progress.
#[derive(Debug)]
pub struct Session {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

const END: &str = "--walpoint-end-of-answer--";

impl Session {
    pub(crate) fn start(command: &mut Command) -> Session {
        // psql buffers its output when it is no terminal; \echo and \g go through the same buffer, in order, and
        // reading the next command from a pipe flushes it.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("start {command:?}: {e}"));
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Session { child, input, output }
    }

    /// Runs statements and gives their rows, as [`Cluster::psql`](crate::cluster::Cluster::psql) does. Errors appear in
    /// the test's output and give no rows.
    #[track_caller]
    pub fn run(&mut self, sql: &str) -> String {
        self.send(sql);
        self.answer()
    }

    /// Sends statements and does not wait: for one that blocks. [`answer`](Session::answer) collects it.
    #[track_caller]
    pub fn send(&mut self, sql: &str) {
        let input = self.input.as_mut().expect("an open session");
        writeln!(input, "{sql}\n;\n\\echo {END}").expect("the session ended");
        input.flush().expect("the session ended");
    }

    /// Waits for the answer of the statements sent last.
    #[track_caller]
    pub fn answer(&mut self) -> String {
        let mut rows = Vec::new();
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).expect("read") > 0, "the session ended: {rows:?}");
            let line = line.trim_end_matches('\n');
            if line == END {
                return rows.join("\n");
            }
            rows.push(line.to_owned());
        }
    }

    /// Like [`answer`](Session::answer) when the server may have died meanwhile: None if the session ended.
    pub fn try_answer(&mut self) -> Option<String> {
        let mut rows = Vec::new();
        loop {
            let mut line = String::new();
            match self.output.read_line(&mut line) {
                Ok(n) if n > 0 => {}
                _ => return None,
            }
            let line = line.trim_end_matches('\n');
            if line == END {
                return Some(rows.join("\n"));
            }
            rows.push(line.to_owned());
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.input.take());
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
