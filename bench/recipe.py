"""What each part of the training recipe brings: UNet-S, three seeds, on the sample's held-out hospitals and on real
patients.

    python bench/recipe.py sample   # choose: every variant, equal steps, on the sample's held-out hospitals
    python bench/recipe.py one      # the same hospitals after training on one large region of one other hospital:
    four simulated patients in turn
    python bench/recipe.py real     # the same variants on real tiles: train TCGA-A2-A0D2, test TCGA-A1-A0SK
    python bench/recipe.py confirm  # the chosen recipe, four minutes, against the stock loop, 30 passes, on the
    same real patients

The real tiles are found through BCSS_REAL (default ../shared/data). Rows are appended to reports/bench/recipe.csv;
the last line is JSON."""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from monai.networks.nets import UNet
from PIL import Image

from bcss_nb.core.files import seed_everything
from bcss_nb.data.dataset import TileDataset, load_dataset
from bcss_nb.data.prepare import prepare, sample_dataset
from bcss_nb.data.simulator import SITES, simulate_roi
from bcss_nb.training.metrics import confusion, dice
from bcss_nb.training.tile_predictions import predict_tiles
from bcss_nb.training.trainer import Trainer

REAL = Path(os.environ.get('BCSS_REAL', '../shared/data'))
OUT = Path('reports/bench/recipe.csv')
VARIANTS = {
    'recipe': {},
    'no turns': dict(turn=False),
    'no stain': dict(stain=0.0),
    'no light': dict(light=0.0),
    'dyes keep their color': dict(dye=0.0),
    'stain 0.2': dict(stain=0.2),
    'light 0.2': dict(light=0.2),
    'CutMix': dict(mix=0.5),
    'cross-entropy alone': dict(loss='ce'),
    'focal': dict(loss='dice_focal'),
    'weighted classes': dict(weighted=True),
    'averaged weights': dict(ema=0.98),
}


def real_set(folder):
    "Real tiles: one patient to train on, another to test."
    return load_dataset(
        prepare('kaggle224', REAL / 'kaggle224' / 'BCSS', folder, test_patients='TCGA-A1-A0SK', val=0.0)
    )


def one_patient(hospital, tiles=(10, 15)):
    "The sample's held-out hospitals, and 150 tiles of one simulated patient of another hospital to train on."
    ts = load_dataset(sample_dataset())
    test, (down, across), side = ts.part('test'), tiles, ts.manifest['tile']
    name, image, codes = simulate_roi(17 * len(SITES) + hospital, shape=(down * side, across * side))

    def cut(a):
        return np.ascontiguousarray(
            a.reshape(down, side, across, side, *a.shape[2:]).swapaxes(1, 2).reshape(-1, side, side, *a.shape[2:])
        )

    labels = np.where(codes <= 2, codes, 0).astype(np.uint8)
    table = pd.concat(
        [
            pd.DataFrame(
                dict(
                    tile=[f'{name}_{i}' for i in range(down * across)],
                    patient=name[:12],
                    site=SITES[hospital],
                    split='train',
                )
            ),
            ts.tiles.iloc[test],
        ]
    )
    return TileDataset(
        table.reset_index(drop=True),
        np.concatenate([cut(image), ts.images[test]]),
        np.concatenate([cut(labels), ts.labels[test]]),
        ts.schema,
        ts.manifest,
    )


def third_patient():
    "128 tiles of a patient in another stain, with tumor marked: images, masks (1 is tumor)."
    files = sorted((REAL / 'tumor_only' / 'images').glob('*'))
    masks = [next((REAL / 'tumor_only' / 'masks').glob(f.stem + '.*')) for f in files]
    return np.stack([np.asarray(Image.open(f).convert('RGB')) for f in files]), np.stack(
        [np.asarray(Image.open(f)) for f in masks]
    )


def trained(ts, seed, turn=True, dye=0.15, **config):
    "A net after the steps or minutes of a config, without validation."
    t = Trainer(ts, 'unet-s', seed=seed, **config)
    t.loader.kwargs.update(turn=turn, dye=dye)
    t.clock = time.time()
    while t.budget_fraction() < 1:
        t.train_step()
        t.update_elapsed()
    return t.ema.module if t.ema else t.model, t.step


def stock(ts, seed, epochs=30, batch=15):
    """A plain loop as tutorials write it: MONAI's UNet in float32, cross-entropy, one-cycle AdamW, turns and RGB
    gain and offset tile by tile."""
    seed_everything(seed)
    draw, net = (
        np.random.default_rng(seed),
        UNet(2, 3, len(ts.schema.classes), (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2, norm='batch'),
    )
    rows = ts.part('train')
    opt = torch.optim.AdamW(net.parameters())
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, 3e-3, total_steps=epochs * (len(rows) // batch))
    for _ in range(epochs):
        for some in draw.permutation(rows)[: len(rows) // batch * batch].reshape(-1, batch):
            xs, ys = [], []
            for row in some:
                x, y, k = ts.images[row] / np.float32(255), ts.labels[row], draw.integers(4)
                x, y = np.rot90(x, k), np.rot90(y, k)
                if draw.random() < 0.5:
                    x, y = x[:, ::-1], y[:, ::-1]
                x = x * draw.uniform(0.8, 1.2, 3).astype(np.float32) + draw.uniform(-0.1, 0.1, 3).astype(np.float32)
                xs.append(x.clip(0, 1).transpose(2, 0, 1))
                ys.append(y.copy())
            loss = torch.nn.functional.cross_entropy(
                net(torch.from_numpy(np.stack(xs))), torch.from_numpy(np.stack(ys)).long()
            )
            opt.zero_grad()
            loss.backward()
            opt.step()
            sched.step()
    return net, epochs * (len(rows) // batch)


def judge(net, ts):
    "Dice of each class on the test part."
    rows = ts.part('test')
    return dict(
        zip(
            ts.schema.classes,
            dice(
                confusion(
                    torch.from_numpy(ts.labels[rows]), predict_tiles(net, ts, rows), len(ts.schema.classes)
                ).numpy()
            ).tolist(),
        )
    )


def record(data, variant, seed, ts, third, make, **config):
    "Train and score a net and append a row."
    start = time.time()
    net, steps = make(ts, seed, **config)
    net.eval()
    row = dict(
        data=data,
        variant=variant,
        seed=seed,
        steps=steps,
        seconds=round(time.time() - start),
        **{k: round(v, 4) for k, v in judge(net, ts).items()},
    )
    row['mean'] = round(float(np.nanmean([row[c] for c in ts.schema.classes])), 4)
    row['tumor_stroma'] = round((row['tumor'] + row['stroma']) / 2, 4)
    if third:
        tumor = predict_tiles(net, TileDataset(ts.tiles, *third, ts.schema, ts.manifest), np.arange(len(third[0]))) == 1
        row['third_tumor'] = round(float(dice(confusion(torch.from_numpy(third[1]), tumor.byte(), 2).numpy())[1]), 4)
    old = pd.read_csv(OUT) if OUT.exists() else pd.DataFrame()
    OUT.parent.mkdir(parents=True, exist_ok=True)
    pd.concat([old, pd.DataFrame([row])]).to_csv(OUT, index=False)
    print(row, flush=True)


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', nargs='?', default='sample', choices=['sample', 'one', 'real', 'confirm'])
    p.add_argument('--variants', default='', help='comma-separated; empty: all')
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--steps', type=int, default=300, help='of all but confirm')
    p.add_argument('--minutes', type=float, default=4.0, help='of confirm')
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as d:
        ts = load_dataset(sample_dataset()) if a.what in ('sample', 'one') else real_set(d)
        third = third_patient() if a.what in ('real', 'confirm') else None
        for seed in range(4 if a.what == 'one' else a.seeds):
            if a.what == 'one':
                ts = one_patient(seed)
            if a.what == 'confirm':
                record('confirm', 'recipe', seed, ts, third, trained, minutes=a.minutes)
                record('confirm', 'stock', seed, ts, third, stock)
            else:
                for name in a.variants.split(',') if a.variants else VARIANTS:
                    record(a.what, name, seed, ts, third, trained, steps=a.steps, **VARIANTS[name])
    t = pd.read_csv(OUT)
    t = (
        t[t.data == a.what]
        .groupby('variant')[['mean', 'tumor_stroma', *(['third_tumor'] if third else [])]]
        .mean()
        .round(3)
    )
    print(t.to_string())
    print(json.dumps(t.to_dict('index')))
