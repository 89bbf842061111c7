"What several tests need: a trained net, and its export."

import signal

import pytest

from bcss_nb.data.dataset import load_dataset
from bcss_nb.data.prepare import sample_dataset
from bcss_nb.demo import demo_export, demo_runs

# a job in the background inherits that Ctrl-C is ignored, and so would every process that a test starts
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope='session')
def ts():
    return load_dataset(sample_dataset())


@pytest.fixture(scope='session')
def run(ts):
    return demo_runs('unet', ts)[0]


@pytest.fixture(scope='session')
def exported(ts):
    return demo_export(ts)
