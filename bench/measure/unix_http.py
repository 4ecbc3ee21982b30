"""HTTP over a unix socket."""

import http.client
import json
import socket


class _Connection(http.client.HTTPConnection):
    def __init__(self, path, seconds):
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask(path, method, target, body=None, seconds=60):
    """Sends one request on a new connection; gives status and body, or (0, b"") when nobody listens."""
    connection = _Connection(path, seconds)
    payload = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} if body is not None else {}
    try:
        connection.request(method, target, body=payload, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (FileNotFoundError, ConnectionRefusedError):
        return 0, b""
    finally:
        connection.close()
