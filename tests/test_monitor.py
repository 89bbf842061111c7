"Drift is noticed, and only drift; Prometheus reads the real service; rules and dashboard name what exists."

import io
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image
from shared_serve import free_port, service

from bcss_nb.data.dataset import load_dataset
from bcss_nb.data.prepare import sample_dataset
from bcss_nb.evaluation.perturbations import scale_stain
from bcss_nb.serving.drift_report import drift_over_time, drift_report, first_exceedances
from bcss_nb.serving.traffic import answers_of, feature_columns, read_store, traffic_table, unseen_features

ROOT = Path(__file__).parent.parent
RULES = ROOT / 'deploy/monitoring'
prometheus = pytest.mark.skipif(not shutil.which('promtool'), reason='needs the Debian package prometheus')


def png(x):
    out = io.BytesIO()
    Image.fromarray(x).save(out, 'png')
    return out.getvalue()


@pytest.fixture(scope='module')
def tiles():
    ts = load_dataset(sample_dataset())
    return ts.images[np.r_[ts.part('train'), ts.part('val')]]


def send(client, images, n, seed):
    "Send n random tiles."
    for i in np.random.default_rng(seed).integers(0, len(images), n):
        assert client.post('/predict', files=dict(image=png(images[i]))).status_code == 200


def gauges(client):
    "Name, labels and value of what the service exposes."
    return {
        m[0]: float(m[1])
        for m in re.findall(r'^(bcss_drift_ratio\{[^}]*\}) (\S+)$', client.get('/metrics').text, flags=re.M)
    }


@pytest.fixture(scope='module')
def watched(exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp('watched')
    with service(exported, folder / 'log', store=folder / 'store') as (url, _):
        with httpx.Client(base_url=url, timeout=60) as client:
            yield url, client, folder


def test_silent_then_fires(watched, tiles):
    _, client, folder = watched
    for i in range(10):
        send(client, tiles, 100, i)
        assert client.get('/drift').json()['drifted'] == [] and max(gauges(client).values()) <= 1
    noticed, shifted = None, scale_stain(tiles, 0.6)
    for i in range(20):
        send(client, shifted, 10, 100 + i)
        if client.get('/drift').json()['drifted']:
            noticed = 10 * (i + 1)
            break
    print(f'1,000 tiles as in training raise nothing; with 0.6 x dye the watch notices within {noticed} requests')
    assert noticed and noticed <= 200 and max(gauges(client).values()) > 1
    lines = [json.loads(line) for f in (folder / 'store').glob('*.jsonl') for line in open(f)]
    assert sum(line['kind'] == 'answer' for line in lines) == 1000 + noticed and not list(
        (folder / 'store').glob('*.png')
    )


@prometheus
def test_prometheus_scrapes_and_fires(watched, tiles, tmp_path):
    url, client, _ = watched
    client.get('/drift')
    config = yaml.safe_load((RULES / 'prometheus.yml').read_text())
    config['global'] = dict(scrape_interval='1s', evaluation_interval='1s')
    config['scrape_configs'][0]['static_configs'][0]['targets'] = [url.removeprefix('http://')]
    shutil.copy(RULES / 'alerts.yml', tmp_path)
    (tmp_path / 'prometheus.yml').write_text(yaml.safe_dump(config))
    port = free_port()
    with open(tmp_path / 'log', 'w') as log:
        options = (
            f'--config.file={tmp_path}/prometheus.yml',
            f'--storage.tsdb.path={tmp_path}/data',
            f'--web.listen-address=127.0.0.1:{port}',
        )
        p = subprocess.Popen(['prometheus', *options], stderr=log)
    api = f'http://127.0.0.1:{port}/api/v1'

    def ask(q):
        return httpx.get(f'{api}/query', params=dict(query=q)).json()['data']['result']

    def firing():
        return {
            a['labels']['alertname']
            for a in httpx.get(f'{api}/alerts').json()['data']['alerts']
            if a['state'] == 'firing'
        }

    def wait(what, seconds=30):
        for _ in range(seconds * 4):
            assert p.poll() is None, (tmp_path / 'log').read_text()[-2000:]
            try:
                if what():
                    return True
            except (httpx.HTTPError, KeyError):
                pass
            time.sleep(0.25)

    try:
        send(client, tiles, 120, 7)
        assert wait(lambda: ask('up{job="bcss"} == 1') and ask('bcss_drift_ratio{feature="stain_x"} >= 0')), 'no scrape'
        assert ask('bcss_requests_total{path="/predict",status="200"} >= 120')
        assert wait(lambda: 'BcssDataDrift' not in firing() or ask('max(bcss_drift_ratio) <= 1'))
        send(client, scale_stain(tiles, 0.6), 150, 8)
        assert wait(lambda: 'BcssDataDrift' in firing()), 'no alert'
        assert not {'BcssDown', 'BcssErrors', 'BcssTwoModels'} & firing()
    finally:
        p.terminate()
        p.wait(20)


@prometheus
def test_rules(tmp_path):
    def run(*a, cwd=RULES):
        return subprocess.run(['promtool', *a], cwd=cwd, capture_output=True, text=True)

    for a in (
        ('check', 'rules', 'alerts.yml'),
        ('check', 'config', 'prometheus.yml'),
        ('test', 'rules', 'alerts_test.yml'),
    ):
        said = run(*a)
        assert said.returncode == 0, said.stdout + said.stderr
    for f in ('alerts.yml', 'alerts_test.yml'):
        shutil.copy(RULES / f, tmp_path)
    (tmp_path / 'alerts.yml').write_text(
        (RULES / 'alerts.yml')
        .read_text()
        .replace('bcss_drift_ratio{kind="data"} > 1', 'bcss_drift_ratio{kind="data"} > 2')
    )
    assert run('test', 'rules', 'alerts_test.yml', cwd=tmp_path).returncode != 0


def test_names_exist(watched):
    "Rules and dashboard ask for metrics that the service has."
    exposed = set(re.findall(r'^# TYPE (\S+) ', watched[1].get('/metrics').text, flags=re.M))
    exposed |= {f'{n}{e}' for n in exposed for e in ('_bucket', '_total')}
    board = json.loads((RULES / 'grafana/dashboards/bcss.json').read_text())
    queries = [r['expr'] for g in yaml.safe_load((RULES / 'alerts.yml').read_text())['groups'] for r in g['rules']] + [
        t['expr'] for p in board['panels'] for t in p['targets']
    ]
    asked = {n for q in queries for n in re.findall(r'\b((?:bcss|process)_\w+)', q)}
    assert asked and asked <= exposed, asked - exposed


def test_dashboard_is_what_its_source_says(tmp_path):
    copy = tmp_path / 'grafana'
    shutil.copytree(RULES / 'grafana', copy)
    (copy / 'dashboards/bcss.json').unlink()
    subprocess.run(['python', str(copy / 'make_dashboard.py')], check=True)
    assert (copy / 'dashboards/bcss.json').read_text() == (RULES / 'grafana/dashboards/bcss.json').read_text()


def test_compose():
    "Everything compose mounts is there, and the service can write nothing else."
    c = yaml.safe_load((ROOT / 'compose.yaml').read_text())['services']
    for s in c.values():
        for v in s.get('volumes', []):
            if v.startswith('./'):
                assert (ROOT / v.split(':')[0]).exists() and v.endswith(':ro')
    assert c['bcss']['read_only'] and all(re.search(r':[^:]*\d', s['image']) for n, s in c.items() if n != 'bcss')


def test_chapter_reads_a_store(watched, tiles, exported, tmp_path):
    "The parameterized chapter on what the service stored."
    store = watched[2] / 'store'
    send(watched[1], tiles, 100, 50)
    send(watched[1], scale_stain(tiles, 0.6), 120, 51)
    said = subprocess.run(
        [
            'python',
            '-m',
            'papermill',
            'nbs/09_monitor.ipynb',
            str(tmp_path / 'out.ipynb'),
            '-k',
            'python3',
            '--no-progress-bar',
            '-r',
            'store',
            str(store),
            '-r',
            'model',
            str(exported),
            '-r',
            'reports',
            str(tmp_path),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert said.returncode == 0, said.stderr[-3000:]
    found = json.loads((tmp_path / 'monitor.json').read_text())
    assert (
        found['answers'] >= 220
        and found['first_beyond_limit']
        and max(found['drift_ratio'].values()) > 1
        and 'bcss' not in (tmp_path / 'monitor.html').read_text()[:200]
    )


def stored(folder, *lines):
    "A store of these lines: bytes as they are, the rest as JSON."
    folder.mkdir(exist_ok=True)
    (folder / '2026-03-02.jsonl').write_bytes(
        b'\n'.join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines) + b'\n'
    )
    return folder


def event(kind, second, **more):
    return dict(kind=kind, time=f'2026-03-02T08:00:{second:02d}Z', **more)


@pytest.mark.parametrize(
    'line',
    [
        b'\xff\xfe\x00broken',
        b'17',
        b'[1, 2]',
        b'"text"',
        b'null',
        b'{"kind": "answer"',
        b'{}',
        b'{"kind": 5, "time": "2026-03-02T08:00:00Z"}',
        b'{"kind": "answer", "time": "2026-03-02T08:00:00Z", "numbers": [1]}',
        b'{"kind": "answer", "numbers": {}}',
        b'{"kind": "answer", "time": "noon", "numbers": {}}',
        b'{"kind": "request", "time": "2026-03-02T08:00:00Z", "status": "200", "ms": 3}',
        b'{"kind": "request", "time": "2026-03-02T08:00:00Z", "status": 1e999, "ms": 3}',
        b'{"kind": "request", "time": 3, "status": 200, "ms": 3}',
        b'{"kind": "request", "time": "9999-01-01T00:00:00Z", "status": 200, "ms": 3}',
        b'[' * 100_000,
    ],
)
def test_no_line_of_a_store_ends_the_report(tmp_path, line):
    good = [
        event('request', 1, status=200, ms=3.0),
        event('answer', 2, model_id='a', numbers=dict(uncertainty=0.1, odd='high', huge=10**400)),
    ]
    (tmp_path / 'store/day.jsonl').mkdir(parents=True)
    (tmp_path / 'store/empty.jsonl').write_bytes(b'')
    requests, answers, broken = read_store(stored(tmp_path / 'store', good[0], line, good[1]), hours=24)
    assert (len(requests), len(answers), broken) == (1, 1, 1)
    assert (
        feature_columns(answers) == dict(uncertainty=[0.1], odd=[None], huge=[None])
        and len(traffic_table(requests)) == 1
    )
    with pytest.raises(FileNotFoundError, match='holds no records'):
        read_store(stored(tmp_path / 'other', line))


def test_drift_is_seen_after_a_change_of_model(tmp_path):
    rng = np.random.default_rng(0)
    old = [event('answer', i % 60, model_id='old', numbers=dict(brightness=200.0, share_tumor=0.5)) for i in range(60)]
    new = [
        event('answer', i % 60, model_id='new', numbers=dict(brightness=200.0, share_necrosis=0.9)) for i in range(60)
    ]
    for i, e in enumerate(old + new):
        e['time'] = f'2026-03-02T{8 + i // 60:02d}:{i % 60:02d}:00Z'
    reference = dict(
        columns=dict(
            brightness=rng.normal(200, 5, 200).tolist(),
            share_necrosis=rng.normal(0.1, 0.05, 200).tolist(),
            gone=rng.normal(size=200).tolist(),
        ),
        limits=dict(brightness=1.0, share_necrosis=1.0, gone=1.0),
        window=40,
        of='a test',
    )
    _, answers, _ = read_store(stored(tmp_path / 'store', *old, *new))
    mine, by_model = answers_of(answers, ['new'])
    assert by_model == dict(old=60, new=60) and len(mine) == 60
    for some in (answers, mine):
        assert first_exceedances(drift_over_time(some, reference)).keys() == {'share_necrosis'}
    assert (
        unseen_features(mine, reference) == ['gone']
        and drift_report(mine, reference, tmp_path / 'page.html')['share_necrosis'] > 1
    )
