"""Training speed on one GPU, in one run: the stock MONAI loop, ours, the bare step, and how much of the chip's
measured bf16 matrix rate a step reaches.

Needs torch, monai, lightning, numpy and this project's modules. Without CUDA it says so and ends well."""

import argparse
import json
import sys
import tempfile
import time

import torch

from bcss_nb.models.registry import build_model, model_cost
from bcss_nb.training.provenance import peak_memory


def matrix_rate(n=8192, repeat=20):
    "Measured bf16 matrix rate, multiply-accumulates a second."
    a, b = (torch.randn(n, n, device='cuda', dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeat):
        a @ b
    torch.cuda.synchronize()
    return repeat * n**3 / (time.perf_counter() - start)


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--models', default='unet-s,unet-l,unetr-s,unetr-b')
    p.add_argument('--batch', type=int, default=64)
    p.add_argument('--steps', type=int, default=30, help='of a round')
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--workers', type=int, default=8)
    p.add_argument('--patients', type=int, default=100)
    p.add_argument('--compile', action=argparse.BooleanOptionalAction, default=False)
    a = p.parse_args()
    if not torch.cuda.is_available():
        print('no CUDA device: nothing was measured')
        print(json.dumps(dict(skipped='no CUDA device')))
        sys.exit()
    from train import compare, sample_set

    rate = matrix_rate()
    print(f'{torch.cuda.get_device_name()}: {2 * rate / 1e12:.0f} TFLOP/s measured in bf16 matrix products\n')
    with tempfile.TemporaryDirectory() as d:
        ts, _ = sample_set(d, a.patients)
        results = {}
        for name in a.models.split(','):
            r = compare(name, d, a.batch, a.steps, a.rounds, a.workers, 'cuda', compile=a.compile)
            r['share_of_matrix_rate'] = round(
                3 * model_cost(build_model(name, len(ts.schema.classes)))['gmacs'] * 1e9 * r['ours_tiles_s'] / rate, 3
            )
            r['peak_memory_gib'] = peak_memory(torch.device('cuda'))
            torch.cuda.reset_peak_memory_stats()
            print(
                f'  {r["share_of_matrix_rate"]:.1%} of the matrix rate (3 x forward), peak memory '
                f'{r["peak_memory_gib"]} GiB\n',
                flush=True,
            )
            results[name] = r
    first, *others = results
    about = dict(
        device=torch.cuda.get_device_name(), batch=a.batch, matrix_tflops=round(2 * rate / 1e12), compile=a.compile
    )
    print(json.dumps(results[first] | {name: results[name] for name in others} | about))
