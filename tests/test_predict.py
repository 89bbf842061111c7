"Pictures and slides: seams, memory, holes, resuming, sharing, and the real region where it is."

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cc3d
import numpy as np
import pytest
import shapely
import tifffile
from PIL import Image
from rasterio.features import rasterize

from bcss_nb.core.labels import BACKGROUND_LEVEL, IGNORE, get_schema
from bcss_nb.data.simulator import simulate_roi
from bcss_nb.inference.engines import Engine, TorchEngine, open_engine
from bcss_nb.inference.outputs import predict_file
from bcss_nb.inference.postprocess import sieve_labels
from bcss_nb.inference.prediction import predict_image
from bcss_nb.inference.readers import SlideReader, open_slide
from bcss_nb.inference.sliding_window import iter_bands
from bcss_nb.inference.windows import window_origins

REAL = sorted((Path(os.environ.get('BCSS_REAL', '../shared/data')) / 'roi' / 'rgbs_colorNormalized').glob('*.png'))


class Reddish(Engine):
    "An engine whose answer depends on the pixel alone: no window can matter."

    name = 'reddish'

    def __init__(self):
        super().__init__('unet', get_schema('bcss3'), 224, id='reddish')

    def run(self, x):
        x = x.astype(np.float32) / 255
        return np.stack([x[..., 1] * 0 + 0.5, x[..., 0], x[..., 2]], 1)


@pytest.fixture(scope='module')
def region():
    return simulate_roi(7, shape=(900, 1300))[1]


@pytest.mark.parametrize(
    'window, stride, stripe', [(512, 384, 8192), (256, 256, 8192), (64, 48, 400), (224, 16, 8192), (2048, 1536, 8192)]
)
def test_windows_do_not_matter_to_a_pixelwise_net(region, window, stride, stripe, monkeypatch):
    monkeypatch.setattr('bcss_nb.inference.prediction.STRIPE_WIDTH', stripe)
    if stride == 16:
        region = region[:300, :400]
    m = predict_image(SlideReader(region), Reddish(), window, stride, min_region=0, min_tissue=0)
    x = region.astype(np.float32) / 255
    assert (m.label == np.stack([x[..., 1] * 0 + 0.5, x[..., 0], x[..., 2]]).argmax(0)).mean() > 0.9999
    assert m.counts[:, 0].sum() == m.label.size and m.counts[-1, 0] == 0


def test_a_speck_is_left_only_in_the_middle_of_glass():
    rng = np.random.default_rng(3)

    def regions(m):
        return cc3d.connected_components(m + np.uint8(1), connectivity=4)

    for i in range(80):
        h, w, least = *rng.integers(1, 90, 2), int(rng.integers(2, 80))
        m = np.kron(rng.integers(0, 3, (12, 12), np.uint8), np.ones((8, 8), np.uint8))[:h, :w]
        m = np.where(rng.random(m.shape) < rng.choice([0.1, 0.9]), rng.integers(0, 3, m.shape), m).astype(np.uint8)
        if i % 2:
            m[rng.random(m.shape) < 0.2] = IGNORE
        out, before = sieve_labels(m, least), regions(m)
        large = (np.bincount(before.ravel()) >= least)[before]
        assert ((out == IGNORE) == (m == IGNORE)).all() and (out == m)[large & (m != IGNORE)].all()
        after = regions(out)
        for r in set(np.flatnonzero(np.bincount(after.ravel()) < least)) - {0}:
            inside = np.pad(after == r, 1)
            beside = (inside[:-2, 1:-1] | inside[2:, 1:-1] | inside[1:-1, :-2] | inside[1:-1, 2:]) & (after != r)
            assert not (after == r).any() or (out[beside] == IGNORE).all()


def reach(engine):
    "How far a pixel of the net sees, from its gradient."
    import torch

    net, x = engine.net.float(), torch.rand(1, 3, 512, 512, requires_grad=True)
    with torch.enable_grad():
        net(x)[0, :, 250, 250].sum().backward()
    seen = x.grad[0].abs().sum(0).nonzero()
    return int((seen - 250).abs().max())


def test_blended_output_differs_from_one_look_only_where_windows_end(run):
    engine = TorchEngine(run / 'best.pt', 'cpu', 'f32')
    sees = reach(engine)
    image = simulate_roi(3, shape=(960, 1600))[1]
    p, out = SlideReader(image), np.zeros((3, 960, 1600), np.float32)
    for y, x, total, weight, _ in iter_bands(p, engine, 768, 512, min_tissue=0):
        out[:, y : y + total.shape[1], x : x + total.shape[2]] = total / weight
    off = np.abs(out - engine(image[None])[0]).max(0)
    free = np.ones(off.shape, bool)
    for size, axis in ((960, 0), (1600, 1)):
        for s in window_origins(size, 768, 512):
            for edge in (s, s + 768):
                if not 0 < edge < size:
                    continue
                lo, hi = max(0, edge - sees - 1), min(size, edge + sees + 1)
                inside = slice(max(lo, s), min(hi, s + 768))
                free[(inside, slice(None)) if axis == 0 else (slice(None), inside)] = False
    assert sees < 200 and free.mean() > 0.15
    assert off[free].max() < 1e-3 < off[~free].max()


def test_glass_is_left_out(region):
    image = np.full((1600, 2000, 3), 245, np.uint8)
    image[600:1400, 600:1600] = region[:800, :1000]
    looked = []

    class Counting(Reddish):
        def run(self, x):
            looked.append(len(x))
            return super().run(x)

    m = predict_image(SlideReader(image), Counting(), 256, 192)
    assert sum(looked) < 0.8 * len(window_origins(1600, 256, 192)) * len(window_origins(2000, 256, 192))
    tissue = region[:800, :1000].min(-1) < BACKGROUND_LEVEL
    left_out = m.label == IGNORE
    assert left_out[:250].all() and left_out[600:1400, 600:1600][tissue].mean() < 0.005 and tissue.mean() > 0.8
    assert m.counts[-1, 0] == (m.label == IGNORE).sum()


def test_a_net_of_one_side_gets_its_side(region):
    sides = set()

    class Fixed(Reddish):
        def __init__(self):
            super().__init__()
            self.model = 'unetr'

        def run(self, x):
            sides.add(x.shape[1:3])
            return super().run(x)

    for h, w in ((900, 1300), (100, 90)):
        m = predict_image(SlideReader(np.ascontiguousarray(region[:h, :w])), Fixed(), min_tissue=0)
        assert m.label.shape == (h, w) and m.window == 224
    assert sides == {(224, 224)}


def test_a_scanner_file_is_read_at_its_resolution(tmp_path, region):
    "An Aperio file of 0.5 µm with a coarser level, as OpenSlide knows it."
    about = 'Aperio Image Library v1\r\n1300x900 (256x256) JPEG/RGB Q=90|AppMag = 20|MPP = 0.5000'
    with tifffile.TiffWriter(tmp_path / 'slide.svs') as t:
        for step in (1, 4):
            t.write(
                region[::step, ::step],
                tile=(256, 256),
                compression='jpeg',
                photometric='rgb',
                description=about,
                metadata=None,
                subfiletype=int(step > 1),
            )
    p = open_slide(tmp_path / 'slide.svs')
    assert (p.file_mpp, p.mpp_from, p.width, p.height) == (0.5, 'file', 2600, 1800)
    assert np.abs(p.read(400, 200, 400, 300)[::2, ::2].astype(int) - region[100:250, 200:400]).mean() < 12


def test_odd_sizes_and_tiny_pictures(region):
    for h, w in ((1, 1), (7, 300), (33, 31), (225, 223), (513, 1025)):
        m = predict_image(SlideReader(np.ascontiguousarray(region[:h, :w])), Reddish(), min_tissue=0)
        assert m.label.shape == (h, w) and m.uncertainty.shape == (-(-h // 2), -(-w // 2)) and (m.label != IGNORE).all()


def test_strips_planes_alpha_and_pyramids(tmp_path, region):
    rgba = np.dstack([region, np.full(region.shape[:2], 255, np.uint8)])
    rgba[:100, :100, 3] = 0
    tifffile.imwrite(tmp_path / 'strips.tif', region, rowsperstrip=16, compression='zlib')
    tifffile.imwrite(tmp_path / 'planes.tif', region.transpose(2, 0, 1), photometric='rgb', planarconfig='separate')
    tifffile.imwrite(
        tmp_path / 'tiled.tif', region, tile=(256, 256), compression='jpeg', compressionargs=dict(level=98)
    )
    Image.fromarray(rgba).save(tmp_path / 'alpha.png')
    for name, off in (('strips.tif', 0), ('planes.tif', 0), ('tiled.tif', 4)):
        got = open_slide(tmp_path / name, mpp=0.25).read(100, 50, 600, 700)
        assert np.abs(got.astype(int) - region[50:750, 100:700]).mean() <= off, name
    assert (open_slide(tmp_path / 'alpha.png', mpp=0.25).read(0, 0, 100, 100) == 255).all()


def killed_and_resumed(args, env, tmp_path):
    "Kill a run in the middle, start it again; what was done is not done twice."
    p = subprocess.Popen(args, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while len(list((tmp_path / 'out').glob('*.bcss'))) < 2 and p.poll() is None:
        time.sleep(0.01)
    p.send_signal(signal.SIGKILL)
    p.wait()
    return subprocess.run(args, env=env, capture_output=True, text=True)


def test_a_killed_folder_is_finished_by_the_same_command(tmp_path, exported):
    (tmp_path / 'in').mkdir()
    for i in range(6):
        Image.fromarray(simulate_roi(i, shape=(800, 800))[1]).save(tmp_path / f'in/r{i}.png')
    args = [
        sys.executable,
        '-m',
        'bcss_nb.cli',
        'predict',
        str(tmp_path / 'in'),
        '--model',
        str(exported),
        '--out',
        str(tmp_path / 'out'),
        '--mpp',
        '.25',
    ]
    said = killed_and_resumed(args, None, tmp_path)
    assert said.returncode == 0 and said.stdout.count('done before') >= 2, said.stderr
    assert sorted(f.name for f in (tmp_path / 'out').iterdir()) == [f'r{i}.png.bcss' for i in range(6)]
    ends = ['.classes.ome.tif', '.geojson', '.json', '.overlay.png']
    assert all(
        sorted(f.name for f in (tmp_path / f'out/r{i}.png.bcss').iterdir())
        == ['manifest.json'] + [f'r{i}{e}' for e in ends]
        for i in range(6)
    )
    assert subprocess.run(args, capture_output=True, text=True).stdout.count('done before') == 6


def test_processes_share_a_folder(tmp_path, exported):
    (tmp_path / 'in').mkdir()
    for i in range(3):
        Image.fromarray(simulate_roi(i, shape=(300, 300))[1]).save(tmp_path / f'in/r{i}.png')
    args = [
        'bcss_nb.cli',
        'predict',
        str(tmp_path / 'in'),
        '--model',
        str(exported),
        '--out',
        str(tmp_path / 'out'),
        '--mpp',
        '.25',
        '--threads',
        '1',
    ]
    said = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', '-m', *args],
        capture_output=True,
        text=True,
        env=os.environ | dict(OMP_NUM_THREADS='1'),
    )
    assert said.returncode == 0, said.stderr[-2000:]
    assert said.stdout.count('mm2') == 9 and len(list((tmp_path / 'out').glob('*.bcss'))) == 3


class Plain(Engine):
    "An engine that costs nothing and sees tumor everywhere."

    name = 'plain'

    def __init__(self):
        super().__init__('unet', get_schema('bcss3'), 224, id='plain')

    def run(self, x):
        out = np.zeros((len(x), 3, *x.shape[1:3]), np.float32)
        out[:, 1] = 1
        return out


def measured(side, tmp_path):
    "Peak megabytes of a process that predicts a slide with a net that costs nothing."
    kinds = [np.rot90(simulate_roi(7, shape=(512, 512))[1], k).copy() for k in range(4)]
    n = side // 512
    tifffile.imwrite(
        tmp_path / f'{side}.tif',
        (kinds[(r + 2 * c) % 4] for r in range(n) for c in range(n)),
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(512, 512),
        photometric='rgb',
        compression='jpeg',
        resolution=(40_000, 40_000),
        resolutionunit='CENTIMETER',
    )
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_predict import Plain, predict_file
predict_file(Path({str(tmp_path / f'{side}.tif')!r}), Plain(), Path({str(tmp_path / 'out')!r}))
print(next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))/1024)"""
    return float(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads memory as Linux tells it')
def test_memory_does_not_grow_with_the_slide(tmp_path):
    small, large = (measured(side, tmp_path) for side in (4608, 9216))
    assert large < 1.2 * small, f'{small:.0f} MB for 4608 pixels, {large:.0f} MB for 9216'


def test_full_disk_leaves_nothing_half_written(tmp_path, exported, region):
    Image.fromarray(region).save(tmp_path / 'r.png')
    code = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from bcss_nb.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
arguments = ["--model", {str(exported)!r}, "--out", {str(tmp_path / 'out')!r}, "--mpp", ".25"]
sys.exit(main(["predict", {str(tmp_path / 'r.png')!r}, *arguments]))"""
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert said.returncode == 1 and 'FAILED' in said.stderr, said.stderr
    assert not list((tmp_path / 'out').glob('*.bcss')) and not [
        f for f in (tmp_path / 'out').iterdir() if f.name.startswith('.')
    ]


@pytest.mark.skipif(not REAL, reason='no real region in BCSS_REAL (default ../shared/data)')
def test_outlines_of_the_real_region(tmp_path, run):
    found = predict_file(REAL[0], open_engine(run), tmp_path)
    label = tifffile.imread(next(tmp_path.glob('*/*.classes.ome.tif')))
    listed = json.loads(next(tmp_path.glob('*/*.geojson')).read_text())['features']
    polygons = np.array([shapely.from_geojson(json.dumps(f['geometry'])) for f in listed])
    names = np.array([f['properties']['classification']['name'].lower() for f in listed])
    assert found['mpp'] == 0.25 and label.shape == (2418, 3391)
    assert shapely.is_valid(polygons).all() and sum(len(p.interiors) for p in polygons) > 50
    for i, c in enumerate(get_schema(found['schema']).classes):
        n = (label == i).sum()
        assert shapely.area(polygons[names == c]).sum() == pytest.approx(n, rel=0.005) and found['classes'][c][
            'area_mm2'
        ] == pytest.approx(n * 0.0625 / 1e6, abs=1e-6)
    index = {c: i for i, c in enumerate(get_schema(found['schema']).classes)}
    again = rasterize(zip(polygons, [index[n] for n in names]), out_shape=label.shape, fill=255, dtype='uint8')
    assert (again != label).mean() < 0.005
