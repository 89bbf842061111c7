"The service from outside: what clients of all kinds send it, and how it ends."

import gzip
import io
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib

import httpx
import numpy as np
import pytest
from PIL import Image
from shared_serve import memory, requests_logged, service

from bcss_nb.data.simulator import simulate_roi
from bcss_nb.inference.engines import OnnxEngine, read_manifest, to_nchw_float

HOSTILE = int(os.environ.get('HOSTILE', 300))  # requests; 5000 for a long look
pytestmark = pytest.mark.timeout(max(600, HOSTILE))


def png(pixels, kind='png', **options):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def huge_png(side):
    "A small file that unpacks to side x side pixels."

    def chunk(kind, body):
        return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))

    z = zlib.compressobj(9)
    rows = b''.join(z.compress(b'\0' * (3 * side + 1)) for _ in range(side)) + z.flush()
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0))
        + chunk(b'IDAT', rows)
        + chunk(b'IEND', b'')
    )


@pytest.fixture(scope='module')
def tile():
    return simulate_roi(4, shape=(224, 224))[1]


@pytest.fixture(scope='module')
def served(exported, tmp_path_factory):
    log = tmp_path_factory.mktemp('serve') / 'log'
    with service(
        exported,
        log,
        max_pixels=4_000_000,
        max_bytes=4 * 2**20,
        body_seconds=2,
        results_bytes=4 * 2**20,
        store=log.parent / 'store',
    ) as (url, p):
        yield url, p, log


def test_serves_without_torch(exported):
    code = f"""
import sys
from bcss_nb.serving.app import Settings, create_app
create_app(Settings(model={str(exported)!r}))
heavy = {{"torch", "monai", "lightning", "pandas", "scipy", "matplotlib", "fastcore", "nbdev"}} & set(sys.modules)
assert not heavy, heavy"""
    subprocess.run([sys.executable, '-c', code], check=True)


def test_triton_client_gets_the_logits_of_onnx_runtime(served, exported, tile):
    triton = pytest.importorskip('tritonclient.http')
    x = to_nchw_float(np.stack([tile, tile[::-1], tile[:, ::-1]]))
    client = triton.InferenceServerClient(served[0].removeprefix('http://'))
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready('bcss')
    about = client.get_model_metadata('bcss')
    assert about['inputs'][0]['shape'] == [-1, 3, -1, -1] and about['outputs'][0]['name'] == 'logits'
    want = OnnxEngine(exported, read_manifest(exported)).session.run(['logits'], dict(image=x))[0]
    for binary in (True, False):
        given = triton.InferInput(
            'image', list(x.shape[:0]) + [1, *x.shape[1:]] if not binary else list(x.shape), 'FP32'
        )
        given.set_data_from_numpy(x if binary else x[:1], binary_data=binary)
        out = client.infer(
            'bcss', [given], outputs=[triton.InferRequestedOutput('logits', binary_data=binary)], request_id='7'
        )
        np.testing.assert_allclose(out.as_numpy('logits'), want if binary else want[:1], atol=1e-5)
    assert client.infer('bcss', [given]).as_numpy('logits').shape == want[:1].shape


def test_wrong_model_is_not_served(exported, tmp_path):
    env = os.environ | dict(BCSS_MODEL_SHA256='0' * 64)
    said = subprocess.run(
        [sys.executable, '-m', 'bcss_nb.cli', 'serve', '--model', str(exported)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.returncode == 1 and 'BCSS_MODEL_SHA256 asks for 0000' in said.stderr


def test_key(exported, tmp_path, tile):
    with service(exported, tmp_path / 'log', api_key='open sesame') as (url, _):

        def send(**h):
            return httpx.post(f'{url}/predict', files=dict(image=png(tile)), headers=h)

        assert send().status_code == send(**{'X-API-Key': 'guess'}).status_code == 401
        found = send(**{'X-API-Key': 'open sesame'})
        assert found.status_code == 200
        link = f'{url}/{found.json()["links"]["classes"]}'
        assert (
            httpx.get(link).status_code == 401
            and httpx.get(link, headers={'X-API-Key': 'open sesame'}).status_code == 200
        )
        assert httpx.get(f'{url}/').status_code == httpx.get(f'{url}/v2/health/ready').status_code == 200


def test_drains_on_sigterm(exported, tmp_path):
    region = png(simulate_roi(5, shape=(1500, 1500))[1], 'jpeg', quality=90)
    with service(exported, tmp_path / 'log') as (url, p):
        answers = []
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f'{url}/predict', files=dict(image=region), timeout=60))
        )
        asking.start()
        time.sleep(0.25)
        p.send_signal(signal.SIGTERM)
        asking.join(60)
        assert answers and answers[0].status_code == 200, 'a request that was inside was dropped'
        assert p.wait(20) in (0, -signal.SIGTERM)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f'{url}/v2/health/live')


def test_busy_says_when_to_come_back(exported, tmp_path):
    region = png(simulate_roi(5, shape=(1500, 1500))[1], 'jpeg', quality=90)
    with service(exported, tmp_path / 'log', queue_size=1) as (url, _):
        found = []

        def ask():
            return found.append(httpx.post(f'{url}/predict', files=dict(image=region), timeout=60))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    codes = sorted(f.status_code for f in found)
    assert set(codes) == {200, 503} and 2 <= codes.count(200) < 6
    assert all(int(f.headers['retry-after']) >= 1 for f in found if f.status_code == 503)


def test_deadline(exported, tmp_path):
    with service(exported, tmp_path / 'log', deadline=0.05) as (url, _):
        said = httpx.post(f'{url}/predict', files=dict(image=png(simulate_roi(5, shape=(1500, 1500))[1])), timeout=60)
    assert said.status_code == 503 and 'retry-after' in said.headers


def test_logs_and_store_hold_no_pixels_and_no_names(served, tile):
    url, _, log = served
    said = httpx.post(
        f'{url}/predict', files=dict(image=('Jane_Doe.png', png(tile))), headers={'X-Request-ID': 'mine-1'}
    )
    assert said.headers['x-request-id'] == 'mine-1' and said.json()['picture'] == 'Jane_Doe.png'
    assert any(r['request_id'] == 'mine-1' and r['status'] == 200 for r in requests_logged(log))
    stored = [json.loads(line) for f in (log.parent / 'store').glob('*.jsonl') for line in open(f)]
    mine = {s['kind']: s for s in stored if s['request_id'] == 'mine-1'}
    assert (
        0 < mine['answer']['numbers']['brightness'] < 255
        and mine['request']['status'] == 200
        and mine['request']['ms'] > 0
    )
    assert 'Jane' not in log.read_text() + json.dumps(stored) and not list((log.parent / 'store').glob('*.png'))


# ---- hostile clients
def attacks(tile, rng):
    "One request after another that nobody honest sends: method, path, options of httpx."
    good, jpeg, tiff = png(tile), png(tile, 'jpeg'), png(tile, 'tiff')
    bomb, flat = huge_png(6000), png(np.zeros((1, 3_000, 3), np.uint8))

    def junk(n):
        return rng.randbytes(n)

    def flipped(data):
        data = bytearray(data)
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data)

    def tensor(**v):
        return json.dumps(
            dict(inputs=[dict(name='image', shape=[1, 3, 32, 32], datatype='FP32', data=[0.5] * 3072) | v])
        )

    kinds = [
        lambda: ('POST', '/predict', dict(files=dict(image=rng.choice((good, jpeg, tiff))[: rng.randint(0, 4000)]))),
        lambda: ('POST', '/predict', dict(files=dict(image=flipped(rng.choice((good, jpeg, tiff)))))),
        lambda: ('POST', '/predict', dict(files=dict(image=junk(rng.randint(0, 5000))))),
        lambda: ('POST', '/predict', dict(files=dict(image=bomb))),
        lambda: ('POST', '/predict', dict(files=dict(image=flat))),
        lambda: (
            'POST',
            '/predict',
            dict(
                files=dict(image=good),
                data=dict(mpp=rng.choice(('nan', 'inf', '-1', '1e999', '0.05', '8', '', 'x', '0' * 500))),
            ),
        ),
        lambda: ('POST', '/predict', dict(files=dict(image=png(tile[..., 0])))),
        lambda: (
            'POST',
            '/predict',
            dict(
                content=junk(rng.randint(0, 3000)),
                headers={
                    'content-type': rng.choice(
                        ('multipart/form-data', 'multipart/form-data; boundary=x', 'text/plain', 'application/json')
                    )
                },
            ),
        ),
        lambda: ('POST', '/predict', dict(content=b'x' * 5 * 2**20)),
        lambda: ('POST', '/predict', dict(data={str(i): 'v' for i in range(2000)})),
        lambda: ('POST', '/predict', dict(files=[('image', good)] * rng.randint(2, 60))),
        lambda: (
            'POST',
            '/v2/models/bcss/infer',
            dict(content=tensor(shape=[rng.choice((-1, 0, 1, 10**9)), 3, 32, 32])),
        ),
        lambda: (
            'POST',
            '/v2/models/bcss/infer',
            dict(content=tensor(datatype=rng.choice(('BYTES', 'FP64', None, 7, [])))),
        ),
        lambda: (
            'POST',
            '/v2/models/bcss/infer',
            dict(content=tensor(data=rng.choice(([], ['a'], [[1], [2, 3]], [1e300] * 3072, None, {})))),
        ),
        lambda: ('POST', '/v2/models/bcss/infer', dict(content=b'[' * rng.randint(1, 100_000))),
        lambda: (
            'POST',
            '/v2/models/bcss/infer',
            dict(
                content=junk(3000),
                headers={'Inference-Header-Content-Length': rng.choice(('-1', '5', '99999', 'x', '9' * 50))},
            ),
        ),
        lambda: ('POST', '/v2/models/bcss/infer', dict(content=tensor(shape=[1, 3, 40, 32], data=[0] * 3840))),
        lambda: (
            rng.choice(('GET', 'PUT', 'DELETE', 'PATCH', 'OPTIONS', 'TRACE', 'HEAD', 'BREW')),
            rng.choice(('/predict', '/v2', '/', '/results/a/b')),
            {},
        ),
        lambda: (
            'GET',
            rng.choice(
                (
                    '/static/../serve.py',
                    '/static/%2e%2e/serve.py',
                    '/results/../../etc/passwd',
                    '/%00',
                    '/results/x/%0a',
                    '/static//etc/passwd',
                    '/v2/models/none',
                )
            ),
            {},
        ),
        lambda: ('GET', '/', dict(headers={f'x-{i}': 'v' * rng.randint(1, 900) for i in range(rng.randint(1, 80))})),
        lambda: ('GET', '/', dict(headers={'x-request-id': rng.choice(('a' * 5000, '../../x', 'a b', '"<script>'))})),
    ]
    while True:
        yield rng.choice(kinds)()


def slow_body(url):
    "Announces a body and dribbles."
    with socket.create_connection(url.removeprefix('http://').split(':'), timeout=10) as s:
        s.sendall(
            b'POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\ncontent-type: multipart/form-data; '
            b'boundary=x\r\n\r\n'
        )
        said = b''
        for _ in range(60):
            try:
                s.sendall(b'-')
                s.settimeout(0.1)
                said += s.recv(1000)
            except TimeoutError:
                continue
            except OSError:
                break
            if said:
                break
        return said.split(b' ')[1] if b' ' in said else b''


def test_hostile_requests(served, tile):
    url, p, log = served
    rng, codes = random.Random(0), {}
    slow = [threading.Thread(target=lambda: codes.setdefault('slow', []).append(slow_body(url))) for _ in range(4)]
    for t in slow:
        t.start()
    sizes = []
    with httpx.Client(base_url=url, timeout=60) as client:
        for side in 3 * list(range(64, 225, 32)):
            client.post('/predict', files=dict(image=png(tile[:side, :side])))  # fill the few graphs that are kept
        for i, (method, path, options) in zip(range(HOSTILE), attacks(tile, rng)):
            try:
                code = client.request(method, path, **options).status_code
            except (httpx.RemoteProtocolError, httpx.WriteError, httpx.ReadError):
                code = 'closed'
            codes[code] = codes.get(code, 0) + 1
            if i >= HOSTILE // 3 and i % 20 == 0:
                sizes.append(memory(p))
    for t in slow:
        t.join()
    assert p.poll() is None, 'the service crashed'
    assert not [c for c in codes if isinstance(c, int) and c >= 500 and c != 503], codes
    assert set(codes['slow']) <= {b'408'}, codes
    assert codes.get('closed', 0) < 0.1 * HOSTILE
    assert {200, 400, 404, 405, 413, 415, 422} <= set(codes), codes
    n = len(sizes) // 4
    print('memory, MB:', *map(round, sizes[:: max(1, len(sizes) // 12)]))
    first, third, last = (np.median(v) for v in (sizes[:n], sizes[-2 * n : -n], sizes[-n:]))
    assert last < 1.1 * third + 10 and last < 1.4 * first, f'memory grew: {first:.0f}, {third:.0f}, {last:.0f} MB'
    assert httpx.post(f'{url}/predict', files=dict(image=png(tile)), timeout=60).status_code == 200
    assert not [r for r in requests_logged(log) if r['status'] == 500]


def test_schemathesis(served):
    schemathesis = pytest.importorskip('schemathesis')
    del schemathesis
    url, p, log = served
    said = subprocess.run(
        [
            sys.executable,
            '-m',
            'schemathesis.cli',
            'run',
            f'{url}/openapi.json',
            '--checks',
            'not_a_server_error,content_type_conformance,status_code_conformance',
            '--max-examples',
            str(max(5, HOSTILE // 20)),
            '--seed',
            '1',
            '--phases',
            'examples,coverage,fuzzing',
            '--suppress-health-check',
            'all',
        ],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert said.returncode == 0, said.stdout[-4000:] + said.stderr[-1000:]
    assert p.poll() is None and not [r for r in requests_logged(log) if r['status'] == 500]


# ---- the inference protocol, and what nobody would read
@pytest.fixture(scope='module')
def client(served):
    with httpx.Client(base_url=served[0], timeout=60) as c:
        yield c


def tensor(side=32, **more):
    return dict(
        inputs=[dict(name='image', shape=[1, 3, side, side], datatype='FP32', data=[0.5] * 3 * side**2)], **more
    )


@pytest.mark.parametrize('path', ['/v2/models/bcss', '/v2/models/bcss/versions/1'])
def test_protocol_routes_by_version(client, path):
    assert client.get(path).json()['versions'] == ['1'] and client.get(f'{path}/ready').json() == dict(
        name='bcss', ready=True
    )
    said = client.post(f'{path}/infer', json=tensor(id='a-1')).json()
    assert (said['id'], said['model_name'], said['model_version'], said['outputs'][0]['shape']) == (
        'a-1',
        'bcss',
        '1',
        [1, 3, 32, 32],
    )


@pytest.mark.parametrize(
    'method, path, options, status',
    [
        ('GET', '/v2/models/none', {}, 404),
        ('GET', '/v2/models/bcss/versions/2', {}, 404),
        ('POST', '/v2/models/bcss/versions/2/infer', dict(json={}), 404),
        ('GET', '/v2/nowhere', {}, 404),
        ('PUT', '/v2/models/bcss', {}, 405),
        ('GET', '/v2/models/bcss/infer', {}, 405),
        ('POST', '/v2/models/bcss/infer', dict(content=b'{'), 400),
        ('POST', '/v2/models/bcss/infer?mpp=1', dict(json=tensor()), 400),
        ('POST', '/v2/models/bcss/infer', dict(content=b'x' * 5 * 2**20), 413),
        ('POST', '/v2/models/bcss/versions/1/infer', dict(json=tensor(40)), 400),
        ('POST', '/v2/models/bcss/infer', dict(content=b'x', headers={'content-encoding': 'br'}), 415),
    ],
)
def test_errors_of_the_protocol_are_errors(client, method, path, options, status):
    said = client.request(method, path, **options)
    assert said.status_code == status and list(said.json()) == ['error'] and said.json()['error']


def test_errors_for_people_are_details(client, tile):
    for said in (
        client.get('/nowhere'),
        client.get('/predict'),
        client.post('/predict', files=dict(image=b'no picture')),
    ):
        assert list(said.json()) == ['detail']


def test_triton_client_is_told_why_and_may_compress(served, tile):
    triton = pytest.importorskip('tritonclient.http')
    from tritonclient.utils import InferenceServerException

    c = triton.InferenceServerClient(served[0].removeprefix('http://'))
    given = triton.InferInput('image', [1, 3, 40, 40], 'FP32')
    given.set_data_from_numpy(np.zeros((1, 3, 40, 40), np.float32))
    with pytest.raises(InferenceServerException, match='multiples? of 16'):
        c.infer('bcss', [given])
    with pytest.raises(InferenceServerException):
        c.infer('bcss', [given], model_version='2')
    x = to_nchw_float(tile[None])
    given = triton.InferInput('image', list(x.shape), 'FP32')
    given.set_data_from_numpy(x)
    plain = c.infer('bcss', [given], model_version='1').as_numpy('logits')
    for how in ('gzip', 'deflate'):
        for reply in (None, 'gzip'):
            found = c.infer(
                'bcss', [given], request_compression_algorithm=how, response_compression_algorithm=reply
            ).as_numpy('logits')
            np.testing.assert_array_equal(found, plain)
    assert c.is_model_ready('bcss', '1') and not c.is_model_ready('bcss', '2')


def test_compressed_pictures_and_bombs(client, tile):
    request = client.build_request('POST', '/predict', files=dict(image=png(tile)))
    body, kind = request.read(), request.headers['content-type']

    def send(content, encoding):
        return client.post('/predict', content=content, headers={'content-type': kind, 'content-encoding': encoding})

    assert send(gzip.compress(body), 'gzip').status_code == send(zlib.compress(body), 'deflate').status_code == 200
    assert send(gzip.compress(bytes(50 * 2**20)), 'gzip').status_code == 413 and send(body, 'gzip').status_code == 400
    said = send(body, 'zstd')
    assert said.status_code == 415 and 'gzip' in said.headers['accept-encoding']


@pytest.mark.parametrize(
    'path',
    [
        '/',
        '/docs',
        '/v2',
        '/v2/models/bcss',
        '/v2/health/live',
        '/v2/health/ready',
        '/v2/models/bcss/ready',
        '/metrics',
        '/drift',
        '/openapi.json',
        '/static/app.js',
    ],
)
def test_head_where_get_is(client, path):
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.headers['content-type'], head.content) == (200, get.headers['content-type'], b'')


def test_nothing_that_is_said_is_ignored(client, tile):
    def post(path='/predict', **options):
        return client.post(path, **options)

    image = ('image', ('a.png', png(tile)))
    refused = [
        post('/predict?mpp=0.5', files=[image]),
        post(files=[image, image]),
        post(files=[image, ('mask', ('b.png', b'x'))]),
        post(files=[image], data=dict(resolution='1')),
        post(files=[image], data=dict(mpp=['0.5', '0.25'])),
    ]
    assert [r.status_code for r in refused] == [422] * 5
    assert (
        'the query' in refused[0].json()['detail']
        and 'one picture a request' in refused[1].json()['detail']
        and "'mask' is not known" in refused[2].json()['detail']
    )
    assert post(files=[image], data=dict(mpp='0.5')).json()['mpp'] == 0.5


def test_accept(client, tile):
    def kind(accept):
        return client.post('/predict', files=dict(image=png(tile)), headers=dict(accept=accept))

    assert kind('application/json;q=0.3, image/png;q=0.9').headers['content-type'] == 'image/png'
    assert kind('application/geo+json;q=0.5, image/png;q=0').headers['content-type'] == 'application/geo+json'
    assert kind('text/html, */*;q=0.1').headers['content-type'] == 'application/json'
    said = kind('text/html')
    assert said.status_code == 406 and 'image/png' in said.json()['detail']


def test_pixel_size_as_bcss_predict_reads_it(client, tile):
    def answer(name, data, **form):
        return client.post('/predict', files=dict(image=(name, data)), data=form).json()

    assert (
        answer('TCGA-A1-A0SK-DX1_xmin1_ymin1_MPP-0.5000.png', png(tile))['mpp'],
        answer('a_MPP-0.5000.png', png(tile), mpp='0.25')['mpp'],
    ) == (0.5, 0.25)
    assert answer('a.png', png(tile, dpi=(50_800, 50_800)))['mpp_from'] == 'file'


def test_a_store_keeps_what_is_not_its_own(exported, tmp_path, tile):
    store = tmp_path / 'store'
    (store / 'aa old folder').mkdir(parents=True)
    strangers = {
        'slide.svs': b's' * 200_000,
        '2026-11-26.txt': b't',
        'bcss-2026-11-26.jsonl.bak': b'u',
        'bcss-notes.jsonl': b'v',
        'aa old folder/x.png': b'w',
        '2020-01-01.jsonl': b'y' * 90_000,
    }
    for name, data in strangers.items():
        (store / name).write_bytes(data)
        os.utime(store / name, (1, 1))
    (store / 'bcss-2020-01-01.jsonl').symlink_to(store / 'slide.svs')
    os.utime(store / 'aa old folder', (1, 1))
    with service(exported, tmp_path / 'log', store=store, store_pixels=True, store_bytes=500_000) as (url, _):
        for _ in range(12):
            assert (
                httpx.post(
                    f'{url}/predict', files=dict(image=png(tile)), headers={'x-request-id': 'the-same'}
                ).status_code
                == 200
            )
        assert 'bcss_store_lost 0.0' in httpx.get(f'{url}/metrics').text
    assert {name: (store / name).read_bytes() for name in strangers} == strangers and (
        store / 'bcss-2020-01-01.jsonl'
    ).is_symlink()
    pictures = list(store.glob('bcss-*-the-same-*.png'))
    assert len(pictures) > 1 and sum(f.stat().st_size for f in pictures) <= 900_000
    assert (
        sum(
            b'"answer"' in line
            for f in store.glob('bcss-*-*-*.jsonl')
            if not f.is_symlink()
            for line in f.read_bytes().splitlines()
        )
        == 12
    )


@pytest.mark.parametrize(
    'name, value, text',
    [
        ('store', '/proc/version', 'cannot be used as a folder'),
        ('root_path', 'bcss', 'a path like /bcss'),
        ('root_path', '/v2', 'begins like a route'),
    ],
)
def test_settings_that_cannot_work_are_said_at_start(exported, name, value, text):
    env = os.environ | {f'BCSS_{name.upper()}': value}
    said = subprocess.run(
        [sys.executable, '-m', 'bcss_nb.cli', 'serve', '--model', str(exported)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.returncode == 1 and text in said.stderr and 'Traceback' not in said.stderr
