//! `cargo xtask vm-test`: the tests under other kernels, in virtual machines.
//!
//! ```text
//! kernels.toml ─▶ fetch (the machine's own package manager, into a cache) ─▶ vmlinux, modules ┐
//! cargo build  ─▶ plan: which tests ─▶ pack: ckptbpf, tests, victims, libraries, init ────────┴▶ guest ─▶ table
//! ```
//! QEMU emulates the processor: nobody needs /dev/kvm, and nothing here is a measurement of time.

mod fetch;
mod guest;
mod journey;
mod kernels;
mod machine;
mod modules;
mod nodes;
mod pack;
mod plan;
mod planted;
mod power;
mod route;
mod share;
mod systemd;
mod table;
mod vmlinux;

use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cmd::step;
use crate::{setup, test};
use fetch::Fetched;
use guest::Results;
use journey::{Ground, Journey};
use kernels::{Kernel, Matrix};
use machine::Machine;
pub use plan::is_wanted;
use plan::{Plan, Programs};
use share::Share;
use table::{Column, Table};

/// Two emulated machines keep two processors busy.
const AT_ONCE: usize = 2;

#[derive(clap::Args, Default)]
pub struct Args {
    /// Only these kernels of vm-test/kernels.toml, as in 6.1,6.12
    #[arg(long, value_delimiter = ',')]
    kernel: Vec<String>,
    /// Only the tests with one of these in their name
    #[arg(long, value_delimiter = ',')]
    filter: Vec<String>,
    /// What CI runs: few kernels, few tests
    #[arg(long)]
    short: bool,
    /// Have bugs in ckptbpf found, and nothing else
    #[arg(long)]
    planted: bool,
    /// Keep what the machines were started with, and what they have printed
    #[arg(long)]
    keep: bool,
    /// Start the first of the kernels with a shell on this terminal, and no test
    #[arg(long)]
    shell: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let mut matrix = Matrix::read()?;
    matrix.select(&args.kernel, args.short)?;
    step("virtual machines");
    setup::virtual_machines()?;
    if !share::is_possible() {
        setup::shared_folders()?;
    }
    let cache = cache()?;
    println!("kernels are kept in {}", cache.display());
    let (fetched, busybox) = fetch::all(&matrix.kernels, &cache)?;
    test::build()?;
    let programs = plan::build(busybox)?;
    let folder = Path::new("target/vm-test");
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    if args.shell {
        return shell(&fetched, &programs, folder);
    }
    let plans = plan::tests(&matrix, &programs, &args.filter)?;
    step("tests under other kernels");
    let mut guests = Vec::new();
    for ((kernel, fetched), plan) in matrix.kernels.iter().zip(&fetched).zip(plans) {
        // A filter may leave it nothing but journeys.
        if plan.names().is_empty() || args.planted {
            continue;
        }
        guests.push(Guest { kernel, fetched, plan, files: folder.join(&kernel.name) });
    }
    // Those with most to do first: so no processor waits for the other one at the end.
    let mut queue: Vec<(usize, &Guest)> = guests.iter().enumerate().collect();
    queue.sort_by_key(|(_, guest)| Reverse(guest.plan.tests.len()));
    let mut columns = two_at_a_time(&queue, |(at, guest)| Ok((*at, guest.column(&programs, args.keep))))?;
    columns.sort_by_key(|(place, _)| *place);
    let table = Table::new(columns.into_iter().map(|(_, column)| column).collect());
    if !guests.is_empty() {
        println!("\n{table}");
    }
    let planted = args.planted.then(|| planted::build(&programs)).transpose()?;
    let ground = Ground {
        kernels: matrix.kernels.iter().map(|kernel| kernel.name.as_str()).zip(&fetched).collect(),
        programs: &programs,
        planted: planted.as_ref(),
        folder,
    };
    let mut journeys = Journey::all(&matrix, args.planted);
    journeys.retain(|journey| is_wanted(&args.filter, &journey.to_string()));
    let mut counts = table.counts();
    journeys.retain(|journey| {
        let Some(why) = journey.obstacle(share::is_possible()) else { return true };
        println!("{journey}: skipped: {why}");
        counts.skipped += 1;
        false
    });
    // What goes wrong with one is no reason to be silent about the others.
    let go = |journey: &Journey| Ok(journey.go(&ground).unwrap_or_else(|error| Err(format!("{error:#}"))));
    let arrived = two_at_a_time(&journeys, go)?;
    for (journey, arrival) in journeys.iter().zip(&arrived) {
        match arrival {
            Ok(()) => println!("{journey}: ok"),
            Err(whither) => println!("{journey}: FAILED: {whither}"),
        }
        counts.add(arrival.is_ok());
    }
    println!("{counts}");
    if counts.passed + counts.failed + counts.skipped == 0 {
        bail!("nothing is called so");
    }
    if counts.failed > 0 {
        bail!("not everything passes under other kernels");
    }
    Ok(())
}

/// Names the journeys of machines with systemd, and no test.
pub const SYSTEMD: &str = "systemd";

/// The machines with systemd, and nothing else.
///
/// # Errors
/// They cannot be had, or have failed.
pub fn with_systemd() -> Result<()> {
    let kernel = Matrix::read()?.systemds.into_iter().map(|systemd| systemd.kernel).collect();
    run(&Args { kernel, filter: vec![SYSTEMD.to_owned()], ..Args::default() })
}

/// The first of the kernels with a shell, which has what tests have.
fn shell(fetched: &[Fetched], programs: &Programs, folder: &Path) -> Result<()> {
    let kernel = fetched.first().context("no kernel is selected")?;
    let initrd = folder.join("shell.cpio");
    pack::initramfs(&initrd, programs, &Plan::shell(), kernel)?;
    let done = Machine::new(&kernel.vmlinux, &initrd).on_this_terminal();
    std::fs::remove_file(&initrd)?;
    done
}

/// One kernel and what it is to run.
struct Guest<'a> {
    kernel: &'a Kernel,
    fetched: &'a Fetched,
    plan: Plan,
    /// Without what they end in.
    files: PathBuf,
}

impl Guest<'_> {
    /// What cannot even be started has a column, too: it is no reason to be silent about the others.
    fn column(&self, programs: &Programs, keep: bool) -> Column {
        self.run(programs, keep).unwrap_or_else(|error| {
            let wrong = Some(format!("{error:#}"));
            let results = Results { tests: Vec::new(), wrong, took: Duration::ZERO };
            Column::new(&self.kernel.name, self.fetched, &self.plan, results)
        })
    }

    fn run(&self, programs: &Programs, keep: bool) -> Result<Column> {
        let [initrd, console] =
            ["cpio", "console"].map(|kind| PathBuf::from(format!("{}.{kind}", self.files.display())));
        pack::initramfs(&initrd, programs, &self.plan, self.fetched)?;
        let is_shared = self.plan.tests.iter().any(|test| test.on_host);
        let share = is_shared.then(|| Share::begin("/usr", "usr")).transpose()?;
        let machine = Machine { share: share.as_ref(), ..Machine::new(&self.fetched.vmlinux, &initrd) };
        let results = guest::run(&self.kernel.name, &machine, &console)?;
        let column = Column::new(&self.kernel.name, self.fetched, &self.plan, results);
        if !keep {
            std::fs::remove_file(&initrd)?;
        }
        if column.has_failed() {
            println!("what Linux {} has printed: {}", self.kernel.name, console.display());
        } else if !keep {
            std::fs::remove_file(&console)?;
        }
        Ok(column)
    }
}

/// What `work` makes of each, in their order.
fn two_at_a_time<T: Sync, R: Send>(all: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let next = Mutex::new(all.iter().enumerate());
    let done = Mutex::new(Vec::new());
    let one_by_one = || -> Result<()> {
        loop {
            // Nobody waits for the lock while this one is at work.
            let Some((index, one)) = ({ lock(&next).next() }) else { return Ok(()) };
            let result = work(one)?;
            lock(&done).push((index, result));
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(one_by_one)).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(done) => done,
            Err(_) => bail!("a thread that watches a machine has panicked"),
        })
    })?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where packages and what was taken out of them stay for the next time.
fn cache() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set("CKPTBPF_VM_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("ckptbpf/vm-test")))
        .or_else(|| Some(set("HOME")?.join(".cache/ckptbpf/vm-test")))
        .context("neither CKPTBPF_VM_CACHE, XDG_CACHE_HOME nor HOME is set: where is the cache to be?")?;
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(std::fs::canonicalize(folder)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soak_has_the_machines_with_systemd_and_no_other() {
        crate::cmd::enter_repository().unwrap();
        let matrix = Matrix::read().unwrap();
        let is_named = |journey: &&Journey| is_wanted(&[SYSTEMD.to_owned()], &journey.to_string());
        let journeys = Journey::all(&matrix, false);
        let named: Vec<&Journey> = journeys.iter().filter(is_named).collect();
        assert!(!named.is_empty() && named.iter().all(|one| matches!(one, Journey::Systemd(_))));
        assert!(matrix.systemds.iter().all(|one| matrix.kernels.iter().any(|row| row.name == one.kernel)));
    }
}
