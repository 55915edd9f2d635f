//! Path normalisation before matching, so that what policies match is what the server will understand.

use std::borrow::Cow;
use std::fmt;

use control_client::snapshot::{AmbiguousPaths, PathNormalization};

/// Why a path has no single meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathError {
    /// Does not begin with `/`.
    NotAbsolute,
    /// `%` without two hex digits: servers read it differently.
    BadEscape,
    /// NUL or another control character, plain or escaped.
    ControlCharacter,
    /// To some reader, one that decodes more than we do, a segment of it is `.` or `..`.
    Climbs,
    /// It has an escaped slash or backslash, an empty segment, parameters, or something escaped twice.
    Ambiguous,
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAbsolute => "the path does not begin with /",
            Self::BadEscape => "the path has a % without two hex digits after it",
            Self::ControlCharacter => "the path has a control character",
            Self::Climbs => {
                "the path leads elsewhere to whoever decodes it once more, or leaves parameters out; MeshSettings \
                 pathNormalization.ambiguous says whether such paths are refused"
            }
            Self::Ambiguous => {
                "the path has an escaped slash, an empty segment, `;` or something escaped twice, which servers read \
                 in different ways; MeshSettings pathNormalization.ambiguous says whether such paths are refused"
            }
        })
    }
}

impl std::error::Error for PathError {}

/// Normalises a path (without query), as Istio's `pathNormalization` of the same name does in Envoy: NONE takes it as it
/// is; BASE decodes unreserved characters, turns `\` into `/` and removes dot segments (RFC 3986 section 5.2.4);
/// MERGE_SLASHES also makes one `/` of several; DECODE_AND_MERGE_SLASHES first decodes `%2F` and `%5C`.
///
/// Unlike there, all but NONE write the digits of escapes that stay in upper case, as the control client does with the paths
/// of policies.
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

/// Refuses a path (normalised, without query) that could be read in another way, as far as `ambiguous` asks.
pub fn unambiguous(path: &str, ambiguous: AmbiguousPaths) -> Result<(), PathError> {
    let all = match ambiguous {
        AmbiguousPaths::Keep => return Ok(()),
        AmbiguousPaths::RefuseTraversal => false,
        AmbiguousPaths::Refuse => true,
    };
    if is_plain(path.as_bytes()) {
        return Ok(());
    }
    if climbs(path) {
        return Err(PathError::Climbs);
    }
    if all && is_ambiguous(path) { Err(PathError::Ambiguous) } else { Ok(()) }
}

/// The common case: nothing in it that anyone decodes or strips, no dot segment, no empty one.
fn is_plain(path: &[u8]) -> bool {
    let mut previous = 0;
    for &byte in path {
        if matches!(byte, b'%' | b'\\' | b';') || previous == b'/' && matches!(byte, b'.' | b'/') {
            return false;
        }
        previous = byte;
    }
    true
}

/// How often an escape may be escaped before whoever wrote it means no good.
const MAX_DECODINGS: usize = 4;

/// Whether a segment is `.` or `..` to the most eager reader: one that decodes until nothing is left to decode, takes
/// overlong UTF-8 for what it spells, `\` for `/`, and leaves parameters out.
fn climbs(path: &str) -> bool {
    let mut decoded = path.as_bytes().to_vec();
    for _ in 0..MAX_DECODINGS {
        let again = fold_overlong(percent_encoding::percent_decode(&decoded).collect());
        if again == decoded {
            let segments = decoded.split(|byte| matches!(byte, b'/' | b'\\'));
            let without_parameters = |segment: &[u8]| {
                let end = segment.iter().position(|&byte| matches!(byte, b';' | 0)).unwrap_or(segment.len());
                matches!(&segment[..end], b"." | b"..")
            };
            return segments.into_iter().any(without_parameters);
        }
        decoded = again;
    }
    true
}

/// ASCII in two or three bytes, which RFC 3629 section 3 forbids and old decoders take.
fn fold_overlong(bytes: Vec<u8>) -> Vec<u8> {
    if !bytes.iter().any(|byte| matches!(byte, 0xc0 | 0xc1 | 0xe0)) {
        return bytes;
    }
    let mut folded = Vec::with_capacity(bytes.len());
    let mut rest = &bytes[..];
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, after) = match (first, tail) {
            (0xc0 | 0xc1, [low @ 0x80..=0xbf, after @ ..]) => ((first & 1) << 6 | low & 0x3f, after),
            (0xe0, [high @ (0x80 | 0x81), low @ 0x80..=0xbf, after @ ..]) => {
                ((high & 1) << 6 | low & 0x3f, after)
            }
            _ => (first, tail),
        };
        folded.push(byte);
        rest = after;
    }
    folded
}

fn is_ambiguous(path: &str) -> bool {
    let bytes = path.as_bytes();
    let escaped = |digits: &[u8]| {
        let twice = |after: &[u8]| after.iter().take(2).filter(|byte| byte.is_ascii_hexdigit()).count() == 2;
        match digits {
            [b'2', b'f' | b'F', ..] | [b'5', b'c' | b'C', ..] | [b'c' | b'C', b'0' | b'1', ..] => true,
            [b'2', b'5', after @ ..] => twice(after),
            _ => false,
        }
    };
    bytes.windows(2).any(|pair| pair == b"//")
        || bytes.iter().any(|byte| matches!(byte, b';' | b'\\'))
        || bytes.iter().enumerate().any(|(at, byte)| *byte == b'%' && escaped(&bytes[at + 1..]))
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
/// Escapes that stay have upper-case digits (section 6.2.2.1).
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
            _ => decoded.extend(escape.chars().map(|digit| digit.to_ascii_uppercase())),
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
        ["/app/%2f", "/app/%2f", "/app/%2F", "/app/%2F", "/app/"],
        ["/app%2f/", "/app%2f/", "/app%2F/", "/app%2F/", "/app/"],
        ["/xyz%30..//abc", "/xyz%30..//abc", "/xyz0..//abc", "/xyz0../abc", "/xyz0../abc"],
        ["/app/%2E./admin", "/app/%2E./admin", "/admin", "/admin", "/admin"],
        ["/app\\admin", "/app\\admin", "/app/admin", "/app/admin", "/app/admin"],
        ["/app/\\/\\/\\admin", "/app/\\/\\/\\admin", "/app//////admin", "/app/admin", "/app/admin"],
        ["/%2Fapp%5cadmin", "/%2Fapp%5cadmin", "/%2Fapp%5Cadmin", "/%2Fapp%5Cadmin", "/app/admin"],
        ["/%5Capp%2f%2e%2e%2fx", "/%5Capp%2f%2e%2e%2fx", "/%5Capp%2F..%2Fx", "/%5Capp%2F..%2Fx", "/x"],
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
        ["/%c0%ae/admin", "/%c0%ae/admin", "/%C0%AE/admin", "/%C0%AE/admin", "/%C0%AE/admin"],
        ["/caf%c3%a9", "/caf%c3%a9", "/caf%C3%A9", "/caf%C3%A9", "/caf%C3%A9"],
        ["/.../..;/a;b=c", "/.../..;/a;b=c", "/.../..;/a;b=c", "/.../..;/a;b=c", "/.../..;/a;b=c"],
        ["*", "*", "*", "*", "*"],
    ];

    /// What even DECODE_AND_MERGE_SLASHES leaves as it is.
    const UNCHANGED: &[&str] = &[
        "/0x2e0x2e/admin",
        "/0x2f0x2fadmin",
        "/0x5c0x5cadmin",
        "/%25c0%25ae%25c1%259cadmin",
        "/%25c0%25ae%25c0%25ae/admin",
        "/%25c1%259cadmin",
        "/%252e%252e/admin",
        "/%252e%252e%252fadmin",
        "/%C1%9Cadmin",
        "/%C0%AE%C0%AE/admin",
        "/%C0%AFadmin",
        "/.../admin",
        "/..../admin",
        "/..;/admin",
        "/;/admin",
        "/admin;a=b/xyz",
        "/admin,a=b/xyz",
        "/Admin",
    ];

    #[test]
    fn what_no_normalization_touches() {
        for sent in UNCHANGED {
            assert_eq!(path(sent, DecodeAndMergeSlashes).as_deref(), Ok(*sent));
        }
    }

    #[test]
    fn of_escapes_only_unreserved_characters_and_asked_slashes_are_decoded() {
        for byte in 0x20..=0xffu8 {
            let (upper, lower) = (format!("/app/%{byte:02X}"), format!("/app/%{byte:02x}"));
            for (sent, normalization) in [
                (&upper, Base),
                (&lower, Base),
                (&upper, DecodeAndMergeSlashes),
                (&lower, DecodeAndMergeSlashes),
            ] {
                let slashes = normalization == DecodeAndMergeSlashes;
                let expected = match byte {
                    b'.' => "/app/".to_owned(),
                    b'-' | b'_' | b'~' => format!("/app/{}", char::from(byte)),
                    _ if byte.is_ascii_alphanumeric() => format!("/app/{}", char::from(byte)),
                    b'/' | b'\\' if slashes => "/app/".to_owned(),
                    0x7f => continue,
                    _ => upper.clone(),
                };
                assert_eq!(path(sent, normalization).as_deref(), Ok(&*expected), "{sent}");
            }
        }
    }

    #[test]
    fn a_path_that_means_two_things() {
        use AmbiguousPaths::{Keep, Refuse, RefuseTraversal};
        use PathError::{Ambiguous, Climbs};
        for (sent, refused) in [
            ("/", [Ok(()), Ok(())]),
            ("/a.b/c..d/.e/...", [Ok(()), Ok(())]),
            ("/100%25/%20/%C3%A4/%25of", [Ok(()), Ok(())]),
            ("/@scope%2fname", [Ok(()), Err(Ambiguous)]),
            ("/a%5Cb", [Ok(()), Err(Ambiguous)]),
            ("/a;b=c/d", [Ok(()), Err(Ambiguous)]),
            ("/a//b", [Ok(()), Err(Ambiguous)]),
            ("/%2520", [Ok(()), Err(Ambiguous)]),
            ("/a%c1%9cb", [Ok(()), Err(Ambiguous)]),
            ("/a/../b", [Err(Climbs), Err(Climbs)]),
            ("/a/%2E%2e/b", [Err(Climbs), Err(Climbs)]),
            ("/a%2f..%2fb", [Err(Climbs), Err(Climbs)]),
            ("/a%5c..%5cb", [Err(Climbs), Err(Climbs)]),
            ("/a\\..\\b", [Err(Climbs), Err(Climbs)]),
            ("/..;/b", [Err(Climbs), Err(Climbs)]),
            ("/.;x=y/b", [Err(Climbs), Err(Climbs)]),
            ("/a%3b/..%3bx/b", [Err(Climbs), Err(Climbs)]),
            ("/..%00/b", [Err(Climbs), Err(Climbs)]),
            ("/%252e%252e/b", [Err(Climbs), Err(Climbs)]),
            ("/a%252f..%252fb", [Err(Climbs), Err(Climbs)]),
            ("/%25252e./b", [Err(Climbs), Err(Climbs)]),
            ("/%c0%ae%c0%ae/b", [Err(Climbs), Err(Climbs)]),
            ("/%e0%80%ae./b", [Err(Climbs), Err(Climbs)]),
            ("/a%c0%af..%c0%afb", [Err(Climbs), Err(Climbs)]),
            ("/%25252525252e", [Err(Climbs), Err(Climbs)]),
        ] {
            assert_eq!(unambiguous(sent, Keep), Ok(()));
            assert_eq!([unambiguous(sent, RefuseTraversal), unambiguous(sent, Refuse)], refused, "{sent}");
        }
    }

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

        /// Whoever decodes what was let through, as often as they like, gets no segment that climbs.
        #[test]
        fn what_is_let_through_climbs_for_nobody(
            sent in "/([a/.;\\\\]|%2[eEfF5]|%5[cC]|%c0%ae|%252e|\\.\\.){0,10}",
            times in 0usize..4,
        ) {
            let Ok(normal) = path(&sent, Base) else { return Ok(()) };
            if unambiguous(&normal, AmbiguousPaths::RefuseTraversal).is_ok() {
                let mut read = normal.as_bytes().to_vec();
                for _ in 0..times {
                    read = percent_encoding::percent_decode(&read).collect();
                }
                let dots = |segment: &[u8]| {
                    let name = segment.split(|&byte| byte == b';').next();
                    matches!(name, Some(b"." | b".."))
                };
                prop_assert!(!read.split(|byte| matches!(byte, b'/' | b'\\')).any(dots), "{sent}");
            }
        }

        #[test]
        fn nothing_panics(sent in "\\PC{0,40}") {
            for normalization in [None, Base, MergeSlashes, DecodeAndMergeSlashes] {
                let _ = path(&sent, normalization);
                let _ = unambiguous(&sent, AmbiguousPaths::Refuse);
            }
        }
    }
}
