//! An OpenID provider (npm's `oidc-provider`, see `oidc.mjs`), and end users who log in there as a browser would.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use fips::ca::{Authority, Profile};
use serde_json::Value;
use tests::program::{Program, beside};

use crate::tls::house::{House, curl, installed};

/// A running provider, whose tokens are JWTs signed by ES256.
pub struct Provider {
    /// `iss` of its tokens, and where it is.
    pub issuer: String,
    /// The file with the root that vouches for its server.
    pub authority: PathBuf,
    /// What browsers keep.
    cookies: PathBuf,
    _program: Program,
}

/// RFC 7636 appendix B.
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

impl Provider {
    /// Starts one, or says that the test can't run.
    pub fn start(test: &str, house: &House) -> Option<Self> {
        let node = installed(test, "oidc/nodejs/bin/node")?;
        let module = installed(test, "oidc/node_modules/oidc-provider/package.json")?;
        let lifetime = Duration::from_secs(3600);
        let authority = Authority::generate("issuer.example", lifetime).unwrap();
        let issued = authority.issue(&Profile::server(&["localhost"], lifetime)).unwrap();
        let [root, certificate, key, cookies] =
            ["issuer-ca.pem", "issuer.crt", "issuer.key", "cookies"].map(|name| house.file(name));
        fs::write(&root, authority.certificate_pem()).unwrap();
        fs::write(&certificate, &issued.certificate_pem).unwrap();
        fs::write(&key, &issued.key_pem).unwrap();
        let mut run = Command::new(node);
        let modules = module.ancestors().nth(2).unwrap();
        run.arg(beside("interop/oidc.mjs")).arg(modules).args([certificate, key]);
        let program = Program::start("the OpenID provider", &mut run);
        let issuer = program.line(|line| line.starts_with("issuer ")).replace("issuer ", "");
        Some(Self { issuer, authority: root, cookies, _program: program })
    }

    /// Logs a user in by the authorization code flow (OpenID Connect Core 1.0 section 3.1, RFC 7636, RFC 8707), and gives the
    /// access token for `https://RESOURCE.example`.
    pub fn log_in(&self, user: &str, resource: &str) -> String {
        let _ = fs::remove_file(&self.cookies);
        let (issuer, done) = (&self.issuer, format!("{}/done", self.issuer));
        let resource = format!("resource=https://{resource}.example");
        let login = self.browse(&[&format!(
            "{issuer}/auth?client_id=web&response_type=code&scope=openid%20read&redirect_uri={done}&{resource}\
             &code_challenge={CHALLENGE}&code_challenge_method=S256"
        )]);
        let consent =
            self.browse(&[&login, "-d", "prompt=login&password=any", "-d", &format!("login={user}")]);
        let back = self.browse(&[&consent, "-d", "prompt=consent"]);
        let code = back.split(['?', '&']).find(|part| part.starts_with("code=")).unwrap();
        let (back, verifier) = (format!("redirect_uri={done}"), format!("code_verifier={VERIFIER}"));
        let mut ask = vec!["--user", "web:known-to-nobody-else", "-d", "grant_type=authorization_code"];
        for field in [code, &back, &verifier, &resource] {
            ask.extend(["-d", field]);
        }
        let url = format!("{issuer}/token");
        ask.push(&url);
        let answer: Value = serde_json::from_str(&self.curl(&ask)).unwrap();
        answer["access_token"].as_str().unwrap_or_else(|| panic!("no token: {answer}")).to_owned()
    }

    /// Follows redirects, and gives where they lead.
    fn browse(&self, arguments: &[&str]) -> String {
        let follow = ["--location", "--output", "/dev/null", "--write-out", "%{url_effective}"];
        self.curl(&[&follow, arguments].concat())
    }

    fn curl(&self, arguments: &[&str]) -> String {
        let [root, cookies] = [&self.authority, &self.cookies].map(|path| path.to_str().unwrap());
        curl(&[&["--cacert", root, "--cookie", cookies, "--cookie-jar", cookies], arguments].concat()).well()
    }
}
