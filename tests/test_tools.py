"What people watch: one line per stage, a failure that says why and where, and options of make that mean what they say."

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parent.parent


def tool(name):
    "tools/NAME.py as a module."
    spec = importlib.util.spec_from_file_location(f'tool_{name}', ROOT / f'tools/{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pipeline, stage = tool('pipeline'), tool('stage')


def run_stage(folder, *cells, env=None, args=()):
    "Run a notebook of these cells as a stage."
    code = [nbformat.v4.new_code_cell(cell) for cell in cells]
    code[0].metadata['tags'] = ['parameters']
    kernel = dict(kernelspec=dict(name='python3', language='python', display_name='python3'))
    nbformat.write(nbformat.v4.new_notebook(cells=code, metadata=kernel), folder / '03_tiny.ipynb')
    command = [sys.executable, str(ROOT / 'tools/stage.py'), '03_tiny.ipynb', 'out/03_tiny_unet_42.ipynb', *args]
    (folder / 'out').mkdir(exist_ok=True)
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=dict(os.environ) | (env or {}))


REPORT = 'from bcss_nb.core.progress import report_progress\n'


def test_a_stage_is_one_line(tmp_path):
    cell = REPORT + "import os\nprint('noise')\nos.system('echo more noise >&2')\nreport_progress(f'{steps} steps')"
    done = run_stage(tmp_path, 'steps = 1', cell, args=('-p', 'steps', '7'))
    assert done.returncode == 0 and done.stderr == ''
    [line] = done.stdout.splitlines()
    assert line.startswith('tiny unet 42 ') and ' 7 steps ' in line and line.endswith(' s')
    assert (tmp_path / 'out/03_tiny_unet_42.ipynb').exists()


def test_a_failure_says_why_and_where(tmp_path):
    done = run_stage(tmp_path, 'steps = 1', "raise ValueError('no labeled pixel')", "print('never')")
    assert done.returncode == 1 and 'FAILED' in done.stdout
    assert 'ValueError: no labeled pixel' in done.stderr and 'out/03_tiny_unet_42.ipynb' in done.stderr
    assert 'Traceback' not in done.stderr and 'never' not in done.stdout


def test_verbose_shows_everything(tmp_path):
    done = run_stage(tmp_path, 'steps = 1', "print('details')", env=dict(VERBOSE='1'))
    assert done.returncode == 0 and 'details' in done.stdout + done.stderr


def test_a_module_is_a_stage_too(tmp_path):
    command = [sys.executable, str(ROOT / 'tools/stage.py'), '-m', 'bcss_nb.data.simulator', '--patients', '3']
    done = subprocess.run([*command, '--out', str(tmp_path / 'x')], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.startswith('simulator') and '--patients must be' in done.stderr


@pytest.fixture
def project(tmp_path, monkeypatch):
    "The parameter files, committed."
    shutil.copy(ROOT / 'params.yaml', tmp_path)
    shutil.copytree(ROOT / 'params', tmp_path / 'params')
    git = ['git', '-c', 'user.name=t', '-c', 'user.email=t@t']
    for args in (['init', '-q'], ['add', '-A'], ['commit', '-qm', 'x']):
        subprocess.run([*git, *args], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_defaults_change_nothing(project):
    assert pipeline.overrides(dict(SOURCE='sample', MODELS='unet,unetr', SEEDS='42,43,44', BUDGET='smoke')) == []


def test_options_become_overrides(project):
    options = dict(SEEDS='7', VAL='0.1', TEST_SITES='OL,LL', STRICT='true', SET='params/train.yaml:lr=0.003')
    assert pipeline.overrides(options) == [
        'seeds=[7]',
        "params/prepare.yaml:test_sites='OL,LL'",
        'params/prepare.yaml:val=0.1',
        'params/prepare.yaml:strict=true',
        'params/train.yaml:lr=0.003',
    ]


def test_a_raw_folder_may_hold_quotes_and_backslashes(project):
    assert pipeline.overrides(dict(RAW="it's a \\ folder")) == ["raw='it\\'s a \\\\ folder'"]


def test_what_is_not_given_goes_back_and_says_so(project, capsys):
    file = project / 'params/prepare.yaml'
    file.write_text(file.read_text().replace('val: 0.2', 'val: 0.0'))
    assert pipeline.overrides({}) == ['params/prepare.yaml:val=0.2']
    assert 'val goes back from 0.0 to 0.2 (VAL=... keeps it)' in capsys.readouterr().out
    assert pipeline.overrides(dict(VAL='0')) == []


@pytest.mark.parametrize(
    'options,words', [(dict(SAUCE='x'), 'unknown option SAUCE'), (dict(FOLD='x'), 'FOLD must be a whole number')]
)
def test_wrong_options_are_refused(project, options, words):
    with pytest.raises(ValueError, match=words):
        pipeline.overrides(options)


def test_conda_installs_what_make_installs():
    environment = yaml.safe_load((ROOT / 'environment.yml').read_text())
    pip = next(item['pip'] for item in environment['dependencies'] if isinstance(item, dict))
    files = [line.removeprefix('-r ') for line in pip if line.startswith('-r ')]
    assert files == ['requirements.txt', 'requirements_serve.txt', 'requirements_dev.txt'] and '-e .' in pip
    assert all((ROOT / file).exists() for file in files) and json.dumps(environment)
