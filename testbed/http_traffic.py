# SPDX-License-Identifier: Apache-2.0
"""Real HTTP traffic between two hosts: a server on every address, a client that makes one connection a request.

    python -m testbed.http_traffic serve --port 8080
    python -m testbed.http_traffic fetch --port 8080 --count 150 ADDRESS...

`fetch` prints one JSON line: for each address the client's local port of every connection it made, in order.
"""

from __future__ import annotations

import argparse
import http.client
import http.server
import json
import socket
import sys


class _Page(http.server.BaseHTTPRequestHandler):
    """Answers every GET with a page whose size the path names; HTTP/1.0, so each request is one connection."""

    def do_GET(self) -> None:
        """One page."""
        body = b"x" * int(self.path.strip("/") or 0)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class names it so
        """Says nothing."""


class _Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 128

    def server_bind(self) -> None:
        """IPv4 too, on the same socket."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def serve(port: int) -> None:
    """Serves until it is killed."""
    with _Server(("::", port), _Page) as server:
        print("ready", flush=True)
        server.serve_forever()


def fetch(addresses: list[str], port: int, count: int) -> dict[str, list[int]]:
    """Makes `count` connections to each address; returns the local ports."""
    ports: dict[str, list[int]] = {}
    for address in addresses:
        for number in range(count):
            connection = http.client.HTTPConnection(address, port, timeout=10)
            connection.connect()
            ports.setdefault(address, []).append(connection.sock.getsockname()[1])
            connection.request("GET", f"/{(number % 8) * 700}")
            connection.getresponse().read()
            connection.close()
    return ports


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="testbed.http_traffic")
    commands = parser.add_subparsers(dest="command", required=True)
    server = commands.add_parser("serve")
    server.add_argument("--port", type=int, required=True)
    client = commands.add_parser("fetch")
    client.add_argument("--port", type=int, required=True)
    client.add_argument("--count", type=int, required=True)
    client.add_argument("addresses", nargs="+")
    arguments = parser.parse_args()
    if arguments.command == "serve":
        serve(arguments.port)
    else:
        json.dump(fetch(arguments.addresses, arguments.port, arguments.count), sys.stdout)
        print()


if __name__ == "__main__":
    main()
