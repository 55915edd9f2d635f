//! Where tokens are found in a request, and how they are taken out of it.

use std::borrow::Cow;

use http::header::{COOKIE, HeaderName};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Uri};
use percent_encoding::percent_decode_str;

use super::Text;
use crate::tables::Location;

/// The token of a request at the places of one rule; `None`: there is none.
///
/// # Errors
/// There are two that differ, so that the application may read another one than was verified; or one that is no text.
pub fn find<'r, B>(request: &'r Request<B>, places: &[Location]) -> Result<Option<Cow<'r, str>>, Text> {
    let mut found: Option<Cow<'r, str>> = None;
    for place in places {
        each_at(request, place, &mut |token| {
            let token = token.ok_or("it is not text")?;
            match &found {
                Some(first) if *first != token => return Err("two tokens that differ in one request".into()),
                Some(_) => {}
                None => found = Some(token),
            }
            Ok(())
        })?;
    }
    Ok(found)
}

/// Takes a token out wherever it stands at these places.
pub fn remove<B>(request: &mut Request<B>, places: &[Location], token: &str) {
    for place in places {
        match place {
            Location::Header(name, prefix) => remove_lines(request.headers_mut(), name, |line| {
                line.to_str().ok().and_then(|line| behind(line, prefix)) != Some(token)
            }),
            Location::Cookie(name) => remove_cookie(request.headers_mut(), name),
            Location::Query(name) => remove_parameter(request.uri_mut(), name),
        }
    }
}

type Each<'a, 'r> = &'a mut dyn FnMut(Option<Cow<'r, str>>) -> Result<(), Text>;

fn each_at<'r, B>(request: &'r Request<B>, place: &Location, each: Each<'_, 'r>) -> Result<(), Text> {
    match place {
        Location::Header(name, prefix) => {
            for line in request.headers().get_all(name) {
                match line.to_str() {
                    Ok(line) => behind(line, prefix).map_or(Ok(()), |token| each(Some(token.into())))?,
                    // What is no text can't be a token; an empty prefix would take anything for one.
                    Err(_) if prefix.is_empty() => each(None)?,
                    Err(_) => {}
                }
            }
        }
        Location::Query(name) => {
            for (_, value) in parameters(request.uri()).filter(|(of, _)| named(of, name)) {
                let plain = !value.contains('%');
                each(if plain { Some(value.into()) } else { percent_decode_str(value).decode_utf8().ok() })?;
            }
        }
        Location::Cookie(name) => {
            for line in request.headers().get_all(COOKIE) {
                let text = line.to_str().unwrap_or_default();
                for (_, value) in cookies(text).filter(|(of, _)| **of == **name) {
                    each(Some(value.into()))?;
                }
            }
        }
    }
    Ok(())
}

/// What follows a prefix, compared without case (RFC 9110 section 11.1 has schemes so). A scheme may be followed by
/// several spaces.
fn behind<'l>(line: &'l str, prefix: &str) -> Option<&'l str> {
    let (start, rest) = line.split_at_checked(prefix.len())?;
    let token = rest.trim_matches([' ', '\t']);
    (start.eq_ignore_ascii_case(prefix) && !token.is_empty()).then_some(token)
}

/// Names and values, as written.
fn parameters(uri: &Uri) -> impl Iterator<Item = (&str, &str)> {
    let pairs = uri.query().into_iter().flat_map(|query| query.split('&'));
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn named(written: &str, name: &str) -> bool {
    if written.contains(['%', '+']) {
        percent_decode_str(written).decode_utf8().is_ok_and(|decoded| decoded == name)
    } else {
        written == name
    }
}

fn cookies(line: &str) -> impl Iterator<Item = (&str, &str)> {
    line.split(';').filter_map(|pair| pair.trim().split_once('='))
}

fn remove_lines(headers: &mut HeaderMap, name: &HeaderName, keep: impl Fn(&HeaderValue) -> bool) {
    if headers.get_all(name).iter().all(&keep) {
        return;
    }
    let kept: Vec<_> = headers.get_all(name).iter().filter(|line| keep(line)).cloned().collect();
    headers.remove(name);
    for line in kept {
        headers.append(name, line);
    }
}

fn remove_cookie(headers: &mut HeaderMap, name: &str) {
    let text = |line: &HeaderValue| line.to_str().unwrap_or_default().to_owned();
    let named = |pair: &&str| pair.trim().split_once('=').is_some_and(|(of, _)| of == name);
    let lines: Vec<_> = headers.get_all(COOKIE).iter().map(text).collect();
    if !lines.iter().any(|line| line.split(';').any(|pair| named(&pair))) {
        return;
    }
    headers.remove(COOKIE);
    for line in lines {
        let kept: Vec<_> = line.split(';').filter(|pair| !named(pair)).map(str::trim).collect();
        // A part of a valid value.
        if let Ok(value) = HeaderValue::from_str(&kept.join("; "))
            && !kept.is_empty()
        {
            headers.append(COOKIE, value);
        }
    }
}

fn remove_parameter(uri: &mut Uri, name: &str) {
    if !parameters(uri).any(|(of, _)| named(of, name)) {
        return;
    }
    let query = uri.query().unwrap_or_default();
    let is_other = |pair: &&str| !named(pair.split_once('=').map_or(*pair, |(of, _)| of), name);
    let kept: Vec<_> = query.split('&').filter(is_other).collect();
    let path =
        if kept.is_empty() { uri.path().to_owned() } else { format!("{}?{}", uri.path(), kept.join("&")) };
    let mut parts = uri.clone().into_parts();
    // Less of what was a URI is one.
    if let Ok(path) = PathAndQuery::try_from(path) {
        parts.path_and_query = Some(path);
        if let Ok(without) = Uri::from_parts(parts) {
            *uri = without;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &'static str, prefix: &str) -> Location {
        Location::Header(HeaderName::from_static(name), prefix.into())
    }

    fn places() -> Vec<Location> {
        vec![
            header("authorization", "Bearer "),
            header("x-jwt", ""),
            Location::Query("access_token".into()),
            Location::Cookie("token".into()),
        ]
    }

    fn request(uri: &str, headers: &[(&'static str, &str)]) -> Request<()> {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn a_token_is_found_at_its_places() {
        for (uri, headers, wanted) in [
            ("/", &[("authorization", "Bearer a.b.c")][..], Some("a.b.c")),
            ("/", &[("authorization", "bearer   a.b.c ")], Some("a.b.c")),
            ("/", &[("authorization", "Basic a.b.c")], None),
            ("/", &[("authorization", "Bearer ")], None),
            ("/", &[("authorization", "Bear")], None),
            ("/", &[("authorization", "Basic x"), ("authorization", "Bearer a")], Some("a")),
            ("/", &[("x-jwt", "a.b.c")], Some("a.b.c")),
            ("/?access_token=a.b.c&x=1", &[], Some("a.b.c")),
            ("/?x=1&access%5Ftoken=a%2Eb", &[], Some("a.b")),
            ("/?token=a", &[], None),
            ("/", &[("cookie", "x=1; token=a.b; y=2")], Some("a.b")),
            ("/", &[("cookie", "tokens=a")], None),
            ("/?access_token=a", &[("authorization", "Bearer a"), ("cookie", "token=a")], Some("a")),
        ] {
            let request = request(uri, headers);
            assert_eq!(find(&request, &places()).unwrap().as_deref(), wanted, "{uri} {headers:?}");
        }
    }

    #[test]
    fn two_that_differ_are_none() {
        for (uri, headers) in [
            ("/?access_token=a", &[("authorization", "Bearer b")][..]),
            ("/", &[("authorization", "Bearer a"), ("authorization", "Bearer b")]),
            ("/?access_token=a&access_token=b", &[]),
            ("/?access_token=a&access_token=", &[]),
            ("/", &[("cookie", "token=a; token=b")]),
            ("/", &[("x-jwt", "a\u{e9}")]),
        ] {
            assert!(find(&request(uri, headers), &places()).is_err(), "{uri} {headers:?}");
        }
    }

    #[test]
    fn a_token_is_taken_out_and_nothing_else_is() {
        let mut r = request(
            "http://a/p?x=1&access_token=a.b&y=%20",
            &[
                ("authorization", "Basic x"),
                ("authorization", "Bearer a.b"),
                ("x-jwt", "a.b"),
                ("cookie", "x=1; token=a.b; y=2"),
                ("x-other", "a.b"),
            ],
        );
        remove(&mut r, &places(), "a.b");
        assert_eq!(r.uri(), "http://a/p?x=1&y=%20");
        let mut all: Vec<_> =
            r.headers().iter().map(|(n, v)| format!("{n}={}", v.to_str().unwrap())).collect();
        all.sort_unstable();
        assert_eq!(all, ["authorization=Basic x", "cookie=x=1; y=2", "x-other=a.b"]);

        let mut r = request("/p?access_token=a.b", &[("cookie", "token=a.b")]);
        remove(&mut r, &places(), "a.b");
        assert_eq!((r.uri().to_string().as_str(), r.headers().len()), ("/p", 0));
    }
}
