// An OpenID provider (oidc-provider, which is certified by the OpenID Foundation) for one test: `node oidc.mjs MODULES CERT KEY`.
// Prints its issuer once it answers. Whoever logs in is who they say they are; `admin` is one of the admins.
import { generateKeyPairSync } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [modules, cert, key] = process.argv.slice(2);
const { default: Provider } = await import(pathToFileURL(join(modules, 'oidc-provider/lib/index.js')));

const server = createServer({ cert: readFileSync(cert), key: readFileSync(key) });
server.listen(0, '127.0.0.1', () => {
  const issuer = `https://localhost:${server.address().port}`;
  const signing = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ format: 'jwk' });
  const provider = new Provider(issuer, {
    jwks: { keys: [{ ...signing, kid: 'first', use: 'sig', alg: 'ES256' }] },
    clients: [{
      client_id: 'web',
      client_secret: 'known-to-nobody-else',
      redirect_uris: [`${issuer}/done`],
      grant_types: ['authorization_code'],
      response_types: ['code'],
      id_token_signed_response_alg: 'ES256',
    }],
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    extraTokenClaims: (_, token) => ({ groups: token.accountId === 'admin' ? ['users', 'admins'] : ['users'] }),
    features: {
      resourceIndicators: {
        enabled: true,
        // Who may be called with a token is what the client asks for: https://ratings.example is `ratings`.
        getResourceServerInfo: (_, resource) => ({
          scope: 'read',
          audience: new URL(resource).hostname.split('.')[0],
          accessTokenFormat: 'jwt',
          jwt: { sign: { alg: 'ES256' } },
        }),
      },
    },
  });
  server.on('request', provider.callback());
  console.log(`issuer ${issuer}`);
});
