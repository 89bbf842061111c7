"Downloads against servers that drop lines, cut files short, send wrong bytes and know nobody."

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bcss_nb.data.dataset import load_dataset
from bcss_nb.data.download import DownloadError, RoiEndpoints, download_file, download_kaggle, download_rois
from bcss_nb.data.prepare import prepare

ROOT = Path(__file__).parent.parent
DATA = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(DATA).hexdigest()


class Flaky(BaseHTTPRequestHandler):
    "Serves `server.files`; each answer to a path takes the next of `server.moods[path]`."

    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers.get('Content-Length', 0)))
        self.do_GET()

    def do_GET(self):
        path = self.path.split('?')[0]
        self.server.asked.append((path, self.headers.get('Range')))
        moods = self.server.moods.get(path, [])
        mood = moods.pop(0) if moods else 'well'
        if path not in self.server.files:
            return self.answer(404, b'')
        if mood in ('401', '503'):
            return self.answer(int(mood), b'')
        data, kind = self.server.files[path], self.server.kinds.get(path, 'application/octet-stream')
        start = (
            int(self.headers['Range'][6:-1]) if self.headers.get('Range') and 'no-range' not in moods + [mood] else 0
        )
        if start >= len(data) > 0 and start:
            return self.answer(416, b'')
        body = data[start:]
        if mood == 'corrupt':
            body = body[:1000] + bytes(b ^ 255 for b in body[1000:2000]) + body[2000:]
        if mood == 'short':
            body = body[: len(body) // 2]
        headers = {'Content-Type': kind, 'Accept-Ranges': 'bytes', **self.server.headers.get(path, {})}
        self.answer(206 if start else 200, body[: len(body) // 3] if mood == 'drop' else body, len(body), headers)

    def answer(self, status, body, length=None, headers=()):
        self.send_response(status)
        for k, v in dict(headers).items():
            self.send_header(k, v)
        self.send_header('Content-Length', str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True


@pytest.fixture
def server():
    s = ThreadingHTTPServer(('127.0.0.1', 0), Flaky)
    s.files, s.moods, s.kinds, s.headers, s.asked, s.url = (
        {'/file': DATA},
        {},
        {},
        {},
        [],
        f'http://127.0.0.1:{s.server_port}',
    )
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown()


@pytest.mark.parametrize(
    'moods',
    [
        ['drop'],
        ['drop', 'drop', 'drop'],
        ['503', 'drop'],
        ['corrupt'],
        ['short'],
        ['drop', 'corrupt', 'short', 'drop'],
        ['drop', 'no-range'],
    ],
)
def test_a_moody_server_still_gives_the_whole_file(server, tmp_path, moods):
    server.moods['/file'] = moods
    assert download_file(server.url + '/file', tmp_path / 'f', md5=MD5, wait=0.01).read_bytes() == DATA
    assert [p.name for p in tmp_path.iterdir()] == ['f']


def test_a_dropped_line_goes_on_where_it_stopped(server, tmp_path):
    server.moods['/file'] = ['drop']
    download_file(server.url + '/file', tmp_path / 'f', wait=0.01)
    first, second = (r for _, r in server.asked)
    assert first is None and 0 < int(second[6:-1]) <= 100_000
    server.moods['/file'] = ['drop'] * 9
    with pytest.raises(DownloadError, match='Run the same command again'):
        download_file(server.url + '/file', tmp_path / 'g', tries=2, wait=0.01)
    assert (tmp_path / 'g.part').exists() and not (tmp_path / 'g').exists()
    server.moods['/file'] = []
    assert download_file(server.url + '/file', tmp_path / 'g', md5=MD5).read_bytes() == DATA


def test_what_stays_wrong_is_an_error_and_leaves_nothing(server, tmp_path):
    server.moods['/file'] = ['corrupt'] * 9
    with pytest.raises(DownloadError, match='arrived damaged .checksum'):
        download_file(server.url + '/file', tmp_path / 'f', md5=MD5, tries=3, wait=0.01)
    with pytest.raises(DownloadError, match='404'):
        download_file(server.url + '/gone', tmp_path / 'f', wait=0.01)
    assert len(server.asked) == 4 and list(tmp_path.iterdir()) == []


def png(array):
    b = io.BytesIO()
    Image.fromarray(array).save(b, 'PNG')
    return b.getvalue()


@pytest.fixture
def release(server):
    "The official release in miniature: three regions, masks at another resolution than the images."
    rng, rows = np.random.default_rng(0), []
    masks = [png(rng.integers(1, 3, (30, 40), np.uint8).repeat(20, 0).repeat(20, 1)) for _ in range(3)]
    slides = [dict(name=f'TCGA-{s}-A0S1-01Z-00-DX1.svs', _id=str(i)) for i, s in enumerate(('A1', 'A2', 'OL'))]
    for i, s in enumerate(slides):
        server.files[f'/item/{i}/tiles/region'] = png(rng.integers(60, 200, (460, 460, 3), np.uint8))
        server.files[f'/files/{i}'] = masks[i]
        rows.append(f'{s["name"][:12]}-DX1,{i},{i + 5},{i + 800},{i + 605},{server.url}/files/{i}')
    server.files.update(
        {
            '/bounds': ('\n'.join([',xmin,ymin,xmax,ymax,mask_link', *rows]) + '\n').encode(),
            '/item': json.dumps(slides).encode(),
            '/article': json.dumps(
                [dict(id=i, computed_md5=hashlib.md5(m).hexdigest()) for i, m in enumerate(masks)]
            ).encode(),
        }
    )
    return RoiEndpoints(server.url + '/bounds', server.url + '/article', server.url, 'folder')


def test_regions_arrive_whole_and_become_a_set(server, release, tmp_path):
    server.moods.update(
        {
            '/item/0/tiles/region': ['drop', 'short'],
            '/files/1': ['corrupt'],
            '/files/2': ['short', '503'],
            '/bounds': ['drop'],
        }
    )
    out = download_rois(tmp_path / 'roi', release, wait=0.01)
    ts = load_dataset(prepare('auto', out, tmp_path / 'set', val=0.0))
    assert (
        ts.manifest['source'] == 'roi'
        and set(ts.tiles.site) == {'A1', 'A2', 'OL'}
        and set(np.unique(ts.labels)) == {1, 2}
    )
    sums = dict(reversed(line.split('  ')) for line in (out / 'SHA256SUMS').read_text().splitlines())
    assert {f: hashlib.sha256((out / f).read_bytes()).hexdigest() for f in sums} == sums and len(sums) == 6
    assert not list(out.rglob('*.part')) and not (out / '.scan').exists()


def test_an_interrupted_release_goes_on_and_a_damaged_one_is_mended(server, release, tmp_path):
    server.moods['/files/2'] = ['503'] * 99
    with pytest.raises(DownloadError, match='files/2'):
        download_rois(tmp_path / 'roi', release, tries=2, wait=0.01)
    server.moods['/files/2'], before = [], len(server.asked)
    out = download_rois(tmp_path / 'roi', release, wait=0.01)
    assert not any('/files/0' in p or '/files/1' in p for p, _ in server.asked[before:])
    victim = next((out / 'images').iterdir())
    good = victim.read_bytes()
    victim.write_bytes(good[:100])
    download_rois(out, release, wait=0.01)
    assert victim.read_bytes() == good
    server.files.clear()
    download_rois(out, release, tries=1)  # whole: nobody is asked


def test_a_page_instead_of_the_table_is_no_table(server, release, tmp_path):
    table = server.files['/bounds']
    server.files['/bounds'] = b'<html>please log in to this network</html>'
    with pytest.raises(DownloadError, match='no table of regions|empty table'):
        download_rois(tmp_path / 'roi', release, tries=2, wait=0.01)
    server.files['/bounds'] = table
    download_rois(tmp_path / 'roi', release, wait=0.01)


@pytest.fixture
def kaggle(server, tmp_path, monkeypatch):
    "Kaggle's own client, pointed at the local server; a release of two tiles a folder."
    kaggle_env = pytest.importorskip('kagglesdk.kaggle_env')
    b = io.BytesIO()
    with zipfile.ZipFile(b, 'w') as z:
        rng = np.random.default_rng(0)
        for folder, site in (('train', 'A1'), ('val', 'OL')):
            for i in (1, 2):
                name = f'TCGA-{site}-{i:04d}-DX1_xmin1_ymin2_MPP-0_0_0_size224.png'
                z.writestr(f'BCSS/{folder}/{name}', png(rng.integers(0, 255, (224, 224, 3), np.uint8)))
                z.writestr(f'BCSS/{folder}_mask/{name}', png(rng.integers(0, 3, (224, 224), np.uint8)))
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, server.url)
    import base64

    api = '/v1/datasets.DatasetApiService'
    server.files.update(
        {f'{api}/GetDataset': json.dumps(dict(currentVersionNumber=2)).encode(), f'{api}/DownloadDataset': b.getvalue()}
    )
    server.kinds[f'{api}/GetDataset'] = 'application/json'
    server.headers[f'{api}/DownloadDataset'] = {
        'X-Goog-Hash': 'md5=' + base64.b64encode(hashlib.md5(b.getvalue()).digest()).decode()
    }
    for name in ('KAGGLE_USERNAME', 'KAGGLE_KEY'):
        monkeypatch.setenv(name, 'someone')
    monkeypatch.setenv('KAGGLEHUB_CACHE', '')
    server.zip, server.download = b.getvalue(), f'{api}/DownloadDataset'
    return server


@pytest.mark.parametrize('moods', [[], ['drop'], ['corrupt'], ['503', 'drop']])
def test_kaggle_release_through_its_own_client(kaggle, tmp_path, moods):
    kaggle.moods[kaggle.download] = moods
    out = download_kaggle(tmp_path / 'raw/kaggle', wait=0.01)
    assert [p.name for p in out.parent.iterdir()] == ['kaggle']
    assert load_dataset(prepare('auto', out, tmp_path / 'set', val=0.0)).manifest['counts']['kept'] == 4
    asked = len(kaggle.asked)
    download_kaggle(out)
    assert len(kaggle.asked) == asked


def test_kaggle_refusal_and_no_credential_say_what_to_do(kaggle, tmp_path, monkeypatch):
    kaggle.moods[kaggle.download] = ['401'] * 9
    with pytest.raises(DownloadError, match='refuses the credential'):
        download_kaggle(tmp_path / 'raw/kaggle', wait=0.01)
    for name in ('KAGGLE_USERNAME', 'KAGGLE_KEY', 'KAGGLE_API_TOKEN'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('KAGGLE_CONFIG_DIR', str(tmp_path))
    monkeypatch.setenv('HOME', str(tmp_path))
    with pytest.raises(DownloadError, match='kaggle.json'):
        download_kaggle(tmp_path / 'raw/kaggle', wait=0.01)
    assert not (tmp_path / 'raw/kaggle').exists()


def test_make_data_without_a_credential_ends_with_a_plain_message(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith('KAGGLE')} | dict(HOME=str(tmp_path))
    code = f'from bcss_nb.data.download import main; main("kaggle224", "{tmp_path}/kaggle")'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 1 and 'kaggle.json' in done.stderr and 'Traceback' not in done.stderr
