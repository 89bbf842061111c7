"`make remote`, `dvc push` and `dvc pull` against a local Google Cloud Storage emulator, byte for byte."

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
server = pytest.importorskip('gcp_storage_emulator.server')


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


@pytest.fixture
def clone(tmp_path):
    "The tracked files in a fresh repository, working in this environment."
    for name in subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        '\n'
    )[:-1]:
        if (ROOT / name).exists():
            (tmp_path / 'clone' / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / 'clone' / name)
    subprocess.run(['git', 'init', '-q'], cwd=tmp_path / 'clone', check=True)
    return tmp_path / 'clone'


@pytest.fixture
def bucket(monkeypatch):
    "An empty bucket on this machine."
    s = server.create_server('127.0.0.1', 0, in_memory=True, default_bucket='bcss')
    s.start()
    httpd = s._api._httpd
    httpd.handle_error = lambda *args: None  # clients hang up early; nobody needs the traceback
    monkeypatch.setenv('STORAGE_EMULATOR_HOST', f'http://127.0.0.1:{httpd.server_address[1]}')
    monkeypatch.setenv('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
    yield 'gs://bcss/dvc'
    s.stop()


def run(command, cwd):
    done = subprocess.run(
        command,
        shell=True,
        cwd=cwd,
        capture_output=True,
        text=True,
        env=dict(os.environ, PATH=f'{ROOT}/.venv/bin:{os.environ["PATH"]}'),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize('where', ['bucket', 'local'])
def test_sample_and_prepared_set_come_back_byte_for_byte(clone, bucket, where):
    sample = clone / 'params/sample.yaml'
    sample.write_text(sample.read_text().replace('patients: 24', 'patients: 12'))
    assert "didn't change" not in run('dvc repro prepare', clone)
    before = tree(clone / 'data')
    if where == 'bucket':
        run(f'make -o .venv/.pipeline VENV={ROOT}/.venv remote BUCKET={bucket}', clone)
    assert 'pushed' in run('dvc push', clone) and (clone / 'data/store').exists() == (where == 'local')
    for gone in ('data/raw', 'data/processed', '.dvc/cache'):
        shutil.rmtree(clone / gone)
    run('dvc pull prepare sample', clone)
    after = tree(clone / 'data')
    assert {k: v for k, v in after.items() if not k.startswith('store/')} == before and len(before) > 100


def test_remote_refuses_what_is_no_bucket(clone):
    done = subprocess.run(
        ['make', '-o', '.venv/.pipeline', f'VENV={ROOT}/.venv', 'remote', 'BUCKET=s3://elsewhere'],
        cwd=clone,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode != 0
        and 'gs://bucket/path' in done.stderr
        and 'elsewhere' not in (clone / '.dvc/config').read_text()
    )
