"What a newcomer meets first: a ZIP download, a folder of somebody else's, odd names and half a zip."

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from bcss_nb.data.dataset import load_dataset
from bcss_nb.data.prepare import prepare
from bcss_nb.data.simulator import make_sample
from bcss_nb.data.sources import detect_layout

ROOT = Path(__file__).parent.parent
HOLD = dict(test_patients='SYNT-H1-0000', val=0.0)


@pytest.fixture(scope='module')
def tiles(tmp_path_factory):
    "Some tiles of the sample in Kaggle's layout."
    sample, out = make_sample() / 'kaggle224/BCSS', tmp_path_factory.mktemp('tiles') / 'BCSS'
    for part in ('train', 'val'):
        for folder in (part, f'{part}_mask'):
            (out / folder).mkdir(parents=True)
            for name in sorted(f.name for f in (sample / part).iterdir())[::12]:
                shutil.copy(sample / folder / name, out / folder / name)
    return out


def tracked_copy(target):
    "The files of this project as a ZIP download has them."
    names = subprocess.run(
        ['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split('\0')
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def make(folder, *args, **env):
    return subprocess.run(
        ['make', *args], cwd=folder, capture_output=True, text=True, timeout=500, env=os.environ | env
    )


@pytest.mark.parametrize('goal', ['demo', 'data', 'train', 'sweep'])
def test_a_download_without_git_is_told_what_to_type(goal, tmp_path):
    copy = tracked_copy(tmp_path / 'bcss_nb-main')
    said = make(copy, goal, GIT_CEILING_DIRECTORIES=str(tmp_path))
    assert said.returncode != 0 and 'git init -q' in said.stderr and not (copy / '.venv').exists()
    typed = next(line for line in said.stderr.splitlines() if line.startswith('  git init'))
    subprocess.run(typed, shell=True, cwd=copy, check=True)
    assert make(copy, '-n', goal).returncode == 0 and make(copy, 'repository').returncode == 0


def test_a_folder_of_another_user_gets_a_hint(tmp_path):
    copy = tracked_copy(tmp_path / 'copy')
    subprocess.run(['git', 'init', '-q'], cwd=copy, check=True)
    said = make(copy, 'repository', GIT_TEST_ASSUME_DIFFERENT_OWNER='1')
    assert said.returncode != 0 and f'git config --global --add safe.directory {copy}' in said.stderr


def test_a_raw_folder_of_any_name(tiles, tmp_path):
    "make data, all the way through DVC and papermill."
    clone, raw = tmp_path / 'clone', tmp_path / 'it\'s "my" (first) $HOME `x`'
    tracked_copy(clone)
    for command in (['init', '-q'], ['add', '-A'], ['-c', 'user.name=x', '-c', 'user.email=x@x', 'commit', '-qm', 'x']):
        subprocess.run(['git', *command], cwd=clone, check=True)
    shutil.copytree(tiles.parent, raw)
    said = make(
        clone,
        '-o',
        'setup',
        'data',
        f'VENV={ROOT / ".venv"}',
        'SOURCE=kaggle224',
        f'RAW={raw}',
        'TEST_PATIENTS=SYNT-H1-0000',
        'VAL=0',
        PYTHONPATH=str(clone),
    )
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr[-2000:]
    assert load_dataset(clone / 'data/processed').manifest['counts']['kept'] > 10
    said = make(clone, '-o', 'setup', 'data', f'VENV={ROOT / ".venv"}', 'SOURCE=kaggle224', f'RAW={raw}x')
    assert said.returncode != 0 and f'The raw folder {raw}x does not exist' in said.stderr


def test_endings_in_capitals(tiles, tmp_path):
    for f in tiles.rglob('*.png'):
        new = tmp_path / 'raw' / f.relative_to(tiles.parent).with_suffix('.PNG' if 'mask' not in str(f) else '.png')
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, new)
    kept = [
        load_dataset(prepare('kaggle224', raw, tmp_path / str(i), **HOLD))
        for i, raw in enumerate((tiles.parent, tmp_path / 'raw'))
    ]
    assert kept[0].manifest['id'] == kept[1].manifest['id'] and len(kept[0].tiles) > 10


def zipped(tiles, path, separator='/'):
    with zipfile.ZipFile(path, 'w') as z:
        for f in sorted(tiles.rglob('*.png')):
            info = zipfile.ZipInfo('x')
            info.filename = str(f.relative_to(tiles.parent)).replace('/', separator)
            z.writestr(info, f.read_bytes())
    return path


def test_a_zip_with_backslashes(tiles, tmp_path):
    kept = [
        load_dataset(prepare('kaggle224', zipped(tiles, tmp_path / f'{i}.ZIP', s), tmp_path / f'set{i}', **HOLD))
        for i, s in enumerate('/\\')
    ]
    assert kept[0].manifest['id'] == kept[1].manifest['id'] and len(kept[0].tiles) > 10


@pytest.mark.parametrize('share', [0.001, 0.5, 0.999])
def test_half_a_zip_is_called_so(tiles, share, tmp_path):
    whole = zipped(tiles, tmp_path / 'whole.zip').read_bytes()
    (tmp_path / 'folder').mkdir()
    for path in (tmp_path / 'half.zip', tmp_path / 'folder/half.zip'):
        path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match='a zip whose end is missing .* fetch it again'):
        detect_layout(tmp_path / 'half.zip', 'kaggle224')
    with pytest.raises(FileNotFoundError, match='half.zip: a zip whose end is missing'):
        detect_layout(tmp_path / 'folder', 'kaggle224')
