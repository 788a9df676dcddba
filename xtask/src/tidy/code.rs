//! A line of Rust without its comments and without what stands in its string literals.

/// Good enough for house rules: block comments and strings over several lines are taken for code.
pub fn code(line: &str) -> String {
    if let Some((before, rest)) = line.split_once("r#\"")
        && let Some((_, after)) = rest.split_once("\"#")
    {
        return code(&format!("{before}\"\"{after}"));
    }
    let mut kept = String::with_capacity(line.len());
    let mut chars = line.chars().peekable();
    let mut in_string = false;
    while let Some(c) = chars.next() {
        match (in_string, c) {
            (true, '\\') => drop(chars.next()),
            (false, '\'') if chars.peek() == Some(&'"') => drop(chars.next()),
            (_, '"') => {
                in_string = !in_string;
                kept.push(c);
            }
            (true, _) => {}
            (false, '/') if chars.peek() == Some(&'/') => break,
            (false, _) => kept.push(c),
        }
    }
    kept
}

/// Whether `word` stands in `text` with no letter, digit or underscore beside it.
pub fn has_word(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (text[..at].chars().next_back(), text[at + word.len()..].chars().next());
        !before.is_some_and(part) && !after.is_some_and(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_no_code() {
        assert_eq!(code(r#"let a = "unsafe // {"; // unsafe"#).trim(), r#"let a = "";"#);
        assert_eq!(code(r#"'"', unsafe"#), "', unsafe");
        assert_eq!(code(r#""a \" b" c"#), r#""" c"#);
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("use x::Pid;", "Pid"));
        assert!(!has_word("RapidPidgeon unsafe_code", "Pid"));
        assert!(!has_word("deny(unsafe_code)", "unsafe"));
    }
}
