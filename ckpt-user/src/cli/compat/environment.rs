//! What DMTCP's variables say where the command line says nothing, and the exit status that one of them gives.

use super::options::{Asked, Program, number, port};
use std::ffi::{OsStr, OsString};

/// The same with what variables say; an empty one says nothing.
///
/// # Errors
/// For the person: one whose value is none.
pub fn complete(
    asked: Asked,
    program: Program,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Asked, String> {
    let said = |name: &str| variable(name).filter(|value| !value.is_empty());
    let first = |names: [&'static str; 2]| names.into_iter().find_map(|name| Some((name, said(name)?)));
    let is_on = |name: &str| said(name).map(|value| value != "0");
    let is_job = matches!(program, Program::Launch | Program::Restart);
    let interval = said("DMTCP_CHECKPOINT_INTERVAL")
        .filter(|_| asked.interval.is_none() && program != Program::Command)
        .map(|value| number("DMTCP_CHECKPOINT_INTERVAL", &value))
        .transpose()?;
    let host = first(["DMTCP_COORD_HOST", "DMTCP_HOST"]).map(|said| said.1.to_string_lossy().into_owned());
    let port = first(["DMTCP_COORD_PORT", "DMTCP_PORT"])
        .filter(|_| asked.port.is_none())
        .map(|(name, value)| port(name, &value))
        .transpose()?;
    let checkpoint_dir = said("DMTCP_CHECKPOINT_DIR").filter(|_| is_job);
    Ok(Asked {
        interval: asked.interval.or(interval),
        host: asked.host.or(host),
        port: asked.port.or(port),
        checkpoint_dir: asked.checkpoint_dir.or(checkpoint_dir.map(Into::into)),
        restart_dir: asked.restart_dir.or(said("DMTCP_RESTART_DIR").map(Into::into)),
        is_compressed: asked.is_compressed.or(is_on("DMTCP_GZIP")),
        is_quiet: asked.is_quiet || is_on("DMTCP_QUIET").unwrap_or(false),
        ..asked
    })
}

/// What a failure of ckptbpf's own exits with: `DMTCP_FAIL_RC`, if that is a status other than 0, else 99, as jassert.h of DMTCP
/// has it.
pub fn failure(variable: Option<&OsStr>) -> u8 {
    const FAILURE: u8 = 99;
    let said = variable.and_then(OsStr::to_str).and_then(|text| text.trim().parse().ok());
    said.filter(|status| *status != 0).unwrap_or(FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(set: &[(&str, &str)], asked: Asked, program: Program) -> Result<Asked, String> {
        complete(asked, program, |name| set.iter().find(|one| one.0 == name).map(|one| one.1.into()))
    }

    #[test]
    fn the_command_line_goes_before_variables() {
        let set = [
            ("DMTCP_CHECKPOINT_INTERVAL", "30"),
            ("DMTCP_COORD_PORT", "4000"),
            ("DMTCP_PORT", "5000"),
            ("DMTCP_HOST", "n1"),
            ("DMTCP_CHECKPOINT_DIR", "d"),
            ("DMTCP_GZIP", "0"),
            ("DMTCP_QUIET", "2"),
        ];
        let said = with(&set, Asked::default(), Program::Launch).unwrap();
        assert_eq!((said.interval, said.port, said.host.as_deref()), (Some(30), Some(4000), Some("n1")));
        assert_eq!((said.checkpoint_dir, said.is_compressed), (Some("d".into()), Some(false)));
        assert!(said.is_quiet);
        let given = Asked { interval: Some(5), port: Some(1), host: Some("n2".into()), ..Asked::default() };
        let given = with(&set, given, Program::Launch).unwrap();
        assert_eq!((given.interval, given.port, given.host.as_deref()), (Some(5), Some(1), Some("n2")));
        let command = with(&set, Asked::default(), Program::Command).unwrap();
        assert_eq!((command.interval, command.checkpoint_dir), (None, None));
    }

    #[test]
    fn a_variable_that_says_nonsense_is_named_and_an_empty_one_says_nothing() {
        let error = with(&[("DMTCP_COORD_PORT", "x")], Asked::default(), Program::Command).unwrap_err();
        assert!(error.contains("DMTCP_COORD_PORT: 'x'"), "{error}");
        let empty = with(&[("DMTCP_CHECKPOINT_INTERVAL", "")], Asked::default(), Program::Launch);
        assert_eq!(empty, Ok(Asked::default()));
    }

    #[test]
    fn failures_have_the_status_that_is_wanted() {
        assert_eq!((failure(None), failure(Some(OsStr::new("7")))), (99, 7));
        for said in ["", "0", "x", "256"] {
            assert_eq!(failure(Some(OsStr::new(said))), 99, "{said}");
        }
    }
}
