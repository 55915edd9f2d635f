//! Which rule takes which token: issuers, audiences, places, several rules, what is remembered.

use std::time::Duration;

use control_client::snapshot::{KeyLocation, RemoteKeys};

use super::*;
use crate::decision::PolicyRef;

fn header(name: &str, prefix: &str) -> TokenLocation {
    TokenLocation::Header { name: name.into(), prefix: prefix.into() }
}

#[test]
fn without_a_token_a_request_passes_without_a_user() {
    let issuer = Issuer::new("me", Algorithm::Es256);
    let verifier = Verifier::new(vec![issuer.rule()]);
    for headers in [&[][..], &[("authorization", "Basic abc")], &[("authorization", "Bearer")]] {
        assert_eq!(text(&verifier.ask(&mut request("/", headers))), "no token");
    }
    let nothing = Verifier::new(Vec::new());
    assert_eq!(text(&nothing.bearer("x")), "not asked");
}

#[test]
fn issuers_and_audiences() {
    let issuer = Issuer::new("me", Algorithm::Es256);
    let rule = |audiences: &[&str]| JwtRule {
        audiences: audiences.iter().map(|each| (*each).into()).collect(),
        ..issuer.rule()
    };
    let good = issuer.token(&issuer.claims());
    verified(Verifier::new(vec![rule(&["app"])]).bearer(&good));
    verified(Verifier::new(vec![rule(&["x", "other"])]).bearer(&good));
    refused(&Verifier::new(vec![rule(&["x"])]).bearer(&good), Reason::JwtAudience, "another audience");
    refused(&Verifier::new(vec![rule(&["APP"])]).bearer(&good), Reason::JwtAudience, "another audience");
    let for_one = issuer.token(&with(issuer.claims(), "aud", "app"));
    verified(Verifier::new(vec![rule(&["app"])]).bearer(&for_one));
    let mut for_nobody = issuer.claims();
    for_nobody.as_object_mut().unwrap().remove("aud");
    let for_nobody = issuer.token(&for_nobody);
    refused(
        &Verifier::new(vec![rule(&["app"])]).bearer(&for_nobody),
        Reason::JwtAudience,
        "another audience",
    );
    verified(Verifier::new(vec![rule(&[])]).bearer(&for_nobody));

    for name in [json!("ME"), json!("me/"), json!("")] {
        let token = issuer.token(&with(issuer.claims(), "iss", name));
        refused(
            &Verifier::new(vec![rule(&[])]).bearer(&token),
            Reason::JwtInvalid,
            "no rule is for its issuer",
        );
    }
}

#[test]
fn of_several_rules_any_may_take_a_token() {
    let (a, b) = (Issuer::new("a", Algorithm::Es256), Issuer::new("b", Algorithm::EdDsa));
    let stranger = Issuer::new("c", Algorithm::Es256);
    // Written the other way round: they are asked by issuer.
    let verifier = Verifier::new(vec![b.rule(), a.rule()]);
    for _ in 0..2 {
        let outcome = verifier.bearer(&b.token(&b.claims()));
        let Outcome::Verified(policy, _) = outcome else { panic!("{}", text(&outcome)) };
        assert_eq!(policy, PolicyRef::rule(0, 0));
        let Outcome::Verified(policy, _) = verifier.bearer(&a.token(&a.claims())) else { panic!() };
        assert_eq!(policy, PolicyRef::rule(1, 0));
    }
    let outcome = verifier.bearer(&stranger.token(&stranger.claims()));
    refused(&outcome, Reason::JwtInvalid, "no rule is for its issuer");
    // What is wrong with a token is said by the rule of its issuer.
    refused(&verifier.bearer(&b.token(&with(b.claims(), "exp", 1))), Reason::JwtInvalid, "expired");
}

#[test]
fn tokens_of_two_issuers_at_places_of_their_own() {
    let (a, b) = (Issuer::new("a", Algorithm::Es256), Issuer::new("b", Algorithm::Es256));
    let at = |issuer: &Issuer, name: &str| JwtRule { locations: vec![header(name, "")], ..issuer.rule() };
    let verifier = Verifier::new(vec![at(&a, "x-a"), at(&b, "x-b")]);
    let (of_a, of_b) = (a.token(&a.claims()), b.token(&b.claims()));
    let ask = |headers: &[(&'static str, &str)]| text(&verifier.ask(&mut request("/", headers)));
    assert_eq!(ask(&[]), "no token");
    assert_eq!(ask(&[("x-b", &of_b)]), "#1.0 verified alice");
    assert_eq!(ask(&[("x-a", &of_a), ("x-b", &of_b)]), "#0.0 verified alice", "the first by issuer");
    assert_eq!(ask(&[("x-a", "bad"), ("x-b", &of_b)]), "#1.0 verified alice", "any provider that validates");
    assert!(ask(&[("x-a", "bad")]).starts_with("jwt-invalid"));
    assert!(ask(&[("x-a", &of_b)]).starts_with("jwt-invalid"), "at another's place");
}

#[test]
fn two_rules_of_one_issuer() {
    let issuer = Issuer::new("me", Algorithm::Es256);
    let rule = |audience: &str| JwtRule { audiences: vec![audience.into()], ..issuer.rule() };
    let verifier = Verifier::new(vec![rule("x"), rule("app")]);
    let good = issuer.token(&issuer.claims());
    for _ in 0..2 {
        assert_eq!(text(&verifier.bearer(&good)), "#1.0 verified alice");
    }
    let verifier = Verifier::new(vec![rule("x"), rule("y")]);
    refused(&verifier.bearer(&good), Reason::JwtAudience, "another audience");
}

#[test]
fn one_token_in_two_places_is_one_and_two_are_none() {
    let issuer = Issuer::new("me", Algorithm::Es256);
    let verifier = Verifier::new(vec![issuer.rule()]);
    let (one, two) = (issuer.token(&issuer.claims()), issuer.token(&with(issuer.claims(), "sub", "bob")));
    let ask = |query: &str, header: &str| {
        let bearer = format!("Bearer {header}");
        verifier.ask(&mut request(&format!("/?access_token={query}"), &[("authorization", &bearer)]))
    };
    verified(ask(&one, &one));
    refused(&ask(&one, &two), Reason::JwtInvalid, "two tokens that differ");
    refused(&ask("x", &two), Reason::JwtInvalid, "two tokens that differ");
}

#[test]
fn a_preflight_has_no_token_to_show() {
    let issuer = Issuer::new("me", Algorithm::Es256);
    let verifier = Verifier::new(vec![issuer.rule()]);
    let ask = |method: &str, headers: &[(&'static str, &str)]| {
        let mut request = request("/", headers);
        *request.method_mut() = method.parse().unwrap();
        text(&verifier.ask(&mut request))
    };
    let (origin, asked) = (("origin", "https://a"), ("access-control-request-method", "PUT"));
    let bad = ("authorization", "Bearer bad");
    assert_eq!(ask("OPTIONS", &[origin, asked, bad]), "no token");
    for (method, headers) in
        [("OPTIONS", &[origin, bad][..]), ("OPTIONS", &[asked, bad]), ("GET", &[origin, asked, bad])]
    {
        assert!(ask(method, headers).starts_with("jwt-invalid"), "{method} {headers:?}");
    }
}

#[test]
fn a_quarantined_object_lets_nothing_pass() {
    let issuer = Issuer::new("me", Algorithm::Es256);
    let object = RequestAuthentication { object: 0, rules: vec![issuer.rule()], quarantined: true };
    let named = ObjectRef {
        kind: "RequestAuthentication".into(),
        namespace: "ns".into(),
        name: "r".into(),
        digest: "sha256:00".into(),
    };
    let policy = Policy { objects: vec![named], request_authentication: vec![object], ..Policy::default() };
    let tables = Tables::compile(&policy, &[]).unwrap();
    let tokens = Tokens::new(jwks::Store::new(jwks::Options::default()));
    for mut request in [request("/", &[]), bearer(&issuer.token(&issuer.claims()))] {
        let outcome = tokens.authenticate(tables.authentication(), &mut request, NOW);
        refused(&outcome, Reason::QuarantinedPolicy, "could not be understood");
    }
}

#[test]
fn a_remembered_token_is_forgotten_with_the_key_that_verified_it() {
    let issuer = Issuer::new("me", Algorithm::Es256);
    let token = issuer.token(&issuer.claims());
    let verifier = Verifier::new(vec![issuer.rule()]);
    let first = verified(verifier.bearer(&token));
    assert!(Rc::ptr_eq(&first, &verified(verifier.bearer(&token))), "remembered");

    let rotated = Issuer::new("me", Algorithm::Es256);
    // The same rule by its id, with other keys.
    let other = tables(vec![JwtRule { keys: KeySource::Inline(rotated.keys()), ..issuer.rule() }]);
    let outcome = verifier.tokens.authenticate(other.authentication(), &mut bearer(&token), NOW);
    refused(&outcome, Reason::JwtInvalid, "made this signature");
    // The key is still there among new ones.
    let both = keys(&[rotated.jwk("new"), issuer.jwk("k")]);
    let other = tables(vec![JwtRule { keys: KeySource::Inline(both), ..issuer.rule() }]);
    let again = verified(verifier.tokens.authenticate(other.authentication(), &mut bearer(&token), NOW));
    assert!(Rc::ptr_eq(&first, &again));
}

#[test]
fn a_token_is_remembered_for_its_rule_alone() {
    let issuer = Issuer::new("me", Algorithm::Es256);
    let token = issuer.token(&issuer.claims());
    let verifier = Verifier::new(vec![issuer.rule()]);
    verified(verifier.bearer(&token));
    let strict = tables(vec![
        JwtRule { locations: vec![header("x-other", "")], ..issuer.rule() },
        JwtRule { audiences: vec!["x".into()], ..issuer.rule() },
    ]);
    let outcome = verifier.tokens.authenticate(strict.authentication(), &mut bearer(&token), NOW);
    refused(&outcome, Reason::JwtAudience, "another audience");
}

#[test]
fn remembered_tokens_are_bounded() {
    let issuer = Issuer::new("me", Algorithm::EdDsa);
    let verifier = Verifier::new(vec![issuer.rule()]);
    let token = |n: usize| issuer.token(&with(issuer.claims(), "n", format!("{n}{}", "x".repeat(8000))));
    let first = token(0);
    let before = verified(verifier.bearer(&first));
    for n in 1..300 {
        verified(verifier.bearer(&token(n)));
    }
    let weak = Rc::downgrade(&before);
    drop(before);
    assert!(weak.upgrade().is_none(), "forgotten");
    verified(verifier.bearer(&first));
}

#[test]
fn keys_that_are_not_there_are_asked_for_and_nothing_is_believed_meanwhile() {
    let issuer = Issuer::new("me", Algorithm::Es256);
    let source = RemoteKeys {
        location: KeyLocation::Url("https://issuer.invalid/keys".into()),
        timeout: Duration::from_secs(1),
    };
    let verifier = Verifier::new(vec![JwtRule { keys: KeySource::Remote(source), ..issuer.rule() }]);
    assert_eq!(text(&verifier.bearer(&issuer.token(&issuer.claims()))), "asking");
    // What no key could make good is not worth asking for.
    refused(&verifier.bearer(&issuer.token(&with(issuer.claims(), "exp", 1))), Reason::JwtInvalid, "expired");
    assert_eq!(text(&verifier.ask(&mut request("/", &[]))), "no token");
}
