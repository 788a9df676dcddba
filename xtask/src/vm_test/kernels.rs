//! vm-test/kernels.toml: the kernels, what each lacks, and the tests.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::nodes::Nodes;
use super::planted::Planted;
use super::power::Power;
use super::route::Route;
use super::systemd::Systemd;

const FILE: &str = "vm-test/kernels.toml";
/// The name that stands for whatever is newest of all that can be had.
pub const NEWEST: &str = "newest";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matrix {
    #[serde(rename = "kernel")]
    pub kernels: Vec<Kernel>,
    #[serde(rename = "suite")]
    pub suites: Vec<Suite>,
    #[serde(rename = "route", default)]
    pub routes: Vec<Route>,
    #[serde(rename = "power", default)]
    pub powers: Vec<Power>,
    #[serde(rename = "nodes", default)]
    pub nodes: Vec<Nodes>,
    #[serde(rename = "systemd", default)]
    pub systemds: Vec<Systemd>,
    #[serde(default)]
    pub planted: Vec<Planted>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// The beginning of its version, where nothing else is said.
    pub name: String,
    /// The first numbers of the oldest that will do, as archives move on: it is the newest of all if it is called so, and
    /// otherwise of the oldest series that there is from there on.
    pub from: Option<String>,
    /// Features, as suites name them.
    #[serde(default)]
    pub lacks: Vec<String>,
    /// Tests that are skipped here, each with the reason.
    #[serde(default)]
    pub skips: Vec<Skip>,
    #[serde(default)]
    pub short: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skip {
    pub test: String,
    pub reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    pub package: String,
    /// The file of tests.
    pub binary: String,
    /// Names; one that ends in `::` stands for all of a module. All tests if there is none.
    #[serde(default)]
    pub tests: Vec<String>,
    /// Features without which these are skipped.
    #[serde(default)]
    pub needs: Vec<String>,
    /// The kernels that have the time for it; all if none is named.
    #[serde(default)]
    pub under: Vec<String>,
    /// They run with the programs and libraries of this machine.
    #[serde(default)]
    pub on_host: bool,
    #[serde(default)]
    pub short: bool,
}

impl Matrix {
    pub fn read() -> Result<Self> {
        let text = std::fs::read_to_string(FILE).context(FILE)?;
        let matrix: Self = toml::from_str(&text).context(FILE)?;
        matrix.check().context(FILE)?;
        Ok(matrix)
    }

    /// A feature that no kernel lacks, or that nobody needs, is a slip of the pen.
    fn check(&self) -> Result<()> {
        let lacked: BTreeSet<&String> = self.kernels.iter().flat_map(|kernel| &kernel.lacks).collect();
        let needed: BTreeSet<&String> = self.suites.iter().flat_map(|suite| &suite.needs).collect();
        if let Some(feature) = needed.symmetric_difference(&lacked).next() {
            let other = if needed.contains(feature) { "no kernel lacks it" } else { "no test needs it" };
            anyhow::bail!("the feature {feature}: {other}");
        }
        let unknown = |name: &&String| self.kernels.iter().all(|kernel| kernel.name != **name);
        if let Some(name) = self.suites.iter().flat_map(|suite| &suite.under).find(unknown) {
            anyhow::bail!("a suite under {name}: no such kernel");
        }
        for kernel in &self.kernels {
            ensure!(kernel.name != NEWEST || kernel.from.is_some(), "the newest kernel: from which one on?");
        }
        for route in &self.routes {
            let there = |name: &String| self.kernels.iter().any(|kernel| kernel.name == *name);
            ensure!(
                route.kernels.len() > 1 && route.kernels.iter().all(there),
                "the route {route}: no such kernels"
            );
            ensure!(
                route.processors.is_empty() || route.processors.len() == route.kernels.len(),
                "the route {route}: a processor for each kernel, or none"
            );
        }
        for power in &self.powers {
            ensure!(power.cuts > 0 && power.short != Some(0), "{power}: no cut");
        }
        for planted in &self.planted {
            ensure!(!planted.says.is_empty(), "{planted}: by what is it known?");
        }
        Ok(())
    }

    /// Keeps the named kernels only; with `short` those of the short form, and its suites.
    pub fn select(&mut self, kernels: &[String], short: bool) -> Result<()> {
        for name in kernels {
            ensure!(
                self.kernels.iter().any(|kernel| kernel.name == *name),
                "{FILE} has no kernel {name}, but {}",
                self.kernels.iter().map(|kernel| kernel.name.as_str()).collect::<Vec<_>>().join(", ")
            );
        }
        if !kernels.is_empty() {
            self.kernels.retain(|kernel| kernels.contains(&kernel.name));
        } else if short {
            self.kernels.retain(|kernel| kernel.short);
        }
        self.suites.retain(|suite| suite.short || !short);
        let there = |name: &String| self.kernels.iter().any(|kernel| kernel.name == *name);
        self.routes.retain(|route| (route.short || !short) && route.kernels.iter().all(there));
        self.powers.retain(|power| (power.short.is_some() || !short) && there(&power.kernel));
        self.nodes.retain(|nodes| (nodes.short || !short) && there(&nodes.origin) && there(&nodes.target));
        self.systemds.retain(|systemd| !short && there(&systemd.kernel));
        self.planted.retain(|planted| there(&planted.kernel));
        for power in self.powers.iter_mut().filter(|_| short) {
            power.cuts = power.short.unwrap_or(power.cuts);
        }
        Ok(())
    }
}

impl Kernel {
    /// Why this kernel does not run a test, if so.
    pub fn skips(&self, suite: &Suite, test: &str) -> Option<String> {
        let lacking = suite.needs.iter().find(|feature| self.lacks.contains(feature));
        let named = self.skips.iter().find(|skip| skip.test == test);
        let elsewhere = !suite.under.is_empty() && !suite.under.contains(&self.name);
        lacking
            .map(|feature| format!("no {feature}"))
            .or_else(|| Some(named?.reason.clone()))
            .or_else(|| elsewhere.then(|| format!("for time, under {} alone", suite.under.join(" and "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Matrix> {
        let matrix: Matrix = toml::from_str(text)?;
        matrix.check()?;
        Ok(matrix)
    }

    const TEXT: &str = r#"
        [[kernel]]
        name = "6.1"
        lacks = ["pagemap-scan"]
        skips = [{ test = "slow", reason = "too slow" }]
        short = true
        [[kernel]]
        name = "newest"
        from = "7"
        [[suite]]
        package = "ckpt-tests"
        binary = "count"
        needs = ["pagemap-scan"]
        under = ["newest"]
        [[suite]]
        package = "ckpt-tests"
        binary = "lazy"
        under = ["6.1"]
        short = true
    "#;

    #[test]
    fn what_a_kernel_lacks_is_skipped_with_the_reason() {
        let matrix = parse(TEXT).unwrap();
        let [old, newest] = &matrix.kernels[..] else { panic!("two kernels") };
        assert_eq!(old.skips(&matrix.suites[0], "any").as_deref(), Some("no pagemap-scan"));
        assert_eq!(old.skips(&matrix.suites[1], "slow").as_deref(), Some("too slow"));
        assert_eq!(old.skips(&matrix.suites[1], "other"), None);
        assert_eq!(newest.skips(&matrix.suites[0], "any"), None);
        assert_eq!(newest.skips(&matrix.suites[1], "other").as_deref(), Some("for time, under 6.1 alone"));
    }

    #[test]
    fn the_short_form_has_its_own_kernels_and_tests() {
        let mut matrix = parse(TEXT).unwrap();
        matrix.select(&[], true).unwrap();
        assert_eq!((matrix.kernels.len(), matrix.suites.len()), (1, 1));
        assert!(parse(TEXT).unwrap().select(&["5".into()], false).is_err());
    }

    #[test]
    fn features_that_nobody_needs_are_slips_of_the_pen() {
        assert!(parse(&TEXT.replace(r#"lacks = ["pagemap-scan"]"#, r#"lacks = ["page-scan"]"#)).is_err());
    }

    #[test]
    fn programs_without_a_distribution_run_under_every_kernel_that_tells_of_rseq() {
        crate::cmd::enter_repository().unwrap();
        let matrix = Matrix::read().unwrap();
        for test in ["count_static_survives", "count_survives", "count_in_rust_survives", "count_in_busybox"]
        {
            let is_its = |suite: &&Suite| suite.tests.iter().any(|name| name == test);
            let suites: Vec<&Suite> = matrix.suites.iter().filter(is_its).collect();
            for kernel in matrix.kernels.iter().filter(|kernel| !kernel.lacks.contains(&"rseq".to_owned())) {
                let runs = suites.iter().filter(|suite| kernel.skips(suite, test).is_none()).count();
                assert_eq!(runs, 1, "{test} under {}", kernel.name);
            }
        }
    }
}
