//! What the gateway's varnishd sent to backends and what came back, request by request, read from its log in memory.
//!
//! Stands in no request's way and counts nothing: one `varnishncsa`, ended with who reads it. Its next word to a reader that
//! was killed ends it, too.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use super::varnish::VarnishError;

/// One request sent to a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// The VCL it was sent by, without the digits at its end.
    pub vcl: String,
    /// The backend, as that VCL calls it.
    pub backend: String,
    /// The status that came back; 503 where none did.
    pub status: u16,
    /// How long the answer took to begin.
    pub took: Duration,
}

/// A log that is being read.
#[derive(Debug)]
pub struct Log {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

/// VCL, backend, status, time, and why it failed, which may have blanks.
const FORMAT: &str = "%{VSL:VCL_use[1]}x %{VSL:BackendOpen[2]}x %s %{Varnish:time_firstbyte}x %{VSL:FetchError}x";

impl Log {
    /// Begins to read what the varnishd of this folder sends by VCLs of these names (letters, digits, `_`) with
    /// hexadecimal digits at their end. A request that is sent again elsewhere is seen the first time only.
    ///
    /// # Errors
    /// The tool is not there.
    pub fn open<'a>(workdir: &Path, vcls: impl IntoIterator<Item = &'a str>) -> Result<Self, VarnishError> {
        let tool = "varnishncsa";
        let names: Vec<_> = vcls.into_iter().collect();
        let mut child = Command::new(tool)
            .arg("-n")
            .arg(workdir)
            .args(["-b", "-F", FORMAT, "-q", &format!("VCL_use ~ \"^({})[0-9a-f]+( |$)\"", names.join("|"))])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| VarnishError::Tool { tool, source })?;
        let stdout = child.stdout.take().ok_or_else(|| {
            let source = std::io::ErrorKind::BrokenPipe.into();
            VarnishError::Tool { tool, source }
        })?;
        Ok(Self { _child: child, lines: BufReader::new(stdout).lines() })
    }

    /// The next request; none: the tool has ended.
    pub async fn next(&mut self) -> Option<Exchange> {
        while let Ok(Some(line)) = self.lines.next_line().await {
            if let Some(exchange) = read(&line) {
                return Some(exchange);
            }
        }
        None
    }
}

/// A line of the log; none: no backend was asked.
fn read(line: &str) -> Option<Exchange> {
    let mut words = line.splitn(5, ' ');
    let (vcl, opened, status, took) = (words.next()?, words.next()?, words.next()?, words.next()?);
    // A connection that failed is told as `backend NAME: fail …` only.
    let backend = match opened {
        "-" => words.next()?.strip_prefix("backend ")?.split_once(": fail")?.0,
        name => name,
    };
    Some(Exchange {
        vcl: vcl.trim_end_matches(|c: char| c.is_ascii_hexdigit()).to_owned(),
        backend: backend.to_owned(),
        status: status.parse().unwrap_or(503),
        took: took.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok()).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_as_varnishncsa_writes_them() {
        for (line, wanted) in [
            ("matrix_vcl_app_shop_0a b_shop_2e1 200 0.001068 -", Some(("b_shop_2e1", 200, 1068))),
            ("matrix_vcl_app_shop_0a b_shop_2e1 500 0.2 -", Some(("b_shop_2e1", 500, 200_000))),
            (
                "matrix_vcl_app_shop_0a - 503 0.000061 backend b_shop_2e2: fail errno 111 (Connection refused)",
                Some(("b_shop_2e2", 503, 61)),
            ),
            ("matrix_vcl_app_shop_0a b_shop_2e1 503 3.000 first byte timeout", Some(("b_shop_2e1", 503, 3_000_000))),
            ("matrix_vcl_app_shop_0a b_shop_2e1 - - -", Some(("b_shop_2e1", 503, 0))),
            ("matrix_vcl_app_shop_0a - 503 0.000061 Director usual_first returned no backend", None),
            ("matrix_vcl_app_shop_0a - 503 0.000061 backend b_shop_2e2: unhealthy", None),
            ("matrix_vcl_app_shop_0a - - - -", None),
            ("", None),
        ] {
            let found = read(line);
            let brief = found.as_ref().map(|e| (e.backend.as_str(), e.status, e.took.as_micros()));
            assert_eq!(brief, wanted, "{line}");
            assert!(found.is_none_or(|e| e.vcl == "matrix_vcl_app_shop_"));
        }
    }
}
