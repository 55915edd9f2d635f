//! Requests that go on whatever happens, and an application that holds some of them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tests::PATIENCE;

/// For how long the application holds what it is to hold: so that several at once need as many connections.
const HELD: Duration = Duration::from_millis(200);

/// Answers every request with 200, those to `/hold/..` late. It ends with the test program.
pub fn application() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

fn serve(mut stream: TcpStream) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut requests = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut line = String::new();
        requests.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let held = line.starts_with("GET /hold/");
        while line.trim_end() != "" {
            line.clear();
            requests.read_line(&mut line).ok().filter(|read| *read > 0)?;
        }
        if held {
            std::thread::sleep(HELD);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").ok()?;
    }
}

/// A client that keeps its connection.
pub struct Client(BufReader<TcpStream>);

impl Client {
    pub fn connect(entrance: SocketAddr) -> Self {
        let stream = TcpStream::connect(entrance).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    /// The status line; nothing but the whole answer counts.
    pub fn get(&mut self, host: &str, path: &str) -> std::io::Result<String> {
        write!(self.0.get_mut(), "GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")?;
        let mut status = String::new();
        let mut length = 0;
        let mut line = String::new();
        loop {
            line.clear();
            if self.0.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let lower = line.trim_end().to_lowercase();
            if lower.is_empty() {
                break;
            }
            if status.is_empty() {
                status = lower;
            } else if let Some(given) = lower.strip_prefix("content-length:") {
                length = given.trim().parse().unwrap_or(0);
            }
        }
        self.0.read_exact(&mut vec![0; length])?;
        Ok(status)
    }
}

/// Clients that ask without a pause until they are stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    pub fn start(entrance: SocketAddr, host: &'static str, clients: usize) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let clients = (0..clients).map(|_| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            std::thread::spawn(move || {
                let mut failures = Vec::new();
                let mut client = Client::connect(entrance);
                while !stop.load(Ordering::Relaxed) {
                    match client.get(host, "/steady") {
                        Ok(status) if status.starts_with("http/1.1 200") => {
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        other => {
                            failures.push(format!("{other:?}"));
                            client = Client::connect(entrance);
                        }
                    }
                    // A steady load, not all that the machine can do.
                    std::thread::sleep(Duration::from_millis(2));
                }
                failures
            })
        });
        Self { clients: clients.collect(), stop, answered }
    }

    /// So many at once, each on a connection of its own, and on the way to the application too.
    pub fn pulse(entrance: SocketAddr, host: &str, requests: usize) -> Vec<String> {
        let ask = || Client::connect(entrance).get(host, "/hold/1");
        std::thread::scope(|scope| {
            let asking: Vec<_> = (0..requests).map(|_| scope.spawn(ask)).collect();
            let answers = asking.into_iter().map(|asking| format!("{:?}", asking.join().unwrap()));
            answers.filter(|answer| !answer.contains("http/1.1 200")).collect()
        })
    }

    /// How many were answered, and what else came of others.
    pub fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        (self.answered.load(Ordering::Relaxed), failures)
    }
}
