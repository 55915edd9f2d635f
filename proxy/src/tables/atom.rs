//! Atoms: what a request has or has not, by which rules are filed. Each is a text of the request, and a form of it.

use std::borrow::Cow;
use std::net::IpAddr;

use http::HeaderName;
use ipnet::IpNet;
use smallvec::SmallVec;

use super::condition::{Both, RequestTest, UserTest};
use super::pattern::{Pattern, RequestPrincipal, Values};

/// A text of a request in a form.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Atom<'a> {
    pub(super) slot: Slot<'a>,
    pub(super) form: Form<'a>,
}

/// Which text of a request. Audiences and claims may have several, any of which counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Slot<'a> {
    Path,
    /// In lower case.
    Host,
    Method,
    Header(&'a HeaderName),
    /// As [`address_bits`] writes it.
    RemoteIp,
    /// Issuer and subject, as [`joint_text`] writes them.
    Principal,
    /// Of a user who has a subject.
    Issuer,
    /// Of a user who has an issuer.
    Subject,
    Audience,
    Presenter,
    Claim(&'a [String]),
}

/// What a text is like.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Form<'a> {
    Exact(Cow<'a, [u8]>),
    Prefix(Cow<'a, [u8]>),
    Suffix(&'a [u8]),
    /// Not empty.
    Present,
}

/// Kinds of slots, as bits of a set.
pub(super) type Dimensions = u16;
/// Every kind.
pub(super) const ALL: Dimensions = Dimensions::MAX;

/// Claims that lie deeper are not filed.
const MAX_CLAIM_DEPTH: usize = 16;

impl<'a> Slot<'a> {
    /// Its kind: under an atom of one, rules are told apart by others.
    pub(super) fn dimension(self) -> Dimensions {
        match self {
            Self::Path => 1,
            Self::Host => 1 << 1,
            Self::Method => 1 << 2,
            Self::Header(_) => 1 << 3,
            Self::RemoteIp => 1 << 4,
            Self::Principal | Self::Issuer | Self::Subject => 1 << 5,
            Self::Audience => 1 << 6,
            Self::Presenter => 1 << 7,
            Self::Claim(_) => 1 << 8,
        }
    }

    /// The text that a test asks about, and the values; none for what is not a list of texts.
    fn of(test: &'a RequestTest) -> Option<(Self, &'a Both<Values>)> {
        Some(match test {
            RequestTest::Path(both) => (Self::Path, both),
            RequestTest::Host(both) => (Self::Host, both),
            RequestTest::Method(both) => (Self::Method, both),
            RequestTest::Header(name, both) => (Self::Header(name), both),
            RequestTest::User(UserTest::Audiences(both)) => (Self::Audience, both),
            RequestTest::User(UserTest::Presenter(both)) => (Self::Presenter, both),
            RequestTest::User(UserTest::Claim(path, both)) if path.len() <= MAX_CLAIM_DEPTH => {
                (Self::Claim(path), both)
            }
            RequestTest::RemoteIp(_) | RequestTest::User(_) => return None,
        })
    }
}

impl<'a> Atom<'a> {
    /// How likely a request has it, roughly: breaks ties of rarity.
    pub(super) fn cost(&self) -> u64 {
        match (self.slot, &self.form) {
            (Slot::Method, _) => 16,
            (Slot::Host, Form::Exact(_)) => 3,
            (_, Form::Exact(_)) => 1,
            (_, Form::Prefix(text)) if text.len() > 4 => 2,
            (_, Form::Suffix(text)) if text.len() > 4 => 2,
            _ => 8,
        }
    }

    /// The atoms of a test's positive values, one of which a request must have; `None`: no such list.
    pub(super) fn needed(test: &'a RequestTest, within: Dimensions) -> Option<Vec<Self>> {
        let atoms: Vec<Self> = match (Slot::of(test), test) {
            (Some((slot, both)), _) => forms(&both.is).map(|(form, _)| Self { slot, form }).collect(),
            (None, RequestTest::RemoteIp(both)) => both.is.iter().map(Self::net).collect(),
            (None, RequestTest::User(UserTest::Principal(both))) => {
                both.is.iter().map(|principal| Self::principal(principal).0).collect()
            }
            _ => return None,
        };
        let first = atoms.first()?;
        (first.slot.dimension() & within != 0).then_some(atoms)
    }

    /// The atoms that each rule out a request by a test's negative values; values that are none are left out.
    pub(super) fn excluding(test: &'a RequestTest) -> Vec<Self> {
        let whole = |(atom, whole): (Self, bool)| whole.then_some(atom);
        match (Slot::of(test), test) {
            (Some((slot, both)), _) => {
                forms(&both.not).filter_map(|(form, all)| whole((Self { slot, form }, all))).collect()
            }
            (None, RequestTest::RemoteIp(both)) => both.not.iter().map(Self::net).collect(),
            (None, RequestTest::User(UserTest::Principal(both))) => {
                both.not.iter().filter_map(|principal| whole(Self::principal(principal))).collect()
            }
            _ => Vec::new(),
        }
    }

    fn net(net: &IpNet) -> Self {
        let mut bits = address_bits(net.addr());
        bits.truncate(1 + usize::from(net.prefix_len()));
        Self { slot: Slot::RemoteIp, form: Form::Prefix(bits.into_vec().into()) }
    }

    /// What users of this principal have, and whether only they do.
    fn principal(principal: &'a RequestPrincipal) -> (Self, bool) {
        let (issuer, subject) = principal.parts();
        let of = |slot, values: &'a Values| forms(values).next().map(|(form, _)| Self { slot, form });
        let joint = |form| Self { slot: Slot::Principal, form };
        let found = match (&*issuer.exact, &*subject.exact, &*subject.other) {
            ([issuer], [subject], _) => {
                Some((joint(Form::Exact(joint_text(issuer, subject).into_vec().into())), true))
            }
            ([issuer], _, [Pattern::Prefix(subject)]) => {
                Some((joint(Form::Prefix(joint_text(issuer, subject).into_vec().into())), true))
            }
            (_, _, [Pattern::Present]) => of(Slot::Issuer, issuer).map(|atom| (atom, true)),
            // Whatever is not empty as a whole has no empty part that is asked for by `*x`.
            ([_], ..) => of(Slot::Issuer, issuer).map(|atom| (atom, false)),
            _ => {
                let whole = matches!(&*issuer.other, [Pattern::Present]);
                of(Slot::Subject, subject).map(|atom| (atom, whole))
            }
        };
        // Each part is one value; one of none would match nobody.
        found.unwrap_or((Self { slot: Slot::Issuer, form: Form::Present }, false))
    }
}

/// One form for each value, and whether it says all of it: templates stand as the prefix they begin with.
fn forms(values: &Values) -> impl Iterator<Item = (Form<'_>, bool)> {
    let exact = values.exact.iter().map(|text| (Form::Exact(Cow::Borrowed(text)), true));
    let other = values.other.iter().map(|pattern| match pattern {
        Pattern::Prefix(prefix) => (Form::Prefix(Cow::Borrowed(prefix)), true),
        Pattern::Suffix(suffix) => (Form::Suffix(suffix), true),
        Pattern::Present => (Form::Present, true),
        Pattern::Template(template) => (Form::Prefix(Cow::Borrowed(&template.literal)), false),
    });
    exact.chain(other)
}

/// An address as a text of bits behind its family, so that a block is a prefix of its addresses.
pub(super) fn address_bits(address: IpAddr) -> SmallVec<[u8; 129]> {
    let (family, bits, width) = match address {
        IpAddr::V4(address) => (b'4', u128::from(address.to_bits()) << 96, 32),
        IpAddr::V6(address) => (b'6', address.to_bits(), 128),
    };
    std::iter::once(family).chain((0..width).map(|at| ((bits >> (127 - at)) & 1) as u8)).collect()
}

/// Issuer and subject as one text, with no doubt about where one ends.
pub(super) fn joint_text(issuer: &[u8], subject: &[u8]) -> SmallVec<[u8; 128]> {
    let mut text = SmallVec::from_slice(&(issuer.len() as u64).to_be_bytes());
    text.extend_from_slice(issuer);
    text.extend_from_slice(subject);
    text
}
