"A service in a process of its own, for tests."

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@contextmanager
def service(model, log, **env):
    "Start `bcss serve`; yield its address and its process."
    port = free_port()
    with open(log, 'w') as out:
        p = subprocess.Popen(
            [sys.executable, '-m', 'bcss_nb.cli', 'serve', '--model', str(model), '--port', str(port)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **{f'BCSS_{k.upper()}': str(v) for k, v in env.items()}},
        )
        try:
            url = f'http://127.0.0.1:{port}'
            for _ in range(300):
                if p.poll() is not None:
                    raise RuntimeError(f'the service ended: {open(log).read()[-2000:]}')
                try:
                    urllib.request.urlopen(f'{url}/v2/health/ready', timeout=1)
                    break
                except OSError:
                    time.sleep(0.1)
            yield url, p
        finally:
            if p.poll() is None:
                p.send_signal(signal.SIGTERM)
            try:
                p.wait(30)
            except subprocess.TimeoutExpired:
                p.kill()
                raise


def memory(p):
    "Resident megabytes of a process."
    with open(f'/proc/{p.pid}/status') as f:
        return next(int(line.split()[1]) for line in f if line.startswith('VmRSS')) / 1024


def requests_logged(log):
    "The JSON lines of requests."
    with open(log) as f:
        lines = [json.loads(line) for line in f if line.startswith('{')]
    return [line for line in lines if line['message'] == 'request']


@contextmanager
def proxy(url, prefix, strips):
    """A reverse proxy that shows a service below a prefix, and cuts it off or not; yields its address and a list of
    (path, status)."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def forward(self):
            if not self.path.startswith(prefix):
                self.send_error(404)
                asked.append((self.path, 404))
                return
            path = (self.path[len(prefix) :] or '/') if strips else self.path
            body = self.rfile.read(int(self.headers.get('content-length') or 0)) or None
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ('host', 'connection')}
            try:
                answer = urllib.request.urlopen(
                    urllib.request.Request(url + path, body, headers, method=self.command), timeout=60
                )
            except urllib.error.HTTPError as e:
                answer = e
            data = answer.read()
            asked.append((self.path, answer.status))
            self.send_response(answer.status)
            for k, v in answer.headers.items():
                if k.lower() not in ('connection', 'content-length', 'transfer-encoding'):
                    self.send_header(k, v)
            self.send_header('content-length', str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = forward

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_address[1]}', asked
    finally:
        server.shutdown()
