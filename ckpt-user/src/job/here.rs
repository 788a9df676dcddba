//! A restart beside everybody else, by a daemon's worker for a user who can have no namespaces.
//!
//! The program's processes are the front's own children. They have their ids because the daemon's core sees to what the kernel gives
//! next ([`crate::daemon::ids`]), their files because they execute them ([`crate::rebuild::execute`]), and the clocks of this machine,
//! as no call moves these for whoever is not root. Nothing is lent for that but the place in the row of ids.

use super::namespace::{self, Why};
use super::options::ClocksPolicy;
use super::terminal;
use crate::daemon::ids::RESERVED;
use crate::daemon::lender;
use crate::daemon::link::{Heard, Link, Word};
use crate::daemon::numbering::Numbering;
use crate::freeze::tree;
use crate::image::GenerationId;
use crate::machine;
use crate::rebuild::{clocks, nursery, taken};
use crate::record::{Image, Process};
use crate::task::clock::Shift;
use crate::task::proc::ProcDir;
use anyhow::{Context, bail};
use nix::unistd::Pid;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// A program that cannot have a namespace that it needs, and is tried without.
pub struct Beside<'a> {
    pub why: &'a Why,
    /// What the kernel says.
    pub refused: io::Error,
    /// Its checkpoint.
    pub chosen: GenerationId,
    /// That all of that is whole is known.
    pub is_read: bool,
}

impl Beside<'_> {
    /// What there is to say once it runs.
    ///
    /// # Errors
    /// It cannot be restarted so, with the reason.
    pub fn told(&self, image: &Image, policy: ClocksPolicy) -> anyhow::Result<String> {
        let Self { why, refused, .. } = self;
        let clocks = fits(image, policy)
            .with_context(|| format!("{} ({refused})", namespace::no_user_namespace(why)))?;
        Ok(format!(
            "users can have no namespaces here ({refused}): the program runs beside all others, and {clocks}"
        ))
    }
}

/// Why such a restart is not lazy. What a core may have lent for it is given back.
pub fn not_lazy() -> String {
    if let Ok(Some(lender)) = lender::lender() {
        lender.done();
    }
    "its guardian would know the program by clocks of its own (a time namespace), which a user can have in a user namespace alone"
        .to_owned()
}

/// Whether `image` can be restarted so; what there is to say of its clocks once it runs.
///
/// # Errors
/// Named, before anything is made.
fn fits(image: &Image, policy: ClocksPolicy) -> anyhow::Result<String> {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    if scope.is_ok_and(|scope| scope.trim() != "0") {
        bail!("kernel.yama.ptrace_scope lets parents alone trace, and a daemon's worker is none");
    }
    if let Some(id) = taken::ids(image).into_iter().find(|id| *id < RESERVED) {
        bail!(
            "process id {id} is below {RESERVED}, where the kernel gives none by itself, and the daemon none"
        );
    }
    if let Some(taken) = taken::first(image) {
        bail!("{}", Why::Taken(taken).reason());
    }
    let bounding = ProcDir::process(tree::front()).status().and_then(|status| status.hex("CapBnd"));
    let bounding = bounding.context("the front is gone")?;
    image.processes.iter().try_for_each(|process| can_be_had(process, bounding))?;
    let ahead = ahead(image).context("the clocks cannot be read")?;
    let made_on = image.machine.as_ref().map_or("", |machine| machine.boot_id.as_str());
    let is_same_boot = !made_on.is_empty() && made_on == machine::boot_id();
    judged(ahead, is_same_boot, policy)
}

/// What a user may do in a user namespace, and not outside of one.
fn can_be_had(process: &Process, bounding: u64) -> anyhow::Result<()> {
    let pid = process.pid;
    let dumpable = process.settings.as_ref().and_then(|settings| settings.dumpable);
    if dumpable.is_some_and(|dumpable| dumpable != 1) {
        bail!(
            "process {pid} has closed itself to its own user (PR_SET_DUMPABLE), and so to the daemon's worker"
        );
    }
    let mut credentials = process.threads.iter().filter_map(|thread| thread.credentials.as_ref());
    if credentials.any(|had| bounding & !had.bounding != 0) {
        bail!("process {pid} had given up capabilities for good (its bounding set), which takes CAP_SETPCAP");
    }
    Ok(())
}

/// How far the program's clocks were ahead of those that it would have now: monotonic and since boot, nanoseconds.
fn ahead(image: &Image) -> io::Result<(i64, i64)> {
    let (monotonic, boottime) = clocks::offsets(&image.clocks.unwrap_or_default())?;
    // The front may have clocks of its own, which its children have, too.
    let front = Shift::of(tree::front())?;
    let of_front = |clock| front.from_host(clock).unwrap_or(0);
    Ok((monotonic - of_front(libc::CLOCK_MONOTONIC), boottime - of_front(libc::CLOCK_BOOTTIME)))
}

fn judged(ahead: (i64, i64), is_same_boot: bool, policy: ClocksPolicy) -> anyhow::Result<String> {
    let shown = |nanoseconds: i64| terminal::duration(Duration::from_nanos(nanoseconds.unsigned_abs()));
    let (most, least) = (ahead.0.max(ahead.1), ahead.0.min(ahead.1));
    if most > 0 {
        bail!("its clocks (CLOCK_MONOTONIC) would go back by {}, as no program's may", shown(most));
    }
    match (is_same_boot, policy) {
        (true, _) => {
            Ok(format!("its clocks (CLOCK_MONOTONIC) have gone on for {} since the checkpoint", shown(least)))
        }
        (false, ClocksPolicy::Jump) => {
            Ok(format!("its clocks (CLOCK_MONOTONIC) have jumped by {}", shown(least)))
        }
        (false, ClocksPolicy::GoOn) => bail!(
            "its clocks (CLOCK_MONOTONIC) were those of another boot or machine, and would jump by {}: --clocks jump accepts \
             that",
            shown(least)
        ),
    }
}

/// Has the front make the program's processes.
///
/// # Errors
/// The daemon gives no ids, or the front is gone.
pub fn begin(front: &Arc<Link>) -> anyhow::Result<nursery::Here> {
    let numbering = Numbering::by_core().context("the daemon gives no process ids")?;
    front.say(&Word::Here(true), &[]).context("the front is gone")?;
    let Some(Heard { word: Word::Started(started), .. }) = front.hear().context("the front is gone")? else {
        bail!("the front is gone");
    };
    let strangers: Vec<Pid> = started.strangers.into_iter().map(Pid::from_raw).collect();
    tree::note_keeper(tree::front(), &strangers);
    Ok(nursery::Here { front: front.clone(), numbering })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn clocks_never_go_back_and_jump_only_where_that_is_accepted() {
        for policy in [ClocksPolicy::GoOn, ClocksPolicy::Jump] {
            for (ahead, is_same_boot) in [((SECOND, -SECOND), true), ((-SECOND, 1), true), ((1, 1), false)] {
                let error = judged(ahead, is_same_boot, policy).unwrap_err().to_string();
                assert!(error.contains("would go back"), "{error}");
            }
            let said = judged((-3 * SECOND, -3 * SECOND), true, policy).unwrap();
            assert!(said.contains("have gone on for"), "{said}");
        }
        let error = judged((-SECOND, -SECOND), false, ClocksPolicy::GoOn).unwrap_err().to_string();
        assert!(error.contains("--clocks jump"), "{error}");
        assert!(judged((0, -SECOND), false, ClocksPolicy::Jump).unwrap().contains("have jumped by"));
    }

    #[test]
    fn what_takes_rights_outside_of_a_user_namespace_is_refused_by_name() {
        use crate::record::Thread;
        use crate::task::{credentials::Credentials, settings::Settings};
        let process = |dumpable: u32, bounding: u64| {
            let credentials = Some(Credentials { bounding, ..Credentials::default() });
            let threads = vec![Thread { credentials, ..Thread::default() }];
            let settings = Some(Settings { dumpable: Some(dumpable), ..Settings::default() });
            Process { pid: 400, threads, settings, ..Process::default() }
        };
        let refused = |process: &Process| can_be_had(process, 0b11).err().map(|error| error.to_string());
        assert_eq!(refused(&process(1, 0b111)), None);
        assert!(refused(&process(0, 0b11)).unwrap().contains("PR_SET_DUMPABLE"));
        assert!(refused(&process(1, 0b01)).unwrap().contains("bounding set"));
    }
}
