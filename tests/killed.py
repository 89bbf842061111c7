"""Kill a training run again and again, and see that it ends with the bits of one that nobody touched.

    python tests/killed.py FOLDER KILLS '{"model": "unet", "steps": 8}'

Each run is its own process, forked from one that has imported everything and started no thread, and dies by
SIGKILL: at a random moment, or
while it writes a checkpoint. A run that stands still for two minutes ends with a traceback."""

import faulthandler
import io
import json
import os
import random
import signal
import sys
import time
from itertools import count
from pathlib import Path

THREADS = int(os.environ.get('OMP_NUM_THREADS', 0)) or os.cpu_count()
for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'):
    os.environ[name] = '1'  # each child starts its own
os.environ['JE_ARROW_MALLOC_CONF'] = 'background_thread:false'  # pyarrow's allocator

import torch  # noqa: E402

from bcss_nb.data.dataset import load_dataset  # noqa: E402
from bcss_nb.data.prepare import sample_dataset  # noqa: E402
from bcss_nb.models import checkpoint  # noqa: E402
from bcss_nb.training.train import fit  # noqa: E402
from bcss_nb.training.trainer import Trainer  # noqa: E402

REAL_SAVE, REAL_REPLACE = torch.save, os.replace


def die_while_saving(how, turn):
    "Let the nth write of a checkpoint end in the middle of the file, before its renaming, or right after it."
    saves = [0]

    def half(what, file):
        data = io.BytesIO()
        REAL_SAVE(what, data)
        saves[0] += 1
        if how == 'half' and saves[0] == turn:
            file.write(data.getvalue()[: len(data.getvalue()) // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        file.write(data.getvalue())

    def replace(a, b):
        if how == 'before' and saves[0] == turn:
            os.kill(os.getpid(), signal.SIGKILL)
        REAL_REPLACE(a, b)
        if how == 'after' and saves[0] == turn:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.torch.save, os.replace = half, replace


def start(out, config, how=None, turn=0):
    "Fork a run; its process id."
    assert len(list(Path('/proc/self/task').glob('*'))) <= 1, 'a process with threads cannot be forked safely'
    pid = os.fork()
    if pid:
        return pid
    os.dup2(os.open(f'{out}.log', os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    faulthandler.dump_traceback_later(120, exit=True)
    torch.set_num_threads(THREADS)
    if how:
        die_while_saving(how, turn)
    fit(Trainer(load_dataset(sample_dataset()), **config), out, save_minutes=0)
    os._exit(0)


def whole(out):
    "Every checkpoint of a folder can be read."
    for file in out.glob('*.pt'):
        checkpoint.read_checkpoint(file)


def same(a, b):
    "Two checkpoints agree bit for bit, times and machines aside."
    if torch.is_tensor(a):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(
            same(a[k], b[k]) for k in a if k not in ('tiles_s', 'spent', 'train_seconds', 'peak_memory_gib')
        )
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def kill_within(pid, seconds):
    "Kill a process at that time, unless it has ended; its status, and how long it ran."
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status, time.monotonic() - began
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1], time.monotonic() - began


def finish(out, config):
    "Let a run come to its end."
    _, status = os.waitpid(start(out, config), 0)
    assert status == 0, f'a run that went on failed with status {status}: {Path(f"{out}.log").read_text()[-4000:]}'


if __name__ == '__main__':
    folder, kills, config = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    draw, done = random.Random(0), dict(random=0, half=0, before=0, after=0)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.time()
    finish(folder / 'whole', config)
    length = time.time() - began
    reference = {name: checkpoint.read_checkpoint(folder / 'whole' / name) for name in ('last.pt', 'best.pt')}
    for turn in count():
        if sum(done.values()) >= kills:
            break
        out = folder / str(turn)
        for how in ('random', draw.choice(list(done)[1:])):
            pid = start(out, config, None if how == 'random' else how, draw.randint(1, config['steps']))
            status, ran = kill_within(pid, draw.uniform(0, length) if how == 'random' else 150)
            if how == 'random' and not os.WIFSIGNALED(status):
                length = min(length, ran)
            done[how] += os.WIFSIGNALED(status)
            whole(out)
        finish(out, config)
        for name, want in reference.items():
            assert same(checkpoint.read_checkpoint(out / name), want), (
                f'{out / name} differs from the run that nobody touched'
            )
        assert not list(out.glob('.*.tmp')), 'a temporary file was left'
    print(
        f'{sum(done.values())} of {sum(done.values())} killed runs ended bit-equal '
        f'({", ".join(f"{v} {k}" for k, v in done.items())})'
    )
