"""Data speed in one run on the same tiles: preparing against plain decoding, our batches against MONAI's loaders.

Pictures are read from the page cache and arrays are written to memory, since disks differ; one row writes to the
temporary folder."""

import argparse
import json
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, Dataset
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    RandFlipd,
    RandomizableTransform,
    RandRotate90d,
    RandScaleIntensityd,
    RandShiftIntensityd,
    ScaleIntensityRanged,
)
from PIL import Image

from bcss_nb.core.labels import get_schema
from bcss_nb.data.augment import sample_stain_jitter
from bcss_nb.data.dataset import load_dataset
from bcss_nb.data.loader import TrainLoader
from bcss_nb.data.packing import pack_tiles
from bcss_nb.data.prepare import prepare
from bcss_nb.data.simulator import make_sample
from bcss_nb.data.sources import detect_layout, index_pairs
from bcss_nb.data.tile_checks import TileRules


class RandStain(RandomizableTransform):
    """HED jitter of one tile, (3, H, W) in [0, 1]: the one step MONAI has no transform for, with the matrices
    `augment` draws."""

    def __init__(self, keys, strength=0.2):
        super().__init__(prob=1.0)
        self.keys, self.strength, self.gen = keys, strength, torch.Generator()

    def set_random_state(self, seed=None, state=None):
        self.gen.manual_seed(seed or 0)
        return super().set_random_state(seed, state)

    def __call__(self, data):
        mix = sample_stain_jitter(1, self.gen, self.strength, 0)[0][0]

        def jitter(x):
            return (mix @ x.clamp(min=1 / 255).log_().reshape(3, -1)).exp_().view_as(x)

        return dict(data, **{k: jitter(data[k]) for k in self.keys})


def transforms():
    """What `augment` does, in MONAI's words: three coins for the orientation, stain, gain and offset of each
    channel, clipped to [0, 1]."""
    both, image = ['image', 'label'], ['image']
    fixed = [
        LoadImaged(both, image_only=True, reverse_indexing=False),
        EnsureChannelFirstd(image, channel_dim=-1),
        EnsureChannelFirstd(['label'], channel_dim='no_channel'),
        ScaleIntensityRanged(image, 0, 255, 0, 1),
    ]
    return Compose(
        fixed
        + [
            RandRotate90d(both, prob=0.5, max_k=1),
            RandFlipd(both, prob=0.5, spatial_axis=0),
            RandFlipd(both, prob=0.5, spatial_axis=1),
            RandStain(image),
            RandScaleIntensityd(image, factors=0.2, prob=1.0, channel_wise=True),
            RandShiftIntensityd(image, offsets=0.1, prob=1.0, channel_wise=True),
            ScaleIntensityRanged(image, 0, 1, 0, 1, clip=True),
        ]
    )


MEMORY = Path('/dev/shm') if Path('/dev/shm').is_dir() else None  # files in memory: the disk is not what is measured


def best(f, repeat, where=MEMORY):
    "Shortest wall time of a few, seconds; f gets an empty folder."
    times = []
    for _ in range(repeat):
        folder = Path(tempfile.mkdtemp(dir=where))
        start = time.perf_counter()
        f(folder)
        times.append(time.perf_counter() - start)
        shutil.rmtree(folder)
    return min(times)


def decode(pairs, workers):
    "Decode every image and mask once with Pillow."

    def one(p):
        return (np.asarray(Image.open(p.image)), np.asarray(Image.open(p.mask)), None)[2]

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, pairs.itertuples(index=False)))


def drain(loader, tiles, batch):
    "Tiles a second over some passes of a loader, after one pass to warm up."
    list(loader())
    start, n = time.perf_counter(), 0
    while n < tiles:
        for _ in loader():
            n += batch
    return n / (time.perf_counter() - start)


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--patients', type=int, default=100, help='simulated patients, about ten tiles each')
    p.add_argument('--batch', type=int, default=16)
    p.add_argument('--workers', type=int, default=2)
    p.add_argument('--repeat', type=int, default=7, help='the shortest time counts')
    a = p.parse_args()
    torch.set_num_threads(a.workers)
    home = Path(tempfile.mkdtemp())
    try:
        raw = make_sample(home / 'raw', patients=a.patients)
        root, src, layout = detect_layout(raw, 'sample')
        pairs, _ = index_pairs(root, layout)

        def rules(deep):
            return TileRules(get_schema('kaggle3'), deep=deep)

        n, seconds = len(pairs), {}
        seconds['decode every PNG once (Pillow)'] = best(lambda d: decode(pairs, a.workers), a.repeat)
        seconds['prepare: basic checks, packing'] = best(
            lambda d: pack_tiles(pairs, d, rules(False), a.workers), a.repeat
        )
        seconds['prepare: with deep checks'] = best(lambda d: pack_tiles(pairs, d, rules(True), a.workers), a.repeat)
        seconds['prepare: the same, to the temporary folder'] = best(
            lambda d: pack_tiles(pairs, d, rules(True), a.workers), a.repeat, None
        )
        ts = load_dataset(prepare('sample', raw, home / 'set', val=0.0))
        rows = ts.part('train')
        stream = TrainLoader(ts, rows, a.batch, stain=0.2, light=0.2, mix=0.0)
        rates = {'bcss_nb batches': drain(lambda: islice(stream, len(rows) // a.batch), 10_000, a.batch)}
        files = {t.name.removesuffix('.png'): dict(image=str(t.image), label=str(t.mask)) for t in pairs.itertuples()}
        data = [files[t] for t in ts.tiles.tile[rows]]
        kw = dict(batch_size=a.batch, shuffle=True, num_workers=a.workers, drop_last=True, persistent_workers=True)
        for name, make, n_tiles in (
            ('MONAI Dataset', Dataset, 1000),
            ('MONAI CacheDataset', partial(CacheDataset, num_workers=a.workers, progress=False), 3000),
        ):
            loader = DataLoader(make(data, transforms()), **kw)
            rates[name] = drain(lambda loader=loader: loader, n_tiles, a.batch)
            del loader
    finally:
        shutil.rmtree(home)
    base, slow = seconds['decode every PNG once (Pillow)'], rates['MONAI CacheDataset']
    print(f'{n} sample tiles, {a.workers} workers, {os.cpu_count()} cores, batch {a.batch}\n')
    for name, s in seconds.items():
        print(f'{name:44} {n / s:8.0f} tiles/s {s / base:7.2f} x decoding')
    print('\naugmented training batches: flips, turns, stain, light')
    for name, r in rates.items():
        print(f'{name:44} {r:8.0f} tiles/s {r / slow:7.2f} x CacheDataset')
    ours, over = rates['bcss_nb batches'], lambda name: round(seconds[name] / base, 3)
    print(
        json.dumps(
            dict(
                ours_tiles_s=round(ours, 1),
                cachedataset_tiles_s=round(slow, 1),
                ratio_cachedataset=round(ours / slow, 2),
                prepare_over_decode=over('prepare: basic checks, packing'),
                deep_over_decode=over('prepare: with deep checks'),
                tiles=n,
                workers=a.workers,
            )
        )
    )
