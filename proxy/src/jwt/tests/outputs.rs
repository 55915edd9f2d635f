//! What the application gets to see of a token.

use control_client::snapshot::ClaimHeader;

use super::*;

fn claim(header: &str, claim: &str) -> ClaimHeader {
    ClaimHeader { header: header.into(), claim: claim.into() }
}

/// What the application sees of a header.
fn seen(request: &Request<()>, name: &str) -> Vec<String> {
    request.headers().get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
}

#[test]
fn claims_come_in_headers_that_nobody_else_can_fill() {
    let issuer = Issuer::new("me", Algorithm::Es256);
    let claims = json!({
        "iss": "me", "sub": "alice", "n": 7, "b": true, "empty": "", "none": null, "bad": "a\r\nx: y",
        "a.b": "literal", "a": {"c": {"d": "deep"}}, "list": ["x", 1],
    });
    let wanted = [
        ("x-sub", "sub", Some("alice")),
        ("x-n", "n", Some("7")),
        ("x-b", "b", Some("true")),
        ("x-literal", "a.b", Some("literal")),
        ("x-deep", "a.c.d", Some("deep")),
        ("x-list", "list", Some("WyJ4IiwxXQ==")),
        ("x-empty", "empty", None),
        ("x-none", "none", None),
        ("x-bad", "bad", None),
        ("x-absent", "absent", None),
        ("x-too-deep", "sub.x", None),
    ];
    let claim_headers = wanted.iter().map(|(header, name, _)| claim(header, name)).collect();
    let rule = JwtRule { payload_header: Some("x-payload".into()), claim_headers, ..issuer.rule() };
    let verifier = Verifier::new(vec![rule]);
    let token = issuer.token(&claims);
    let spoofed: Vec<_> = wanted.iter().map(|(header, ..)| *header).chain(["x-payload"]).collect();
    // Twice: once verified, then remembered.
    for _ in 0..2 {
        let mut request = bearer(&token);
        for header in &spoofed {
            request.headers_mut().append(*header, "spoofed".parse().unwrap());
            request.headers_mut().append(*header, "again".parse().unwrap());
        }
        verified(verifier.ask(&mut request));
        for (header, _, value) in &wanted {
            assert_eq!(seen(&request, header), value.iter().copied().collect::<Vec<_>>(), "{header}");
        }
        assert_eq!(seen(&request, "x-payload"), [token.split('.').nth(1).unwrap()]);
    }
    let mut request = request("/", &[("x-sub", "root"), ("x-payload", "e30"), ("x-mine", "1")]);
    assert_eq!(text(&verifier.ask(&mut request)), "no token");
    assert_eq!(request.headers().keys().collect::<Vec<_>>(), ["x-mine"]);
    let mut preflight =
        super::request("/", &[("origin", "a"), ("access-control-request-method", "GET"), ("x-sub", "root")]);
    *preflight.method_mut() = http::Method::OPTIONS;
    assert_eq!(text(&verifier.ask(&mut preflight)), "no token");
    assert_eq!(seen(&preflight, "x-sub"), [] as [&str; 0]);
}

#[test]
fn headers_of_every_rule_are_emptied_whichever_takes_the_token() {
    let (a, b) = (Issuer::new("a", Algorithm::Es256), Issuer::new("b", Algorithm::Es256));
    let rule = |issuer: &Issuer, header: &str| JwtRule {
        claim_headers: vec![claim(header, "sub")],
        ..issuer.rule()
    };
    let verifier = Verifier::new(vec![rule(&a, "x-a"), rule(&b, "x-b")]);
    let mut request = bearer(&a.token(&a.claims()));
    request.headers_mut().insert("x-b", "root".parse().unwrap());
    verified(verifier.ask(&mut request));
    assert_eq!((seen(&request, "x-a"), seen(&request, "x-b")), (vec!["alice".to_owned()], vec![]));
}

#[test]
fn a_token_goes_no_further_unless_it_is_to() {
    let issuer = Issuer::new("me", Algorithm::Es256);
    let token = issuer.token(&issuer.claims());
    let places = || {
        vec![
            TokenLocation::Header { name: "authorization".into(), prefix: "Bearer ".into() },
            TokenLocation::Header { name: "x-jwt".into(), prefix: String::new() },
            TokenLocation::Query("t".into()),
            TokenLocation::Cookie("c".into()),
        ]
    };
    let asked = || {
        let bearer = format!("Bearer {token}");
        let cookie = format!("a=1; c={token}");
        request(
            &format!("/p?t={token}&x=1"),
            &[("authorization", &bearer), ("x-jwt", &token), ("cookie", &cookie)],
        )
    };
    for forward_original in [false, true] {
        let rule = JwtRule { locations: places(), forward_original, ..issuer.rule() };
        let verifier = Verifier::new(vec![rule]);
        let mut request = asked();
        verified(verifier.ask(&mut request));
        if forward_original {
            assert_eq!(format!("{request:?}"), format!("{:?}", asked()));
        } else {
            assert_eq!(request.uri(), "/p?x=1");
            assert_eq!(request.headers().keys().collect::<Vec<_>>(), ["cookie"]);
            assert_eq!(seen(&request, "cookie"), ["a=1"]);
        }
    }
}

#[test]
fn policies_and_records_see_what_was_verified() {
    let issuer = Issuer::new("https://me", Algorithm::Es256);
    let verifier = Verifier::new(vec![issuer.rule()]);
    let claims = with(with(issuer.claims(), "azp", "client"), "groups", json!(["a"]));
    let user = verified(verifier.bearer(&issuer.token(&claims)));
    assert_eq!(user.attributes.issuer, "https://me");
    assert_eq!(user.attributes.audiences, ["app", "other"]);
    assert_eq!(user.attributes.presenter.as_deref(), Some("client"));
    assert_eq!(user.attributes.claims["groups"], json!(["a"]));
    assert_eq!((&*user.evidence.issuer, &*user.evidence.subject), ("https://me", "alice"));
    assert_eq!(user.evidence.expires, Some(NOW + 600));
}
