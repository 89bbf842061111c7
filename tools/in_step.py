"Is everything that is generated what its notebook says? `--write-readme` writes README.md from nbs/index.ipynb."

import filecmp
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def readme() -> str:
    "index.ipynb as Markdown: prose, and code without its directives."
    cells = json.loads((ROOT / 'nbs/index.ipynb').read_text())['cells']
    parts = []
    for cell in cells:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            parts.append(source)
        for out in cell.get('outputs', []):
            if 'text/markdown' in out.get('data', {}):
                parts.append(''.join(out['data']['text/markdown']))
    text = '\n\n'.join(parts).replace('(images/', '(nbs/images/').replace('](../', '](')
    return re.sub(r'\]\((?!nbs/)([\w/]+\.ipynb)', r'](nbs/\1', text) + '\n'


def changed() -> list:
    "Files that export and clean would change, in a copy."
    with tempfile.TemporaryDirectory() as d:
        copy = Path(d) / 'copy'
        copy.mkdir()
        for name in ('settings.ini', 'README.md'):
            shutil.copy(ROOT / name, copy)
        for name in ('nbs', 'bcss_nb'):
            shutil.copytree(
                ROOT / name, copy / name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
            )
        for command in ('nbdev_export', 'nbdev_clean'):
            subprocess.run([command], cwd=copy, check=True)
        files = [p for name in ('nbs', 'bcss_nb') for p in sorted((copy / name).rglob('*.*')) if p.is_file()]
        return [
            str(p.relative_to(copy))
            for p in files
            if not (ROOT / p.relative_to(copy)).exists()
            or not filecmp.cmp(p, ROOT / p.relative_to(copy), shallow=False)
        ]


if __name__ == '__main__':
    if '--write-readme' in sys.argv:
        (ROOT / 'README.md').write_text(readme())
    stale = changed()
    if stale:
        sys.exit(f'out of step with the notebooks: {", ".join(stale)}. Run `make export` and commit.')
    if (ROOT / 'README.md').read_text() != readme():
        sys.exit('README.md is out of step with nbs/index.ipynb. Run `make readme` and commit.')
    print('module, notebooks and README are in step')
