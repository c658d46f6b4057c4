//! One connection to varnishd's command line, held by a `varnishadm` in pipe mode: a command takes less than a
//! millisecond instead of a process. Knows the words of the protocol (varnish-cli(7)), none of the commands.

use std::{fmt::Write as _, io, path::Path, process::Stdio, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::Mutex,
    time::timeout,
};

/// The longest answer that is read.
const LONGEST: usize = 64 << 20;

/// A connection that is made when it is needed, and made anew when varnishd is another one. One command at a time, as
/// varnishd takes them. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Cli {
    session: Arc<Mutex<Option<Session>>>,
}

#[derive(Debug)]
struct Session {
    /// The varnishd it speaks to.
    process: u32,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What varnishd said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    /// 200: done.
    pub status: u16,
    pub text: String,
}

/// Why it said nothing.
#[derive(Debug)]
pub(super) enum Silent {
    /// There is no varnishadm.
    Tool(io::Error),
    /// The connection ended or could not be made.
    Ended,
    /// It took longer than that.
    Slow,
}

impl Cli {
    /// Says one command of these words to the varnishd of this working directory, which is this process.
    pub(super) async fn say(
        &self,
        workdir: &Path,
        process: u32,
        words: &[String],
        patience: Duration,
    ) -> Result<Said, Silent> {
        let mut held = self.session.lock().await;
        // Taken out: who is cut off within an answer leaves no connection behind that would give it to the next one.
        let mut session = held.take().filter(|session| session.process == process);
        if !session.as_mut().is_some_and(|session| matches!(session.child.try_wait(), Ok(None))) {
            session = Some(Session::open(workdir, process)?);
        }
        let Some(mut session) = session else { return Err(Silent::Ended) };
        match timeout(patience, session.ask(words)).await {
            Ok(Ok(said)) => {
                *held = Some(session);
                Ok(said)
            }
            Ok(Err(_)) => Err(Silent::Ended),
            Err(_) => Err(Silent::Slow),
        }
    }
}

impl Session {
    fn open(workdir: &Path, process: u32) -> Result<Self, Silent> {
        let mut command = Command::new("varnishadm");
        // For a varnishd that is just starting, not for answers.
        command.args(["-p", "-t", "10", "-n"]).arg(workdir);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().map_err(Silent::Tool)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else { return Err(Silent::Ended) };
        Ok(Self { process, child, input, output: BufReader::new(output) })
    }

    async fn ask(&mut self, words: &[String]) -> io::Result<Said> {
        let line: Vec<_> = words.iter().map(|word| quoted(word)).collect();
        self.input.write_all(format!("{}\n", line.join(" ")).as_bytes()).await?;
        self.input.flush().await?;
        // `200 1234    ` and the answer, which nothing follows.
        let mut head = String::new();
        (&mut self.output).take(64).read_line(&mut head).await?;
        let mut numbers = head.split_whitespace().map(str::parse::<usize>);
        let (Some(Ok(status)), Some(Ok(length)), None) = (numbers.next(), numbers.next(), numbers.next()) else {
            return Err(io::Error::other("no answer of a command line"));
        };
        if length > LONGEST {
            return Err(io::Error::other("too long an answer"));
        }
        let mut text = vec![0; length];
        self.output.read_exact(&mut text).await?;
        let status = u16::try_from(status).map_err(io::Error::other)?;
        Ok(Said { status, text: String::from_utf8_lossy(&text).into_owned() })
    }
}

/// A word as the command line reads it back: in quotes, where anything in it could mean something.
fn quoted(word: &str) -> String {
    if !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-*/:".contains(&b)) {
        return word.to_owned();
    }
    let mut text = String::from("\"");
    for byte in word.bytes() {
        match byte {
            b'"' | b'\\' => text.extend(['\\', byte.into()]),
            b' '..=b'~' => text.push(byte.into()),
            _ => _ = write!(text, "\\{byte:03o}"),
        }
    }
    text + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_one_word() {
        assert_eq!(quoted("matrix_vcl.b_1"), "matrix_vcl.b_1");
        assert_eq!(quoted("/run/a b/x.vcl"), "\"/run/a b/x.vcl\"");
        assert_eq!(quoted("a\"b\\c\nstop"), "\"a\\\"b\\\\c\\012stop\"");
        assert_eq!(quoted(""), "\"\"");
    }
}
