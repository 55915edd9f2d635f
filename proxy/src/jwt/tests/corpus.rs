//! Tokens that must not be taken, and those beside them that must.

use super::*;
use crate::jwt::{CLOCK_SKEW, MAX_BYTES};

#[test]
fn every_approved_algorithm_is_taken() {
    for algorithm in Algorithm::ALL {
        let issuer = Issuer::new("me", algorithm);
        let verifier = Verifier::new(vec![issuer.rule()]);
        let user = verified(verifier.bearer(&issuer.token(&issuer.claims())));
        assert_eq!(user.attributes.subject, "alice", "{algorithm:?}");
    }
}

#[test]
fn how_it_is_signed_is_not_the_tokens_to_choose() {
    let issuer = Issuer::new("me", Algorithm::Rs256);
    let verifier = Verifier::new(vec![issuer.rule()]);
    let claims = issuer.claims().to_string();
    let good = issuer.token(&issuer.claims());
    let unsigned = &good[..=good.rfind('.').unwrap()];
    for (header, why) in [
        (json!({"alg": "none"}), "not an approved"),
        (json!({"alg": "None"}), "not an approved"),
        (json!({"alg": ""}), "not an approved"),
        (json!({"alg": "HS256", "kid": "k"}), "not an approved"),
        (json!({"alg": "rs256", "kid": "k"}), "not an approved"),
        (json!({"alg": ["RS256"], "kid": "k"}), "no alg"),
        (json!({"kid": "k"}), "no alg"),
        (json!({"alg": "ES256", "kid": "k"}), "no key of the rule"),
        (json!({"alg": "PS256", "kid": "k"}), "made this signature"),
        (json!({"alg": "RS384", "kid": "k"}), "made this signature"),
        (json!({"alg": "RS256", "kid": "k", "crit": ["exp"]}), "crit"),
        (json!({"alg": "RS256", "kid": "k", "crit": []}), "crit"),
        (json!({"alg": "RS256", "kid": 7}), "kid"),
        (json!({"alg": "RS256", "kid": "k".repeat(257)}), "kid"),
    ] {
        let token = issuer.sign(&header.to_string(), &claims);
        refused(&verifier.bearer(&token), Reason::JwtInvalid, why);
    }
    refused(&verifier.bearer(unsigned), Reason::JwtInvalid, "made this signature");
    let none =
        format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode(&claims));
    refused(&verifier.bearer(&none), Reason::JwtInvalid, "not an approved");
    verified(verifier.bearer(&good));
}

#[test]
fn a_secret_made_of_the_public_key_signs_nothing() {
    let issuer = Issuer::new("me", Algorithm::Rs256);
    // Whatever HMAC that would be, its name alone is refused, and a set never holds a secret.
    let verifier = Verifier::new(vec![issuer.rule()]);
    let token = issuer.sign(&json!({"alg": "HS256", "kid": "k"}).to_string(), &issuer.claims().to_string());
    refused(&verifier.bearer(&token), Reason::JwtInvalid, "not an approved");
    assert!(KeySet::parse(br#"{"keys":[{"kty":"oct","kid":"k","k":"c2VjcmV0"}]}"#).is_err());
}

#[test]
fn keys_that_a_token_brings_along_are_not_looked_at() {
    let (issuer, attacker) = (Issuer::new("me", Algorithm::Es256), Issuer::new("me", Algorithm::Es256));
    let verifier = Verifier::new(vec![issuer.rule()]);
    let claims = issuer.claims().to_string();
    for (name, value) in [
        ("jwk", attacker.jwk("k")),
        ("jku", json!("https://attacker.example/keys")),
        ("x5u", json!("file:///etc/passwd")),
        ("x5c", json!(["MIIB"])),
    ] {
        let header = with(issuer.header(), name, value).to_string();
        refused(
            &verifier.bearer(&attacker.sign(&header, &claims)),
            Reason::JwtInvalid,
            "made this signature",
        );
        verified(verifier.bearer(&issuer.sign(&header, &claims)));
    }
}

#[test]
fn a_key_is_named_and_never_opened() {
    let (issuer, attacker) = (Issuer::new("me", Algorithm::Es256), Issuer::new("me", Algorithm::Es256));
    let verifier = Verifier::new(vec![issuer.rule()]);
    for id in
        ["../../../dev/null", "/proc/self/environ", "k' OR '1'='1", "k\u{0}", "", "K", "k\r\nx: y", "%2e%2e"]
    {
        let header = with(issuer.header(), "kid", id).to_string();
        let token = attacker.sign(&header, &issuer.claims().to_string());
        refused(&verifier.bearer(&token), Reason::JwtInvalid, "no key of the rule");
    }
    // A token that names no key is tried with those that fit.
    let header = json!({"alg": "ES256"}).to_string();
    verified(verifier.bearer(&issuer.sign(&header, &issuer.claims().to_string())));
    let token = attacker.sign(&header, &issuer.claims().to_string());
    refused(&verifier.bearer(&token), Reason::JwtInvalid, "made this signature");
}

#[test]
fn claims_of_a_wrong_type_are_none() {
    let issuer = Issuer::new("me", Algorithm::Es256);
    let verifier = Verifier::new(vec![issuer.rule()]);
    for (name, value, why) in [
        ("exp", json!("1900000000"), "exp is not a time"),
        ("exp", json!(null), "exp is not a time"),
        ("exp", json!(-1), "exp is not a time"),
        ("exp", json!(1e300), "exp is not a time"),
        ("exp", json!([NOW]), "exp is not a time"),
        ("exp", json!(true), "exp is not a time"),
        ("nbf", json!("now"), "nbf is not a time"),
        ("iat", json!({}), "iat is not a time"),
        ("aud", json!(7), "aud is neither"),
        ("aud", json!(["app", 7]), "aud is neither"),
        ("aud", json!({"app": true}), "aud is neither"),
        ("iss", json!(["me"]), "iss is not a string"),
        ("sub", json!(7), "sub is not a string"),
        ("azp", json!(["a"]), "azp is not a string"),
    ] {
        let token = issuer.token(&with(issuer.claims(), name, value.clone()));
        refused(&verifier.bearer(&token), Reason::JwtInvalid, why);
    }
    // Fractions of seconds and times beyond anyone's life are times.
    verified(verifier.bearer(&issuer.token(&with(issuer.claims(), "exp", NOW as f64 + 0.5))));
    verified(verifier.bearer(&issuer.token(&with(issuer.claims(), "exp", 8e15))));
}

#[test]
fn a_token_is_valid_for_its_time_and_a_minute_of_clocks_that_differ() {
    let issuer = Issuer::new("me", Algorithm::Es256);
    let verifier = Verifier::new(vec![issuer.rule()]);
    let claims = with(with(issuer.claims(), "nbf", NOW - 100), "exp", NOW + 100);
    let token = issuer.token(&claims);
    // Twice: once verified, then remembered.
    for _ in 0..2 {
        for (now, why) in [
            (NOW - 100 - CLOCK_SKEW, None),
            (NOW - 101 - CLOCK_SKEW, Some("not valid yet")),
            (NOW, None),
            (NOW + 100 + CLOCK_SKEW, None),
            (NOW + 101 + CLOCK_SKEW, Some("has expired")),
        ] {
            let outcome = verifier.ask_at(now, &mut bearer(&token));
            match why {
                None => drop(verified(outcome)),
                Some(why) => refused(&outcome, Reason::JwtInvalid, why),
            }
        }
    }
    let mut forever = issuer.claims();
    forever.as_object_mut().unwrap().remove("exp");
    let user = verified(verifier.bearer(&issuer.token(&forever)));
    assert_eq!(user.evidence.expires, None, "as in Istio, a token need not expire");
}

#[test]
fn a_name_written_twice_says_two_things() {
    let issuer = Issuer::new("me", Algorithm::Es256);
    let verifier = Verifier::new(vec![issuer.rule()]);
    let claims = issuer.claims().to_string();
    for payload in
        [format!(r#"{{"sub":"root",{}"#, &claims[1..]), format!(r#"{{"x":{{"a":1,"a":2}},{}"#, &claims[1..])]
    {
        let token = issuer.sign(&issuer.header().to_string(), &payload);
        refused(&verifier.bearer(&token), Reason::JwtInvalid, "payload: a name is written twice");
    }
    let header = r#"{"alg":"none","alg":"ES256","kid":"k"}"#;
    refused(&verifier.bearer(&issuer.sign(header, &claims)), Reason::JwtInvalid, "header: a name is written");
}

#[test]
fn what_is_no_token_is_none() {
    let issuer = Issuer::new("me", Algorithm::Es256);
    let verifier = Verifier::new(vec![issuer.rule()]);
    let good = issuer.token(&issuer.claims());
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let nested = format!("{{\"a\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
    for (token, why) in [
        (".".to_owned(), "not a signed token"),
        ("..".into(), "header"),
        ("a.b.c.d.e".into(), "not a signed token"),
        (signed.into(), "not a signed token"),
        (format!("{good}."), "not a signed token"),
        (format!("{good}="), "signature is not base64url"),
        (format!("{signed}.{}+", &signature[1..]), "signature is not base64url"),
        (format!("{signed} .{signature}"), "payload is not base64url"),
        (format!("{signed}.{signature},Basic"), "signature is not base64url"),
        (issuer.sign("[]", &issuer.claims().to_string()), "header: not a JSON object"),
        (issuer.sign(&issuer.header().to_string(), "\"x\""), "payload: not a JSON object"),
        (issuer.sign(&issuer.header().to_string(), "{}{}"), "payload: not JSON"),
        (issuer.sign(&issuer.header().to_string(), &nested), "too deeply"),
        (issuer.sign(&issuer.header().to_string(), "{\"a\":\"\u{0}\"}"), "payload: not JSON"),
        (issuer.token(&with(issuer.claims(), "x", "y".repeat(MAX_BYTES))), "longer than"),
        ("a".repeat(1 << 20), "longer than"),
    ] {
        refused(&verifier.bearer(&token), Reason::JwtInvalid, why);
    }
}

/// The last character of a signature has bits that decode to nothing: one spelling alone is taken.
#[test]
fn a_token_has_one_spelling() {
    let issuer = Issuer::new("me", Algorithm::Es256);
    let verifier = Verifier::new(vec![issuer.rule()]);
    let good = issuer.token(&issuer.claims());
    let (start, last) = good.split_at(good.len() - 1);
    let spelled = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let taken = spelled
        .chars()
        .filter(|character| matches!(verifier.bearer(&format!("{start}{character}")), Outcome::Verified(..)));
    assert_eq!(taken.collect::<String>(), last);
}

#[test]
fn no_change_of_a_byte_goes_unnoticed() {
    let issuer = Issuer::new("me", Algorithm::Es256);
    let verifier = Verifier::new(vec![issuer.rule()]);
    let good = issuer.token(&issuer.claims());
    verified(verifier.bearer(&good));
    for at in 0..good.len() {
        let mut changed = good.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        let outcome = verifier.bearer(&changed);
        assert!(matches!(outcome, Outcome::Refused(..)), "byte {at}: {}", text(&outcome));
    }
}
