"""Results beside other people's files: whole or absent, never in the place of something else; one bad picture stops
no other."""

import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from test_predict import Plain, Reddish

from bcss_nb.data.simulator import simulate_roi
from bcss_nb.inference.batch import predict_files
from bcss_nb.inference.discovery import find_images
from bcss_nb.inference.outputs import predict_file
from bcss_nb.inference.pixels import UnreadableImage
from bcss_nb.inference.prediction import predict_image
from bcss_nb.inference.readers import SlideReader
from bcss_nb.inference.result_folders import ResultConflict

OUTPUTS = ['.classes.ome.tif', '.geojson', '.json', '.overlay.png']


def save(path, seed=0, side=200):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.tile(simulate_roi(seed, shape=(min(side, 500),) * 2)[1], (-(-side // 500), -(-side // 500), 1))
    Image.fromarray(image).save(path)
    return path


def content(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob('*')) if f.is_file()}


def is_whole(folder):
    "The manifest lists exactly what is there, with its hashes."
    manifest = json.loads((folder / 'manifest.json').read_text())
    there = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir() if f.name != 'manifest.json'}
    return {k: v['sha256'] for k, v in manifest['files'].items()} == there


CODE = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_predict import Plain, predict_file
print('ready', flush=True)
for line in sys.stdin:
    seconds, out = line.split(' ', 1)
    time.sleep(float(seconds))
    found = predict_file(Path({picture!r}), Plain(), Path(out.strip()), mpp=.25)
    print(found['classes']['tumor']['area_mm2'], flush=True)
"""


def test_twenty_runs_of_two_processes(tmp_path):
    picture = save(tmp_path / 'in/slide.png', 3, 1500)
    alone = predict_file(picture, Plain(), tmp_path / 'alone', mpp=0.25)
    want = tifffile.imread(tmp_path / 'alone/slide.png.bcss/slide.classes.ome.tif')
    code = CODE.format(tests=str(Path(__file__).parent), picture=str(picture))
    workers = [
        subprocess.Popen(
            [sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        for _ in range(2)
    ]
    try:
        for w in workers:
            assert w.stdout.readline() == 'ready\n'
        rng = random.Random(0)
        for i in range(20):
            for w in workers:
                w.stdin.write(f'{rng.random() * 0.3:.3f} {tmp_path / f"out{i}"}\n')
            assert [float(w.stdout.readline()) for w in workers] == [alone['classes']['tumor']['area_mm2']] * 2
            folder = tmp_path / f'out{i}/slide.png.bcss'
            assert [f.name for f in folder.parent.iterdir()] == ['slide.png.bcss'] and is_whole(folder)
            assert (tifffile.imread(folder / 'slide.classes.ome.tif') == want).all()
    finally:
        for w in workers:
            w.stdin.close()
            w.wait(20)


def test_a_part_of_a_map_that_is_gone_is_an_error(tmp_path):
    image = np.tile(simulate_roi(3, shape=(500, 500))[1], (3, 3, 1))

    def lose(_):
        shutil.rmtree(tmp_path / 'maps/raw/c/0', ignore_errors=True)

    (tmp_path / 'maps').mkdir()
    with pytest.raises(FileNotFoundError, match='a part of the map is missing'):
        predict_image(SlideReader(image), Reddish(), 256, 192, folder=tmp_path / 'maps', progress=lose)


@pytest.fixture
def strangers(tmp_path):
    "Pictures among other people's files."
    folder = tmp_path / 'slides'
    save(folder / 'slide.png')
    files = {
        'slide.geojson': b'{"mine": 1}',
        'slide.json': b'[]',
        'slide.classes.ome.tif': b'x',
        'slide.overlay.txt': b'y',
        '.slide.png.work': b'z',
        'manifest.json': b'{}',
        'notes/slide.png.bcss.txt': b'n',
        'slide.png.bcss.json': b'{}',
        '.slide.png.bcss.old/keep.txt': b'k',
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_files_of_others_stay_as_they_are(strangers):
    before = content(strangers)
    for _ in range(2):
        assert predict_files(find_images([strangers / 'slide.png']), Reddish(), strangers, mpp=0.25) == 0
    after = content(strangers)
    assert {k: after[k] for k in before} == before
    assert sorted(set(after) - set(before)) == sorted(
        f'slide.png.bcss/{name}' for name in ['manifest.json', *(f'slide{e}' for e in OUTPUTS)]
    )


def folder_with(name, data):
    return lambda folder: (folder.mkdir(), (folder / name).write_bytes(data))


@pytest.mark.parametrize(
    'make',
    [
        folder_with('thesis.txt', b'x'),
        lambda path: path.write_text('x'),
        folder_with('manifest.json', b'{"files": {}}'),
        folder_with('manifest.json', b'\xff'),
    ],
    ids=['folder', 'file', 'manifest', 'bytes'],
)
def test_a_folder_of_somebody_else_under_our_name(make, tmp_path, capsys):
    pictures = [save(tmp_path / f'{n}.png', i) for i, n in enumerate('ab')]
    (tmp_path / 'out').mkdir()
    make(tmp_path / 'out/a.png.bcss')
    before = content(tmp_path / 'out')
    assert predict_files(pictures, Reddish(), tmp_path / 'out', mpp=0.25) == 1
    after = content(tmp_path / 'out')
    assert {k: after[k] for k in before} == before and is_whole(tmp_path / 'out/b.png.bcss')
    assert 'was not made by bcss predict and is left as it is' in capsys.readouterr().err


def test_what_the_user_changed_or_added_is_never_replaced(tmp_path):
    picture, result = save(tmp_path / 'a.png'), tmp_path / 'out/a.png.bcss'
    predict_file(picture, Reddish(), tmp_path / 'out', mpp=0.25)
    for name in ('a.geojson', 'corrected.geojson'):
        saved = content(result)
        (result / name).write_text('corrected by hand')
        for options in (dict(overwrite=True), dict(min_region=9.0), {}):
            with pytest.raises(ResultConflict, match=name):
                predict_file(picture, Reddish(), tmp_path / 'out', mpp=0.25, **options)
        assert (result / name).read_text() == 'corrected by hand'
        (result / name).write_bytes(saved[name]) if name in saved else (result / name).unlink()
    assert predict_file(picture, Reddish(), tmp_path / 'out', mpp=0.25)['was_done']


@pytest.mark.parametrize('name', [f'a{e}' for e in OUTPUTS] + ['manifest.json'])
def test_outputs_that_were_deleted_are_made_again(name, tmp_path):
    picture, result = save(tmp_path / 'a.png'), tmp_path / 'out/a.png.bcss'
    predict_file(picture, Reddish(), tmp_path / 'out', mpp=0.25)
    before = (result / 'a.classes.ome.tif').read_bytes()
    (result / name).unlink()
    if name == 'manifest.json':
        with pytest.raises(ResultConflict):
            predict_file(picture, Reddish(), tmp_path / 'out', mpp=0.25)
        return
    assert 'was_done' not in predict_file(picture, Reddish(), tmp_path / 'out', mpp=0.25) and is_whole(result)
    assert (tifffile.imread(result / 'a.classes.ome.tif') == tifffile.imread(io.BytesIO(before))).all()


def test_done_means_this_picture(tmp_path):
    "Same name, size and time in two folders is another picture; the same content elsewhere is the same."
    one, two, copy = save(tmp_path / '1/a.bmp', 1), save(tmp_path / '2/a.bmp', 2), tmp_path / '3/a.bmp'
    copy.parent.mkdir()
    shutil.copy2(one, copy)
    for f in (one, two):
        os.utime(f, ns=(10**18, 10**18))
    assert one.stat().st_size == two.stat().st_size
    first = predict_file(one, Reddish(), tmp_path / 'out', mpp=0.25)
    with pytest.raises(ResultConflict, match='another picture of this name'):
        predict_file(two, Reddish(), tmp_path / 'out', mpp=0.25)
    assert predict_file(copy, Reddish(), tmp_path / 'out', mpp=0.25)['was_done']
    os.replace(two, one)  # scanned again, at the same place
    assert predict_file(one, Reddish(), tmp_path / 'out', mpp=0.25)['classes'] != first['classes']


def test_out_is_the_folder_of_the_pictures(tmp_path, recwarn):
    save(tmp_path / 'a.png')
    save(tmp_path / 'b/c.png')
    for recursive, want in ((False, 1), (True, 2), (True, 2)):
        pictures = find_images([tmp_path], recursive)
        assert len(pictures) == want
        assert predict_files(pictures, Reddish(), tmp_path, roots=[tmp_path], mpp=0.25) == 0
    assert sorted(str(f.relative_to(tmp_path)) for f in tmp_path.rglob('*.bcss')) == ['a.png.bcss', 'b/c.png.bcss']
    assert any('--recursive' in str(w.message) for w in recwarn)


@pytest.mark.parametrize('limit', [3_000, 20_000, 40_000])
def test_a_full_disk_leaves_nothing(limit, tmp_path):
    picture = save(tmp_path / 'a.png', side=500)
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_predict import Reddish, predict_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try: predict_file(Path({str(picture)!r}), Reddish(), Path({str(tmp_path / 'out')!r}), mpp=.25, prob=True)
except Exception as e: sys.exit(type(e).__name__)"""
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert said.returncode == 1, said.stderr
    assert not list((tmp_path / 'out').iterdir())


def test_a_killed_run_leaves_what_the_next_one_removes(tmp_path):
    picture = save(tmp_path / 'a.png', side=2500)
    code = CODE.format(tests=str(Path(__file__).parent), picture=str(picture))
    p = subprocess.Popen(
        [sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    p.stdout.readline()
    p.stdin.write(f'0 {tmp_path / "out"}\n')
    while not list(tmp_path.glob('out/.*.work')):
        time.sleep(0.005)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert [f.name for f in (tmp_path / 'out').iterdir() if not f.name.startswith('.')] == []
    predict_file(picture, Plain(), tmp_path / 'out', mpp=0.25)
    assert [f.name for f in (tmp_path / 'out').iterdir()] == ['a.png.bcss'] and is_whole(tmp_path / 'out/a.png.bcss')


@pytest.mark.parametrize('moment', ['after the rename', 'the old one aside'])
def test_a_run_killed_while_it_publishes_leaves_nothing(moment, tmp_path):
    picture, out = save(tmp_path / 'a.png'), tmp_path / 'out'
    predict_file(picture, Plain(), out, mpp=0.25)
    before = content(out)
    stale = out / (
        '.a.png.bcss.0123456789ab.work' if moment == 'after the rename' else '.a.png.bcss.0123456789ab.work.replaced'
    )
    if moment == 'after the rename':
        (stale / 'maps').mkdir(parents=True)
    else:
        (out / 'a.png.bcss').rename(stale)
    assert predict_file(picture, Plain(), out, mpp=0.25)['was_done']
    assert content(out) == before and [f.name for f in out.iterdir()] == ['a.png.bcss']


class Fails(Reddish):
    "An engine that runs out of memory on small pictures."

    def __init__(self, error):
        super().__init__()
        self.error = error

    def run(self, x):
        if x.shape[1] < 128:
            raise self.error
        return super().run(x)


@pytest.mark.parametrize(
    'error',
    [
        MemoryError(),
        RuntimeError('CUDA out of memory'),
        IndexError('list index out of range'),
        SyntaxError('not a TIFF file'),
        AssertionError(),
    ],
)
def test_one_bad_picture_ends_no_batch(error, tmp_path, capsys):
    pictures = [
        save(tmp_path / 'a.png', side=200),
        save(tmp_path / 'b.png', side=64),
        save(tmp_path / 'c.png', 5, side=200),
    ]
    assert predict_files(pictures, Fails(error), tmp_path / 'out', mpp=0.25) == 1
    out, err = capsys.readouterr()
    assert (
        out.count('mm2') == 6 and f'FAILED {pictures[1]}: ' in err and f'1 of 3 pictures failed: {pictures[1]}' in err
    )
    assert sorted(f.name for f in (tmp_path / 'out').iterdir()) == ['a.png.bcss', 'c.png.bcss']


def broken_files():
    "Bytes that are no picture, by name."
    good, out = simulate_roi(1, shape=(64, 64))[1], {}
    for name, options in (('png', {}), ('jpg', {}), ('webp', {}), ('bmp', {}), ('tif', dict(compression='tiff_lzw'))):
        buffer = io.BytesIO()
        Image.fromarray(good).save(buffer, {'jpg': 'jpeg', 'tif': 'tiff'}.get(name, name), **options)
        data = buffer.getvalue()
        out |= {
            f'cut.{name}': data[: len(data) // 2],
            f'short.{name}': data[:20],
            f'flipped.{name}': data[:30] + bytes(b ^ 255 for b in data[30:90]) + data[90:],
        }
    return out | {
        'empty.svs': b'',
        'text.svs': b'no slide',
        'text.mrxs': b'x',
        'text.dcm': b'x',
        'text.vms': b'x',
        'text.ndpi': b'II*\0',
        'junk.tif': b'II*\0' + bytes(range(256)),
    }


def test_unreadable_files_are_named_and_the_others_done(tmp_path, capsys):
    files = broken_files()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    save(tmp_path / 'z good.png')
    pictures = find_images([tmp_path])
    num_failed = predict_files(pictures, Reddish(), tmp_path / 'out', mpp=0.25)
    out, err = capsys.readouterr()
    assert 'z good.png: ' in out and num_failed >= len(files) - 5 and 'Traceback' not in err
    failed = [line for line in err.splitlines() if line.startswith('FAILED')]
    assert len(failed) == num_failed and all('cannot be read' in line for line in failed), failed
    assert err.splitlines()[-1].startswith(f'{num_failed} of {len(pictures)} pictures failed')
    for line in failed:
        with pytest.raises(UnreadableImage):
            predict_file(Path(line.removeprefix('FAILED ').split(': ')[0]), Reddish(), tmp_path / 'out', mpp=0.25)


def test_hidden_files_are_no_pictures(tmp_path):
    for name in ('._a.png', '.DS_Store', '.hidden.tif'):
        (tmp_path / name).write_bytes(b'x')
    save(tmp_path / 'a.png')
    assert [f.name for f in find_images([tmp_path])] == ['a.png']
