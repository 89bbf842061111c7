"""Whole regions and slides: how much of the bare net's speed is left, what overlap costs, and whether memory stays
put.

    python bench/predict.py [--model runs/unet/42] [--memory]

The region is the real one where BCSS_REAL (default ../shared/data) has it, else a simulated one of the same size.
`stock` is the bare net in
float32 on windows of 224 pixels, 112 apart: what a tile-by-tile pipeline spends on arithmetic alone. `--memory`
predicts tiled TIFFs of 5,000 and
20,000 pixels a side, each in a process of its own. The last line is JSON."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image

from bcss_nb.core.labels import codes_to_labels, get_schema
from bcss_nb.data.simulator import simulate_roi
from bcss_nb.inference.engines import open_engine
from bcss_nb.inference.outputs import predict_file
from bcss_nb.inference.prediction import predict_image
from bcss_nb.inference.readers import SlideReader, open_slide
from bcss_nb.inference.windows import window_origins
from bcss_nb.training import metrics

REAL = Path(os.environ.get('BCSS_REAL', '../shared/data')) / 'roi'


def region():
    "A picture, and its labels (bcss3)."
    for path in sorted((REAL / 'rgbs_colorNormalized').glob('*.png')):
        return (
            open_slide(path),
            codes_to_labels(np.array(Image.open(REAL / 'masks' / path.name)), get_schema('bcss3')),
            f'real region {path.name[:12]}',
        )
    _, image, codes = simulate_roi(2, shape=(2418, 3391))
    return SlideReader(image), codes_to_labels(codes, get_schema('bcss3')), 'simulated region'


def dice(pred, truth):
    "Pooled Dice by class."
    return metrics.dice(
        metrics.confusion(torch.from_numpy(np.asarray(truth)), torch.from_numpy(np.asarray(pred)), 3).numpy()
    )


def bare(engine, window, batch, seconds=2.0):
    "Seconds a window."
    x = np.random.default_rng(0).integers(0, 255, (batch, window, window, 3), np.uint8)
    engine(x)
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        engine(x)
        n += batch
    return (time.perf_counter() - start) / n


def speed(model):
    p, truth, what = region()
    engine, plain = open_engine(model), open_engine(model)
    plain.precision = 'f32'

    def count(w, s):
        return len(window_origins(p.width, w, s)) * len(window_origins(p.height, w, s))

    stock = bare(plain, 224, 16) * count(224, 112)
    dense = dice(predict_image(p, engine, 224, 32).label, truth)
    print(
        f'{what}, {p.width}x{p.height}, {engine.model}, {engine.name}; bare float32 net on 224 pixels, 112 apart: '
        f'{stock:.2f} s; densest overlap: Dice {dense.round(4)}'
    )
    print(
        f'{"window":>7}{"stride":>7}{"windows":>8}{"bare s":>8}{"ours s":>8}{"sieve s":>8}{"share":>7}{"x stock":>8}  '
        ' Dice other tumor stroma'
    )
    found = {}
    for w, s in ((224, 160), (512, 448), (512, 384), (1024, 896)):
        every = np.stack(
            [p.read(x, y, w, w) for y in window_origins(p.height, w, s) for x in window_origins(p.width, w, s)]
        )
        batch, alone, runs = max(1, 2**20 // w**2), [], []
        for i in range(10):  # the net on the same windows before and after each run, since machines change their pace
            start = time.perf_counter()
            for k in range(0, len(every), batch):
                engine(every[k : k + batch])
            alone.append(time.perf_counter() - start)
            if i < 9:
                runs.append(predict_image(p, engine, w, s))
        m = min(runs, key=lambda m: m.seconds)
        found[w, s] = dict(
            share=float(np.median([(a + b) / 2 / r.seconds for a, b, r in zip(alone, alone[1:], runs)])),
            seconds=m.seconds + m.cleaning,
            dice=dice(m.label, truth),
        )
        print(
            f'{w:>7}{s:>7}{count(w, s):>8}{min(alone):>8.2f}{m.seconds:>8.2f}{m.cleaning:>8.2f}'
            f'{found[w, s]["share"]:>7.1%}'
            f'{stock / (m.seconds + m.cleaning):>8.1f}   {found[w, s]["dice"].round(4)}'
        )
    f = found[512, 384]
    return dict(
        region=what,
        seconds=round(f['seconds'], 2),
        stock_net_seconds=round(stock, 2),
        ratio_stock=round(stock / f['seconds'], 2),
        share_of_bare=round(f['share'], 3),
        dice_off=round(float(np.nanmax(np.abs(f['dice'] - dense))), 4),
    )


def large(path, side):
    "A tiled TIFF with a region again and again, turned."
    image = simulate_roi(2, shape=(1024, 1024))[1]
    kinds = [np.rot90(image, k).copy() for k in range(4)]
    n = -(-side // 1024)
    tiles = (kinds[(3 * r + 5 * c) % 4] for r in range(n) for c in range(n))
    tifffile.imwrite(
        path,
        tiles,
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(1024, 1024),
        photometric='rgb',
        compression='jpeg',
        compressionargs=dict(level=85),
        resolution=(40_000, 40_000),
        resolutionunit='CENTIMETER',
    )


def peak():
    "Megabytes this process held at most; getrusage would tell its parent's, had that held more."
    with open('/proc/self/status') as f:
        return next(int(line.split()[1]) for line in f if line.startswith('VmHWM')) / 1024


def memory(model):
    found = {}
    for side in (5_000, 20_000):
        with tempfile.TemporaryDirectory() as d:
            large(Path(d) / 'slide.tif', side)
            out = subprocess.run(
                [sys.executable, __file__, '--one', f'{d}/slide.tif', '--model', model],
                capture_output=True,
                text=True,
                check=True,
            )
        found[side] = json.loads(out.stdout.splitlines()[-1])
        print(
            f'{side}x{side}: peak {found[side]["peak_mb"]:.0f} MB, {found[side]["seconds"]:.1f} s, all outputs written'
        )
    return dict(
        peak_mb={k: round(v['peak_mb']) for k, v in found.items()},
        memory_ratio=round(found[20_000]['peak_mb'] / found[5_000]['peak_mb'], 3),
    )


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--model', default='runs/unet/42')
    p.add_argument('--memory', action='store_true')
    p.add_argument('--one', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.one:
        start = time.time()
        with tempfile.TemporaryDirectory() as d:
            predict_file(Path(a.one), open_engine(a.model), Path(d))
        print(json.dumps(dict(peak_mb=peak(), seconds=time.time() - start)))
    else:
        print(json.dumps(speed(a.model) | (memory(a.model) if a.memory else {})))
