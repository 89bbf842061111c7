"""Training's promises: killed runs end with the same bits, many processes learn what one does, damaged or foreign
checkpoints are refused."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from fastcore.docments import docments

from bcss_nb.data.dataset import load_dataset
from bcss_nb.data.prepare import sample_dataset
from bcss_nb.models.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from bcss_nb.training.config import TrainConfig
from bcss_nb.training.interrupts import RunInterrupted
from bcss_nb.training.metrics import DiceCELoss
from bcss_nb.training.train import fit, train_model
from bcss_nb.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
TORCHRUN = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']


@pytest.fixture(scope='module')
def ts():
    return load_dataset(sample_dataset())


def python(*args, **kwargs):
    done = subprocess.run([sys.executable, *map(str, args)], cwd=ROOT, capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize(
    'kills,config',
    [
        (20, dict(model='unet', steps=8, batch=2, ema=0.9)),
        (2, dict(model='unetr', steps=4, batch=2, drop_path=0.2, mix=0.5, accumulate=2)),
    ],
)
def test_killed_runs_end_with_the_same_bits(tmp_path, kills, config):
    sample_dataset()
    words = python('tests/killed.py', tmp_path, kills, json.dumps(config))
    print(words)
    assert 'killed runs ended bit-equal' in words


@pytest.mark.parametrize('model,accumulate,precision', [('unet', 1, '64-true'), ('unetr', 2, '64-true')])
def test_two_processes_learn_what_one_does(tmp_path, model, accumulate, precision):
    "Norms in float32 round by 1e-5 to 4e-5 even alone (against float64), so that gradients are compared in float64."
    sample_dataset()
    env = dict(os.environ, OMP_NUM_THREADS='1')
    python('tests/shared_step.py', tmp_path / 'one.pt', model, accumulate, precision, env=env)
    python(*TORCHRUN, 'tests/shared_step.py', tmp_path / 'two.pt', model, accumulate, precision, env=env)
    one, two = (torch.load(tmp_path / f'{n}.pt', weights_only=True) for n in ('one', 'two'))
    error = max((one['grads'][k] - two['grads'][k]).abs().max().item() for k in one['grads'])
    print(f'{model} {precision}: gradients differ by at most {error:.1e}')
    assert one['tiles'] == two['tiles'] and torch.isclose(one['loss'], two['loss'], atol=1e-5) and error < 1e-5
    assert all(torch.allclose(one['stats'][k], two['stats'][k], atol=1e-5) for k in one['stats'])
    assert (
        one['counts'].sum() == two['counts'].sum()
        and (one['counts'] - two['counts']).abs().sum() < 1e-3 * one['counts'].sum()
    )


def test_torchrun_trains_writes_once_and_goes_on(tmp_path):
    sample_dataset()
    command = [*TORCHRUN, '-m', 'bcss_nb.training.train', '--steps', '30', '--batch', '4', '--out', tmp_path / 'run']
    env = dict(os.environ, OMP_NUM_THREADS='1')
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stderr=subprocess.DEVNULL, env=env)
    deadline = time.time() + 120
    while not (tmp_path / 'run' / 'last.pt').exists() and time.time() < deadline:
        time.sleep(0.1)
    for p in (*psutil.Process(process.pid).children(recursive=True), process):
        p.kill()  # workers have sessions of their own
    process.wait()
    assert not read_checkpoint(tmp_path / 'run' / 'last.pt')['finished']
    words = python(*command, env=env)
    assert words.count('30 steps') == 1
    about = json.loads((tmp_path / 'run' / 'train.json').read_text())
    assert about['processes'] == 2 and [h['step'] for h in about['history']] == [8, 15, 23, 30]
    assert len(read_checkpoint(tmp_path / 'run' / 'last.pt')['rng']) == 2


def test_many_processes_go_by_one_clock_and_save_together(tmp_path):
    sample_dataset()
    python(
        *TORCHRUN,
        '-m',
        'bcss_nb.training.train',
        '--minutes',
        '0.05',
        '--batch',
        '2',
        '--out',
        tmp_path,
        env=dict(os.environ, OMP_NUM_THREADS='1'),
        timeout=150,
    )
    about = json.loads((tmp_path / 'train.json').read_text())
    assert (
        about['unit'] == 'minutes'
        and 3 <= about['train_seconds'] < 8
        and read_checkpoint(tmp_path / 'last.pt')['finished']
    )


def test_a_signal_ends_the_run_after_its_step_and_it_goes_on(ts, tmp_path):
    t = Trainer(ts, 'unet', steps=4, batch=2)
    calls = []

    def log(step, **values):
        calls.append(step)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(RunInterrupted, match='stopped after step 3.*goes on from there'):
        fit(t, tmp_path, log)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    again = []
    about = fit(Trainer(ts, 'unet', steps=4, batch=2), tmp_path, lambda step, **values: again.append(step))
    assert [h['step'] for h in about['history']] == [1, 2, 3, 4] == again and calls == [1, 2, 3]


def test_command_line_says_in_one_line_why_it_ended(tmp_path):
    command = [
        sys.executable,
        '-m',
        'bcss_nb.training.train',
        '--steps',
        '2',
        '--batch',
        '3',
        '--accumulate',
        '2',
        '--out',
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (
        done.returncode == 1
        and 'batch 3 cannot be shared' in done.stderr.splitlines()[-1]
        and 'Traceback' not in done.stderr
    )


@pytest.mark.parametrize('change', [dict(lr=0.01), dict(seed=7), dict(loss='ce'), dict(steps=5)])
def test_an_unfinished_run_of_another_config_is_refused_and_kept(ts, tmp_path, change):
    def stop(step, **values):
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(RunInterrupted):
        fit(Trainer(ts, 'unet', steps=4, batch=2), tmp_path, stop)
    before = (tmp_path / 'last.pt').read_bytes()
    name, value = next(iter(change.items()))
    with pytest.raises(ValueError, match=f'is another run .*{name} .*, now {value}'):
        fit(Trainer(ts, 'unet', batch=2, **dict(steps=4) | change), tmp_path)
    assert (tmp_path / 'last.pt').read_bytes() == before


def test_another_data_set_and_a_damaged_file_are_refused(ts, tmp_path):
    fit(Trainer(ts, 'unet', steps=1, batch=2), tmp_path)
    other = load_dataset(sample_dataset())
    other.manifest['id'] = 'f' * 64
    with pytest.raises(ValueError, match='is another run .*data .*, now ffffffffffff'):
        fit(Trainer(other, 'unet', steps=1, batch=2), tmp_path, resume='yes')
    whole = (tmp_path / 'last.pt').read_bytes()
    for bad in (whole[: len(whole) // 2], whole[:-30], b''):
        (tmp_path / 'last.pt').write_bytes(bad)
        with pytest.raises(ValueError, match='no readable checkpoint'):
            fit(Trainer(ts, 'unet', steps=1, batch=2), tmp_path)
    with pytest.raises(FileNotFoundError):
        fit(Trainer(ts, 'unet', steps=1, batch=2), tmp_path / 'none', resume='yes')


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    save_checkpoint(tmp_path / 'last.pt', step=1, weights=torch.zeros(10))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match='The checkpoint before it is untouched'):
            save_checkpoint(tmp_path / 'last.pt', step=2, weights=torch.zeros(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_checkpoint(tmp_path / 'last.pt')['step'] == 1 and [p.name for p in tmp_path.iterdir()] == ['last.pt']


def test_a_finished_run_is_not_trained_again_and_another_replaces_it(ts, tmp_path):
    first = fit(Trainer(ts, 'unet', steps=2, batch=2), tmp_path)
    stamp = (tmp_path / 'best.pt').stat().st_mtime_ns
    assert (
        fit(Trainer(ts, 'unet', steps=2, batch=2), tmp_path)['history'] == first['history']
        and (tmp_path / 'best.pt').stat().st_mtime_ns == stamp
    )
    fit(Trainer(ts, 'unet', steps=2, batch=2, lr=0.002), tmp_path)
    assert load_checkpoint(tmp_path / 'best.pt')[1]['lr'] == 0.002


def test_the_clock_may_be_the_budget(ts, tmp_path):
    about = fit(Trainer(ts, 'unet', minutes=0.05, batch=2), tmp_path)
    assert about['unit'] == 'minutes' and 3 <= about['train_seconds'] < 6 and about['step'] > 5


def test_accumulation_learns_from_the_whole_batch(ts):
    t = Trainer(ts, 'unetr', steps=2, batch=4, accumulate=2, precision='32-true')
    t.train_step()
    assert t.step == 1 and t.loader.at == 4 and t.budget_fraction() == 0.5


def test_ema_and_weights_are_kept_apart(ts, tmp_path):
    t = Trainer(ts, 'unet', steps=3, batch=2, ema=0.9)
    fit(t, tmp_path)
    net, _ = load_checkpoint(tmp_path / 'best.pt')
    key = next(iter(t.model.state_dict()))
    assert torch.equal(net.state_dict()[key], t.ema.module.state_dict()[key]) and not torch.equal(
        net.state_dict()[key], t.model.state_dict()[key]
    )


def test_the_notebook_has_the_parameters_of_the_command_line():
    cells = json.loads((ROOT / 'nbs/03_train.ipynb').read_text())['cells']
    names = {}
    exec(''.join(next(c for c in cells if 'parameters' in c['metadata'].get('tags', []))['source']), names)
    config = asdict(TrainConfig())
    assert set(config) | {'data', 'out', 'resume', 'track', 'group'} == set(names) - {'__builtins__'}
    assert {k: v for k, v in config.items() if k != 'steps'} == {k: names[k] for k in config if k != 'steps'}


def test_every_option_of_a_training_is_explained():
    texts = docments(train_model) | docments(TrainConfig)
    assert all(texts[name] for name in ('data', 'out', 'resume', 'track', 'group', *asdict(TrainConfig())))


def test_the_pipeline_passes_every_parameter_with_the_same_default():
    run, train = (yaml.safe_load((ROOT / name).read_text()) for name in ('params.yaml', 'params/train.yaml'))
    stage = yaml.safe_load((ROOT / 'dvc.yaml').read_text())['stages']['train']
    config = asdict(TrainConfig())
    assert (run['seeds'][0], run['budget']) == (config['seed'], config['budget'])
    assert '-f params/train.yaml' in stage['cmd'] and {'params/train.yaml': None} in stage['params']
    assert {k: v for k, v in train.items() if k != 'resume'} == {
        k: v for k, v in config.items() if k not in ('model', 'budget', 'seed')
    }


@pytest.mark.parametrize('classes', [3, 5])
def test_loss_matches_float64_by_hand(classes):
    torch.manual_seed(0)
    logits, label = torch.randn(2, classes, 16, 16), torch.randint(0, classes, (2, 16, 16))
    label[0, :4] = 255
    weight = torch.rand(classes) + 0.5
    p, keep = logits.double().softmax(1), label != 255
    ce = (
        -sum(weight[label[i, r, c]] * p[i, label[i, r, c], r, c].log() for i, r, c in keep.nonzero().tolist())
        / weight[label[keep]].sum()
    )
    dice = [1 - 2 * p[:, c][label == c].sum() / (p[:, c][keep].sum() + (label == c).sum()) for c in range(classes)]
    assert torch.isclose(
        DiceCELoss(weight)(logits, label.to(torch.uint8)).double(), ce + sum(dice) / classes, atol=1e-5
    )


def test_mixed_precision_and_compile_are_options(ts):
    with pytest.raises(ValueError):
        Trainer(ts, 'unet', steps=1, precision='float8')
    with pytest.raises(TypeError, match='no_such'):
        Trainer(ts, 'unet', no_such=1)


def test_processes_that_read_different_checkpoints_stop(ts, tmp_path, monkeypatch):
    monkeypatch.setattr('bcss_nb.training.train.all_gather', lambda t, mine: [mine, mine + 5])
    with pytest.raises(ValueError, match='last.pt changed while processes read it .steps .0, 5.'):
        fit(Trainer(ts, 'unet', steps=1, batch=2), tmp_path)
    assert not list(tmp_path.glob('*.pt'))
