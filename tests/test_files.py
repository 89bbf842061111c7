"Nothing of the user's is ever lost: what this project did not make is neither replaced nor deleted."

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bcss_nb import cli
from bcss_nb.core.folders import EXPORTED_MODEL, check_replaceable, claim_files, replacing
from bcss_nb.data.download import DownloadError, download_kaggle, download_rois
from bcss_nb.data.prepare import prepare
from bcss_nb.data.simulator import make_sample
from bcss_nb.serving.export import export_run
from bcss_nb.training.run_state import remove_stale_temp_files
from bcss_nb.training.train import fit, train_model
from bcss_nb.training.trainer import Trainer

ROOT = Path(__file__).parent.parent


def snapshot(folder: Path) -> dict:
    "Every entry below a folder: contents of files, targets of links."
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else None
        for p in folder.rglob('*')
    }


@pytest.fixture
def desktop(tmp_path):
    "A folder full of files of other people and programs, some under names that this project uses too."
    folder = tmp_path / 'home/Desktop'
    (folder / 'figures').mkdir(parents=True)
    (folder / 'bundle').mkdir()
    (folder / 'evaluation').mkdir()
    (folder / 'empty').mkdir()
    files = {
        'thesis.docx': 'x',
        'model.json': '{"format": "layers-model", "weightsManifest": []}',
        'manifest.json': '{"name": "a browser extension", "version": "1"}',
        'sample.json': '[]',
        'train.json': '{"lr": 1}',
        'compare.html': '<html>',
        'monitor.json': '{}',
        'leakage.csv': 'a,b',
        'export.csv': 'a,b',
        'data_card.md': '#',
        'metrics_unet.json': '{}',
        'figures/cost.png': 'x',
        'bundle/notes.txt': 'x',
        '.hidden': 'x',
        '.DS_Store': 'x',
        'evaluation/unet.npz': 'x',
        'slide.geojson': '{}',
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    torch.save(dict(epoch=3, state_dict={}), folder / 'best.pt')
    torch.save(dict(epoch=3, state_dict={}), folder / 'last.pt')
    (folder / 'link').symlink_to(folder.parent)
    return folder


def unchanged(folder, call, words='', kinds=(ValueError,)):
    "The call is refused with these words, and the folder is byte-equal afterwards."
    before = snapshot(folder)
    with pytest.raises(kinds, match=words):
        call()
    assert snapshot(folder) == before


def test_export_leaves_a_full_folder_alone(desktop, ts, run, monkeypatch, capsys):
    monkeypatch.setattr('bcss_nb.serving.export.write_onnx', lambda *a: pytest.fail('work was done before the check'))
    unchanged(desktop, lambda: export_run(run, ts, desktop, tiles=4), 'thesis.docx|bundle|empty|hidden')
    before = snapshot(desktop)
    assert (
        cli.main(['export', str(run), '--data', str(ROOT / 'data/smoke'), '--out', str(desktop), '--tiles', '4']) == 1
    )
    said = capsys.readouterr().err
    assert (
        snapshot(desktop) == before
        and str(desktop) in said
        and 'Choose another out' in said
        and len(said.splitlines()) == 1
    )


def test_export_expands_the_home_folder(desktop, ts, run, monkeypatch, capsys):
    monkeypatch.setenv('HOME', str(desktop.parent))
    before = snapshot(desktop)
    assert cli.main(['export', str(run), '--data', str(ROOT / 'data/smoke'), '--out=~/Desktop']) == 1
    assert snapshot(desktop) == before and str(desktop) in capsys.readouterr().err and not Path('~').exists()


@pytest.mark.parametrize(
    'extra',
    [
        'notes.txt',
        'bundle/eval/region_classes.png',
        'bundle/docs/paper.pdf',
        'photos/a.jpg',
        'empty/',
        'model.onnx.bak',
    ],
)
def test_a_strangers_file_in_our_export_is_kept(exported, ts, run, tmp_path, extra):
    out = tmp_path / 'model'
    shutil.copytree(exported, out)
    if extra.endswith('/'):
        (out / extra).mkdir()
    else:
        (out / extra).parent.mkdir(parents=True, exist_ok=True)
        (out / extra).write_text('years of work')
    unchanged(tmp_path, lambda: export_run(run, ts, out, tiles=4), extra.split('/')[0])


def test_a_link_to_a_folder_is_followed_and_kept(exported, tmp_path, desktop):
    disk = tmp_path / 'disk/model'
    disk.parent.mkdir()
    shutil.copytree(exported, disk)
    link = tmp_path / 'model'
    link.symlink_to(disk)
    with replacing(link, EXPORTED_MODEL) as new:
        (new / 'model.json').write_text((exported / 'model.json').read_text())
    assert (
        link.is_symlink()
        and [p.name for p in disk.iterdir()] == ['model.json']
        and [p.name for p in disk.parent.iterdir()] == ['model']
    )
    (disk / 'bundle').symlink_to(desktop)
    unchanged(desktop, lambda: check_replaceable(link, EXPORTED_MODEL), 'bundle')
    link.unlink()
    link.symlink_to(desktop)
    unchanged(desktop, lambda: check_replaceable(link, EXPORTED_MODEL), 'Desktop')


def test_home_working_directory_inputs_and_files_are_never_replaced(exported, tmp_path, monkeypatch):
    home = tmp_path / 'home'
    shutil.copytree(exported, home)
    monkeypatch.setenv('HOME', str(home))
    for out in ('~', home, '/', tmp_path):
        unchanged(home, lambda o=out: check_replaceable(o, EXPORTED_MODEL), 'home folder|working directory')
    work = tmp_path / 'work'
    shutil.copytree(exported, work)
    monkeypatch.chdir(work)
    for out in ('.', work, '../work'):
        unchanged(work, lambda o=out: check_replaceable(o, EXPORTED_MODEL), 'working directory')
    monkeypatch.chdir(ROOT)
    unchanged(work, lambda: check_replaceable(work, EXPORTED_MODEL, (work / 'bundle',)), 'the input')
    unchanged(work, lambda: check_replaceable(work / 'model.json', EXPORTED_MODEL), 'is a file')


def test_a_file_that_arrives_late_is_kept(exported, tmp_path):
    out = tmp_path / 'model'
    shutil.copytree(exported, out)
    before = snapshot(tmp_path) | {'model/thesis.docx': b'x'}
    with pytest.raises(ValueError, match='thesis.docx'):
        with replacing(out, EXPORTED_MODEL) as new:
            (new / 'model.json').write_text('{}')
            (out / 'thesis.docx').write_text('x')
    assert snapshot(tmp_path) == before


def test_killed_runs_leave_work_folders_that_only_their_owner_and_the_next_run_remove(exported, tmp_path):
    out, mine = tmp_path / 'model', tmp_path / '.model.mine.bcss_nb'
    shutil.copytree(exported, out)
    mine.mkdir()
    (mine / 'lock').touch()
    (mine / 'thesis.docx').write_text('x')
    code = (
        'import os, signal, sys; from bcss_nb.core.folders import *\nwith replacing(sys.argv[1], EXPORTED_MODEL) as '
        "new:\n (new/'model.onnx').write_text('half')\n"
        ' os.kill(os.getpid(), signal.SIGKILL)'
    )
    subprocess.run([sys.executable, '-c', code, str(out)], cwd=ROOT)
    left = [p for p in tmp_path.glob('.model.*') if p != mine]
    assert len(left) == 1 and (left[0] / 'new/model.onnx').exists()
    with replacing(out, EXPORTED_MODEL) as new:
        assert not left[0].exists()
        with replacing(tmp_path / 'other', EXPORTED_MODEL) as other:
            (other / 'model.json').write_text('{}')
        with pytest.raises(OSError), replacing(out, EXPORTED_MODEL):
            raise OSError('another process, which leaves the work of this one alone')
        assert new.exists()
        shutil.copy(exported / 'model.json', new)
    assert (
        sorted(p.name for p in tmp_path.iterdir()) == ['.model.mine.bcss_nb', 'model', 'other']
        and (mine / 'thesis.docx').exists()
    )
    killed = tmp_path / '.model.abc.bcss_nb'
    killed.mkdir()
    (killed / 'lock').touch()
    out.rename(killed / 'old')
    with pytest.raises(OSError), replacing(out, EXPORTED_MODEL):
        raise OSError('no space left')
    assert (out / 'model.json').exists() and not killed.exists()


def test_prepare_leaves_a_full_folder_and_its_neighbors_alone(desktop, tmp_path):
    raw = make_sample(ROOT / 'data/raw/sample') / 'kaggle224'
    unchanged(desktop, lambda: prepare('kaggle224', raw, desktop), 'Choose another out')
    neighbors = [desktop.parent / name for name in ('.set.old', '.set.tmp')]
    for folder in neighbors:
        folder.mkdir()
        (folder / 'thesis.docx').write_text('x')
    out = prepare('kaggle224', raw, desktop.parent / 'set', deep=False)
    assert (out / 'manifest.json').exists() and all((folder / 'thesis.docx').read_text() == 'x' for folder in neighbors)
    (out / 'notes.txt').write_text('x')
    unchanged(out, lambda: prepare('kaggle224', raw, out, deep=False), 'notes.txt')
    (out / 'notes.txt').unlink()
    prepare('kaggle224', raw, out, deep=False)
    (out / 'manifest.json').write_text('{"name": "a browser extension"}')
    unchanged(out, lambda: prepare('kaggle224', raw, out, deep=False), 'no prepared set')


def test_sample_leaves_strangers_alone(desktop):
    before = snapshot(desktop.parent)
    assert make_sample(desktop, patients=12) == desktop
    with pytest.raises(ValueError, match='is a file'):
        make_sample(desktop / 'thesis.docx', patients=12)
    assert snapshot(desktop.parent) == before
    aside = desktop.parent / '.sample.tmp'
    aside.mkdir()
    (aside / 'thesis.docx').write_text('x')
    make_sample(desktop.parent / 'sample', patients=12)
    assert (aside / 'thesis.docx').read_text() == 'x'


def test_downloads_leave_strangers_alone(tmp_path, monkeypatch):
    home = tmp_path / 'home'
    (home / '.kaggle').mkdir(parents=True)
    (home / '.kaggle/kaggle.json').write_text('{"username": "u", "key": "k"}')
    for name in ('KAGGLE_USERNAME', 'KAGGLE_KEY'):
        monkeypatch.setenv(name, 'someone')

    def download(_):
        place = Path(os.environ['KAGGLEHUB_CACHE']) / 'files'
        (place / 'BCSS').mkdir(parents=True)
        return str(place)

    monkeypatch.setattr('kagglehub.dataset_download', download)
    download_kaggle(home / 'kaggle')
    assert (
        (home / '.kaggle/kaggle.json').exists()
        and (home / 'kaggle/BCSS').exists()
        and sorted(p.name for p in home.iterdir()) == ['.kaggle', 'kaggle']
    )
    (home / '.new.kagglehub').mkdir()
    (home / '.new.kagglehub/thesis.docx').write_text('x')
    unchanged(home, lambda: download_kaggle(home / 'new'), 'thesis.docx', DownloadError)
    (home / 'roi/masks').mkdir(parents=True)
    (home / 'roi/masks/TCGA-A1-A0SK-DX1_xmin1_ymin1_MPP-0.2500.png').write_text('corrected by hand')
    unchanged(home, lambda: download_rois(home / 'roi'), 'masks/TCGA')


@pytest.mark.parametrize('resume', ['auto', 'yes', 'no'])
@pytest.mark.parametrize(
    'names',
    [
        ('best.pt',),
        ('last.pt',),
        ('train.json',),
        ('live/plots/metrics/accuracy.tsv', 'live/metrics.json'),
        ('live/report.html',),
    ],
)
def test_training_leaves_files_of_its_names_alone(desktop, tmp_path, ts, resume, names):
    out = tmp_path / 'out'
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        if (desktop / name).exists():
            shutil.copy(desktop / name, out / name)
        else:
            (out / name).write_text('{}')
    words = names[0].split('/')[0]
    unchanged(
        out,
        lambda: train_model(data='data/smoke', out=str(out), resume=resume, steps=1, batch=2),
        words,
        (ValueError, FileNotFoundError),
    )
    unchanged(
        out,
        lambda: fit(Trainer(ts, 'unet', steps=1, batch=2), out, resume=resume),
        words,
        (ValueError, FileNotFoundError),
    )


def test_sweeping_checkpoints_keeps_other_temporary_files(tmp_path):
    for name in ('.best.pt.12.tmp', '.last.pt.7.tmp', '.thesis.pt.backup.tmp', '.best.pt.mine.tmp'):
        (tmp_path / name).touch()
    remove_stale_temp_files(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['.best.pt.mine.tmp', '.thesis.pt.backup.tmp']


@pytest.mark.parametrize(
    'notebook,args',
    [
        ('01_dataset', ('-r', 'out', 'OUT')),
        ('studies/profiling', ()),
        ('04_evaluate', ()),
        ('studies/robustness', ()),
        ('studies/leakage', ()),
        ('05_compare', ()),
        ('07_export', ('-r', 'out', 'OUT')),
        ('09_monitor', ()),
    ],
)
def test_notebooks_leave_reports_of_others_alone(desktop, tmp_path, notebook, args):
    for name in ('profile_unet.csv', 'robustness_unet.csv'):
        (desktop / name).write_text('x')
    before = snapshot(desktop)
    args = [str(tmp_path / 'made') if a == 'OUT' else a for a in args]
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'papermill',
            f'nbs/{notebook}.ipynb',
            str(tmp_path / 'out.ipynb'),
            '-k',
            'python3',
            '--no-progress-bar',
            '-r',
            'reports',
            str(desktop),
            *args,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode and 'which this project did not write' in done.stderr, done.stderr[-1500:]
    assert snapshot(desktop) == before and not (tmp_path / 'made').exists()


def test_reports_may_be_written_again_where_they_were_written_before(tmp_path):
    for _ in range(2):
        claim_files(tmp_path / 'new', 'monitor.json')
        (tmp_path / 'new/monitor.json').write_text('{}')
    (tmp_path / 'new/monitor.html').write_text('x')
    unchanged(tmp_path, lambda: claim_files(tmp_path / 'new', 'monitor.json', 'monitor.html'), 'monitor.html')
    assert claim_files(ROOT / 'runs/reports', 'monitor.json') and not (ROOT / 'runs/reports/.bcss_nb.json').exists()


def test_make_clean_removes_what_runs_made_and_nothing_else(exported, run, desktop):
    project = desktop.parent / 'project'
    for name in (
        'Makefile',
        'settings.ini',
        'params.yaml',
        'deploy/gcp/gcp.mk',
        'bcss_nb/__init__.py',
        'bcss_nb/core/folders.py',
    ):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    shutil.copytree(exported, project / 'exports/bcss')
    shutil.copytree(exported, project / 'exports/mine')
    (project / 'exports/mine/notes.txt').write_text('x')
    shutil.copytree(ROOT / 'data/smoke', project / 'data/processed')
    shutil.copytree(run, project / 'runs/unet/42')
    shutil.copytree(desktop, project / 'runs/desktop', symlinks=True)
    shutil.copytree(desktop, project / 'reports/desktop', symlinks=True)
    for name in ('compare.html', 'leakage.csv', 'leakage.ipynb', 'my table.csv', 'notes.md', 'talk.ipynb', 'README.md'):
        (project / 'reports' / name).write_text('x')
    done = subprocess.run(
        ['make', 'clean', f'PYTHON={sys.executable}', f'VENV={Path(sys.executable).parent.parent}'],
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for gone in (
        'exports/bcss',
        'data/processed',
        'runs/unet',
        'reports/compare.html',
        'reports/leakage.csv',
        'reports/leakage.ipynb',
    ):
        assert not (project / gone).exists(), gone
    for kept in (
        'exports/mine/model.json',
        'exports/mine/notes.txt',
        'reports/README.md',
        'reports/my table.csv',
        'reports/notes.md',
        'reports/talk.ipynb',
    ):
        assert (project / kept).exists(), kept
    assert (
        snapshot(project / 'runs/desktop') == snapshot(desktop) == snapshot(project / 'reports/desktop')
        and 'left alone' in done.stdout
    )
