"A service in a process of its own, for tests."
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager


def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]


@contextmanager
def service(model, log, **env):
    "Start `bcss serve`; yield its address and its process."
    port = free_port()
    with open(log, 'w') as out:
        p = subprocess.Popen([sys.executable, '-m', 'bcss_nb.cli', 'serve', '--model', str(model), '--port', str(port)], stdout=out, stderr=subprocess.STDOUT,
                             env={**os.environ, **{f'BCSS_{k.upper()}': str(v) for k, v in env.items()}})
        try:
            url = f'http://127.0.0.1:{port}'
            for _ in range(300):
                if p.poll() is not None: raise RuntimeError(f'the service ended: {open(log).read()[-2000:]}')
                try: urllib.request.urlopen(f'{url}/v2/health/ready', timeout=1); break
                except OSError: time.sleep(.1)
            yield url, p
        finally:
            if p.poll() is None: p.send_signal(signal.SIGTERM)
            try: p.wait(30)
            except subprocess.TimeoutExpired: p.kill(); raise


def memory(p):
    "Resident megabytes of a process."
    with open(f'/proc/{p.pid}/status') as f: return next(int(line.split()[1]) for line in f if line.startswith('VmRSS'))/1024


def requests_logged(log):
    "The JSON lines of requests."
    with open(log) as f: lines = [json.loads(line) for line in f if line.startswith('{')]
    return [line for line in lines if line['message'] == 'request']
