"""Training speed in one run: the stock MONAI loop, ours, and the ceiling, a bare step on a batch that is already
there.

Same net, same batch, same augmentations. The stock loop is the MONAI tutorials': CacheDataset, DataLoader,
DiceCELoss, float32. The UNet of the stock loop
keeps MONAI's own PReLU; ours computes the same function. The stock loop has a process of its own. It runs before
and after ours; the best
round of each counts, since machines are noisy."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import torch
from monai.data import CacheDataset, DataLoader
from monai.losses import DiceCELoss
from torch import nn

from bcss_nb.data.dataset import load_dataset
from bcss_nb.data.prepare import prepare
from bcss_nb.data.simulator import make_sample
from bcss_nb.data.sources import detect_layout, index_pairs
from bcss_nb.models.registry import build_model
from bcss_nb.models.unet import SharedPReLU
from bcss_nb.training.trainer import Trainer
from data import transforms


def stock_loop(name, files, classes, batch, workers, device):
    "Steps of the tutorials' loop, without end."
    net = build_model(name, classes).to(device)
    for m in net.modules():
        if isinstance(m, SharedPReLU):
            m.__class__ = nn.PReLU
    opt, loss = torch.optim.AdamW(net.parameters(), 1e-3), DiceCELoss(to_onehot_y=True, softmax=True)
    cache = CacheDataset(files, transforms(), num_workers=workers, progress=False)
    loader = DataLoader(
        cache, batch_size=batch, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
    )
    while True:
        for d in loader:
            x, y = d['image'].to(device), d['label'].to(device)
            opt.zero_grad()
            value = loss(net(x), y)
            value.backward()
            opt.step()
            yield value.item()


class Held:
    "A stream that has only one batch."

    def __init__(self, batch):
        self.batch = batch

    def __next__(self):
        return self.batch


def our_loop(name, ts, batch, bare=False, **config):
    "Our steps, without end; bare: on one batch that stays."
    t = Trainer(ts, name, batch=batch, steps=10**9, **config)
    if bare:
        t.loader = Held(next(t.loader))
    while True:
        yield t.train_step()


def measure(loops, steps, rounds, batch, device):
    "Tiles a second of each loop: the best of some rounds taken in turn."
    sync = torch.cuda.synchronize if torch.device(device).type == 'cuda' else lambda: None
    best = dict.fromkeys(loops, 0.0)
    for loop in loops.values():
        for _ in range(3):
            next(loop)
    for _ in range(rounds):
        for key, loop in loops.items():
            next(loop)
            sync()
            start = time.perf_counter()
            for _ in range(steps):
                next(loop)
            sync()
            best[key] = max(best[key], steps * batch / (time.perf_counter() - start))
    return best


def sample_set(folder, patients=24):
    "A prepared sample, made when it is missing, and its training files for the stock loader."
    raw = f'{folder}/raw'
    if not os.path.exists(raw):
        prepare('sample', make_sample(raw, patients=patients), f'{folder}/set', val=0.0, deep=False)
    ts = load_dataset(f'{folder}/set')
    pairs, _ = index_pairs(*detect_layout(raw, 'sample')[::2])
    files = {t.name.removesuffix('.png'): dict(image=str(t.image), label=str(t.mask)) for t in pairs.itertuples()}
    return ts, [files[t] for t in ts.tiles.tile[ts.part('train')]]


def stock_rate(name, folder, *rest):
    "Tiles a second of the stock loop, in a process of its own, so that nothing of ours is set there."
    done = subprocess.run(
        [sys.executable, __file__, '--stock', json.dumps([name, folder, *rest])],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(done.stdout.strip().splitlines()[-1])


def compare(name, folder, batch, steps, rounds, workers, device, **config):
    "The three rates of one net, as the last line reports them; the stock loop runs before and after ours."
    ts, kw, rest = (
        sample_set(folder)[0],
        dict(batch=batch, stain=0.2, light=0.2, **config),
        (batch, steps, rounds, workers, device),
    )
    r = dict(stock=stock_rate(name, folder, *rest))
    loops = dict(
        ours=our_loop(name, ts, mix=0.0, **kw),
        mixed=our_loop(name, ts, mix=0.5, **kw),
        bare=our_loop(name, ts, bare=True, mix=0.0, **kw),
    )
    r |= measure(loops, steps, rounds, batch, device)
    r['stock'] = max(r['stock'], stock_rate(name, folder, *rest))
    print(f'{name}, batch {batch}')
    for key, what in (
        ('stock', 'stock MONAI loop'),
        ('ours', 'bcss_nb, same augmentations'),
        ('mixed', 'bcss_nb, CutMix too'),
        ('bare', 'bare step, batch already there'),
    ):
        print(
            f'  {what:32} {r[key]:8.1f} tiles/s {1e3 / r[key]:8.2f} ms/tile {r[key] / r["stock"]:6.2f} x stock '
            f'{r[key] / r["bare"]:7.1%} of bare',
            flush=True,
        )
    rates = {f'{key}_tiles_s': round(r[key], 1) for key in ('ours', 'stock', 'bare')}
    return dict(rates, ratio_stock=round(r['ours'] / r['stock'], 2), share_of_bare=round(r['ours'] / r['bare'], 3))


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--models', default='unet-s,unetr-s')
    p.add_argument('--batch', type=int, default=16)
    p.add_argument('--steps', type=int, default=6, help='of a round')
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--workers', type=int, default=2)
    p.add_argument('--patients', type=int, default=24, help='simulated patients, about ten tiles each')
    p.add_argument('--stock', help='for the script itself')
    a = p.parse_args()
    if a.stock:
        name, folder, batch, steps, rounds, workers, device = json.loads(a.stock)
        ts, files = sample_set(folder)
        print(
            measure(
                dict(stock=stock_loop(name, files, len(ts.schema.classes), batch, workers, device)),
                steps,
                rounds,
                batch,
                device,
            )['stock'],
            flush=True,
        )
        os._exit(0)
    with tempfile.TemporaryDirectory() as d:
        _, files = sample_set(d, a.patients)
        bf16 = bool(torch.cpu.get_capabilities().get('avx512_bf16'))
        print(
            f'{len(files)} training tiles, {torch.get_num_threads()} threads, {os.cpu_count()} cores, AVX512-BF16 '
            f'{"there" if bf16 else "missing"}\n'
        )
        results = {name: compare(name, d, a.batch, a.steps, a.rounds, a.workers, 'cpu') for name in a.models.split(',')}
    first, *others = results
    print(json.dumps(results[first] | {name: results[name] for name in others} | dict(bf16=bf16)))
