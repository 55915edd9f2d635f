//! The streams of an HTTP/2 connection: those under way, and those whose client stalls.
//!
//! A stream is fed by both directions: as long as bytes move either way nobody stalls, so that a gRPC stream on which only
//! one side talks is left alone. What is waited for, and by whom, is known by who was asked last: the request's body by the
//! server, or the client to take a piece of the response. One clock per connection looks at its streams; a stream costs no
//! timer of its own.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::task::AbortHandle;

use super::resets::Resets;
use crate::clock::Moment;
use crate::worker::Deadlines;

/// How long a client may leave its streams, and its connection, without a byte.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For the next bytes of a body that the server waits for before it answers.
    body: Duration,
    /// To take any of an answer.
    write: Duration,
    /// For a body once the server began to answer, for a gRPC call's next message, and for a next request.
    idle: Duration,
}

impl Limits {
    /// Those of a worker.
    pub fn of(deadlines: &Deadlines) -> Self {
        Self { body: deadlines.body, write: deadlines.write, idle: deadlines.idle }
    }

    /// How often to look: a limit is found out of between one and two times itself.
    pub fn interval(&self) -> Duration {
        (self.body.min(self.write).min(self.idle) / 2).max(Duration::from_millis(1))
    }

    /// As ticks of the clock, rounded up; one more than fits, as the first may be almost over.
    fn ticks(&self, limit: Duration) -> u32 {
        let ticks = limit.as_nanos().div_ceil(self.interval().as_nanos()) + 1;
        u32::try_from(ticks).unwrap_or(u32::MAX)
    }
}

/// The streams of one connection, and its clock.
pub struct Streams {
    open: RefCell<Vec<Rc<Stream>>>,
    /// Requests there ever were.
    begun: Cell<u64>,
    /// Those of them that their client gave up at once.
    given_up: Cell<u64>,
    /// Ticks so far.
    now: Cell<u32>,
    /// When a stream was last under way.
    busy_at: Cell<u32>,
    /// The one whose task is spawned next.
    starting: Cell<Option<Rc<Stream>>>,
    resets: Rc<Resets>,
    limits: Limits,
}

impl Streams {
    /// Of a new connection.
    pub fn new(resets: Rc<Resets>, limits: Limits) -> Rc<Self> {
        Rc::new(Self {
            open: RefCell::default(),
            begun: Cell::new(0),
            given_up: Cell::new(0),
            now: Cell::new(0),
            busy_at: Cell::new(0),
            starting: Cell::new(None),
            resets,
            limits,
        })
    }

    /// A request is under way until the guard is dropped.
    pub fn begin(self: &Rc<Self>, grpc: bool) -> Underway {
        let mut open = self.open.borrow_mut();
        let stream = Rc::new(Stream {
            place: Cell::new(open.len()),
            began: Moment::now(),
            moved_at: Cell::new(self.now.get()),
            wanted: Cell::new(false),
            untaken: Cell::new(false),
            answered: Cell::new(false),
            stalled: Cell::new(false),
            grpc,
            reader: RefCell::default(),
            task: RefCell::default(),
            streams: Rc::clone(self),
        });
        open.push(Rc::clone(&stream));
        self.begun.set(self.begun.get() + 1);
        self.starting.set(Some(Rc::clone(&stream)));
        Underway(stream)
    }

    /// The task that serves the stream that began last.
    pub fn spawned(&self, task: &tokio::task::JoinHandle<()>) {
        if let Some(stream) = self.starting.take() {
            stream.task.replace(Some(task.abort_handle()));
        }
    }

    /// Requests there ever were.
    pub fn begun(&self) -> u64 {
        self.begun.get()
    }

    /// Whether its client asks in order to give up: half of its requests, in Envoy's reading of CVE-2023-44487.
    pub fn is_flood(&self) -> bool {
        let over = self.begun.get() - self.open.borrow().len() as u64;
        2 * self.given_up.get() >= over.max(FEW)
    }

    /// Whether a request is under way.
    pub fn is_busy(&self) -> bool {
        !self.open.borrow().is_empty()
    }

    /// Time goes on: streams whose clients stall are ended.
    pub fn tick(&self) {
        self.now.set(self.now.get().wrapping_add(1));
        // Ending one only wakes or aborts its task; the list stays as it is.
        self.open.borrow().iter().filter(|stream| stream.is_overdue()).for_each(|stream| stream.end());
        if self.is_busy() {
            self.busy_at.set(self.now.get());
        }
    }

    /// Whether the connection has had no request under way for its idle time.
    pub fn is_idle(&self) -> bool {
        self.quiet_for(self.limits.idle)
    }

    /// Whether it has had none for so long that its client does not even take what is left of its last answers.
    pub fn is_abandoned(&self) -> bool {
        self.quiet_for(self.limits.idle + self.limits.write)
    }

    fn quiet_for(&self, limit: Duration) -> bool {
        !self.is_busy() && self.now.get().wrapping_sub(self.busy_at.get()) >= self.limits.ticks(limit)
    }
}

/// So many requests say too little about a client.
const FEW: u64 = 500;
/// What a client gives up later than this, it may have waited for.
const AT_ONCE: Duration = Duration::from_secs(1);

/// One stream.
pub struct Stream {
    place: Cell<usize>,
    began: Moment,
    moved_at: Cell<u32>,
    /// More of the request is wanted, and not here.
    wanted: Cell<bool>,
    /// A piece of the response waits for the client to take it.
    untaken: Cell<bool>,
    /// The server began to answer.
    answered: Cell<bool>,
    stalled: Cell<bool>,
    grpc: bool,
    /// Who waits for the request's body.
    reader: RefCell<Option<Waker>>,
    task: RefCell<Option<AbortHandle>>,
    streams: Rc<Streams>,
}

impl Stream {
    /// A piece of the request came.
    pub fn received(&self) {
        self.moved_at.set(self.streams.now.get());
        self.wanted.set(false);
    }

    /// More of the request is wanted, and not here.
    pub fn wants(&self, cx: &Context<'_>) {
        self.wanted.set(true);
        let mut reader = self.reader.borrow_mut();
        if reader.as_ref().is_none_or(|reader| !reader.will_wake(cx.waker())) {
            *reader = Some(cx.waker().clone());
        }
    }

    /// No more of the request is wanted.
    pub fn done_reading(&self) {
        self.wanted.set(false);
    }

    /// The server began to answer.
    pub fn answers(&self) {
        self.answered.set(true);
    }

    /// A piece of the response was handed over, for the client to take.
    pub fn gave(&self) {
        self.moved_at.set(self.streams.now.get());
        self.untaken.set(true);
    }

    /// The client took what it was given.
    pub fn taken(&self) {
        self.untaken.set(false);
    }

    /// Whether it ended because its client stalled.
    pub fn is_stalled(&self) -> bool {
        self.stalled.get()
    }

    /// The task that serves it.
    pub fn task(&self) -> Option<AbortHandle> {
        self.task.borrow().clone()
    }

    fn is_overdue(&self) -> bool {
        let limits = &self.streams.limits;
        let limit = match (self.untaken.get(), self.wanted.get()) {
            (true, _) => limits.write,
            (_, true) if self.answered.get() || self.grpc => limits.idle,
            (_, true) => limits.body,
            // The server is waited for, which has deadlines of its own.
            (false, false) => return false,
        };
        self.streams.now.get().wrapping_sub(self.moved_at.get()) >= limits.ticks(limit)
    }

    /// Before an answer, whoever reads the request learns of it and answers. After that, only the stream can be reset: its
    /// task is dropped, and the library sends RST_STREAM (RFC 9113 section 5.4.2).
    fn end(&self) {
        self.stalled.set(true);
        if self.answered.get() {
            if let Some(task) = self.task.take() {
                task.abort();
            }
        } else if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// A request under way.
pub struct Underway(Rc<Stream>);

impl Underway {
    /// Its stream.
    pub fn stream(&self) -> &Rc<Stream> {
        &self.0
    }

    /// The request learned that its stream was reset for breaking the protocol: its own record says so.
    pub fn recorded(&self) {
        self.0.streams.resets.recorded();
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        let streams = &self.0.streams;
        if !self.0.answered.get() && self.0.began.elapsed() < AT_ONCE {
            streams.given_up.set(streams.given_up.get() + 1);
        }
        let mut open = streams.open.borrow_mut();
        let place = self.0.place.get();
        open.swap_remove(place);
        if let Some(moved) = open.get(place) {
            moved.place.set(place);
        }
        streams.busy_at.set(streams.now.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { body: Duration::from_secs(2), write: Duration::from_secs(4), idle: Duration::from_secs(10) };

    fn streams() -> Rc<Streams> {
        Streams::new(Rc::default(), LIMITS)
    }

    /// After how many ticks of a second the stream ends, of at most 100.
    fn ends_after(streams: &Streams, stream: &Stream) -> Option<u32> {
        (1..=100).find(|_| {
            streams.tick();
            stream.is_stalled()
        })
    }

    fn waiting() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    #[test]
    fn each_wait_has_its_limit_and_the_server_none() {
        let streams = streams();
        type Case = (&'static str, bool, fn(&Stream), Option<u32>);
        let cases: [Case; 6] = [
            ("for the server", false, |_| {}, None),
            ("for the body", false, |it| it.wants(&waiting()), Some(3)),
            ("for a gRPC message", true, |it| it.wants(&waiting()), Some(11)),
            (
                "for the body of what is being answered",
                false,
                |it| (it.wants(&waiting()), it.answers()).0,
                Some(11),
            ),
            ("to be taken from", true, Stream::gave, Some(5)),
            ("no more", false, |it| (it.wants(&waiting()), it.done_reading()).0, None),
        ];
        for (what, grpc, wait, expected) in cases {
            let underway = streams.begin(grpc);
            wait(underway.stream());
            assert_eq!(ends_after(&streams, underway.stream()), expected, "{what}");
        }
    }

    #[test]
    fn bytes_either_way_feed_the_clock() {
        let streams = streams();
        let underway = streams.begin(false);
        let stream = underway.stream();
        for _ in 0..20 {
            stream.wants(&waiting());
            stream.gave();
            streams.tick();
            streams.tick();
            stream.received();
            assert!(!stream.is_stalled());
        }
        assert_eq!(ends_after(&streams, stream), Some(5), "what was given is still not taken");
    }

    #[test]
    fn a_flood_is_half_of_many_given_up_before_an_answer() {
        let streams = streams();
        let answered = |times| (0..times).for_each(|_| streams.begin(false).stream().answers());
        let given_up = |times| (0..times).for_each(|_| drop(streams.begin(false)));
        given_up(249);
        assert!(!streams.is_flood(), "too few to tell");
        answered(600);
        given_up(350);
        assert!(!streams.is_flood(), "less than half");
        given_up(2);
        assert!(streams.is_flood());
    }

    #[test]
    fn a_connection_is_idle_only_without_requests() {
        let streams = streams();
        let tick = |times| (0..times).for_each(|_| streams.tick());
        let (first, second) = (streams.begin(false), streams.begin(false));
        tick(100);
        assert!(!streams.is_idle(), "requests are under way");
        drop(first);
        tick(100);
        assert!(!streams.is_idle() && streams.is_busy(), "one still is");
        drop(second);
        tick(10);
        assert!(!streams.is_idle(), "one was a moment ago");
        tick(1);
        assert!(streams.is_idle() && !streams.is_abandoned());
        tick(4);
        assert!(streams.is_abandoned());
        assert_eq!(streams.begun(), 2);
    }
}
