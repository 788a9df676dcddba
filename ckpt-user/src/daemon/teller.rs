//! The core's eBPF programs, and what it tells workers of their rows ([`super::questions`]).
//!
//! Loaded once for the node; nothing is attached, so they cost nobody anything while nobody asks. Whoever asks has nothing in common
//! with others who do: a question that takes long, as its user may see to, is that user's alone.

use super::object;
use super::proc_fd::ProcFd;
use super::questions::{self, ASK, Answer, Ask, LESSONS, MOST, OBJECT, ROOM, TIME};
use super::veil::Veil;
use super::wire;
use crate::sys::bpf::{BpfError, Limits, Options, Program};
use crate::sys::packet::{self, Packet};
use crate::sys::pidfd;
use crate::task::iterators::lessons::Lessons;
use crate::task::iterators::programs::Programs;
use crate::task::iterators::rows::Question;
use crate::task::proc::Status;
use nix::sys::socket::MsgFlags;
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use zerocopy::FromBytes;

/// Loaded programs.
pub struct Teller {
    programs: Programs,
    lessons: Lessons,
    veil: Veil,
}

impl Teller {
    /// # Errors
    /// This kernel has no such programs, or none that can be asked about one process alone.
    pub fn load() -> Result<Self, BpfError> {
        let none = Options { lifecycle_ring: 4096, fault_ring: 4096, tracked: 16, probes: false };
        let (programs, lessons) = Programs::load(none)?;
        let teller = Self { programs, lessons, veil: Veil::default() };
        teller.may_be_asked().map(|()| teller)
    }

    fn may_be_asked(&self) -> Result<(), BpfError> {
        if self.programs.bpf.is_restrictable() {
            return Ok(());
        }
        let reason =
            "before Linux 6.1 an iterator walks all of the node, which no user may ask for".to_owned();
        Err(BpfError::NotLoaded { program: Program::Tasks.name(), reason })
    }

    /// The answer to a message of a worker's of user `uid`, or an error number.
    fn answer(&self, asked: &Packet, uid: u32) -> Result<Answer, i32> {
        let ask = question(asked).filter(|ask| ask.reserved == 0).ok_or(libc::EINVAL)?;
        let (own, about) = asked.descriptors.split_first().ok_or(libc::EINVAL)?;
        let sender = asked.sender.ok_or(libc::EPERM)?;
        // Nobody else can have that number as long as this one is not waited for. Root of a pid namespace may name any process of it
        // as the sender (`scm_check_creds`), one of another user's too.
        let is_named = || pidfd::names(own.as_fd()).is_ok_and(|named| named == Some(sender));
        let is_sender = || is_wholly(sender, uid) && is_named();
        if !is_sender() {
            return Err(libc::EPERM);
        }
        let answer = match ask.question {
            LESSONS => Ok(self.lessons.to_bytes().into()),
            OBJECT => {
                let process = about.first().ok_or(libc::EINVAL)?;
                let opened = object::open(sender, uid, process, ask.start..ask.end);
                let opened = opened.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))?;
                Ok(Answer { descriptor: Some(opened), ..Answer::default() })
            }
            other => {
                let question = Question::of(other).ok_or(libc::EINVAL)?;
                self.told(sender, question, about).map(Answer::from).map_err(|error| {
                    log::debug!("process {sender}: {error}");
                    number_of(&error)
                })
            }
        };
        if is_sender() { answer } else { Err(libc::EPERM) }
    }

    fn told(&self, tracer: Pid, question: Question, about: &[OwnedFd]) -> Result<Vec<u8>, BpfError> {
        let bpf = &self.programs.bpf;
        let pids: Vec<Option<Pid>> = about.iter().map(|fd| pidfd::names(fd.as_fd()).ok().flatten()).collect();
        let number = |pid: Pid| pid.as_raw().cast_unsigned();
        let there: Vec<u32> = pids.iter().flatten().copied().map(number).collect();
        let limits = Limits { room: Some(ROOM), time: Some(TIME) };
        let about = bpf.about(there, limits);
        let answered = || match self.programs.answer(&about, question) {
            // What could not be read may have been in the answer to somebody else.
            Err(BpfError::Torn { .. }) => self.programs.answer(&about, question),
            answered => answered,
        };
        let mut rows = bpf.for_the_eyes_of(number(tracer), answered)??;
        // Otherwise all of the node was walked through.
        self.may_be_asked()?;
        for pid in pids {
            let host = pid.map(|pid| bpf.host_of(number(pid), number(pid))).transpose()?;
            rows.hosts.push(host.flatten().unwrap_or(0));
        }
        self.veil.hide(&mut rows, self.lessons.learnt.word_of_landlock());
        let bytes = rows.to_bytes();
        if bytes.len() > ROOM {
            let source = io::ErrorKind::FileTooLarge.into();
            return Err(BpfError::Iterator { program: Program::Tasks.name(), source });
        }
        Ok(bytes)
    }
}

/// What a message asks; none where that cannot be understood.
fn question(asked: &Packet) -> Option<Ask> {
    match wire::split(&asked.bytes) {
        Ok((header, body)) if header.kind == ASK => Ask::read_from_bytes(body).ok(),
        _ => None,
    }
}

fn number_of(error: &BpfError) -> i32 {
    match error {
        BpfError::Iterator { source, .. } => match source.kind() {
            io::ErrorKind::FileTooLarge => libc::E2BIG,
            io::ErrorKind::TimedOut => libc::ETIMEDOUT,
            _ => libc::EIO,
        },
        BpfError::NoProcess(_) => libc::ESRCH,
        _ => libc::EIO,
    }
}

/// Whether all user ids of a process are this one.
fn is_wholly(process: Pid, uid: u32) -> bool {
    let status = ProcFd::of(process).and_then(|of| of.text("status")).map(Status::of);
    let ids = status.and_then(|status| status.numbers("Uid"));
    ids.is_ok_and(|ids| !ids.is_empty() && ids.iter().all(|id| *id == uid))
}

/// A user's turn: of one user one question is looked at at a time, whoever of their workers has it. It is had until that is over,
/// also where the worker is gone by then.
pub type Turn = Arc<tokio::sync::Mutex<()>>;

/// What is to be done with a connection.
enum Next {
    Again,
    /// There is nothing to be read now.
    Wait,
    Over,
}

/// Answers the questions of a worker of `uid`'s until it closes the connection, or asks what no worker of ours does. The threads that
/// look are of `pool`.
///
/// # Errors
/// The connection cannot be waited for.
pub async fn serve(
    teller: Arc<Teller>,
    pool: Handle,
    turn: Turn,
    uid: u32,
    connection: Arc<OwnedFd>,
) -> io::Result<()> {
    let connection = Arc::new(packet::watched(connection)?);
    loop {
        let mut ready = connection.readable().await?;
        let turn = turn.clone().lock_owned().await;
        let (teller, connection) = (teller.clone(), connection.clone());
        // What comes with a message may take long to close.
        let next = pool.spawn_blocking(move || {
            let _turn = turn;
            one(&teller, uid, &connection)
        });
        match next.await? {
            Next::Again => {}
            Next::Wait => ready.clear_ready(),
            Next::Over => return Ok(()),
        }
    }
}

fn one(teller: &Teller, uid: u32, connection: &AsyncFd<Arc<OwnedFd>>) -> Next {
    let connection = connection.get_ref();
    let most = MOST + 1;
    let asked = match packet::receive_with(connection.as_fd(), wire::LIMIT, most, MsgFlags::MSG_DONTWAIT) {
        Ok(Some(asked)) => asked,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Next::Wait,
        Ok(None) | Err(_) => return Next::Over,
    };
    let number = question(&asked).map_or(0, |ask| ask.number);
    match questions::tell(connection, number, &teller.answer(&asked, uid)) {
        Ok(()) => Next::Again,
        Err(_) => Next::Over,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::bpf::TaskRow;
    use crate::sys::ptrace;
    use crate::task::iterators::rows::Rows;
    use std::collections::HashSet;
    use std::process::{Child, Command, Stdio};
    use zerocopy::IntoBytes;

    /// Tests of it are root's.
    const ROOT: u32 = 0;
    const ALL: [Question; 5] =
        [Question::State, Question::Mappings, Question::Descriptors, Question::Overruns, Question::Waits];

    /// Ends with the test.
    struct Other(Child);

    impl Other {
        /// One that waits for its input, and has begun to.
        fn waiting() -> Self {
            let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
            let call = format!("/proc/{}/syscall", child.id());
            while !std::fs::read_to_string(&call).unwrap().starts_with("0 0x0 ") {
                std::thread::yield_now();
            }
            Self(child)
        }

        fn pid(&self) -> Pid {
            Pid::from_raw(self.0.id().cast_signed())
        }
    }

    impl Drop for Other {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    fn packet(sender: Option<Pid>, ask: Ask, of: &[Pid]) -> Packet {
        let descriptors = of.iter().map(|pid| pidfd::open(*pid).unwrap()).collect();
        Packet { bytes: wire::join(ASK, ask.as_bytes()), descriptors, sender }
    }

    fn ask(question: u32) -> Ask {
        Ask::of(question)
    }

    /// Whom the answers tell of, by the host's ids.
    fn told_of(rows: &Rows) -> HashSet<u32> {
        let threads = rows.threads.iter().map(|thread| thread.row.ids.tgid);
        let processes = rows.processes.iter().map(|row| row.tgid);
        let mappings = rows.mappings.iter().map(|row| row.tgid);
        let descriptors = rows.descriptors.iter().map(|row| row.tgid);
        let actions = rows.actions.iter().map(|row| row.tgid);
        threads.chain(processes).chain(mappings).chain(descriptors).chain(actions).collect()
    }

    fn teller() -> Option<Teller> {
        (!crate::skipped::without_root()).then(|| Teller::load().unwrap())
    }

    #[test]
    fn it_tells_of_what_the_asking_process_traces_and_of_nothing_else() {
        let Some(teller) = teller() else { return };
        let (traced, another) = (Other::waiting(), Other::waiting());
        let seized = ptrace::seize(traced.pid(), 0).unwrap();
        let own = Pid::this();
        let rows = |sender: Pid, question: Question, of: &[Pid]| {
            let of = [&[sender], of].concat();
            let asked = packet(Some(sender), ask(question as u32), &of);
            Rows::parse(&teller.answer(&asked, ROOT).unwrap().bytes).unwrap()
        };
        for question in [Question::State, Question::Mappings, Question::Descriptors] {
            let both = rows(own, question, &[another.pid(), traced.pid()]);
            assert_eq!(told_of(&both), HashSet::from([both.hosts[1]]), "{question:?}");
            // Nobody else is told, whoever it is: the program itself, or one who is traced by nobody.
            for sender in [traced.pid(), another.pid()] {
                assert_eq!(told_of(&rows(sender, question, &[traced.pid(), another.pid()])), HashSet::new());
            }
        }
        seized.interrupt().unwrap();
        let ptrace::Waited::Stopped(stopped) = seized.wait(None).unwrap() else { panic!("it has ended") };
        assert_eq!(told_of(&rows(own, Question::State, &[traced.pid()])).len(), 1, "one that stands");
        stopped.detach().unwrap();
        for question in ALL {
            let rows = rows(own, question, &[traced.pid()]);
            assert_eq!(told_of(&rows), HashSet::new(), "one that was let go: {question:?}");
            assert_eq!(rows.hosts.len(), 1);
        }
    }

    #[test]
    fn what_is_no_question_of_the_asking_process_s_is_refused() {
        let Some(teller) = teller() else { return };
        let (own, other) = (Pid::this(), Other::waiting());
        let refused = |asked: Packet| teller.answer(&asked, ROOT).unwrap_err();
        assert_eq!(refused(packet(None, ask(LESSONS), &[own])), libc::EPERM, "a sender that is not known");
        assert_eq!(refused(packet(Some(other.pid()), ask(LESSONS), &[own])), libc::EPERM, "another sender");
        assert_eq!(refused(packet(Some(own), ask(1), &[other.pid()])), libc::EPERM, "another's pidfd");
        let of_another = packet(Some(own), ask(LESSONS), &[own]);
        assert_eq!(teller.answer(&of_another, 1).unwrap_err(), libc::EPERM, "a process of another user");
        let gone = Other::waiting();
        let of_gone = packet(Some(gone.pid()), ask(LESSONS), &[gone.pid()]);
        drop(gone);
        assert_eq!(refused(of_gone), libc::EPERM, "a sender that is gone");
        assert_eq!(refused(packet(Some(own), ask(LESSONS), &[])), libc::EINVAL);
        assert_eq!(refused(packet(Some(own), ask(99), &[own])), libc::EINVAL);
        assert_eq!(refused(packet(Some(own), Ask { reserved: 1, ..ask(1) }, &[own])), libc::EINVAL);
        let mut short = packet(Some(own), ask(1), &[own]);
        short.bytes.pop();
        assert_eq!(refused(short), libc::EINVAL);
        let mut strange = packet(Some(own), ask(1), &[own]);
        strange.descriptors.push(std::fs::File::open("/dev/null").unwrap().into());
        let rows = Rows::parse(&teller.answer(&strange, ROOT).unwrap().bytes).unwrap();
        assert_eq!(rows, Rows { hosts: vec![0], ..Rows::default() });
        let lessons = teller.answer(&packet(Some(own), ask(LESSONS), &[own]), ROOT).unwrap();
        let lessons = Lessons::parse(&lessons.bytes).unwrap();
        assert_eq!(lessons.learnt.bits(), teller.lessons.learnt.bits());
    }

    /// Words that are addresses of the kernel's: of its memory, or of its text.
    fn addresses(bytes: &[u8]) -> HashSet<u64> {
        // Counts and rows are of eight bytes, host ids of four.
        let words = bytes.windows(8).step_by(4);
        let words = words.filter_map(|word| Some(u64::from_le_bytes(*word.first_chunk()?)));
        let memory = 0xffff_8000_0000_0000..0xffff_ff00_0000_0000u64;
        let text = 0xffff_ffff_8000_0000..0xffff_ffff_ff00_0000u64;
        words.filter(|word| memory.contains(word) || text.contains(word)).collect()
    }

    #[test]
    fn no_address_of_the_kernel_s_is_told() {
        let Some(teller) = teller() else { return };
        let traced = Other::waiting();
        let _seized = ptrace::seize(traced.pid(), 0).unwrap();
        let own = Pid::this();
        let number = |pid: Pid| pid.as_raw().cast_unsigned();
        let mut found = 0;
        for question in ALL {
            let bpf = &teller.programs.bpf;
            let about = bpf.about(vec![number(traced.pid())], Limits::default());
            let answered = || teller.programs.answer(&about, question);
            let rows = bpf.for_the_eyes_of(number(own), answered).unwrap().unwrap();
            let bytes = rows.to_bytes();
            let known = addresses(&bytes);
            found += known.len();
            let asked = packet(Some(own), ask(question as u32), &[own, traced.pid()]);
            let told = teller.answer(&asked, ROOT).unwrap().bytes;
            assert_eq!(told.len(), bytes.len() + 4, "{question:?}: the same rows, and whose they are");
            let told: HashSet<u64> = addresses(&told).intersection(&known).copied().collect();
            assert!(told.is_empty(), "{question:?}: {told:x?}");
        }
        assert!(found >= 8, "rows have keys: {found}");
        // And where functions are is in no row that leaves.
        let restart = crate::sys::bpf::RestartBlock { function: u64::MAX, data: [0xff; 40] };
        let row = TaskRow { restart, ..zeroed() };
        let thread = crate::task::iterators::rows::Thread { row, restart: None };
        assert!(!Rows { threads: vec![thread], ..Rows::default() }.to_bytes().contains(&0xff));
    }

    fn zeroed() -> TaskRow {
        zerocopy::FromZeros::new_zeroed()
    }
}
