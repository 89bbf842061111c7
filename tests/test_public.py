"What the public sees: citation, workflows, hooks, forms, canvas, images' files."
import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parent.parent
FLOWS = sorted((ROOT/'.github/workflows').glob('*.yml'))
settings = ConfigParser(delimiters=['='], interpolation=None)
settings.read(ROOT/'settings.ini')


def tool(name): return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def load(path): return yaml.safe_load(path.read_text())


def test_citation():
    c = load(ROOT/'CITATION.cff')
    assert {'cff-version', 'message', 'title', 'authors', 'version', 'license', 'references'} <= set(c) and c['version'] == settings['DEFAULT']['version']
    assert c['repository-code'] == settings['DEFAULT']['git_url'] and '10.1093/bioinformatics/btz083' in {r['doi'] for r in c['references']}
    assert all(re.fullmatch(r'10\.\d{4,9}/\S+', r['doi']) and r['title'] and r['authors'] for r in c['references'])


def lint(*files): return subprocess.run([tool('actionlint'), *map(str, files)], cwd=ROOT, capture_output=True, text=True)


def test_workflows(tmp_path):
    assert {f.stem for f in FLOWS} == {'tests', 'docs', 'images', 'data', 'model'}
    said = lint(*FLOWS)
    assert said.returncode == 0, said.stdout
    broken = tmp_path/'broken.yml'
    broken.write_text((ROOT/'.github/workflows/tests.yml').read_text().replace('matrix.python }}', 'matrix.pyton }}'))
    assert lint(broken).returncode != 0


@pytest.mark.parametrize('flow', FLOWS, ids=lambda f: f.stem)
def test_workflow_is_bounded_and_pinned(flow):
    y = load(flow)
    assert 'permissions' in y and 'concurrency' in y and all('timeout-minutes' in j for j in y['jobs'].values())
    used = [s['uses'] for j in y['jobs'].values() for s in j['steps'] if 'uses' in s]
    assert used and all(re.search(r'@v\d+', u) for u in used)


def test_workflows_name_what_exists():
    text = '\n'.join(f.read_text() for f in FLOWS)
    makefile = (ROOT/'Makefile').read_text() + (ROOT/'deploy/gcp/gcp.mk').read_text()
    goals = {g for line in re.findall(r'(?:run: |^\s+)make ([^|&\n]+)', text, flags=re.M) for g in line.split() if re.fullmatch(r'[a-z-]+', g)}
    assert goals and not [g for g in goals if not re.search(rf'^{g}:', makefile, re.M)]
    files = set(re.findall(r'\b((?:nbs|tests|bench|deploy|docs)/[\w./-]+\.(?:ipynb|py|sh))', text))
    assert files and not [f for f in files if not (ROOT/f).exists()]


def test_hooks(tmp_path):
    hooks = [h for r in load(ROOT/'.pre-commit-config.yaml')['repos'] if r['repo'] == 'local' for h in r['hooks']]
    assert {'ruff', 'nbdev-clean', 'in-step', 'no-data'} == {h['id'] for h in hooks}
    for h in hooks:
        command = h['entry'].split()
        assert tool(command[0]) and all((ROOT/c).exists() for c in command if c.endswith('.py'))
    run = lambda *files: subprocess.run([sys.executable, str(ROOT/'tests/no_data.py'), *map(str, files)], cwd=ROOT, capture_output=True, text=True)
    assert run().returncode == 0, run().stderr
    (tmp_path/'TCGA-A1-A0SK-DX1_xmin1_ymin1.png').write_bytes(b'x')
    (tmp_path/'a.md').write_text('<' * 7 + ' HEAD\n')
    (tmp_path/'big.txt').write_bytes(b'x'*500_000)
    for f in tmp_path.iterdir(): assert run(f).returncode != 0, f


def test_canvas_is_of_its_source(tmp_path):
    sys.path.insert(0, str(ROOT/'docs/canvas'))
    import draw
    assert Image.open(draw.OUT).info['Source'] == draw.source_id(), 'python docs/canvas/draw.py'
    assert len(yaml.safe_load(draw.SOURCE.read_text())['boxes']) == len(draw.PLACES) == 10


@pytest.mark.parametrize('form', ['bug', 'feature', 'score'])
def test_issue_forms(form):
    y = load(ROOT/f'.github/ISSUE_TEMPLATE/{form}.yml')
    assert y['name'] and y['description'] and all(b['type'] in ('textarea', 'input', 'dropdown', 'checkboxes') and b['attributes']['label'] for b in y['body'])


def test_devcontainer():
    d = json.loads((ROOT/'.devcontainer/devcontainer.json').read_text())
    assert d['postCreateCommand'].startswith('make setup-dev')


@pytest.mark.parametrize('name', ['Dockerfile.cuda', 'Dockerfile.serve'])
def test_dockerfiles(name, tmp_path):
    "Clean for hadolint; never root; nothing copied that is ignored or that is not there."
    said = subprocess.run([tool('hadolint'), str(ROOT/name)], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout
    text = (ROOT/name).read_text()
    assert text.startswith('#') and 'ARG BASE=' in text and re.findall(r'^USER (\S+)', text, re.M)[-1] == '10001' and '.git' not in re.findall(r'^COPY .*', text, re.M)
    allowed = [line[1:] for line in (ROOT/'.dockerignore').read_text().splitlines() if line.startswith('!')]
    copied = [s for line in re.findall(r'^COPY (?:--\S+ )*(.*) \S+$', text, re.M) for s in line.split() if '$' not in s]
    assert copied
    for s in copied: assert (ROOT/s).exists() and any(Path(s).match(a) or Path(s).parts[0] == a for a in allowed), s
    (tmp_path/'Dockerfile').write_text(text.replace('USER 10001', 'USER root').replace('WORKDIR /', 'WORKDIR '))
    assert subprocess.run([tool('hadolint'), str(tmp_path/'Dockerfile')], capture_output=True).returncode != 0
