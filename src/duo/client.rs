//! What GitLab says of itself in headers. None of them is required.

use axum::http::HeaderMap;

/// A header's text.
pub fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Whether the administrator switched AI logs on.
pub fn verbose(headers: &HeaderMap) -> bool {
    text(headers, "x-gitlab-enabled-instance-verbose-ai-logs").is_some_and(|v| v.eq_ignore_ascii_case("true"))
}

/// The feature flags that GitLab pushed: `None` without the header, one empty name for an empty one.
pub fn feature_flags(headers: &HeaderMap) -> Option<Vec<String>> {
    let flags = text(headers, "x-gitlab-enabled-feature-flags")?;
    Some(flags.split(',').map(str::to_owned).collect())
}

/// `19.3.0-pre` and its like: two numbers that order versions. What cannot be read is 0.0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl Version {
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    pub fn parse(text: &str) -> Self {
        let number = |part: Option<&str>| {
            let digits: String = part.unwrap_or_default().chars().take_while(char::is_ascii_digit).collect();
            digits.parse::<u32>().ok()
        };
        let mut parts = text.trim().split('.');
        let Some(major) = number(parts.next()) else { return Self::default() };
        let (minor, patch) = (number(parts.next()).unwrap_or(0), number(parts.next()).unwrap_or(0));
        Self { major, minor, patch }
    }

    /// Of GitLab.
    pub fn gitlab(headers: &HeaderMap) -> Self {
        text(headers, "x-gitlab-version").map(Self::parse).unwrap_or_default()
    }

    /// Of the language server in the editor.
    pub fn language_server(headers: &HeaderMap) -> Self {
        text(headers, "x-gitlab-language-server-version").map(Self::parse).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_and_unreadable_ones_come_first() {
        assert_eq!(Version::parse("19.3.0-pre"), Version::new(19, 3, 0));
        assert_eq!(Version::parse("17.5.0"), Version::new(17, 5, 0));
        assert_eq!(Version::parse("18"), Version::new(18, 0, 0));
        assert_eq!(Version::parse("soon"), Version::default());
        assert!(Version::parse("18.10.1") > Version::parse("18.9.9"));
    }
}
