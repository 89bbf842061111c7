"Refuse files that do not belong in the repository: python tools/no_data.py FILE..."

import re
import subprocess
import sys
from pathlib import Path

MOST = 400_000  # bytes; notebooks may be larger, since they hold pictures
DATA = re.compile(
    r'TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}-.*\.(png|jpe?g|tiff?|svs)$|\.(svs|ndpi|mrxs|npy|npz|pt|ckpt|onnx|parquet)$'
)
CONFLICT = re.compile(r'^(<{7} |>{7} )', re.M)


def wrong(path: Path) -> str:  # empty: nothing
    "What is wrong with a file."
    if DATA.search(path.name):
        return 'is data or weights: DVC keeps those'
    if path.suffix != '.ipynb' and path.stat().st_size > MOST:
        return f'has {path.stat().st_size:,} bytes, {MOST:,} are allowed'
    if path.suffix in {'.py', '.ipynb', '.md', '.yml', '.yaml', '.toml', '.ini'} and CONFLICT.search(
        path.read_text(errors='replace')
    ):
        return 'holds the marks of a merge conflict'
    return ''


if __name__ == '__main__':
    files = [
        Path(f)
        for f in sys.argv[1:]
        or subprocess.run(['git', 'ls-files'], capture_output=True, text=True, check=True).stdout.splitlines()
    ]
    found = [f'{f} {w}' for f in files if f.is_file() and (w := wrong(f))]
    sys.exit('\n'.join(found) or 0)
