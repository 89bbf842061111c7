"""The service under load: what it sustains, how long accepted requests take, and what happens at twice its capacity.

    python bench/serve.py --model exports/bcss [--seconds 120] [--workers 0] [--queue-size 2]

Three kinds of requests: a tile (PNG, 224 pixels), a region (JPEG, 1024 pixels), both real where BCSS_REAL (default
../shared/data) has
them, and eight tiles as tensors by the inference protocol. `raw` is the engines alone in a process of their own, as
many as the service has
and asked at the same time, on the same windows, in turns with the service. Then regions arrive at twice the
measured capacity, on a clock,
whether or not the earlier ones were answered. The last line is JSON."""

import argparse
import asyncio
import io
import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / 'tests'))
from predict import region as whole_region  # noqa: E402
from shared_serve import memory, service  # noqa: E402

from bcss_nb.inference.engines import available_cores  # noqa: E402


def encoded(pixels, kind):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **(dict(quality=90) if kind == 'jpeg' else {}))
    return out.getvalue()


class Raw:
    """The engine alone in a process of its own, asked again and again how many calls a second it does: machines
    change their pace."""

    def __init__(self, model, shapes, workers, seconds=2.0):
        code = f"""
import sys, time, numpy as np
from concurrent.futures import ThreadPoolExecutor
from bcss_nb.inference.engines import OnnxEngine, cores, open_engine, read_manifest
each, rng, ready = max(1, cores()//{workers}), np.random.default_rng(0), {{}}
for name, shape in {shapes!r}.items():
    def new_engine():
        if name == 'tensors':
            return OnnxEngine({model!r}, read_manifest({model!r}), each)
        return open_engine({model!r}, threads=each)
    engines = [new_engine() for _ in range({workers})]
    ready[name] = engines, rng.integers(0, 255, shape, np.uint8)
def go(e, x):
    e(x); n, start = 0, time.perf_counter()
    while time.perf_counter() < start + {seconds}: e(x); n += 1
    return n/(time.perf_counter() - start)
with ThreadPoolExecutor({workers}) as pool:
    for name in sys.stdin:
        engines, x = ready[name.strip()]
        print(sum(pool.map(lambda e: go(e, x), engines)), flush=True)"""
        self.process = subprocess.Popen(
            [sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, name):
        self.process.stdin.write(name + '\n')
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


class Client:
    "One connection that sends ready-made bytes and reads into one buffer: the load must not eat the cores it measures."

    line = None

    def __init__(self):
        self.buffer = memoryview(bytearray(2**23))

    async def ask(self, port, request):
        "Status and seconds of one request."
        start, loop = time.perf_counter(), asyncio.get_running_loop()
        try:
            if not self.line:
                self.line = socket.socket()
                self.line.setblocking(False)
                await loop.sock_connect(self.line, ('127.0.0.1', port))
            await loop.sock_sendall(self.line, request)
            n, end, head = 0, len(self.buffer), b''
            while n < end:
                n += (got := await loop.sock_recv_into(self.line, self.buffer[n:]))
                if not got:
                    raise ConnectionResetError
                if not head and (at := bytes(self.buffer[: min(n, 4096)]).find(b'\r\n\r\n')) >= 0:
                    head = bytes(self.buffer[:at]).lower() + b'\r\n'
                    end = at + 4 + int(head.split(b'\r\ncontent-length: ')[1].split(b'\r\n')[0])
            if b'connection: close' in head:
                self.line.close()
                self.line = None
            return int(head.split(b' ')[1]), time.perf_counter() - start
        except OSError as e:
            self.line = None
            return type(e).__name__, time.perf_counter() - start


async def alone(port, request, n=25):
    "Median seconds of one request after the other."
    c = Client()
    return float(np.median([(await c.ask(port, request))[1] for _ in range(n)][3:]))


async def capacity(port, request, clients, seconds=4.0):
    "Requests a second that are answered when a few clients ask again and again."
    end = time.perf_counter() + seconds

    async def client():
        c, n = Client(), 0
        while time.perf_counter() < end:
            n += (await c.ask(port, request))[0] == 200
        return n

    return sum(await asyncio.gather(*[client() for _ in range(clients)])) / seconds


async def flood(port, request, rate, seconds, sample):
    "Requests on a clock: [(status, seconds)], and what `sample` saw every second."
    seen, tasks, idle, start, n = [], [], [], time.perf_counter(), 0

    async def one():
        c = idle.pop() if idle else Client()
        found = await c.ask(port, request)
        idle.append(c)
        return found

    while (now := time.perf_counter() - start) < seconds:
        if len(seen) < now:
            seen.append(sample())
        while n < now * rate:
            tasks.append(asyncio.create_task(one()))
            n += 1
        await asyncio.sleep(0.005)
    return await asyncio.gather(*tasks), seen


def wire(path, **body):
    "The bytes of a request."
    r = httpx.Request('POST', f'http://localhost{path}', **body)
    lines = [f'POST {path} HTTP/1.1', *(f'{k}: {v}' for k, v in r.headers.items())]
    return '\r\n'.join(lines).encode() + b'\r\n\r\n' + r.read()


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--model', default='exports/bcss')
    p.add_argument('--seconds', type=float, default=120)
    p.add_argument('--workers', type=int, default=0, help='0: one a core')
    p.add_argument('--queue-size', type=int, default=2)
    a = p.parse_args()
    model, workers = str(Path(a.model).absolute()), a.workers or available_cores()
    about, (p, _, what) = json.loads(Path(model, 'model.json').read_text()), whole_region()
    region = np.ascontiguousarray(p.read(1200, 700, 1024, 1024))
    tile = np.ascontiguousarray(region[400:624, 400:624])
    x = np.ascontiguousarray(np.stack([tile] * 8).transpose(0, 3, 1, 2) / np.float32(255), np.float32)
    head = json.dumps(
        dict(
            inputs=[
                dict(name='image', shape=list(x.shape), datatype='FP32', parameters=dict(binary_data_size=x.nbytes))
            ],
            parameters=dict(binary_data_output=True),
        )
    ).encode()
    kinds = dict(
        tile=wire('/predict', files=dict(image=encoded(tile, 'png'))),
        region=wire('/predict', files=dict(image=encoded(region, 'jpeg'))),
        tensors=wire(
            '/v2/models/bcss/infer',
            content=head + x.tobytes(),
            headers={'Inference-Header-Content-Length': str(len(head))},
        ),
    )
    bare = Raw(model, dict(tile=(1, 224, 224, 3), region=(1, 1024, 1024, 3), tensors=(8, 224, 224, 3)), workers)
    with (
        tempfile.TemporaryDirectory() as d,
        service(model, f'{d}/log', workers=workers, queue_size=a.queue_size, results_bytes=16 * 2**20) as (
            url,
            process,
        ),
    ):
        port = int(url.rsplit(':', 1)[1])
        found = {}
        print(f'tile and region of the {what}; {about["preset"]} trained on {about["source"]}, {about["engine"]}')
        print(f'{"":10}{"alone ms":>10}{"served/s":>10}{"raw/s":>8}{"share":>8}')
        for name, request in kinds.items():
            before, served = [bare(name)], []
            for _ in range(5):
                served.append(asyncio.run(capacity(port, request, workers + a.queue_size)))
                before.append(bare(name))
            shares = [2 * s / (x + y) for s, x, y in zip(served, before, before[1:])]
            f = found[name] = dict(
                alone=asyncio.run(alone(port, request)), served=float(np.median(served)), share=float(np.median(shares))
            )
            print(
                f'{name:10}{1000 * f["alone"]:>10.1f}{f["served"]:>10.1f}{np.median(before):>8.1f}{f["share"]:>8.1%}  '
                f' {min(shares):.0%} to {max(shares):.0%}'
            )
        bare.process.stdin.close()
        rate = 2 * found['region']['served']
        answers, sizes = asyncio.run(flood(port, kinds['region'], rate, a.seconds, lambda: memory(process)))
    codes = {
        str(c): sum(k == c for k, _ in answers)
        for c in sorted({str(c) for c, _ in answers})
        for c in [int(c) if c.isdigit() else c]
    }
    took = np.array([t for c, t in answers if c == 200])
    ratio = float(np.quantile(took, 0.99) / found['region']['alone'])
    half = len(sizes) // 2
    print(
        f'regions at {rate:.1f}/s for {a.seconds:g} s: {codes}; accepted: median {1000 * np.median(took):.0f} ms, '
        f'p99 {1000 * np.quantile(took, 0.99):.0f} ms = {ratio:.2f} x alone; {len(took) / a.seconds:.1f}/s answered'
    )
    print(
        f'memory {sizes[3]:.0f} MB after 3 s, {np.median(sizes[half:]):.0f} MB median of the second half, '
        f'{max(sizes):.0f} MB at most'
    )
    print(
        json.dumps(
            dict(
                share_of_raw={k: round(found[k]['share'], 3) for k in kinds},
                codes=codes,
                p99_over_alone=round(ratio, 2),
                memory_mb=[round(sizes[3]), round(float(np.median(sizes[half:])))],
            )
        )
    )
