"The command line: one sentence for everything that cannot work, and for Ctrl-C."

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from bcss_nb.cli import main
from bcss_nb.data.simulator import simulate_roi
from bcss_nb.training.distributed import make_fabric


@pytest.fixture
def bcss(capfd):
    "Run a command in this process: exit status and what it printed to stderr."

    def call(*args):
        capfd.readouterr()
        status = main(list(map(str, args)))
        return status, capfd.readouterr().err

    return call


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    for i in range(3):
        Image.fromarray(simulate_roi(i, shape=(300, 300))[1]).save(folder / f'r{i}.png')
    return folder


@pytest.mark.parametrize('seconds', [1, 5])
@pytest.mark.parametrize('command', ['predict', 'serve', 'train', 'export'])
def test_ctrl_c_is_one_line(command, seconds, exported, run, tmp_path):
    Image.fromarray(np.tile(simulate_roi(1, shape=(500, 500))[1], (14, 14, 1))).save(tmp_path / 'large.png')
    args = dict(
        predict=[
            'bcss_nb.cli',
            'predict',
            tmp_path / 'large.png',
            '--model',
            run,
            '--out',
            tmp_path / 'out',
            '--mpp',
            0.25,
        ],
        serve=['bcss_nb.cli', 'serve', '--model', exported, '--port', 0],
        train=['bcss_nb.training.train', '--out', tmp_path / 'run', '--steps', 100_000, '--batch', 2],
        export=['bcss_nb.cli', 'export', run, '--data', 'data/smoke', '--out', tmp_path / 'export'],
    )[command]
    code = """import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)"""
    p = subprocess.Popen(
        [sys.executable, '-c', code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(seconds)
    assert p.poll() is None, p.communicate()
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=90)
    said = [
        line for line in err.splitlines() if line.strip() and '\r' not in line and 'step' not in line.split('|')[-1]
    ]
    assert p.returncode in (130, -signal.SIGINT) + (0,) * (command == 'serve') and 'Traceback' not in err + out, err
    assert len(said) == 1 and ('interrupted' in said[0] or 'stopped' in said[0] or 'Stopped' in said[0]), err
    assert not (tmp_path / 'out').exists() or not list((tmp_path / 'out').iterdir())


def test_version():
    said = subprocess.run(
        [sys.executable, '-m', 'bcss_nb.cli', '--version'], capture_output=True, text=True, timeout=60
    )
    assert said.stdout.startswith('bcss_nb 0.') and said.returncode == 0


@pytest.mark.parametrize(
    'variables',
    [
        dict(RANK='1', WORLD_SIZE='4'),
        dict(WORLD_SIZE='4'),
        dict(RANK='2', WORLD_SIZE='4', LOCAL_RANK='2'),
        dict(RANK='1'),
    ],
)
def test_leftovers_of_a_distributed_run(variables, pictures, exported, tmp_path, monkeypatch, bcss):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    status, err = bcss('predict', pictures, '--model', exported, '--out', tmp_path / 'out')
    assert status == 1 and 'torchrun did not start this process' in err and len(err.splitlines()) == 1
    with pytest.raises(ValueError, match='torchrun did not start this process'):
        make_fabric()


@pytest.mark.parametrize(
    'model, words',
    [
        ('/etc/passwd', 'no readable checkpoint'),
        ('r0.png', 'no readable checkpoint'),
        ('empty', 'no readable checkpoint'),
        ('.', 'no model at'),
        ('none', 'no model at'),
    ],
)
def test_what_is_no_model(model, words, pictures, tmp_path, bcss):
    (pictures / 'empty').write_bytes(b'')
    status, err = bcss('predict', pictures / 'r0.png', '--model', pictures / model, '--out', tmp_path / 'out')
    assert status == 1 and words in err and len(err.splitlines()) == 1, err


@pytest.mark.parametrize(
    'options, words',
    [
        (['--device', 'cuda:99'], 'PyTorch sees'),
        (['--device', 'gpu'], 'must be auto, cpu'),
        (['--device', 'meta'], 'must be auto, cpu'),
        (['--engine', 'openvino-bf16'], 'runs exported models'),
    ],
)
def test_devices_and_engines_that_are_not_there(options, words, pictures, run, tmp_path, bcss):
    status, err = bcss('predict', pictures / 'r0.png', '--model', run, '--out', tmp_path / 'out', *options)
    assert status == 1 and words in err and len(err.splitlines()) == 1, err


def test_one_notice_for_many_pictures(pictures, exported, tmp_path, bcss):
    (pictures / 'inner').mkdir()
    Image.fromarray(simulate_roi(9, shape=(64, 64))[1]).save(pictures / 'inner/x.png')
    status, err = bcss('predict', pictures, '--model', exported, '--out', tmp_path / 'out')
    assert status == 0 and len(err.splitlines()) == 3, err
    assert (
        'left out: --recursive' in err and 'r0.png does not state its pixel size' in err and '2 more like this' in err
    )
    status, err = bcss(
        'predict', pictures, '--model', exported, '--out', tmp_path / 'out', '--recursive', '--mpp', 0.25
    )
    assert (status, err) == (0, '') and (tmp_path / 'out/inner/x.png.bcss/x.json').exists()
