# Asked by a sidecar about what everything else allows: users read their own account, through the caller that is made for it;
# admins read any.
package mesh

request := input.attributes.request.http

caller := input.attributes.source

user := input.attributes.metadataContext.filterMetadata["envoy.filters.http.jwt_authn"].payload

default decision := {"allowed": false, "body": "not your account\n"}

decision := {
	"allowed": true,
	"headers": {"x-checked-for": user.sub},
	"dynamic_metadata": {"owner": owner},
} if {
	request.method == "GET"
	request.headers["x-purpose"] == "reading"
	input.attributes.contextExtensions.tenant == "shop"
	caller.principal == "spiffe://cluster.local/ns/shop/sa/caller"
	is_of_caller(caller.certificate)
	["accounts", owner] = input.parsed_path
	may_read(owner)
}

owner := input.parsed_path[1]

may_read(owner) if owner == user.sub

may_read(_) if "admins" in user.groups

# The certificate says itself whose it is.
is_of_caller(encoded) if {
	certificates := crypto.x509.parse_certificates(urlquery.decode(encoded))
	some uri in certificates[0].URIStrings
	uri == caller.principal
}
