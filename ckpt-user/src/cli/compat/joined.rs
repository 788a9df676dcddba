//! The coordinator that a command line names: it need not be there before.

use super::host::Names;
use super::options::{Asked, Join};
use crate::job::coordinator::{self, DEFAULT_PORT, Name, State};
use crate::job::pointer;
use crate::sys::ids::FsIds;
use anyhow::{Context, bail};
use std::fs;
use std::path::Path;

/// A file of hosts larger than this, in bytes, is none.
const HOST_FILE_LIMIT: u64 = 64 << 10;

/// The Slurm job that this process is in.
pub fn slurm_job() -> Option<u32> {
    std::env::var("SLURM_JOB_ID").ok()?.parse().ok()
}

/// The coordinator that is meant where none is made.
///
/// # Errors
/// It is said to be on another host.
pub fn named(asked: &Asked) -> anyhow::Result<Name> {
    require_here(asked)?;
    let port = asked.port.unwrap_or(DEFAULT_PORT);
    Ok(Name { port, slurm_job: slurm_job() })
}

/// The coordinator that a new job, or a new coordinator, gets, and what there is of it already.
///
/// # Errors
/// There is none that should be there, or one that should not; it is said to be on another host.
pub fn joined(asked: &Asked, caller: &FsIds) -> anyhow::Result<(Name, Option<State>)> {
    let wants_any = asked.port == Some(0) || (asked.port.is_none() && asked.join == Join::New);
    let name = if wants_any {
        require_here(asked)?;
        let random = u64::from_str_radix(&pointer::new_id()?, 16).unwrap_or_default();
        let free = coordinator::free(slurm_job(), random, caller);
        free.context("all numbers that a coordinator could have are taken")?
    } else {
        named(asked)?
    };
    let (state, port) = (coordinator::load(name, caller), name.port);
    let is_there = || state.is_some() || !coordinator::jobs(name, caller).is_empty();
    match asked.join {
        Join::Existing if !is_there() => bail!(
            "there is no coordinator at port {port}: start one (dmtcp_coordinator --daemon -p {port}), or leave \
             --join-coordinator out"
        ),
        Join::New if is_there() => bail!(
            "there is a coordinator at port {port} already: end it (dmtcp_command -p {port} -q), or name another one"
        ),
        _ => {}
    }
    Ok((name, state))
}

/// Tells scripts of the number that was found (`--port-file`).
///
/// # Errors
/// The file cannot be written.
pub fn write_port(asked: &Asked, name: Name, caller: &FsIds) -> anyhow::Result<()> {
    let Some(path) = &asked.port_file else { return Ok(()) };
    let _as = caller.assume()?;
    let written = fs::write(path, format!("{}\n", name.port));
    written.with_context(|| format!("{}: cannot write it", path.display()))
}

/// Nothing is to be done on other hosts.
fn require_here(asked: &Asked) -> anyhow::Result<()> {
    let here = Names::here();
    let listed = asked.host_file.as_deref().map(hosts_in).transpose()?.unwrap_or_default();
    for host in asked.host.iter().chain(&listed) {
        if !here.have(host) {
            bail!(
                "{host} is another host than this one ({}): programs are checkpointed and restarted on one, and coordinators \
                 are where their jobs are; leave the option (or DMTCP_COORD_HOST) out, or go there",
                here.host
            );
        }
    }
    Ok(())
}

/// One a line, `#` begins a comment.
fn hosts_in(path: &Path) -> anyhow::Result<Vec<String>> {
    let shown = path.display();
    let found = fs::metadata(path).with_context(|| format!("{shown}: cannot read it"))?;
    if !found.is_file() || found.len() > HOST_FILE_LIMIT {
        bail!("{shown}: this is no list of hosts");
    }
    let text = fs::read_to_string(path).with_context(|| format!("{shown}: cannot read it"))?;
    let hosts = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    Ok(hosts.filter(|host| !host.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_another_host_is_an_error() {
        let base = tempfile::tempdir().unwrap();
        let list = base.path().join("hosts");
        fs::write(&list, "# hosts\nlocalhost # here\n\n").unwrap();
        let with = |host: Option<&str>, host_file| {
            let host = host.map(str::to_owned);
            require_here(&Asked { host, host_file, ..Asked::default() }).map_err(|error| error.to_string())
        };
        assert_eq!(with(None, None), Ok(()));
        assert_eq!(with(Some("127.0.0.1"), Some(list.clone())), Ok(()));
        assert!(with(Some("elsewhere.invalid"), None).unwrap_err().contains("another host"));
        fs::write(&list, "elsewhere.invalid\n").unwrap();
        assert!(with(None, Some(list)).unwrap_err().contains("another host"));
        assert!(with(None, Some(base.path().to_owned())).unwrap_err().contains("no list of hosts"));
    }
}
