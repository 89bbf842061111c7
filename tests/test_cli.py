"The command line: one sentence for everything that cannot work, and for Ctrl-C."
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from bcss_nb.sample import simulate_roi


def bcss(*args, **env):
    return subprocess.run([sys.executable, '-m', 'bcss_nb.cli', *map(str, args)], capture_output=True, text=True, timeout=120, env=os.environ | env)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    for i in range(3): Image.fromarray(simulate_roi(i, shape=(300, 300))[1]).save(folder/f'r{i}.png')
    return folder


@pytest.mark.parametrize('seconds', [1, 5])
@pytest.mark.parametrize('command', ['predict', 'serve', 'train', 'export'])
def test_ctrl_c_is_one_line(command, seconds, exported, run, tmp_path):
    Image.fromarray(np.tile(simulate_roi(1, shape=(500, 500))[1], (8, 8, 1))).save(tmp_path/'large.png')
    args = dict(predict=['bcss_nb.cli', 'predict', tmp_path/'large.png', '--model', run, '--out', tmp_path/'out', '--mpp', .25],
                serve=['bcss_nb.cli', 'serve', '--model', exported, '--port', 0],
                train=['bcss_nb.train', '--out', tmp_path/'run', '--steps', 100_000, '--batch', 2],
                export=['bcss_nb.cli', 'export', run, '--data', 'data/smoke', '--out', tmp_path/'export'])[command]
    code = '''import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)'''
    p = subprocess.Popen([sys.executable, '-c', code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    assert p.poll() is None, p.communicate()
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=90)
    said = [line for line in err.splitlines() if line.strip() and '\r' not in line and 'step' not in line.split('|')[-1]]
    assert p.returncode in (130, -signal.SIGINT) + (0,)*(command == 'serve') and 'Traceback' not in err + out, err
    assert len(said) == 1 and 'stopped' in said[0], err
    assert not (tmp_path/'out').exists() or not list((tmp_path/'out').iterdir())


def test_version(): assert bcss('--version').stdout.startswith('bcss_nb 0.')


@pytest.mark.parametrize('variables', [dict(RANK='1', WORLD_SIZE='4'), dict(WORLD_SIZE='4'), dict(RANK='2', WORLD_SIZE='4', LOCAL_RANK='2'), dict(RANK='1')])
def test_leftovers_of_a_distributed_run(variables, pictures, exported, tmp_path):
    said = bcss('predict', pictures, '--model', exported, '--out', tmp_path/'out', **variables)
    assert said.returncode == 1 and 'torchrun did not start this process' in said.stderr and len(said.stderr.splitlines()) == 1
    args = [sys.executable, '-m', 'bcss_nb.train', '--steps', '2', '--out', str(tmp_path/'run')]
    said = subprocess.run(args, capture_output=True, text=True, timeout=120, env=os.environ | variables)
    assert said.returncode == 1 and 'torchrun did not start this process' in said.stderr and 'Traceback' not in said.stderr


@pytest.mark.parametrize('model, words', [('/etc/passwd', 'no readable checkpoint'), ('r0.png', 'no readable checkpoint'), ('empty', 'no readable checkpoint'),
                                          ('.', 'no model at'), ('none', 'no model at')])
def test_what_is_no_model(model, words, pictures, tmp_path):
    (pictures/'empty').write_bytes(b'')
    said = bcss('predict', pictures/'r0.png', '--model', pictures/model, '--out', tmp_path/'out')
    assert said.returncode == 1 and words in said.stderr and len(said.stderr.splitlines()) == 1, said.stderr


@pytest.mark.parametrize('options, words', [(['--device', 'cuda:99'], 'PyTorch sees'), (['--device', 'gpu'], 'is unknown'), (['--device', 'meta'], 'is not supported'),
                                            (['--engine', 'openvino-bf16'], 'runs exported models')])
def test_devices_and_engines_that_are_not_there(options, words, pictures, run, tmp_path):
    said = bcss('predict', pictures/'r0.png', '--model', run, '--out', tmp_path/'out', *options)
    assert said.returncode == 1 and words in said.stderr and len(said.stderr.splitlines()) == 1, said.stderr


def test_one_notice_for_many_pictures(pictures, exported, tmp_path):
    (pictures/'inner').mkdir()
    Image.fromarray(simulate_roi(9, shape=(64, 64))[1]).save(pictures/'inner/x.png')
    said = bcss('predict', pictures, '--model', exported, '--out', tmp_path/'out')
    assert said.returncode == 0 and len(said.stderr.splitlines()) == 3, said.stderr
    assert 'left out: --recursive' in said.stderr and 'r0.png does not state its pixel size' in said.stderr and 'the same of 2 more' in said.stderr
    said = bcss('predict', pictures, '--model', exported, '--out', tmp_path/'out', '--recursive', '--mpp', .25)
    assert said.returncode == 0 and said.stderr == '' and (tmp_path/'out/inner/x.png.bcss/x.json').exists()
