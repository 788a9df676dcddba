//! The test's side of the socket: a thread reads what init says, whoever asks waits for its answer.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::leaks::Leak;
use super::wait::scaled;
use super::wire::{Answer, Event, Request};

/// How long init may take to answer: it does nothing that takes long.
const ANSWER: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Heard {
    init: Option<i32>,
    ready: bool,
    answers: HashMap<u64, Answer>,
    exited: HashMap<u64, i32>,
    ended: Option<String>,
}

pub struct Channel {
    name: String,
    stream: UnixStream,
    heard: Arc<(Mutex<Heard>, Condvar)>,
    reader: Option<JoinHandle<()>>,
    serial: AtomicU64,
}

impl Channel {
    pub fn over(name: &str, stream: UnixStream) -> Self {
        let heard = Arc::new((Mutex::new(Heard::default()), Condvar::new()));
        let (input, shared) = (stream.try_clone().expect("a second descriptor"), Arc::clone(&heard));
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(input).lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).expect("init speaks the wire's language");
                note(&mut shared.0.lock().unwrap(), event);
                shared.1.notify_all();
            }
            shared.0.lock().unwrap().ended.get_or_insert_with(|| "the box's init has ended".into());
            shared.1.notify_all();
        });
        Self { name: name.into(), stream, heard, reader: Some(reader), serial: AtomicU64::new(1) }
    }

    /// Waits until the box stands; the process id of its init, seen from here.
    pub fn ready(&self) -> i32 {
        let ready = self.wait(ANSWER, |heard| heard.init.filter(|_| heard.ready));
        ready.unwrap_or_else(|why| panic!("box {}: does not come up: {why}", self.name))
    }

    /// Sends the request made from a fresh serial number and waits for its answer.
    pub fn ask(&self, request: impl FnOnce(u64) -> Request) -> (u64, Answer) {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        self.try_ask(serial, &request(serial))
            .map_or_else(|why| panic!("box {}: {why}", self.name), |answer| (serial, answer))
    }

    fn try_ask(&self, serial: u64, request: &Request) -> Result<Answer, String> {
        let line = serde_json::to_string(request).expect("a request is plain data") + "\n";
        let sent = (&self.stream).write_all(line.as_bytes());
        // A box that has just ended says why; a broken pipe does not.
        let answer = self.wait(ANSWER, |heard| heard.answers.remove(&serial));
        answer.map_err(|why| sent.err().map_or(why.clone(), |error| format!("{why} ({error})")))
    }

    /// The raw wait status of a program started by the request `serial`, once it has ended.
    pub fn exited(&self, serial: u64, deadline: Duration) -> Result<i32, String> {
        self.wait(deadline, |heard| heard.exited.get(&serial).copied())
    }

    /// Whether the program has ended already.
    pub fn has_exited(&self, serial: u64) -> bool {
        self.heard.0.lock().unwrap().exited.contains_key(&serial)
    }

    /// Why the box is no more, if it is.
    pub fn ended(&self) -> Option<String> {
        self.heard.0.lock().unwrap().ended.clone()
    }

    /// Asks for what is left behind, after up to `grace` for things to go away.
    pub fn finish(&self, grace: Duration, tolerated: Vec<Leak>) -> Result<Vec<(Leak, String)>, String> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        match self.try_ask(serial, &Request::Finish { serial, grace_ms, tolerated })? {
            Answer::Left { found } => Ok(found),
            answer => Err(format!("an answer to something else: {answer:?}")),
        }
    }

    /// Lets init see the end of its input, on which it and everything in the box ends.
    pub fn close(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }

    fn wait<T>(
        &self,
        deadline: Duration,
        mut find: impl FnMut(&mut Heard) -> Option<T>,
    ) -> Result<T, String> {
        let deadline = scaled(deadline);
        let until = Instant::now() + deadline;
        let mut heard = self.heard.0.lock().unwrap();
        loop {
            if let Some(found) = find(&mut heard) {
                return Ok(found);
            }
            if let Some(why) = &heard.ended {
                return Err(why.clone());
            }
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                return Err(format!("not within {} s", deadline.as_secs_f64()));
            };
            heard = self.heard.1.wait_timeout(heard, left).unwrap().0;
        }
    }
}

fn note(heard: &mut Heard, event: Event) {
    match event {
        Event::Init { pid } => heard.init = Some(pid),
        Event::Ready => heard.ready = true,
        Event::Answer { serial, answer } => drop(heard.answers.insert(serial, answer)),
        Event::Exited { serial, status } => drop(heard.exited.insert(serial, status)),
        Event::TimeLimit { after_ms, processes } => {
            let processes = processes.join("\n  ");
            heard.ended = Some(format!("time limit of {after_ms} ms is over, in the box:\n  {processes}"));
        }
    }
}
