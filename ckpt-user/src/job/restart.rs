//! `restart`: a job's newest complete checkpoint, or the one asked for, runs again.

use super::bar::Bar;
use super::directory::{JobDir, generation_of};
use super::ended::Ended;
use super::events::{Event, EventLog};
use super::files;
use super::heir;
use super::here::{self, Beside};
use super::identity::{self, Caller, Claimed, Identity, fs_ids_of};
use super::in_freeze::Tracked;
use super::lease::{Claim, Lease, Purpose};
use super::moved;
use super::namespace::{self, Side, Why, Worker};
use super::options::{FilesPolicy, RestartOptions, kept_signals};
use super::parent::Parent;
use super::process::ProcessId;
use super::record::RecordedOptions;
use super::remade;
use super::rights::{self, Means};
use super::signals::Signals;
use super::start::{self, Start};
use super::survivors;
use super::terminal;
use super::way::{Way, by_daemon};
use crate::daemon::lender;
use crate::daemon::link::{Link, Word};
use crate::freeze::{tree, yama};
use crate::front;
use crate::image::{Chain, GenerationId, ImageError, Opened, SpaceId};
use crate::memory::map_count;
use crate::memory::shared::Restored;
use crate::object::{Description, Object};
use crate::page::{Pager, Plan};
use crate::rebuild::fill::Watch;
use crate::rebuild::nursery::Nursery;
use crate::rebuild::process::RebuiltProcess;
use crate::rebuild::taken;
use crate::rebuild::{self, Mode, RebuildError, Unfinished};
use crate::record::{Image, Machine};
use crate::sys::clone;
use crate::sys::guardian::Guardian;
use crate::sys::ids::FsIds;
use crate::sys::spawn::{self, Detached};
use crate::sys::uffd::{self, Uffd};
use crate::task::credentials::Credentials;
use crate::task::outside;
use crate::task::xstate::{self, Unfit};
use crate::track::space::{Held, Space};
use anyhow::{Context, anyhow, bail};
use nix::unistd::Pid;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// CPU time of which a person may keep account.
const WORTH_A_LINE: Duration = Duration::from_secs(1);

/// Runs a program again from a checkpoint and supervises it.
pub fn restart(options: &RestartOptions, way: &Way) -> anyhow::Result<Ended> {
    yama::of_rebuilt().context("nothing can be restarted")?;
    match way {
        // Its front has gone to the background.
        Way::Worker(link) => {
            let mut running = || drop(link.say(&Word::Running(true), &[]));
            return run_again(options, Instant::now(), way, Place::Open, &mut running);
        }
        Way::Heir(link, heir) => return heir::supervise(&options.job, link, heir),
        _ if !options.detach => return begin(options, way, &mut || ()),
        _ => {}
    }
    match spawn::detach().context("cannot go to the background")? {
        Detached::Parent(ended) => Ok(ended),
        Detached::Child(ready) => begin(options, way, &mut || ready.tell()),
    }
}

fn begin(options: &RestartOptions, way: &Way, running: &mut dyn FnMut()) -> anyhow::Result<Ended> {
    if let Some(ended) = by_daemon(way, None, running) {
        return ended;
    }
    run_again(options, Instant::now(), way, Place::Open, running)
}

/// Where the program is to run.
enum Place<'a> {
    /// Here, unless it shows that it cannot.
    Open,
    Inside(Inside<'a>),
    Beside(Beside<'a>),
}

/// Why this process is in a pid namespace made for the program, which checkpoint was chosen outside, and the way to the parent
/// of the program's processes, where that is init.
struct Inside<'a> {
    why: &'a Why,
    chosen: GenerationId,
    keeper: Option<Arc<Link>>,
}

fn run_again(
    options: &RestartOptions,
    begun: Instant,
    way: &Way,
    place: Place<'_>,
    running: &mut dyn FnMut(),
) -> anyhow::Result<Ended> {
    let (path, at) = source(&options.source, options.at)?;
    let (why, chosen, is_read) = match &place {
        Place::Open => (None, None, false),
        Place::Inside(inside) => (Some(inside.why), Some(inside.chosen), true),
        Place::Beside(beside) => (None, Some(beside.chosen), beside.is_read),
    };
    let caller = Identity::of_caller(None)?;
    let dir = Arc::new(JobDir::open(&path, &caller.fs_ids())?);
    dir.require_checkpoints()?;
    let target = claim(options, &dir, &path, &caller)?;
    let judge = |chain: &Chain| judged(chain, options, why.is_none());
    let mut opened = {
        let _as_owner = dir.assume()?;
        Chain::open(&dir.proc_path(), chosen.or(at))?
    };
    let (mut image, mut owner) = judge(&opened.chain)?;
    let lazy_for = options.lazy.then(|| match &place {
        Place::Beside(_) => Some(here::not_lazy()),
        Place::Open | Place::Inside(_) => not_lazy(&image),
    });
    let is_lazy = lazy_for == Some(None);
    if !is_lazy && !is_read {
        // What the program is to run on is read before it runs: another checkpoint where it has damage.
        drop(opened);
        opened = {
            let _as_owner = dir.assume()?;
            whole(&dir.proc_path(), at)?
        };
        (image, owner) = judge(&opened.chain)?;
    }
    let Opened { chain, warnings } = opened;
    warnings.iter().for_each(|warning| log::warn!("{warning}"));
    let newest = chain.newest();
    let made = remade::make(&mut image, &chain, (&dir, target.lease.dir()), &owner, options.files)?;
    moved::settle(&mut image, &owner).context("cannot find the program's files")?;
    let plan = files::compare(&image, options.files, &owner)?;
    // In a namespace, the one outside has seen to it: not everybody is seen from there.
    if why.is_none() {
        plan.require_alone(options.files, &owner)?;
    }
    // Before it is looked who has one of the ids: whoever starts later takes none.
    taken::stay_clear(&image);
    if matches!(place, Place::Open)
        && let Some(why) = Why::for_image(&image)
    {
        let chosen = newest.header().id;
        // Who goes on begins anew: the lock of the directory is not to be shared.
        drop((made, plan, chain, target, dir));
        let inside = |keeper| Place::Inside(Inside { why: &why, chosen, keeper });
        let place = match way {
            Way::Worker(front) => match namespace::make_by(front, &image)? {
                Ok(Worker::Outside(Ended::Signaled(_))) => front::lost(),
                Ok(Worker::Outside(ended)) => return Ok(ended),
                Ok(Worker::Inside(keeper)) => inside(keeper),
                Err(refused) => Place::Beside(Beside { why: &why, refused, chosen, is_read: !is_lazy }),
            },
            _ => match namespace::make(&image, &why)? {
                Side::Outside(stand_in) => return stand_in.serve(),
                Side::Inside => inside(None),
            },
        };
        return run_again(options, begun, way, place, running);
    }
    rebuild::room::settle(&mut image)?;
    let told = match &place {
        Place::Beside(beside) => Some(beside.told(&image, options.clocks)?),
        Place::Open | Place::Inside(_) => None,
    };
    let nursery = match (place, way) {
        (Place::Inside(Inside { keeper: Some(keeper), .. }), _) => Nursery::Keeper(keeper),
        (Place::Beside(_), Way::Worker(front)) => Nursery::Here(Arc::new(here::begin(front)?)),
        _ => Nursery::Ourselves,
    };
    let parent_of_it = match (way, &nursery) {
        (Way::Worker(front), Nursery::Keeper(keeper)) => {
            tree::note_keeper(Pid::from_raw(1), &[]);
            Parent::elsewhere(front, Some(keeper.clone())).context("cannot listen for signals")?
        }
        (Way::Worker(front), Nursery::Here(_)) => {
            Parent::elsewhere(front, None).context("cannot listen for signals")?
        }
        _ => {
            // Before we become what orphans are given to: they are to be none of ours.
            let signals = Signals::listen_with_witness(namespace::witness_id(&image)?);
            Parent::Us(signals.context("cannot listen for signals")?)
        }
    };
    if let Some(Some(why)) = lazy_for {
        log::warn!("a restart that is asked to be lazy is none: {why}");
    }
    let mode = match is_lazy {
        true => Mode::Lazy(Plan {
            guardian: Guardian::start(namespace::guardian_id(&image)?)
                .context("cannot start the guardian of a lazy restart")?,
            hold: options.hold_fill.clone(),
            inherits: target.same_directory,
        }),
        false => Mode::Eager,
    };
    if !parent_of_it.is_front() {
        // The guardian is one of them.
        tree::note_strangers();
        clone::become_subreaper().context("cannot become the reaper of the program's orphans")?;
    }
    let unfinished = Unfinished::of(&image);
    let lender = if is_lazy { lender::lender()? } else { None };
    let rebuilt =
        rebuild::rebuild(&image, &chain, mode, &owner, &plan.sound, &nursery, lender).map_err(advised)?;
    lender.iter().for_each(|lender| lender.done());
    let (root, parent, pager) = (rebuilt.root, newest.header().id, rebuilt.pager.map(Arc::new));
    // Should ckptbpf be killed once it runs, it is known.
    let made_now: Vec<Pid> = rebuilt.processes.iter().map(RebuiltProcess::pid).collect();
    target.lease.starting(ProcessId::of(root.as_raw())?, survivors::beside(root, &made_now))?;
    let mut processes = rebuilt.processes;
    let names = rebuilt.endpoints.begin(&mut processes, &owner)?;
    let mut shared = rebuilt.shared;
    shared.iter_mut().try_for_each(|object| object.verify(&chain)).map_err(advised)?;
    // What can fail comes first: a restart that fails changes no file.
    let kept = plan.keep(target.lease.dir(), &owner, &rebuild::late::leased(&image))?;
    let leased = rebuild::late::leases(&image, &mut processes)?;
    kept.cut(&leased, &owner)?;
    drop(leased);
    let only_compare = options.files == FilesPolicy::Check;
    // Files first: where they are only compared, nothing has been changed yet should one differ.
    let (files, others): (Vec<_>, Vec<_>) = shared.iter_mut().partition(|object| object.is_file());
    for object in files.into_iter().chain(others) {
        object.write_back(&chain, only_compare)?;
    }
    {
        let _as_owner = owner.assume()?;
        shared.iter().try_for_each(Restored::finish)?;
        rebuilt.watchers.begin()?;
    }
    if let Err(error) = rebuild::foreground::give(&image, &nursery) {
        log::warn!("the program had the terminal, and cannot be given this one: {error}");
    }
    // A core that gives ids need not keep a place for that.
    drop(nursery);
    let changed = rebuild::objects::set_streams(&image)?;
    let ckpt_signal = target.lease.record().options.ckpt_signal;
    parent_of_it.is_to_have(root, kept_signals(ckpt_signal, options.job.term_ends))?;
    let tracked = rebuild::resume::resume(processes, &chain)
        .inspect_err(|_| rebuild::objects::undo_streams(&changed))?;
    unfinished.keep();
    names.keep();
    made.keep();
    if let Some(why) = why {
        let known =
            outside::known_as(root.as_raw()).map_or_else(|_| "gone".to_owned(), |pid| pid.to_string());
        terminal::say(&why.told(root.as_raw(), &known));
    }
    if let Some(told) = told {
        terminal::say(&told);
    }
    note(target.lease.dir(), parent, begun, image.cpu_time());
    if terminal::wants_start_line(options.job.verbose) && image.cpu_time() >= WORTH_A_LINE {
        terminal::say(&terminal::cpu_time_line(image.cpu_time()));
    }
    if options.json {
        let lazy = pager.as_ref().map_or(0, |p| p.total);
        let line = serde_json::json!({
            "resume_us": begun.elapsed().as_micros() as u64,
            "mode": if pager.is_some() { "lazy" } else { "eager" },
            "pages_eager": tracked.iter().map(|t| t.saved.len()).sum::<u64>() - lazy,
            "pages_lazy": lazy,
        });
        // As with every other line: whether anybody takes it is not the program's concern.
        let _ = writeln!(io::stderr(), "{line}");
    }
    let tracked = tracker(&image, tracked, shared, target.same_directory, pager);
    // The locks of its generations go with it; a pager has its own until it is done.
    drop(chain);
    start::supervise(Start {
        options: &options.job,
        identity: identity_of(&owner, caller),
        lease: target.lease,
        path: target.path,
        root,
        keeper: parent_of_it,
        parent: target.same_directory.then_some(parent),
        tracked,
        attached: None,
        ended: image.ended.map(Ended::from_wait),
        running,
    })
}

/// The image of the newest checkpoint of a chain, and whose it is, unless it is not to be restarted here. `is_outside`: of the
/// namespace that may be made for it.
fn judged(chain: &Chain, options: &RestartOptions, is_outside: bool) -> anyhow::Result<(Image, FsIds)> {
    let newest = chain.newest();
    let mut image = Image::read(newest.metadata())?;
    image.check()?;
    if let (true, Some(made_on)) = (options.foreign_vdso, &mut image.machine) {
        made_on.vdso = !made_on.vdso;
    }
    let owner = permitted(&mut image, newest.owner_uid())?;
    rebuild::check(&image, chain, &owner)?;
    xstate::fit(&mut image, chain, options.foreign_xsave).map_err(|unfit| match unfit {
        Unfit::Refused(reason) => RebuildError::Refused(reason),
        Unfit::Image(error) => RebuildError::Image(error),
    })?;
    if is_outside {
        survivors::refuse(&image)?;
    }
    Ok((image, owner))
}

/// The newest checkpoint of which all that it needs is whole, or `at`.
fn whole(dir: &Path, at: Option<GenerationId>) -> Result<Opened, ImageError> {
    let mut bar = Bar::new("restart");
    Chain::open_checked(dir, at, |done, total| bar.set(done, total))
}

/// Damage that is met before the program runs: its memory is read then, too, as far as it cannot come later.
fn advised(error: RebuildError) -> anyhow::Error {
    let is_damage = matches!(error, RebuildError::Image(ImageError::Refused { .. }));
    let error = anyhow::Error::from(error);
    match is_damage {
        true => anyhow!("{error:#}; the program has not run: restart it from another checkpoint (--at ID)"),
        false => error,
    }
}

/// Why the memory of `image` cannot come lazily; none if it can.
fn not_lazy(image: &Image) -> Option<String> {
    // What is to be watched takes mappings, and may make more of them.
    let crowded = image.processes.iter().find(|process| map_count::is_near(process.mappings.len()));
    if let Some(process) = crowded {
        let (pid, mappings) = (process.pid, process.mappings.len());
        let most = map_count::limit();
        return Some(format!("process {pid} has {mappings} mappings, near vm.max_map_count ({most})"));
    }
    match lender::lender() {
        Ok(Some(_)) => return None,
        Ok(None) => {}
        Err(error) => return Some(format!("the daemon lends no userfaultfd(2): {error}")),
    }
    // As the pager will: serving the kernel's own faults, and telling of forks.
    let error = Uffd::of_self(0).and_then(|fd| Uffd::handshake(fd, uffd::EVENTS)).err()?;
    let way_out = match error.raw_os_error() {
        Some(libc::EPERM) => ": it takes CAP_SYS_PTRACE, which the administrator may give (sudo)",
        _ => "; `ckptbpf check` tells more",
    };
    Some(format!("userfaultfd(2) is refused ({error}){way_out}"))
}

/// The restart's line in events.jsonl.
fn note(dir: &Arc<JobDir>, from: GenerationId, begun: Instant, cpu_time: Duration) {
    let event = Event::named("restart", begun.elapsed()).count("id", from.0);
    let event = event.count("cpu_us_before", u64::try_from(cpu_time.as_micros()).unwrap_or(u64::MAX));
    if let Err(error) = EventLog::open(dir).and_then(|mut log| log.write(&event)) {
        log::warn!("{error}");
    }
}

/// Where new checkpoints go.
struct Target {
    lease: Lease,
    path: PathBuf,
    /// New generations are deltas to the one restarted from.
    same_directory: bool,
}

/// Claims the directory of new checkpoints: the source's own, or that of `-d`.
fn claim(
    options: &RestartOptions,
    source: &Arc<JobDir>,
    path: &Path,
    caller: &Identity,
) -> anyhow::Result<Target> {
    let previous = source.read_record()?;
    let claim = Claim {
        purpose: Purpose::Restart,
        take_over: options.job.take_over,
        options: RecordedOptions::merged(&options.job, previous.as_ref().map(|r| &r.options)),
        argv: previous.as_ref().map(|r| r.argv.clone()).unwrap_or_default(),
    };
    let other = options
        .job
        .dir
        .as_deref()
        .filter(|other| std::fs::canonicalize(other).ok() != std::fs::canonicalize(path).ok());
    let (dir, path) = match other {
        Some(other) => {
            if let Some(note) = Lease::look(source)? {
                log::warn!("{note}");
            }
            let dir = Arc::new(JobDir::create(other, &caller.fs_ids())?);
            dir.refuse_checkpoints()?;
            (dir, other)
        }
        None => (source.clone(), path),
    };
    let claimed = Lease::claim(&dir, claim)?;
    previous.as_ref().map_or(Ok(()), survivors::refuse_restarted)?;
    claimed.notes.iter().for_each(|note| log::warn!("{note}"));
    Ok(Target { lease: claimed.lease, path: path.to_owned(), same_directory: other.is_none() })
}

/// A job directory, or one generation's file in it.
fn source(given: &Path, at: Option<u64>) -> anyhow::Result<(PathBuf, Option<GenerationId>)> {
    let at = at.map(GenerationId);
    if !given.is_file() {
        return Ok((given.to_owned(), at));
    }
    let name = given.file_name().unwrap_or_default();
    let Some(id) = generation_of(name.as_encoded_bytes()) else {
        bail!("{}: not a checkpoint's file (000001.ckpt and so on)", given.display());
    };
    if at.is_some_and(|at| at.0 != id) {
        bail!("{} is checkpoint {id}; leave --at out, or name the directory", given.display());
    }
    let dir = given.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((dir.to_owned(), Some(GenerationId(id))))
}

/// Whose image it is; refuses what would make anyone more than they are.
fn permitted(image: &mut Image, owner_uid: u32) -> anyhow::Result<FsIds> {
    let owner =
        fs_ids_of(owner_uid).unwrap_or_else(|| FsIds { uid: owner_uid, gid: owner_uid, groups: Vec::new() });
    let caller = Caller::current()?;
    for credentials in image.processes.iter().flat_map(|p| &p.threads).filter_map(|t| t.credentials.as_ref())
    {
        identity::permitted(&owner, &caller, &claimed(credentials))?;
    }
    let senders = image.descriptions.iter().flat_map(Description::senders).map(|s| (s.uid, s.gid));
    for (uid, gid) in senders.chain(image.descriptions.iter().flat_map(Description::owners)) {
        let claimed = Claimed { uids: vec![uid], gids: vec![gid], capabilities: 0 };
        identity::permitted(&owner, &caller, &claimed)?;
    }
    if caller.root && owner.uid != 0 {
        let means = Means::own()?;
        rights::fit(image, &means);
        rights::within(image, owner.uid, &means)?;
    }
    // Whoever is not root has their own ids, whatever the user database says of them, and no others.
    Ok(if caller.root { owner } else { caller.ids })
}

pub(crate) fn claimed(credentials: &Credentials) -> Claimed {
    let gids = credentials.gids.iter().chain(&credentials.groups).copied().collect();
    let capabilities =
        credentials.permitted | credentials.effective | credentials.inheritable | credentials.ambient;
    Claimed { uids: credentials.uids.clone(), gids, capabilities }
}

fn identity_of(owner: &FsIds, caller: Identity) -> Identity {
    if owner.uid == caller.uid {
        return caller;
    }
    Identity { uid: owner.uid, gid: owner.gid, groups: owner.groups.clone(), ..caller }
}

fn tracker(
    image: &Image,
    restored: Vec<rebuild::Tracked>,
    shared: Vec<Restored>,
    same_directory: bool,
    pager: Option<Arc<Pager>>,
) -> Tracked {
    let mut tracked = Tracked {
        pager,
        cpu_time_before: image.cpu_time(),
        cpu_baseline: image.machine.as_ref().and_then(Machine::baseline),
        ..Tracked::default()
    };
    for object in shared {
        // Of an object that is not known the next checkpoint holds everything.
        if let Ok(identity) = object.identity() {
            tracked.objects.continued(identity, object.space, object.hashes);
        }
    }
    for one in restored {
        let Watch { uffd, successor, hashes } = one.watch;
        let held = same_directory.then_some(Held { saved: one.saved, zero: one.zero });
        let space = Space::restored(SpaceId(one.space), one.pid, uffd, held, hashes);
        // A process that has ended by now needs no tracking.
        tracked.spaces.extend(space.map(|s| s.succeeded_by(successor)));
    }
    let open = image.descriptions.iter().filter_map(|d| match &d.object {
        Some(Object::Deleted(file)) => Some(file),
        _ => None,
    });
    let deleted = open.chain(&image.deleted).map(|file| file.space);
    let objects = image.objects.iter().map(|o| o.space);
    let spaces = image.processes.iter().map(|p| p.space).chain(objects).chain(deleted);
    tracked.next_space = spaces.max().map_or(0, |s| s + 1);
    tracked
}
