"What several tests need: a trained net, and its export."
import pytest

from bcss_nb.core import from_root, locked
from bcss_nb.dataset import load_set, smoke_set
from bcss_nb.engines import read_manifest
from bcss_nb.evaluate import any_runs


@pytest.fixture(scope='session')
def ts(): return load_set(smoke_set())


@pytest.fixture(scope='session')
def run(ts): return any_runs('unet', ts)[0]


@pytest.fixture(scope='session')
def exported(ts, run):
    from bcss_nb.export import export_run
    made = from_root('runs/smoke/export')
    with locked(made):
        if not (made/'reference.json').exists() or read_manifest(made)['data'] != ts.manifest['id']: export_run(run, ts, made, tiles=16)
    return made
