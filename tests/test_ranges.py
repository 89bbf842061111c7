"Every number that a user can give has a range, and a wrong one is refused with a sentence before anything long starts."

import ast
import json
import math
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from bcss_nb import cli
from bcss_nb.core import ranges
from bcss_nb.core.ranges import Range, check_ranges
from bcss_nb.data.prepare import prepare
from bcss_nb.data.simulator import make_sample
from bcss_nb.data.tiling import TilingConfig
from bcss_nb.inference.engines import ENGINES
from bcss_nb.serving.settings import Settings
from bcss_nb.training.config import BUDGETS, TrainConfig
from bcss_nb.training.train import main as train

ROOT = Path(__file__).parent.parent
BAD = (math.nan, math.inf, -math.inf)


def below(r):
    return r.min if r.open_min else r.min - 1


def above(r):
    return r.max if r.open_max else r.max + 1


def numbers(table):
    return {k: r for k, r in table.items() if isinstance(r, Range)}


def refuses(call, *words):
    with pytest.raises(ValueError) as caught:
        call()
    assert all(w in str(caught.value) for w in words) and '\n' not in str(caught.value), str(caught.value)


@pytest.mark.parametrize('table', [name for name in dir(ranges) if name.endswith('_RANGES')])
def test_tables_refuse_what_is_no_number_and_what_lies_outside(table):
    for name, r in numbers(getattr(ranges, table)).items():
        for value in (*BAD, below(r), above(r), True, '1', [1], *([r.min + 0.5] if r.kind is int else [])):
            refuses(lambda v=value, n=name: check_ranges({n: v}, getattr(ranges, table)), name, repr(value))
        check_ranges(
            {name: r.kind(r.max - 1 if r.open_max and r.max > 1 else r.max / 2 if r.open_max else r.max)},
            getattr(ranges, table),
        )


@pytest.mark.parametrize(
    'command,table',
    [('predict', ranges.PREDICT_RANGES), ('export', ranges.EXPORT_RANGES), ('serve', ranges.SERVE_RANGES)],
)
def test_every_option_of_every_command_has_a_range(command, table):
    "Paths, switches and what stands for itself have none."
    parser = cli.make_parser()._subparsers._group_actions[0].choices[command]
    options = {a.dest: a for a in parser._actions}
    free = (
        {'help', 'pictures', 'model', 'out', 'run', 'data'}
        | {a.dest for a in parser._actions if a.nargs == 0}
        | {a.dest for a in parser._actions if a.type is cli.home_path}
    )
    assert set(options) - free == set(table) and not [
        d for d in set(options) - free if options[d].type not in (int, float, None)
    ]
    for name, a in options.items():
        if name in table and a.default is not None:
            assert table[name].accepts(a.default), name


@pytest.mark.parametrize(
    'option,value',
    [
        (ranges.as_option(k), v)
        for k, r in numbers(ranges.PREDICT_RANGES).items()
        for v in (below(r), above(r), *(BAD if r.kind is float else ()))
    ]
    + [('--device', 'gpu'), ('--engine', 'fast')],
)
def test_predict_refuses_before_anything_is_loaded(option, value, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr('bcss_nb.inference.engines.open_engine', lambda *a: pytest.fail('a model was loaded first'))
    assert (
        cli.main(['predict', str(tmp_path), '--model', 'x', '--out', str(tmp_path / 'out'), f'{option}={value}']) == 1
    )
    said = capsys.readouterr().err
    assert (
        said.startswith('bcss predict: ')
        and option.lstrip('-') in said
        and str(value) in said
        and len(said.splitlines()) == 1
        and not (tmp_path / 'out').exists()
    )


def test_export_and_serve_refuse_before_anything_is_loaded(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr('bcss_nb.data.dataset.load_dataset', lambda *a: pytest.fail('the set was loaded first'))
    monkeypatch.setattr('bcss_nb.serving.app.run_service', lambda *a: pytest.fail('the service was started'))
    for args in (
        ['export', 'x', '--data', 'x', '--out', str(tmp_path / 'o'), '--tiles', '-1'],
        ['export', 'x', '--data', 'x', '--out', str(tmp_path / 'o'), '--engine', 'fast'],
        ['serve', '--port', '-1'],
        ['serve', '--port', '65536'],
        ['serve', '--host', ''],
    ):
        assert cli.main(args) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_every_parameter_of_a_training_has_a_range():
    free = {'model', 'weighted', 'pretrained', 'compile'}
    assert {f.name for f in fields(TrainConfig)} - free == set(ranges.TRAIN_RANGES) - {'resume', 'track'}
    assert set(ranges.TRAIN_RANGES['budget'].words) == set(BUDGETS) and set(ranges.EXPORTED_ENGINES) == set(ENGINES)
    params = yaml.safe_load((ROOT / 'params/train.yaml').read_text())
    check_ranges(params, ranges.TRAIN_RANGES)
    for name, r in numbers(ranges.TRAIN_RANGES).items():
        for value in (*BAD, below(r), above(r)):
            refuses(lambda v=value, n=name: TrainConfig(**{n: v}), name)


@pytest.mark.parametrize(
    'args',
    '--steps=-5 --batch=0 --clip=-1 --ema=1 --minutes=-1 --lr=nan --epochs=inf --accumulate=0 --seed=-1 --track=maybe '
    '--resume=perhaps'.split(),
)
def test_training_refuses_before_the_set_is_loaded(args, monkeypatch, tmp_path):
    monkeypatch.setattr('bcss_nb.training.train.load_dataset', lambda *a: pytest.fail('the set was loaded first'))
    with pytest.raises(SystemExit) as caught:
        train([args, f'--out={tmp_path}/run', '--data=x'])
    name, value = args.lstrip('-').split('=')
    assert name in str(caught.value.code) and value in str(caught.value.code) and not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'args',
    [
        dict(val=math.nan),
        dict(val=-1.0),
        dict(folds=1, split='patient-kfold'),
        dict(fold=-1, split='patient-kfold'),
        dict(fold=5, split='patient-kfold'),
        dict(seed=-1),
        dict(workers=-1),
    ],
)
def test_prepare_refuses_before_it_reads(args, monkeypatch, tmp_path):
    monkeypatch.setattr('bcss_nb.data.prepare.detect_layout', lambda *a: pytest.fail('the data was read first'))
    refuses(lambda: prepare('kaggle224', 'x', tmp_path / 'out', **args), next(k for k in args if k != 'split'))


def test_cutting_and_the_sample_refuse():
    for args in (
        dict(size=0),
        dict(size=-224),
        dict(stride=-1),
        dict(min_tissue=math.nan),
        dict(min_tissue=math.inf),
        dict(size=10**6),
        dict(size=224.5),
        dict(edge='cut'),
    ):
        refuses(lambda a=args: TilingConfig(**a))
    for args in (
        dict(patients=-1),
        dict(patients=11),
        dict(patients=10**9),
        dict(seed=-1),
        dict(seed=2**32),
        dict(workers=-1),
    ):
        refuses(lambda a=args: make_sample(ROOT / 'data/raw/none', **a))
    assert not (ROOT / 'data/raw/none').exists()


def settings(name):
    return next(f for f in fields(Settings) if f.name == name)


def test_every_setting_of_the_service_has_a_range():
    free = {f.name for f in fields(Settings) if f.type is bool or f.name in ('model', 'api_key', 'store', 'root_path')}
    assert {f.name for f in fields(Settings)} - free == set(ranges.SERVICE_RANGES)
    for name, r in numbers(ranges.SERVICE_RANGES).items():
        assert r.kind is settings(name).type
        for value in (*(BAD if r.kind is float else ()), below(r), above(r)):
            refuses(
                lambda v=value, n=name: Settings.from_env({f'BCSS_{n.upper()}': str(v)}),
                f'BCSS_{name.upper()}',
                str(value),
            )
        for text in ('many', '', '1e', 'None'):
            refuses(lambda t=text, n=name: Settings.from_env({f'BCSS_{n.upper()}': t}), f'BCSS_{name.upper()}')


def test_switches_of_the_service_are_true_or_false():
    for text, value in (
        ('1', True),
        ('TRUE', True),
        ('yes', True),
        ('on', True),
        ('0', False),
        ('False', False),
        ('no', False),
        ('off', False),
        ('', False),
    ):
        assert Settings.from_env(dict(BCSS_STORE_PIXELS=text)).store_pixels is value
    for text in ('ture', '2', 'maybe', 'nan'):
        refuses(lambda t=text: Settings.from_env(dict(BCSS_STORE_PIXELS=t)), 'BCSS_STORE_PIXELS', text)


def test_unknown_variables_are_named_and_known_ones_are_not():
    with pytest.warns(UserWarning, match='BCSS_API_KYE is not known and has no effect: is BCSS_API_KEY meant'):
        Settings.from_env(dict(BCSS_API_KYE='x'))
    with pytest.warns(UserWarning, match='BCSS_DATA is not known'):
        Settings.from_env(dict(BCSS_DATA='x'))
    env = {
        f'BCSS_{f.name.upper()}': ''
        for f in fields(Settings)
        if f.type in (str, bool) and f.name not in ('engine', 'model')
    }
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter('error')
        Settings.from_env(
            env
            | dict(
                BCSS_REAL='x',
                BCSS_SERVICE_HOST='10.0.0.1',
                BCSS_PORT_8080_TCP='tcp://10.0.0.1:8080',
                BCSS_PORT='tcp://10.0.0.1:8080',
                OTHER='x',
            )
        )


def test_the_project_reads_no_other_variables():
    "What is read anywhere under the name BCSS_ is known to the check."
    places = ('bcss_nb', 'bench', '.ci', 'deploy', 'Makefile', 'compose.yaml', 'Dockerfile.serve', 'README.md', 'docs')
    found = subprocess.run(
        ['grep', '-rhoE', r'\bBCSS_[A-Z0-9]+(_[A-Z0-9]+)*\b', '--exclude-dir=__pycache__', *places],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.split()
    known = {f'BCSS_{f.name.upper()}' for f in fields(Settings)} | set(ranges.OTHER_VARIABLES)
    folders = {'BCSS_512', 'BCSS_DATA', 'BCSS_PORT_8080_TCP', 'BCSS_SERVICE', 'BCSS_PORT'}  # names of data and examples
    assert set(found) - known - folders == set()


def test_the_service_names_what_it_does_not_know_on_one_line(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith('BCSS_')} | dict(BCSS_WRKERS='1')
    done = subprocess.run(
        [sys.executable, '-m', 'bcss_nb.cli', 'serve', '--model', str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=env,
    )
    lines = done.stderr.splitlines()
    assert (
        done.returncode == 1
        and lines[0] == 'bcss serve: the variable BCSS_WRKERS is not known and has no effect: is BCSS_WORKERS meant?'
        and len(lines) == 2
    ), done.stderr


def test_home_is_expanded_in_options_and_variables(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('HOME', str(tmp_path))
    s = Settings.from_env(dict(BCSS_MODEL='~/model', BCSS_STORE='~/store'))
    assert (
        (s.model, s.store) == (f'{tmp_path}/model', f'{tmp_path}/store')
        and Settings().model == 'exports/bcss'
        and Settings().store == ''
    )
    parse = cli.make_parser().parse_args
    a = parse(['predict', '~/slides', '--model=~/model', '--out=~/out'])
    assert (a.pictures, a.model, a.out) == ([tmp_path / 'slides'], f'{tmp_path}/model', tmp_path / 'out')
    a = parse(['export', '~/run', '--data=~/set', '--out=~/out'])
    assert (a.run, a.data, a.out) == (tmp_path / 'run', tmp_path / 'set', tmp_path / 'out')
    assert parse(['serve', '--model=~/model']).model == f'{tmp_path}/model'


NOTEBOOKS = {
    '01_dataset': ('PREPARE', {'fold': -1}),
    '03_train': ('TRAIN', {'steps': -5}),
    'studies/profiling': ('PROFILE', {'steps': 0}),
    '04_evaluate': ('EVALUATE', {'batch': 0}),
    'studies/robustness': ('EVALUATE', {'tiles': -1}),
    'studies/leakage': ('LEAK', {'steps': 0}),
    '05_compare': ('COMPARE', {}),
    '07_export': ('EXPORT', {'tiles': -1}),
    '09_monitor': ('MONITOR', {'hours': -1}),
}


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_every_number_of_a_notebook_has_a_range(name):
    cells = [c for c in json.loads((ROOT / f'nbs/{name}.ipynb').read_text())['cells'] if c['cell_type'] == 'code']
    at = next(i for i, c in enumerate(cells) if 'parameters' in c['metadata'].get('tags', []))
    given = {n.targets[0].id: ast.literal_eval(n.value) for n in ast.parse(''.join(cells[at]['source'])).body}
    table, bad = NOTEBOOKS[name]
    table = getattr(ranges, f'{table}_RANGES')
    assert {k for k, v in given.items() if type(v) in (int, float)} <= set(
        table
    ) and f'check_ranges(globals(), {NOTEBOOKS[name][0]}_RANGES)' in ''.join(cells[at + 1]['source'])
    check_ranges(given, table)
    if bad:
        refuses(lambda: check_ranges(given | bad, table), next(iter(bad)))


@pytest.mark.parametrize(
    'name,args', [('03_train', ('steps', '-5')), ('09_monitor', ('hours', '-1')), ('01_dataset', ('val', '.nan'))]
)
def test_papermill_refuses_numbers_out_of_range(name, args, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'papermill',
            f'nbs/{name}.ipynb',
            str(tmp_path / 'out.ipynb'),
            '-k',
            'python3',
            '--no-progress-bar',
            '-y',
            f'{args[0]}: {args[1]}',
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode and f'{args[0]} must be' in done.stderr, done.stderr[-800:]
