//! security.istio.io: PeerAuthentication, RequestAuthentication and AuthorizationPolicy.

pub(super) mod condition;
mod token;

use std::collections::BTreeMap;

use super::read::{At, Fields};
use super::{Meta, Resource, text};
use crate::snapshot::{AuthorizationAction, AuthorizationRule, JwtRule, MtlsMode};

/// What of its namespace (or, from the root namespace, of the mesh) an object is for.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// Everything.
    All,
    /// Workloads with these labels; never empty.
    Labels(BTreeMap<String, String>),
    /// `targetRefs`.
    Targets(Vec<TargetRef>),
    /// Can't be understood; the object is not good.
    Unknown,
}

/// One of `targetRefs`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct TargetRef {
    pub(crate) kind: TargetKind,
    pub(crate) name: String,
    pub(crate) line: u32,
}

/// What a policy can be attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum TargetKind {
    Service,
    ServiceEntry,
    Gateway,
    GatewayClass,
    HttpRoute,
}

/// A PeerAuthentication. `None` as a mode is UNSET.
#[derive(Debug)]
pub(crate) struct PeerAuthentication {
    pub(crate) scope: Scope,
    pub(crate) mode: Option<MtlsMode>,
    /// By workload port.
    pub(crate) ports: BTreeMap<u16, Option<MtlsMode>>,
    /// Where each of them is.
    pub(crate) port_lines: BTreeMap<u16, u32>,
    /// `writ.dev/enforced`.
    pub(crate) enforced: bool,
}

/// A RequestAuthentication.
#[derive(Debug)]
pub(crate) struct RequestAuthentication {
    pub(crate) scope: Scope,
    pub(crate) rules: Vec<JwtRule>,
}

/// An AuthorizationPolicy.
#[derive(Debug)]
pub(crate) struct AuthorizationPolicy {
    pub(crate) scope: Scope,
    pub(crate) action: AuthorizationAction,
    pub(crate) rules: Vec<AuthorizationRule>,
    /// Where each of them is.
    pub(crate) rule_lines: Vec<u32>,
    pub(crate) dry_run: bool,
    /// `writ.dev/expires-at`, seconds since the epoch.
    pub(crate) expires: Option<i64>,
    /// Provider of a CUSTOM action and the line that names it.
    pub(crate) provider: Option<(String, u32)>,
}

const MODES: &[(&str, Option<MtlsMode>)] = &[
    ("UNSET", None),
    ("DISABLE", Some(MtlsMode::Disable)),
    ("PERMISSIVE", Some(MtlsMode::Permissive)),
    ("STRICT", Some(MtlsMode::Strict)),
];

const ACTIONS: &[(&str, AuthorizationAction)] = &[
    ("ALLOW", AuthorizationAction::Allow),
    ("DENY", AuthorizationAction::Deny),
    ("AUDIT", AuthorizationAction::Audit),
    ("CUSTOM", AuthorizationAction::Custom),
];

/// Reads a PeerAuthentication.
pub(crate) fn peer_authentication(_: &Meta, object: Fields<'_>) -> Resource {
    let annotations = Annotations::read(object, &["writ.dev/enforced"]);
    let mut policy = PeerAuthentication {
        scope: Scope::All,
        mode: None,
        ports: BTreeMap::new(),
        port_lines: BTreeMap::new(),
        // A value that can't be understood enforces: whoever wrote it meant something by it.
        enforced: annotations.get("writ.dev/enforced").is_some()
            && annotations.flag("writ.dev/enforced") != Some(false),
    };
    if let Some(spec) = object.get("spec") {
        match spec.fields(&["selector", "mtls", "portLevelMtls"]) {
            Some(spec) => read_peer_authentication(spec, &mut policy),
            None => policy.scope = Scope::Unknown,
        }
    }
    if policy.enforced
        && policy.scope != Scope::All
        && let Some(at) = annotations.get("writ.dev/enforced")
    {
        at.error("only a PeerAuthentication of the root namespace without a selector can be enforced");
    }
    Resource::PeerAuthentication(policy)
}

fn read_peer_authentication(spec: Fields<'_>, policy: &mut PeerAuthentication) {
    policy.scope = spec.get("selector").map_or(Scope::All, selector);
    let mode = |at: At<'_>| at.fields(&["mode"])?.get("mode").map_or(Some(None), |at| at.one_of(MODES));
    policy.mode = spec.get("mtls").and_then(mode).flatten();
    let Some(ports) = spec.get("portLevelMtls") else { return };
    if policy.scope == Scope::All {
        ports.error("needs a selector: the ports of which workload?");
    }
    for (port, at) in ports.entries() {
        match port.parse::<u16>() {
            Ok(number) if number > 0 => {
                policy.ports.insert(number, mode(at).flatten());
                policy.port_lines.insert(number, at.line());
            }
            _ => at.error(format!("`{port}` is not a port")),
        }
    }
}

/// Reads a RequestAuthentication.
pub(crate) fn request_authentication(_: &Meta, object: Fields<'_>) -> Resource {
    Annotations::read(object, &[]);
    let mut policy = RequestAuthentication { scope: Scope::All, rules: Vec::new() };
    if let Some(at) = object.get("spec") {
        match at.fields(&["selector", "targetRef", "targetRefs", "jwtRules"]) {
            Some(spec) => {
                policy.scope = scope(spec);
                policy.rules = spec.get("jwtRules").map(token::rules).unwrap_or_default();
            }
            None => policy.scope = Scope::Unknown,
        }
    }
    if policy.rules.is_empty() {
        object.at().warn_if_good("without jwtRules this object has no effect: it asks for no token");
    }
    Resource::RequestAuthentication(policy)
}

/// Something of a kind that this group does not have: a policy, most likely, whose kind is misspelt. What it selects is
/// refused.
pub(crate) fn unknown(object: Fields<'_>) -> Resource {
    let spec = object.get("spec").and_then(At::open_fields);
    Resource::AuthorizationPolicy(AuthorizationPolicy {
        scope: spec.map_or(Scope::Unknown, scope),
        action: AuthorizationAction::Deny,
        rules: Vec::new(),
        rule_lines: Vec::new(),
        dry_run: false,
        expires: None,
        provider: None,
    })
}

/// Reads an AuthorizationPolicy.
pub(crate) fn authorization_policy(meta: &Meta, object: Fields<'_>) -> Resource {
    let annotations = Annotations::read(object, &["istio.io/dry-run", "writ.dev/expires-at"]);
    let mut policy = AuthorizationPolicy {
        scope: Scope::All,
        action: AuthorizationAction::Allow,
        rules: Vec::new(),
        rule_lines: Vec::new(),
        dry_run: annotations.flag("istio.io/dry-run").unwrap_or_default(),
        expires: annotations.time("writ.dev/expires-at"),
        provider: None,
    };
    if let Some(at) = object.get("spec") {
        let known = ["selector", "targetRef", "targetRefs", "rules", "action", "provider"];
        match at.fields(&known) {
            Some(spec) => read_authorization_policy(meta, spec, &mut policy),
            // Nothing is known, so the strictest is assumed.
            None => (policy.scope, policy.action) = (Scope::Unknown, AuthorizationAction::Deny),
        }
    }
    if policy.action != AuthorizationAction::Allow
        && let Some(at) = annotations.get("writ.dev/expires-at")
    {
        at.error("only an ALLOW policy can expire: when another one ends, access is granted");
    }
    Resource::AuthorizationPolicy(policy)
}

fn read_authorization_policy(meta: &Meta, spec: Fields<'_>, policy: &mut AuthorizationPolicy) {
    policy.scope = scope(spec);
    if let Some(action) = spec.get("action") {
        policy.action = action.one_of(ACTIONS).unwrap_or(AuthorizationAction::Deny);
    }
    if let Some(rules) = spec.get("rules") {
        policy.rule_lines = rules.items().map(At::line).collect();
        policy.rules = rules.items().enumerate().map(|(index, at)| rule(meta, index, at)).collect();
    }
    let custom = policy.action == AuthorizationAction::Custom;
    match spec.get("provider") {
        Some(at) if custom => {
            let name = at.fields(&["name"]).and_then(|fields| fields.require("name"));
            policy.provider = name.and_then(|at| Some((at.text()?, at.line())));
        }
        Some(at) => at.error("only a CUSTOM policy has a provider"),
        None if custom => spec.missing("provider", "is required for action CUSTOM"),
        None => {}
    }
    if policy.rules.is_empty() && policy.action != AuthorizationAction::Allow {
        let at = spec.get("rules").or_else(|| spec.get("action")).unwrap_or(spec.at());
        at.warn_if_good("without rules this policy has no effect; `rules: [{}]` would match everything");
    }
}

fn rule(meta: &Meta, index: usize, at: At<'_>) -> AuthorizationRule {
    matching(meta, index, at, at.fields(&MATCHING))
}

/// What says which requests a rule is for.
pub(super) const MATCHING: [&str; 3] = ["from", "to", "when"];

/// The part of a rule that says which requests it is for.
pub(super) fn matching(
    meta: &Meta,
    index: usize,
    at: At<'_>,
    fields: Option<Fields<'_>>,
) -> AuthorizationRule {
    let index = u16::try_from(index).unwrap_or_else(|_| {
        at.error("more than 65536 rules in one policy");
        u16::MAX
    });
    let mut rule = AuthorizationRule { index, ..AuthorizationRule::default() };
    let Some(fields) = fields else { return rule };
    if let Some(list) = narrowing_list(fields, "from") {
        rule.from = list.items().map(|item| condition::source(meta, item)).collect();
    }
    if let Some(list) = narrowing_list(fields, "to") {
        rule.to = list.items().map(|item| condition::operation(meta, item)).collect();
    }
    if let Some(list) = narrowing_list(fields, "when") {
        rule.when = list.items().filter_map(|item| condition::when(meta, item)).collect();
    }
    rule
}

/// A list that narrows what matches, so that an empty one is a mistake: it would match everything.
pub(super) fn narrowing_list<'a>(fields: Fields<'a>, name: &str) -> Option<At<'a>> {
    let at = fields.get_or_null(name)?;
    let empty = match &at.node.value {
        super::yaml::Value::List(items) => items.is_empty(),
        _ => at.is_null(),
    };
    if empty {
        at.error("must not be empty: leave the field out to match anything");
        return None;
    }
    Some(at)
}

fn selector(at: At<'_>) -> Scope {
    match text::selector(at) {
        Some(labels) if labels.is_empty() => Scope::All,
        Some(labels) => Scope::Labels(labels),
        None => Scope::Unknown,
    }
}

pub(super) fn scope(spec: Fields<'_>) -> Scope {
    let targets: Vec<At<'_>> = match (spec.get("targetRefs"), spec.get("targetRef")) {
        (Some(list), _) => list.items().collect(),
        (None, Some(one)) => vec![one],
        (None, None) => return spec.get("selector").map_or(Scope::All, selector),
    };
    if let Some(at) = spec.get("selector") {
        at.error("a policy has a selector or targetRefs, not both");
        return Scope::Unknown;
    }
    let found: Vec<Option<TargetRef>> = targets.into_iter().map(target_ref).collect();
    match found.into_iter().collect::<Option<Vec<_>>>() {
        Some(targets) if targets.is_empty() => Scope::All,
        Some(targets) => Scope::Targets(targets),
        None => Scope::Unknown,
    }
}

fn target_ref(at: At<'_>) -> Option<TargetRef> {
    let fields = at.fields(&["group", "kind", "name", "namespace"])?;
    let group = fields.get("group").and_then(At::str).unwrap_or_default();
    let kind_at = fields.require("kind")?;
    let kind = match (group, kind_at.str()?) {
        ("" | "core", "Service") => TargetKind::Service,
        ("networking.istio.io", "ServiceEntry") => TargetKind::ServiceEntry,
        ("gateway.networking.k8s.io", "Gateway") => TargetKind::Gateway,
        ("gateway.networking.k8s.io", "GatewayClass") => TargetKind::GatewayClass,
        ("gateway.networking.k8s.io", "HTTPRoute") => TargetKind::HttpRoute,
        (group, kind) => {
            kind_at.error(format!("a policy can't be attached to {kind} of group `{group}`; known: Service, ServiceEntry, Gateway, GatewayClass, HTTPRoute"));
            return None;
        }
    };
    if let Some(namespace) = fields.get("namespace") {
        namespace.error("a target is in the namespace of the policy; leave this out");
        return None;
    }
    Some(TargetRef { kind, name: fields.require("name")?.text()?, line: at.line() })
}

/// Annotations of an object; those of writ.dev must be known ones.
pub(super) struct Annotations<'a> {
    at: Option<Fields<'a>>,
}

impl<'a> Annotations<'a> {
    pub(super) fn read(object: Fields<'a>, known: &[&str]) -> Self {
        let metadata = object.get("metadata").and_then(At::open_fields);
        let at = metadata.and_then(|metadata| metadata.get("annotations"));
        for (key, value) in at.into_iter().flat_map(At::entries) {
            if key.starts_with("writ.dev/") && !known.contains(&key) {
                value.error(format!("unknown annotation; known here: {}", known.join(", ")));
            }
        }
        Self { at: at.and_then(At::open_fields) }
    }

    fn get(&self, name: &str) -> Option<At<'a>> {
        self.at?.get(name)
    }

    fn flag(&self, name: &str) -> Option<bool> {
        let at = self.get(name)?;
        match at.node.as_str()? {
            "true" => Some(true),
            "false" => Some(false),
            other => {
                at.error(format!("`{other}` is neither \"true\" nor \"false\""));
                None
            }
        }
    }

    fn time(&self, name: &str) -> Option<i64> {
        let at = self.get(name)?;
        let time = at.node.as_str()?.parse::<jiff::Timestamp>();
        if time.is_err() {
            at.error("not a time such as 2026-01-31T12:00:00Z");
        }
        time.ok().map(|time| time.as_second())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::only;
    use super::*;

    fn policy(spec: &str) -> (std::sync::Arc<super::super::Object>, Vec<String>) {
        only(&format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: foo}}\nspec:\n{spec}"
        ))
    }

    #[test]
    fn several_mistakes_in_one_policy_are_all_reported() {
        let (object, found) = policy(
            "  selectr: {}\n  action: DENNY\n  rules:\n  - to:\n    - operation:\n        ports: [80]\n        pathz: ['/a']\n  - from: []\n  - when:\n    - key: request.header[x]\n      values: ['1']\n    - key: source.ip\n      values: ['1.2.3']\n",
        );
        assert!(!object.good);
        let starts = [
            "5 spec.selectr: unknown field; did you mean `selector`?",
            "6 spec.action: unknown value `DENNY`",
            "11 spec.rules[0].to[0].operation.pathz: unknown field; did you mean `paths`?",
            "10 spec.rules[0].to[0].operation.ports[0]: expected a string (put it in quotes), found the number 80",
            "12 spec.rules[1].from: must not be empty",
            "14 spec.rules[2].when[0].key: unknown key `request.header[x]`",
            "17 spec.rules[2].when[1].values[0]: `1.2.3` is neither an IP address",
        ];
        assert_eq!(found.len(), starts.len(), "{found:#?}");
        for (found, start) in found.iter().zip(starts) {
            assert!(found.starts_with(start), "{found} / {start}");
        }
        let Resource::AuthorizationPolicy(policy) = &object.resource else { panic!() };
        assert_eq!(policy.action, AuthorizationAction::Deny);
    }

    #[test]
    fn wrong_policies() {
        let cases = [
            ("  action: CUSTOM\n  rules: [{}]\n", "spec.provider: is required"),
            ("  provider: {name: x}\n", "only a CUSTOM policy"),
            ("  selector: {matchLabels: {a: b}}\n  targetRefs: [{kind: Service, name: x}]\n", "not both"),
            ("  targetRefs: [{kind: Servce, name: x}]\n", "can't be attached"),
            ("  selector: {matchLabels: {a: 'b*'}}\n", "exactly"),
            ("  rules: [{from: [{source: {}}]}]\n", "at least one"),
            (
                "  rules: [{from: [{source: {ipBlocks: ['::ffff:10.0.0.0/90']}}]}]\n",
                "spec.rules[0].from[0].source.ipBlocks[0]: `::ffff:10.0.0.0/90` is wider than IPv4 in IPv6",
            ),
            ("  rules: [{from: [{}]}]\n", "source: is required"),
            ("  rules: [{from: }]\n", "must not be empty"),
            ("  rules: [{to: [{operation: {paths: ['/a/{x}']}}]}]\n", "{*}"),
            ("  rules: [{to: [{operation: {paths: ['/{**}/{*}']}}]}]\n", "last"),
            ("  rules: [{to: [{operation: {paths: ['']}}]}]\n", "empty"),
            ("  rules: [{to: [{operation: {ports: ['http']}}]}]\n", "not a port"),
            ("  rules: [{from: [{source: {serviceAccounts: ['a*']}}]}]\n", "serviceAccounts"),
            ("  rules: [{from: [{source: {serviceAccounts: [a], principals: [b]}}]}]\n", "serviceAccounts"),
            ("  rules: [{when: [{key: source.ip}]}]\n", "values"),
            ("  rules: [~]\n", "expected a mapping"),
        ];
        for (spec, wanted) in cases {
            let (object, found) = policy(spec);
            assert!(!object.good, "{spec}");
            assert!(found.join("\n").contains(wanted), "{spec}: {found:?}");
        }
    }

    #[test]
    fn no_rules_means_what_istio_says() {
        for (spec, warnings) in
            [("  {}\n", 0), ("  rules: []\n", 0), ("  action: DENY\n", 1), ("  rules: [{}]\n", 0)]
        {
            let (object, found) = policy(spec);
            assert!(object.good, "{found:?}");
            assert_eq!(found.len(), warnings, "{spec}");
        }
    }

    /// What is refused has an effect, and what is wrong with it is wrong once.
    #[test]
    fn an_object_that_is_refused_is_not_told_to_have_no_effect() {
        for spec in ["  action: DENY\n  rules: {}\n", "  action: DENI\n"] {
            let (object, found) = policy(spec);
            assert!(!object.good);
            assert_eq!(found.len(), 1, "{spec}: {found:?}");
        }
        let (_, found) = only(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: p}\nspec: {jwtRules: [{issuer: x, jwks: y}]}\n",
        );
        assert!(found.len() == 1 && found[0].contains("jwks"), "{found:?}");
    }

    #[test]
    fn annotations_are_checked() {
        let text = |annotation: &str, action: &str| {
            format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: p\n  annotations:\n    {annotation}\nspec: {{action: {action}, rules: [{{}}]}}\n"
            )
        };
        assert!(only(&text("istio.io/dry-run: 'true'", "DENY")).0.good);
        assert!(only(&text("writ.dev/expires-at: '2030-01-01T00:00:00Z'", "ALLOW")).0.good);
        for (annotation, action) in [
            ("istio.io/dry-run: 'yes'", "DENY"),
            ("istio.io/dry-run: true", "DENY"),
            ("writ.dev/expires-at: '2030-01-01T00:00:00Z'", "DENY"),
            ("writ.dev/expires-at: soon", "ALLOW"),
            ("writ.dev/enforced: 'true'", "ALLOW"),
        ] {
            let (object, found) = only(&text(annotation, action));
            assert!(!object.good, "{annotation}");
            assert!(found[0].starts_with("6 metadata.annotations"), "{found:?}");
        }
    }

    #[test]
    fn peer_authentication_mistakes() {
        let read = |spec: &str| {
            only(&format!(
                "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p}}\nspec: {spec}\n"
            ))
        };
        assert!(read("{mtls: {mode: STRICT}}").0.good);
        assert!(read("{mtls: {}}").0.good);
        assert!(read("{selector: {matchLabels: {a: b}}, portLevelMtls: {8080: {mode: DISABLE}}}").0.good);
        for spec in [
            "{mtls: {mode: strict}}",
            "{portLevelMtls: {8080: {mode: DISABLE}}}",
            "{selector: {matchLabels: {a: b}}, portLevelMtls: {http: {mode: DISABLE}}}",
            "{mtls: STRICT}",
            "[]",
        ] {
            assert!(!read(spec).0.good, "{spec}");
        }
    }
}
