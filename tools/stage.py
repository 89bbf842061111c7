"""Run one stage of the pipeline and show it as one line.

    python tools/stage.py nbs/03_train.ipynb reports/03_train_unet_42.ipynb [options of papermill]
    python tools/stage.py -m bcss_nb.data.simulator [options of the module]

The line follows what the stage reports with `bcss_nb.core.progress`; VERBOSE=1 shows everything instead.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

VERBOSE = os.environ.get('VERBOSE', '') not in ('', '0')


class Failed(Exception):
    "A stage that failed, with what its reader should see."


def title_of(args):
    "What a stage is called: reports/03_train_unet_42.ipynb is 'train unet 42', bcss_nb.data.simulator is 'simulator'."
    if args[0] == '-m':
        return args[1].rpartition('.')[2]
    return re.sub(r'^\d+_', '', Path(args[1]).stem).replace('_', ' ')


class Line:
    "One line on the terminal that follows a file; only its last state where the output is no terminal."

    def __init__(self, title, path, out):
        self.title, self.path, self.out, self.start = title, path, out, time.monotonic()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.follow, daemon=True)

    def text(self):
        "What the stage reported last."
        with contextlib.suppress(OSError):
            return self.path.read_text(errors='replace').strip()
        return ''

    def show(self, text, end=''):
        "Print the line over its earlier state."
        seconds = time.monotonic() - self.start
        clock = f'{seconds // 60:.0f} min {seconds % 60:2.0f} s' if seconds >= 60 else f'{seconds:.0f} s'
        room = max(40, shutil.get_terminal_size((110, 20)).columns - 1)
        line = f'{self.title:<18} {text}'
        line = f'{line[: room - 13]:<{room - 13}} {clock:>12}'
        self.out.write(f'\r\x1b[2K{line}{end}' if self.out.isatty() else f'{line}{end}')
        self.out.flush()

    def follow(self):
        "Show what the stage reports until it ends."
        while not self.done.wait(0.5):
            self.show(self.text())

    def __enter__(self):
        if self.out.isatty():
            self.thread.start()
        return self

    def __exit__(self, kind, error, trace):
        self.done.set()
        if self.thread.is_alive():
            self.thread.join()
        words = {None: self.text(), KeyboardInterrupt: 'stopped'}.get(kind, 'FAILED')
        self.show(words, end='\n')


def run_notebook(args):
    "Execute a notebook in this process; `Failed` names the error, the cell and the executed notebook."
    from papermill.cli import papermill
    from papermill.exceptions import PapermillExecutionError

    options = ['-k', 'python3', '--log-output' if VERBOSE else '--no-log-output']
    options += [] if VERBOSE and sys.stderr.isatty() else ['--no-progress-bar']
    try:
        papermill.main([*args, *options], standalone_mode=False)
    except PapermillExecutionError as error:
        where = f'cell {error.exec_count} of {args[1]}, which holds everything up to the error'
        raise Failed(f'{error.ename}: {error.evalue}\n  in {where}') from None


def run_module(args):
    "Run a module in a process of its own; `Failed` holds the last lines that it wrote."
    done = subprocess.run([sys.executable, '-m', *args], stderr=None if VERBOSE else subprocess.PIPE, text=True)
    if done.returncode:
        raise Failed('\n  '.join((done.stderr or '').strip().splitlines()[-5:]) or f'exit status {done.returncode}')


@contextlib.contextmanager
def quiet(log):
    "Send what this process and its kernels write to a file; yields a stream that still reaches the terminal."
    terminal = os.fdopen(os.dup(1), 'w')
    saved = [os.dup(fd) for fd in (1, 2)]
    try:
        for fd in (1, 2):
            os.dup2(log.fileno(), fd)
        yield terminal
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, old in zip((1, 2), saved):
            os.dup2(old, fd)
            os.close(old)


def main(args):
    "Run a stage; the exit status is 0 when it ended well."
    run = (lambda: run_module(args[1:])) if args[0] == '-m' else (lambda: run_notebook(args))
    if VERBOSE:
        try:
            run()
        except Failed as error:
            sys.exit(str(error))
        return
    with tempfile.TemporaryDirectory() as folder, open(f'{folder}/log', 'w+') as log:
        progress = Path(folder) / 'progress'
        os.environ['BCSS_PROGRESS'] = str(progress)
        try:
            with quiet(log) as terminal, Line(title_of(args), progress, terminal):
                run()
        except Failed as error:
            sys.exit(f'  {error}\n  VERBOSE=1 shows everything that it writes.')
        except KeyboardInterrupt:
            sys.exit(130)


if __name__ == '__main__':
    main(sys.argv[1:])
