"""Plain servers that know nothing of a mesh: `servers.py http|echo|banner PORT NAME`. Each says "ready" once it listens."""

import http.server
import json
import socket
import socketserver
import sys


class Http(http.server.BaseHTTPRequestHandler):
    """Answers with its own name and what it was asked, and keeps the connection."""

    protocol_version = "HTTP/1.1"

    def answer(self):
        sent = self.rfile.read(int(self.headers.get("content-length") or 0))
        said = {
            "server": self.server.name,
            "client": self.client_address[0],
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": sent.decode(),
        }
        body = json.dumps(said).encode() + b"\n"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer
    # Header and body leave in one packet each; without this the second waits for the other side's late ACK.
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass


class Echo(socketserver.BaseRequestHandler):
    """Gives back what came, but only after the client has ended its half."""

    def handle(self):
        received = b""
        while chunk := self.request.recv(65536):
            received += chunk
        self.request.sendall(received + b"|end")


class Banner(socketserver.BaseRequestHandler):
    """Speaks first, as SMTP and MySQL do; then answers one line."""

    def handle(self):
        self.request.sendall(b"220 " + self.server.name.encode() + b"\r\n")
        line = self.request.recv(1024)
        self.request.sendall(b"250 " + line)


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 256

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def main():
    kind, port, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    server = Server(("::", port), {"http": Http, "echo": Echo, "banner": Banner}[kind])
    server.name = name
    print("ready", flush=True)
    server.serve_forever()


main()
