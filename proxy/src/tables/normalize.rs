//! Path normalisation before matching, so that what policies match is what the server will understand.

use std::borrow::Cow;
use std::fmt;

use control_client::snapshot::PathNormalization;

/// Why a path has no single meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathError {
    /// Does not begin with `/`.
    NotAbsolute,
    /// `%` without two hex digits: servers read it differently.
    BadEscape,
    /// NUL or another control character, plain or escaped.
    ControlCharacter,
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAbsolute => "the path does not begin with /",
            Self::BadEscape => "the path has a % without two hex digits after it",
            Self::ControlCharacter => "the path has a control character",
        })
    }
}

impl std::error::Error for PathError {}

/// Normalises a path (without query), as Istio's `pathNormalization` of the same name does in Envoy: NONE takes it as it
/// is; BASE decodes unreserved characters, turns `\` into `/` and removes dot segments (RFC 3986 section 5.2.4);
/// MERGE_SLASHES also makes one `/` of several; DECODE_AND_MERGE_SLASHES first decodes `%2F` and `%5C`.
///
/// Normalising twice changes nothing: what could still mean two things after once is refused.
pub fn path(path: &str, normalization: PathNormalization) -> Result<Cow<'_, str>, PathError> {
    // A fragment is never sent on; the target's parser strips it as well.
    let path = path.split_once('#').map_or(path, |(path, _)| path);
    if normalization == PathNormalization::None || path == "*" {
        return Ok(Cow::Borrowed(path));
    }
    if !path.starts_with('/') {
        return Err(PathError::NotAbsolute);
    }
    let merge = normalization != PathNormalization::Base;
    if is_normal(path.as_bytes(), merge) {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode(path, normalization == PathNormalization::DecodeAndMergeSlashes)?;
    let mut normal = remove_dot_segments(&decoded);
    if merge {
        normal = merge_slashes(&normal);
    }
    Ok(Cow::Owned(normal))
}

/// The common case, without a copy: nothing to decode, no dot segment, no slash to turn or merge.
fn is_normal(path: &[u8], merge: bool) -> bool {
    let mut previous = 0;
    for &byte in path {
        let suspicious = match byte {
            b'%' | b'\\' | 0..=0x1f | 0x7f => true,
            // Any segment that begins with a dot is looked at closely.
            b'.' => previous == b'/',
            b'/' => merge && previous == b'/',
            _ => false,
        };
        if suspicious {
            return false;
        }
        previous = byte;
    }
    true
}

/// Decodes escapes of unreserved characters (RFC 3986 section 2.3) and turns `\` into `/`; escaped slashes too if asked.
fn decode(path: &str, slashes: bool) -> Result<String, PathError> {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find(|c: char| c == '%' || c == '\\' || c.is_ascii_control()) {
        decoded.push_str(&rest[..at]);
        let tail = &rest[at..];
        if let Some(after) = tail.strip_prefix('\\') {
            decoded.push('/');
            rest = after;
            continue;
        }
        if !tail.starts_with('%') {
            return Err(PathError::ControlCharacter);
        }
        let escape = tail.get(..3).ok_or(PathError::BadEscape)?;
        match unescape(escape).ok_or(PathError::BadEscape)? {
            byte @ (b'-' | b'.' | b'_' | b'~' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z') => {
                decoded.push(char::from(byte));
            }
            b'/' | b'\\' if slashes => decoded.push('/'),
            0..=0x1f | 0x7f => return Err(PathError::ControlCharacter),
            _ => decoded.push_str(escape),
        }
        rest = &tail[3..];
    }
    decoded.push_str(rest);
    Ok(decoded)
}

fn unescape(escape: &str) -> Option<u8> {
    let digits = escape.as_bytes().get(1..3)?;
    let digit = |byte: u8| char::from(byte).to_digit(16);
    Some((digit(digits[0])? * 16 + digit(digits[1])?) as u8)
}

/// RFC 3986 section 5.2.4. An empty segment is a segment: `/a//../b` is `/a/b`.
fn remove_dot_segments(path: &str) -> String {
    let mut normal = String::with_capacity(path.len());
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    normal.truncate(normal.rfind('/').unwrap_or(0));
                }
                if last {
                    normal.push('/');
                }
            }
            segment => {
                normal.push('/');
                normal.push_str(segment);
            }
        }
    }
    normal
}

fn merge_slashes(path: &str) -> String {
    let mut merged = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !merged.ends_with('/') {
            merged.push(character);
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use control_client::snapshot::PathNormalization::{Base, DecodeAndMergeSlashes, MergeSlashes, None};

    /// As sent, and by NONE, BASE, MERGE_SLASHES and DECODE_AND_MERGE_SLASHES.
    const CASES: &[[&str; 5]] = &[
        ["/", "/", "/", "/", "/"],
        ["/app#foo", "/app", "/app", "/app", "/app"],
        ["/app/", "/app/", "/app/", "/app/", "/app/"],
        ["/app/../admin", "/app/../admin", "/admin", "/admin", "/admin"],
        ["/app//", "/app//", "/app//", "/app/", "/app/"],
        ["/app/%2f", "/app/%2f", "/app/%2f", "/app/%2f", "/app/"],
        ["/app%2f/", "/app%2f/", "/app%2f/", "/app%2f/", "/app/"],
        ["/xyz%30..//abc", "/xyz%30..//abc", "/xyz0..//abc", "/xyz0../abc", "/xyz0../abc"],
        ["/app/%2E./admin", "/app/%2E./admin", "/admin", "/admin", "/admin"],
        ["/app\\admin", "/app\\admin", "/app/admin", "/app/admin", "/app/admin"],
        ["/app/\\/\\/\\admin", "/app/\\/\\/\\admin", "/app//////admin", "/app/admin", "/app/admin"],
        ["/%2Fapp%5cadmin", "/%2Fapp%5cadmin", "/%2Fapp%5cadmin", "/%2Fapp%5cadmin", "/app/admin"],
        ["/%5Capp%2f%2e%2e%2fx", "/%5Capp%2f%2e%2e%2fx", "/%5Capp%2f..%2fx", "/%5Capp%2f..%2fx", "/x"],
        ["/app//../admin", "/app//../admin", "/app/admin", "/app/admin", "/app/admin"],
        ["/app//../../admin", "/app//../../admin", "/admin", "/admin", "/admin"],
        ["/../..", "/../..", "/", "/", "/"],
        ["/a/.", "/a/.", "/a/", "/a/", "/a/"],
        [
            "/%252e%252e/admin",
            "/%252e%252e/admin",
            "/%252e%252e/admin",
            "/%252e%252e/admin",
            "/%252e%252e/admin",
        ],
        ["/%c0%ae/admin", "/%c0%ae/admin", "/%c0%ae/admin", "/%c0%ae/admin", "/%c0%ae/admin"],
        ["/.../..;/a;b=c", "/.../..;/a;b=c", "/.../..;/a;b=c", "/.../..;/a;b=c", "/.../..;/a;b=c"],
        ["*", "*", "*", "*", "*"],
    ];

    #[test]
    fn cases() {
        for [sent, expected @ ..] in CASES {
            for (normalization, expected) in
                [None, Base, MergeSlashes, DecodeAndMergeSlashes].into_iter().zip(expected)
            {
                assert_eq!(
                    path(sent, normalization).as_deref(),
                    Ok(*expected),
                    "{sent} by {normalization:?}"
                );
            }
        }
    }

    #[test]
    fn refused() {
        for (sent, error) in [
            ("app", PathError::NotAbsolute),
            ("", PathError::NotAbsolute),
            ("/%", PathError::BadEscape),
            ("/%2", PathError::BadEscape),
            ("/%zz", PathError::BadEscape),
            ("/%+1", PathError::BadEscape),
            ("/%%32%65", PathError::BadEscape),
            ("/%2é", PathError::BadEscape),
            ("/a%00b", PathError::ControlCharacter),
            ("/a\0b", PathError::ControlCharacter),
            ("/a%0d", PathError::ControlCharacter),
        ] {
            assert_eq!(path(sent, Base), Err(error), "{sent:?}");
            assert_eq!(path(sent, DecodeAndMergeSlashes), Err(error), "{sent:?}");
        }
    }

    #[test]
    fn a_normal_path_is_not_copied() {
        assert!(matches!(path("/api/v1/items.json", MergeSlashes), Ok(Cow::Borrowed(_))));
    }

    proptest! {
        #[test]
        fn twice_is_once(sent in "/([a/.%25eEfFcC0\\\\;é]|%2[eEfF]|%5[cC]|//|\\.\\.){0,12}") {
            for normalization in [Base, MergeSlashes, DecodeAndMergeSlashes] {
                if let Ok(once) = path(&sent, normalization) {
                    let twice = path(&once, normalization);
                    prop_assert_eq!(twice.as_deref(), Ok(&*once));
                    prop_assert!(!once.split('/').any(|segment| segment == "." || segment == ".."));
                }
            }
        }

        #[test]
        fn nothing_panics(sent in "\\PC{0,40}") {
            for normalization in [None, Base, MergeSlashes, DecodeAndMergeSlashes] {
                let _ = path(&sent, normalization);
            }
        }
    }
}
