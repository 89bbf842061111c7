"The pipeline's promises: parameters are never ignored, failures fail, losses and nets behave on hostile input."

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bcss_nb.core.labels import IGNORE
from bcss_nb.data.dataset import load_dataset
from bcss_nb.data.prepare import sample_dataset
from bcss_nb.demo import demo_runs
from bcss_nb.models.checkpoint import load_checkpoint, read_checkpoint
from bcss_nb.models.registry import build_model
from bcss_nb.training.metrics import DiceCELoss
from bcss_nb.training.tracking import experiment_logger
from bcss_nb.training.train import fit
from bcss_nb.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
PARAMETERIZED = [
    '00_eda',
    '01_dataset',
    '03_train',
    '04_evaluate',
    '05_compare',
    '07_export',
    '09_monitor',
    'studies/leakage',
    'studies/profiling',
    'studies/robustness',
]


def papermill(notebook, out, *args):
    return subprocess.run(
        [
            sys.executable,
            '-m',
            'papermill',
            f'nbs/{notebook}.ipynb',
            str(out),
            '-k',
            'python3',
            '--no-progress-bar',
            *args,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    'args,words',
    [
        (('-p', 'no_such', '1'), 'unknown parameter no_such'),
        (('-p', 'model', 'nope'), "unknown model 'nope'"),
        (('-p', 'steps', 'many'), 'parameter steps takes a int'),
    ],
)
def test_papermill_refuses_bad_parameters(tmp_path, args, words):
    done = papermill('03_train', tmp_path / 'out.ipynb', *args)
    assert done.returncode != 0 and words in done.stderr


@pytest.mark.parametrize('name', PARAMETERIZED)
def test_parameters_cell_is_tagged_and_checked(name):
    cells = [c for c in json.loads((ROOT / f'nbs/{name}.ipynb').read_text())['cells'] if c['cell_type'] == 'code']
    at = [i for i, c in enumerate(cells) if 'parameters' in c['metadata'].get('tags', [])]
    assert len(at) == 1 and 'check_parameters' in ''.join(cells[at[0] + 1]['source'])


@pytest.mark.parametrize('name', sorted(str(p.relative_to(ROOT / 'nbs')) for p in (ROOT / 'nbs').rglob('*.ipynb')))
def test_committed_outputs_are_there_small_and_true(name):
    text = (ROOT / 'nbs' / name).read_text()
    outputs = [o for c in json.loads(text)['cells'] for o in c.get('outputs', [])]
    assert outputs and not [o for o in outputs if o['output_type'] == 'error']
    assert max(len(json.dumps(o)) for o in outputs) < 300_000
    assert str(ROOT) not in text


@pytest.mark.parametrize(
    'name', sorted(str(p.relative_to(ROOT / 'nbs')) for p in (ROOT / 'nbs').glob('studies/*.ipynb'))
)
def test_a_study_shows_a_picture(name):
    cells = json.loads((ROOT / 'nbs' / name).read_text())['cells']
    assert any('image/' in key for c in cells for o in c.get('outputs', []) for key in o.get('data', {}))


STAGES = sorted(p.stem for p in (ROOT / 'nbs').glob('0*.ipynb'))


@pytest.mark.parametrize('name', STAGES)
def test_a_stage_tells_its_story_in_few_cells_and_exports_nothing(name):
    cells = json.loads((ROOT / f'nbs/{name}.ipynb').read_text())['cells']
    sources = [''.join(c['source']) for c in cells]
    assert 8 <= len(cells) <= 30 and not any('#| export' in s or 'default_exp' in s for s in sources)
    assert any('image/' in key for c in cells for o in c.get('outputs', []) for key in o.get('data', {}))


def test_without_validation_the_last_checkpoint_is_used_and_said(tmp_path):
    ts = load_dataset(sample_dataset())
    ts.tiles['split'] = ts.tiles.split.replace('val', 'train')
    about = fit(Trainer(ts, 'unet', steps=3, batch=2), tmp_path)
    assert 'last step' in about['selection'] and load_checkpoint(tmp_path / 'best.pt')[1]['step'] == 3


def test_same_seed_same_weights(tmp_path):
    ts = load_dataset(sample_dataset())
    for name in ('a', 'b'):
        fit(Trainer(ts, 'unet', steps=3, batch=2, seed=5), tmp_path / name)
    a, b = (read_checkpoint(tmp_path / n / 'last.pt')['net'] for n in ('a', 'b'))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_checkpoint_of_another_model_or_schema_is_refused():
    run = demo_runs('unet', load_dataset(sample_dataset()))[0]
    with pytest.raises(ValueError, match='not unetr'):
        load_checkpoint(run / 'best.pt', 'unetr')
    with pytest.raises(ValueError, match='not bcss5'):
        load_checkpoint(run / 'best.pt', schema='bcss5')


@pytest.mark.parametrize('name', ['unet', 'unetr'])
def test_gradient_is_zero_where_every_pixel_is_ignored(name):
    net = build_model(name, 3)
    DiceCELoss()(net(torch.rand(2, 3, 224, 224)), torch.full((2, 224, 224), IGNORE)).backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in net.parameters())


def test_training_refuses_a_set_without_a_test_part():
    ts = load_dataset(sample_dataset())
    ts.tiles['split'] = 'train'
    with pytest.raises(ValueError, match='test part of this set is empty'):
        Trainer(ts, 'unet')


def test_offline_tracking_needs_no_account(tmp_path, monkeypatch):
    monkeypatch.delenv('WANDB_API_KEY', raising=False)
    with experiment_logger(tmp_path / 'unet', 'offline', dict(preset='unet-s', seed=1)) as log:
        log(1, loss=0.5)
    assert (
        list(tmp_path.glob('wandb/offline-run-*/run-*.wandb'))
        and json.loads((tmp_path / 'unet/live/metrics.json').read_text())['loss'] == 0.5
    )
    with pytest.raises(ValueError, match='choose one of disabled, offline, online'):
        with experiment_logger(tmp_path, 'nope', dict(preset='unet-s', seed=1)):
            pass


def test_train_alone_finishes_in_under_a_minute(tmp_path):
    start = time.time()
    assert papermill('03_train', tmp_path / 'out.ipynb').returncode == 0
    assert time.time() - start < 60
