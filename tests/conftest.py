"What several tests need: a trained net, and its export."
import signal

import pytest

from bcss_nb.core.files import from_root, locked
from bcss_nb.data.dataset import load_set, smoke_set
from bcss_nb.evaluation.scoring import any_runs
from bcss_nb.inference.engines import read_manifest

# a job in the background inherits that Ctrl-C is ignored, and so would every process that a test starts
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope='session')
def ts(): return load_set(smoke_set())


@pytest.fixture(scope='session')
def run(ts): return any_runs('unet', ts)[0]


@pytest.fixture(scope='session')
def exported(ts, run):
    from bcss_nb.serving.export import export_run
    made = from_root('runs/smoke/export')
    with locked(made):
        if not (made/'reference.json').exists() or read_manifest(made)['data'] != ts.manifest['id']: export_run(run, ts, made, tiles=16)
    return made
