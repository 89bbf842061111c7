"""Engines on the same tiles in one run: PyTorch (eager, compiled, bfloat16), ONNX Runtime and OpenVINO (float32,
bfloat16, int8).

    python bench/infer.py [--run runs/unet/42] [--data data/processed]

The net is exported first, with its parity table; an engine that loses more than 0.005 Dice is timed but not chosen.
Every round
asks each engine in turn, so that a noisy machine is noisy for all.
Two calls before the timed ones let the threads of the last engine fall asleep. The last line is JSON; `chosen` is
what the service will use."""

import argparse
import json
import os
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from bcss_nb.data.dataset import load_dataset
from bcss_nb.data.prepare import sample_dataset
from bcss_nb.demo import demo_runs
from bcss_nb.inference.engines import ENGINES, TorchEngine, open_engine, to_nchw_float
from bcss_nb.models.checkpoint import load_checkpoint
from bcss_nb.serving.export import export_run
from bcss_nb.training.provenance import device_name


def eager(run):
    "The net as trained, float32, as a notebook would call it."
    net = load_checkpoint(run / 'best.pt')[0]

    def call(x):
        with torch.inference_mode():
            return net(torch.from_numpy(to_nchw_float(x))).numpy()

    return call


def compiled(run):
    "The same through torch.compile; None where it does not work."
    net = load_checkpoint(run / 'best.pt')[0]
    fast = torch.compile(net, dynamic=False)

    def call(x):
        with torch.inference_mode():
            return fast(torch.from_numpy(to_nchw_float(x))).numpy()

    try:
        call(np.zeros((1, 224, 224, 3), np.uint8))
    except Exception as e:
        print(f'torch.compile does not work here: {str(e).splitlines()[0][:100]}')
        return None
    return call


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--run', type=Path)
    p.add_argument('--data')
    p.add_argument('--rounds', type=int, default=5)
    a = p.parse_args()
    warnings.simplefilter('ignore')
    ts = load_dataset(Path(a.data).absolute() if a.data else sample_dataset())
    run = (a.run or demo_runs('unet', ts)[0]).absolute()
    with tempfile.TemporaryDirectory() as d:
        table = {t['engine']: t for t in export_run(run, ts, Path(d) / 'model', tiles=32)}
        calls = {
            'torch eager': eager(run),
            'torch.compile': compiled(run),
            'torch-bf16, folded': TorchEngine(run / 'best.pt', 'cpu'),
        }
        for name in ENGINES:
            try:
                calls[name] = open_engine(Path(d) / 'model', name)
            except ValueError:
                continue
        calls = {k: v for k, v in calls.items() if v}
        tiles = ts.images[ts.part('test')[:16]]
        batches = {'1 tile': tiles[:1], '8 tiles': tiles[:8]} | (
            {}
            if calls['onnxruntime-f32'].fixed
            else {
                '512 px': np.tile(
                    tiles[:9].reshape(3, 3, 224, 224, 3).transpose(0, 2, 1, 3, 4).reshape(672, 672, 3), (1, 1, 1)
                )[None, :512, :512]
            }
        )
        times = {k: {b: [] for b in batches} for k in calls}
        for _ in range(a.rounds):
            for name, call in calls.items():
                for b, x in batches.items():
                    for i in range(6):
                        start = time.perf_counter()
                        call(x)
                        if i > 1:
                            times[name][b].append(
                                (time.perf_counter() - start) * 1000 / (x.shape[0] * x.shape[1] * x.shape[2] / 224**2)
                            )
    ms = {k: {b: float(np.median(v)) for b, v in t.items()} for k, t in times.items()}
    print(
        f'{run.parent.name} of {os.path.relpath(run)}, {device_name(torch.device("cpu"))}, ms for each 224x224 '
        f'pixels, median of {a.rounds} rounds'
    )
    print(f'{"":22}' + ''.join(f'{b:>10}' for b in batches) + f'{"Dice lost":>12}{"logit off":>11}')
    for k, t in ms.items():
        parity = table.get(k, {})
        print(
            f'{k:22}'
            + ''.join(f'{v:>10.2f}' for v in t.values())
            + (f'{parity["dice_lost"]:>12.4f}{parity["max_logit"]:>11.4f}' if parity else '')
        )
    good = [k for k in ms if k in ENGINES and table[k]['good']]
    chosen = min(good, key=lambda k: ms[k]['8 tiles'])
    print(
        json.dumps(
            dict(
                eager_ms=round(ms['torch eager']['8 tiles'], 2),
                chosen_engine=chosen,
                chosen_ms=round(ms[chosen]['8 tiles'], 2),
                ratio_eager=round(ms['torch eager']['8 tiles'] / ms[chosen]['8 tiles'], 2),
            )
        )
    )
