//! Things filed under atoms, and found by what a request has, in time that does not grow with what is filed.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use http::{HeaderMap, HeaderName};
use serde_json::{Map, Value};
use smallvec::SmallVec;

use super::atom::{Atom, Form, Slot, address_bits, joint_text};
use super::attributes::{UserAttributes, claim_texts, header_text, is_word_list};
use super::condition::Asked;
use super::prefixes::Prefixes;

/// Things filed under atoms.
#[derive(Debug)]
pub(super) struct ByAtom<V> {
    path: Texts<V>,
    host: Texts<V>,
    method: Texts<V>,
    headers: HashMap<HeaderName, Texts<V>, RandomState>,
    remote_ip: Texts<V>,
    /// `None`: nothing of users.
    user: Option<Box<OfUser<V>>>,
}

/// What is filed under atoms of the end user.
#[derive(Debug)]
struct OfUser<V> {
    principal: Texts<V>,
    issuer: Texts<V>,
    subject: Texts<V>,
    audience: Texts<V>,
    presenter: Texts<V>,
    claims: Claims<V>,
}

/// By what one text is like.
#[derive(Debug)]
struct Texts<V> {
    exact: HashMap<Box<[u8]>, V, RandomState>,
    prefixes: Prefixes<V>,
    /// Written backwards.
    suffixes: Prefixes<V>,
    present: Option<V>,
}

/// By claims, as they are nested.
#[derive(Debug)]
struct Claims<V> {
    here: Texts<V>,
    nested: HashMap<Box<str>, Claims<V>, RandomState>,
}

impl<V> ByAtom<V> {
    /// Files each value under its atom, of which there are no two alike.
    pub(super) fn new<'a>(filed: impl IntoIterator<Item = (Atom<'a>, V)>) -> Self {
        let mut slots: HashMap<Slot<'a>, Vec<(Form<'a>, V)>, RandomState> = HashMap::default();
        for (atom, value) in filed {
            slots.entry(atom.slot).or_default().push((atom.form, value));
        }
        let mut take = |slot| slots.remove(&slot).map(Texts::new).unwrap_or_default();
        let (path, host, method) = (take(Slot::Path), take(Slot::Host), take(Slot::Method));
        let remote_ip = take(Slot::RemoteIp);
        let mut user = OfUser {
            principal: take(Slot::Principal),
            issuer: take(Slot::Issuer),
            subject: take(Slot::Subject),
            audience: take(Slot::Audience),
            presenter: take(Slot::Presenter),
            claims: Claims::default(),
        };
        let mut headers = HashMap::default();
        for (slot, texts) in slots {
            match slot {
                Slot::Header(name) => drop(headers.insert(name.clone(), Texts::new(texts))),
                Slot::Claim(path) => user.claims.at(path).here = Texts::new(texts),
                // Taken before.
                _ => {}
            }
        }
        let user = (!user.is_empty()).then(|| Box::new(user));
        Self { path, host, method, headers, remote_ip, user }
    }

    /// Calls `visit` with everything filed under an atom that the request has.
    pub(super) fn visit<'a>(&'a self, request: &Asked<'_>, visit: &mut dyn FnMut(&'a V)) {
        self.path.visit(request.attributes.path.as_bytes(), visit);
        if let Some(host) = request.host() {
            self.host.visit(host, visit);
        }
        self.method.visit(request.attributes.method.as_bytes(), visit);
        if !self.headers.is_empty() {
            self.visit_headers(request.attributes.headers, visit);
        }
        if !self.remote_ip.is_empty()
            && let Some(address) = request.remote_ip()
        {
            self.remote_ip.visit(&address_bits(address), visit);
        }
        if let (Some(filed), Some(user)) = (&self.user, request.attributes.user) {
            filed.visit(user, visit);
        }
    }

    /// Walks the names filed or the headers sent, whichever are fewer.
    fn visit_headers<'a>(&'a self, headers: &HeaderMap, visit: &mut dyn FnMut(&'a V)) {
        let mut visit_one = |name: &HeaderName, texts: &'a Texts<V>| {
            if let Some(text) = header_text(headers, name) {
                texts.visit(text.as_bytes(), visit);
            }
        };
        if self.headers.len() <= headers.keys_len() {
            self.headers.iter().for_each(|(name, texts)| visit_one(name, texts));
        } else {
            for name in headers.keys() {
                if let Some(texts) = self.headers.get(name) {
                    visit_one(name, texts);
                }
            }
        }
    }
}

impl<V> OfUser<V> {
    fn is_empty(&self) -> bool {
        let texts = [&self.principal, &self.issuer, &self.subject, &self.audience, &self.presenter];
        texts.into_iter().all(Texts::is_empty) && self.claims.nested.is_empty()
    }

    fn visit<'a>(&'a self, user: &UserAttributes, visit: &mut dyn FnMut(&'a V)) {
        let (issuer, subject) = (user.issuer.as_bytes(), user.subject.as_bytes());
        if !self.principal.is_empty() {
            self.principal.visit(&joint_text(issuer, subject), visit);
        }
        if !subject.is_empty() {
            self.issuer.visit(issuer, visit);
        }
        if !issuer.is_empty() {
            self.subject.visit(subject, visit);
        }
        self.audience.visit_any(user.audiences.iter().map(String::as_str), visit);
        if let Some(presenter) = &user.presenter {
            self.presenter.visit(presenter.as_bytes(), visit);
        }
        self.claims.visit_nested(&user.claims, is_word_list, visit);
    }
}

impl<V> Default for Texts<V> {
    fn default() -> Self {
        Self {
            exact: HashMap::default(),
            prefixes: Prefixes::default(),
            suffixes: Prefixes::default(),
            present: None,
        }
    }
}

impl<V> Texts<V> {
    fn new(filed: Vec<(Form<'_>, V)>) -> Self {
        let (mut exact, mut present) = (HashMap::default(), None);
        let (mut prefixes, mut suffixes) = (Vec::new(), Vec::new());
        for (form, value) in filed {
            match form {
                Form::Exact(text) => drop(exact.insert(text.into(), value)),
                Form::Prefix(text) => prefixes.push((text.into(), value)),
                Form::Suffix(text) => suffixes.push((text.iter().rev().copied().collect(), value)),
                Form::Present => present = Some(value),
            }
        }
        Self { exact, prefixes: Prefixes::new(prefixes), suffixes: Prefixes::new(suffixes), present }
    }

    fn is_empty(&self) -> bool {
        self.exact.is_empty()
            && self.prefixes.is_empty()
            && self.suffixes.is_empty()
            && self.present.is_none()
    }

    /// What is filed under what `text` is like.
    fn visit<'a>(&'a self, text: &[u8], visit: &mut dyn FnMut(&'a V)) {
        if !self.exact.is_empty() {
            self.exact.get(text).into_iter().for_each(&mut *visit);
        }
        if !self.prefixes.is_empty() {
            self.prefixes.of(text).for_each(|(_, value)| visit(value));
        }
        if !self.suffixes.is_empty() {
            let backwards: SmallVec<[u8; 128]> = text.iter().rev().copied().collect();
            self.suffixes.of(&backwards).for_each(|(_, value)| visit(value));
        }
        if !text.is_empty() {
            self.present.iter().for_each(visit);
        }
    }

    /// The same for what any of several texts is like; each value once, however long the list is.
    fn visit_any<'a, 't>(&'a self, mut texts: impl Iterator<Item = &'t str>, visit: &mut dyn FnMut(&'a V)) {
        if self.is_empty() {
            return;
        }
        let (Some(first), second) = (texts.next(), texts.next()) else { return };
        let Some(second) = second else { return self.visit(first.as_bytes(), visit) };
        let mut found: SmallVec<[&V; 8]> = SmallVec::new();
        for text in [first, second].into_iter().chain(texts) {
            self.visit(text.as_bytes(), &mut |value| {
                // Most of a long list have just what the one before had.
                if !found.last().is_some_and(|last| std::ptr::eq(*last, value)) {
                    found.push(value);
                }
            });
        }
        found.sort_unstable_by_key(|value| std::ptr::from_ref(*value).addr());
        found.dedup_by(|a, b| std::ptr::eq(*a, *b));
        found.into_iter().for_each(visit);
    }
}

impl<V> Default for Claims<V> {
    fn default() -> Self {
        Self { here: Texts::default(), nested: HashMap::default() }
    }
}

impl<V> Claims<V> {
    fn at(&mut self, path: &[String]) -> &mut Self {
        path.iter().fold(self, |claims, name| claims.nested.entry(name.as_str().into()).or_default())
    }

    /// Walks the names filed or the claims there are, whichever are fewer. Filed names are nested no deeper than atoms
    /// are.
    fn visit_nested<'a>(
        &'a self,
        claims: &Map<String, Value>,
        is_word_list: fn(&str) -> bool,
        visit: &mut dyn FnMut(&'a V),
    ) {
        let mut visit_one = |name: &str, filed: &'a Self, value: &Value| {
            filed.here.visit_any(claim_texts(value, is_word_list(name)).into_iter(), visit);
            if let Value::Object(nested) = value {
                filed.visit_nested(nested, |_| false, visit);
            }
        };
        if self.nested.len() <= claims.len() {
            for (name, filed) in &self.nested {
                if let Some(value) = claims.get(&**name) {
                    visit_one(name, filed, value);
                }
            }
        } else {
            for (name, value) in claims {
                if let Some(filed) = self.nested.get(name.as_str()) {
                    visit_one(name, filed, value);
                }
            }
        }
    }
}
