//! Links in the documents lead somewhere: files in the repository are looked up.

use std::path::Path;

use super::Source;

/// Lines `NUMBER: link to …` for each relative link whose file does not exist.
pub fn missing(source: &Source) -> Vec<String> {
    if !source.path.ends_with(".md") {
        return Vec::new();
    }
    let folder = Path::new(&source.path).parent().unwrap_or(Path::new(""));
    let mut found = Vec::new();
    for (i, line) in source.text.lines().enumerate() {
        let broken = targets(line).into_iter().filter(|target| !folder.join(target).exists());
        found.extend(broken.map(|target| format!("{}: link to {target}, which does not exist", i + 1)));
    }
    found
}

/// The files that a line links to, without anchors; links to other machines are left alone.
fn targets(line: &str) -> Vec<&str> {
    let after = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    after
        .map(|(target, _)| target.split('#').next().unwrap_or_default())
        .filter(|target| !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_are_looked_up() {
        let line = "[a](docs/a.md#part), [b](https://example.org/b), [c](#here) and [d](../d)";
        assert_eq!(targets(line), ["docs/a.md", "../d"]);
    }

    #[test]
    fn a_dead_link_is_named() {
        let text = "fine\n[gone](no/such/file.md)\n".to_owned();
        assert_eq!(
            missing(&Source { path: "README.md".into(), text }),
            ["2: link to no/such/file.md, which does not exist"]
        );
    }
}
