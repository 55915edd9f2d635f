//! Host names and what is said of them: exact ones, `*.` suffixes, and what holds for any.

use std::collections::HashMap;

use foldhash::fast::RandomState;

/// Names are at most this long (RFC 1035 section 2.3.4): longer ones are nobody's.
const MAX_NAME: usize = 255;

/// Something for each host name, found from the name that says most of a host to the one that says least: exact, the
/// longest suffix, ..., any.
#[derive(Debug)]
pub(super) struct Hosts<T> {
    exact: HashMap<Box<str>, T, RandomState>,
    /// `*.example.com` by `.example.com`.
    suffixes: HashMap<Box<str>, T, RandomState>,
    any: Option<T>,
}

impl<T> Default for Hosts<T> {
    fn default() -> Self {
        Self { exact: HashMap::default(), suffixes: HashMap::default(), any: None }
    }
}

impl<T: Default> Hosts<T> {
    /// What is said of a name in lower case; `None`: of any.
    pub(super) fn entry(&mut self, name: Option<&str>) -> &mut T {
        match name {
            None => self.any.get_or_insert_default(),
            Some(name) => match name.strip_prefix('*').filter(|suffix| suffix.starts_with('.')) {
                Some(suffix) => self.suffixes.entry(suffix.into()).or_default(),
                None => self.exact.entry(name.into()).or_default(),
            },
        }
    }
}

impl<T> Hosts<T> {
    /// The first that `wanted` takes. Case and one trailing dot don't count.
    pub(super) fn find<'t, R>(&'t self, host: &str, mut wanted: impl FnMut(&'t T) -> Option<R>) -> Option<R> {
        let mut lower = [0; MAX_NAME];
        if let Some(host) = lower_case(host, &mut lower) {
            let exact = self.exact.get(host).and_then(&mut wanted);
            if exact.is_some() {
                return exact;
            }
            if !self.suffixes.is_empty() {
                // A suffix stands for one label or more, so the search begins after the first character.
                let dots = host.bytes().enumerate().skip(1).filter(|(_, byte)| *byte == b'.');
                let mut suffixes = dots.filter_map(|(at, _)| self.suffixes.get(&host[at..]));
                let found = suffixes.find_map(&mut wanted);
                if found.is_some() {
                    return found;
                }
            }
        }
        self.any.as_ref().and_then(wanted)
    }
}

/// A host as it is compared; `None`: it is too long for one.
fn lower_case<'b>(host: &str, buffer: &'b mut [u8; MAX_NAME]) -> Option<&'b str> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let lower = buffer.get_mut(..host.len())?;
    lower.copy_from_slice(host.as_bytes());
    lower.make_ascii_lowercase();
    // Lower-casing ASCII keeps UTF-8 what it is.
    std::str::from_utf8(lower).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_most_of_a_host_comes_first() {
        let mut hosts = Hosts::default();
        let names = [Some("a.example.com"), Some("*.example.com"), Some("*.b.example.com"), None];
        for (number, name) in names.into_iter().enumerate() {
            *hosts.entry(name) = number;
        }
        let all = |host: &str| {
            let mut seen = Vec::new();
            let none: Option<()> = hosts.find(host, |value| {
                seen.push(*value);
                None
            });
            assert!(none.is_none());
            seen
        };
        let long = "a".repeat(300);
        for (host, expected) in [
            ("a.example.com", &[0, 1, 3][..]),
            ("A.Example.COM.", &[0, 1, 3]),
            ("x.b.example.com", &[2, 1, 3]),
            ("b.example.com", &[1, 3]),
            ("example.com", &[3]),
            (".example.com", &[3]),
            ("", &[3]),
            (&long, &[3]),
        ] {
            assert_eq!(all(host), expected, "{host}");
        }
        assert_eq!(hosts.find("a.example.com", |value| (*value > 0).then_some(*value)), Some(1));
    }
}
