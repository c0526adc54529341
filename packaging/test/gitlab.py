#!/usr/bin/env python3
"""A GitLab as far as the gateway sees one: it publishes its keys over TLS and signs a token as Rails does.

    gitlab.py serve ADDRESS PORT URL CERT KEY FOLDER     until it is ended
    gitlab.py token URL FOLDER                           prints a token

FOLDER has signing.pem, an RSA key. Needs python3 and openssl.
"""

import base64
import hashlib
import http.server
import json
import ssl
import subprocess
import sys
import time
import uuid

INSTANCE = "5f2a7c1e-8a55-4d5b-9f5e-0d8c2f1b7a10"


def text(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def compact(value):
    return json.dumps(value, separators=(",", ":")).encode()


def public(folder):
    line = subprocess.check_output(["openssl", "rsa", "-in", f"{folder}/signing.pem", "-noout", "-modulus"], text=True)
    key = {"e": "AQAB", "kty": "RSA", "n": text(bytes.fromhex(line.strip().split("=")[1]))}
    kid = text(hashlib.sha256(compact(key)).digest())
    return {**key, "kid": kid, "use": "sig", "alg": "RS256"}


def token(url, folder):
    now = int(time.time())
    claims = {"iss": url, "sub": INSTANCE, "aud": ["gitlab-ai-gateway"], "exp": now + 3600, "nbf": now - 5, "iat": now}
    claims |= {"jti": str(uuid.uuid4()), "gitlab_realm": "self-managed", "scopes": ["complete_code"]}
    header = {"alg": "RS256", "typ": "JWT", "kid": public(folder)["kid"]}
    message = f"{text(compact(header))}.{text(compact(claims))}"
    sign = ["openssl", "dgst", "-sha256", "-sign", f"{folder}/signing.pem"]
    return f"{message}.{text(subprocess.check_output(sign, input=message.encode()))}"


def serve(address, port, url, certificate, key, folder):
    answers = {
        "/.well-known/openid-configuration": {"issuer": url, "jwks_uri": f"{url}/oauth/discovery/keys"},
        "/oauth/discovery/keys": {"keys": [public(folder)]},
        "/api/v4/projects": [],
    }

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = answers.get(self.path)
            body = compact(found if found is not None else {"error": "404"})
            self.send_response(200 if found is not None else 404)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer((address, int(port)), Answer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    else:
        print(token(*sys.argv[2:]))
