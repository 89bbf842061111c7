"""One batch, its gradients and a validation, alone or under torchrun: `python tests/shared_step.py OUT MODEL
ACCUMULATE PRECISION`."""

import sys

import torch

from bcss_nb.data.dataset import load_dataset
from bcss_nb.data.prepare import sample_dataset
from bcss_nb.training.distributed import make_fabric
from bcss_nb.training.trainer import Trainer

if __name__ == '__main__':
    out, model, accumulate, precision = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    t = Trainer(
        load_dataset(sample_dataset()),
        model,
        make_fabric(precision, 'cpu'),
        batch=4,
        steps=5,
        accumulate=accumulate,
        weighted=True,
        precision=precision,
    )
    for _ in range(accumulate):
        x, y = next(t.loader)
        loss = t.loss_fn(t.ddp_model(x), y) / accumulate
        t.fabric.backward(loss * t.fabric.world_size)
    grads = {name.removeprefix('module.'): p.grad for name, p in t.model.named_parameters()}
    stats = {name: b for name, b in t.model.named_buffers() if 'running' in name}
    tiles = t.fabric.all_reduce(torch.tensor(float(len(y))), reduce_op='sum')
    counts = t.validate() if model == 'unet' else torch.ones(1).numpy()  # counted the same way whatever the net
    if t.fabric.is_global_zero:
        torch.save(
            dict(grads=grads, stats=stats, loss=loss.detach(), counts=torch.from_numpy(counts), tiles=tiles), out
        )
