//! `writ admin`: asks a running proxy and prints its answer.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

/// Flags of `writ admin`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to ask for: /ready, /live, /metrics, /config, /attestation, /jwks, /coverage, /candidate, /explain?..; / lists them.
    #[arg(value_name = "URL-PATH", default_value = "/")]
    path: UrlPath,
    /// Where the proxy's admin listener is: a port (on loopback), ADDRESS:PORT or unix:PATH.
    #[arg(long, value_name = "WHERE", env = "WRIT_ADMIN", default_value = "127.0.0.1:15000")]
    admin: Target,
}

/// Prints the answer's body. Succeeds if the proxy answered 200.
pub fn run(args: &Args) -> ExitCode {
    let printed = ask(&args.admin, &args.path).and_then(|answer| {
        io::stdout().lock().write_all(&answer.body)?;
        Ok(answer.status)
    });
    match printed {
        Ok(200) => ExitCode::SUCCESS,
        Ok(status) => {
            eprintln!("writ admin: {} answered {status} to {}", args.admin, args.path.0);
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("writ admin: {}: {error}; is the proxy running, and is this its --admin?", args.admin);
            ExitCode::FAILURE
        }
    }
}

/// A path and query as they stand in a request line.
#[derive(Debug, Clone)]
struct UrlPath(String);

impl FromStr for UrlPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err("a path begins with /, as in /ready".into());
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("spaces and other special characters must be percent-encoded".into());
        }
        Ok(Self(text.into()))
    }
}

/// Where an admin interface listens.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        if let Ok(port) = text.parse() {
            return Ok(Self::Tcp((Ipv4Addr::LOCALHOST, port).into()));
        }
        text.parse().map(Self::Tcp).map_err(|_| "expected a port, ADDRESS:PORT or unix:PATH".into())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

struct Answer {
    status: u16,
    body: Vec<u8>,
}

/// One request on one connection, which the answer's end closes.
fn ask(target: &Target, path: &UrlPath) -> io::Result<Answer> {
    match target {
        Target::Tcp(address) => {
            let stream = TcpStream::connect_timeout(address, TIMEOUT)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            exchange(stream, path)
        }
        Target::Unix(socket) => {
            let stream = UnixStream::connect(socket)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            exchange(stream, path)
        }
    }
}

/// HTTP/1.0, so that the answer comes without chunks.
fn exchange(mut stream: impl Read + Write, path: &UrlPath) -> io::Result<Answer> {
    stream.write_all(format!("GET {} HTTP/1.0\r\nHost: localhost\r\n\r\n", path.0).as_bytes())?;
    let mut bytes = Vec::new();
    stream.take(ANSWER_LIMIT).read_to_end(&mut bytes)?;
    parse(bytes)
}

fn parse(mut bytes: Vec<u8>) -> io::Result<Answer> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let head = match response.parse(&bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Err(invalid("the answer breaks off")),
        Err(error) => return Err(invalid(&format!("not an HTTP answer ({error})"))),
    };
    let status = response.code.unwrap_or_default();
    let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse::<usize>().ok());
    let body = bytes.split_off(head);
    if length.is_some_and(|length| length != body.len()) {
        return Err(invalid("the answer breaks off"));
    }
    Ok(Answer { status, body })
}

/// To connect, and between two reads.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer.
const ANSWER_LIMIT: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Arc;

    use super::*;
    use crate::admin::{AdminState, Kind, Readiness, start};
    use crate::telemetry::{Options, ProxyFacts, Sink, Telemetry};

    #[test]
    fn a_running_proxy_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target::Tcp(listener.local_addr().unwrap());
        let state = AdminState {
            ready: Arc::new(Readiness::new(&["config"])),
            telemetry: Telemetry::start(Options::new(ProxyFacts::default(), Sink::Off)).unwrap(),
            attestation: || serde_json::Value::Null,
            explain: None,
            candidate: None,
        };
        let handle = start(vec![(listener.into(), Kind::Admin)], state.clone()).unwrap();
        let ready = || ask(&target, &UrlPath("/ready".into())).unwrap();
        let answer = ready();
        assert_eq!((answer.status, answer.body.as_slice()), (503, b"config: not yet\n".as_slice()));
        state.ready.ready("config");
        assert_eq!(ready().status, 200);
        handle.stop();
        assert!(ask(&target, &UrlPath("/ready".into())).is_err());
    }

    #[test]
    fn targets_are_read_from_flags() {
        assert_eq!("15000".parse(), Ok(Target::Tcp(([127, 0, 0, 1], 15000).into())));
        assert_eq!("[::1]:1".parse(), Ok(Target::Tcp("[::1]:1".parse().unwrap())));
        assert_eq!("unix:/run/writ".parse(), Ok(Target::Unix("/run/writ".into())));
        assert!("example.com:80".parse::<Target>().is_err());
    }

    #[test]
    fn a_path_cannot_smuggle_a_second_line() {
        assert!("/explain?url=http://a/b".parse::<UrlPath>().is_ok());
        for text in ["ready", "/a b", "/a\r\nX: y", "/ä"] {
            assert!(text.parse::<UrlPath>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_answer_that_breaks_off_is_an_error() {
        let whole = b"HTTP/1.0 503 x\r\ncontent-length: 3\r\n\r\nno\n";
        let answer = parse(whole.to_vec()).unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (503, b"no\n".as_slice()));
        for end in 0..whole.len() {
            assert!(parse(whole[..end].to_vec()).is_err(), "{end}");
        }
        assert!(parse(b"SSH-2.0-x\r\n\r\n".to_vec()).is_err());
    }
}
