"""Pin the whole environment from settings.ini: requirements.txt for the pipeline, requirements_serve.txt for the
service, requirements_dev.txt for everything."""

import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parent.parent
CUDA = re.compile(
    r'^(nvidia-(cu|nccl|nvj|nvs|nvt)|cuda-|triton==)'
)  # torch pins its own CUDA packages; a CPU wheel of it has none
cfg = ConfigParser(delimiters=['='], interpolation=None)
cfg.read(ROOT / 'settings.ini')
cfg = cfg['DEFAULT']


def lock(wanted, out, *extra):
    "Resolve for Python 3.11 and 3.12 at once and write the pins; what was pinned stays where it can."
    cmd = [
        sys.executable,
        '-m',
        'uv',
        'pip',
        'compile',
        '-',
        '--universal',
        '--python-version',
        cfg['min_python'],
        '--no-header',
        '--no-annotate',
        '-q',
    ]
    subprocess.run(
        [*cmd, '-o', str(ROOT / out), *extra], input='\n'.join(wanted), text=True, check=True, stdout=subprocess.DEVNULL
    )
    lines = ['# Made by `make lock` from settings.ini; do not edit.'] + [
        p for p in (ROOT / out).read_text().splitlines() if p and not p.startswith('#') and not CUDA.match(p)
    ]
    (ROOT / out).write_text('\n'.join(lines) + '\n')


pipeline = cfg['requirements'].split() + cfg['pipeline_requirements'].split()
everything = ['-c', str(ROOT / 'requirements_dev.txt')]  # resolved first, so that the smaller sets agree with it
lock(pipeline + cfg['serve_requirements'].split() + cfg['dev_requirements'].split(), 'requirements_dev.txt')
lock(pipeline, 'requirements.txt', *everything)
lock(cfg['serve_requirements'].split(), 'requirements_serve.txt', *everything)
