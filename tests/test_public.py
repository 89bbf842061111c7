"What the public sees: citation, workflows, hooks, forms, canvas, images' files."

import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parent.parent
FLOWS = sorted((ROOT / '.github/workflows').glob('*.yml'))
settings = ConfigParser(delimiters=['='], interpolation=None)
settings.read(ROOT / 'settings.ini')


def tool(name):
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def load(path):
    return yaml.safe_load(path.read_text())


def test_citation():
    c = load(ROOT / 'CITATION.cff')
    assert {'cff-version', 'message', 'title', 'authors', 'version', 'license', 'references'} <= set(c) and c[
        'version'
    ] == settings['DEFAULT']['version']
    assert c['repository-code'] == settings['DEFAULT']['git_url'] and '10.1093/bioinformatics/btz083' in {
        r['doi'] for r in c['references']
    }
    assert all(re.fullmatch(r'10\.\d{4,9}/\S+', r['doi']) and r['title'] and r['authors'] for r in c['references'])


def lint(*files):
    return subprocess.run([tool('actionlint'), *map(str, files)], cwd=ROOT, capture_output=True, text=True)


def test_workflows(tmp_path):
    assert {f.stem for f in FLOWS} == {'tests', 'docs', 'images', 'data', 'model'}
    said = lint(*FLOWS)
    assert said.returncode == 0, said.stdout
    broken = tmp_path / 'broken.yml'
    broken.write_text((ROOT / '.github/workflows/tests.yml').read_text().replace('matrix.python }}', 'matrix.pyton }}'))
    assert lint(broken).returncode != 0


@pytest.mark.parametrize('flow', FLOWS, ids=lambda f: f.stem)
def test_workflow_is_bounded_and_pinned(flow):
    y = load(flow)
    assert 'permissions' in y and 'concurrency' in y and all('timeout-minutes' in j for j in y['jobs'].values())
    used = [s['uses'] for j in y['jobs'].values() for s in j['steps'] if 'uses' in s]
    assert used and all(re.search(r'@(v\d+|[0-9a-f]{40})', u) for u in used)
    assert set(y['permissions'].values()) <= {'read', 'none'}, 'only the job that writes may write'


def test_workflows_name_what_exists():
    text = '\n'.join(f.read_text() for f in FLOWS)
    makefile = (ROOT / 'Makefile').read_text() + (ROOT / 'deploy/gcp/gcp.mk').read_text()
    goals = {
        g
        for line in re.findall(r'(?:run: |^\s+)make ([^|&\n]+)', text, flags=re.M)
        for g in line.split()
        if re.fullmatch(r'[a-z-]+', g)
    }
    assert goals and not [g for g in goals if not re.search(rf'^{g}:', makefile, re.M)]
    files = set(re.findall(r'\b((?:nbs|tests|bench|deploy|docs)/[\w./-]+\.(?:ipynb|py|sh))', text))
    assert files and not [f for f in files if not (ROOT / f).exists()]


def test_python_inside_workflows():
    "It compiles, and imports what there is."
    found = [
        m[1]
        for f in FLOWS
        for j in load(f)['jobs'].values()
        for s in j['steps']
        for m in re.finditer(r"<<'END'.*?\n(.*?)\nEND", s.get('run', ''), re.S)
    ]
    assert found
    for code in found:
        compile(code, 'workflow', 'exec')
        exec('\n'.join(re.findall(r'^(?:from|import) .*', code, re.M)), {})


def test_hooks(tmp_path):
    hooks = [h for r in load(ROOT / '.pre-commit-config.yaml')['repos'] if r['repo'] == 'local' for h in r['hooks']]
    assert {'ruff', 'nbdev-clean', 'in-step', 'no-data'} == {h['id'] for h in hooks}
    for h in hooks:
        command = h['entry'].split()
        assert tool(command[0]) and all((ROOT / c).exists() for c in command if c.endswith('.py'))

    def run(*files):
        return subprocess.run(
            [sys.executable, str(ROOT / 'tools/no_data.py'), *map(str, files)], cwd=ROOT, capture_output=True, text=True
        )

    assert run().returncode == 0, run().stderr
    (tmp_path / 'TCGA-A1-A0SK-DX1_xmin1_ymin1.png').write_bytes(b'x')
    (tmp_path / 'a.md').write_text('<' * 7 + ' HEAD\n')
    (tmp_path / 'big.txt').write_bytes(b'x' * 500_000)
    for f in tmp_path.iterdir():
        assert run(f).returncode != 0, f


def test_canvas_is_of_its_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'docs/canvas'))
    import draw

    assert Image.open(draw.OUT).info['Source'] == draw.source_id(), 'python docs/canvas/draw.py'
    canvas = yaml.safe_load(draw.SOURCE.read_text())
    assert len(canvas['boxes']) == len(draw.PLACES) == 10 and draw.OUT.stat().st_size < 400_000
    canvas['boxes']['features']['say'] *= 5
    (tmp_path / 'long.yaml').write_text(yaml.safe_dump(canvas))
    monkeypatch.setattr(draw, 'SOURCE', tmp_path / 'long.yaml')
    with pytest.raises(ValueError, match='features: .* too much text'):
        draw.draw(tmp_path / 'out.png')


@pytest.mark.parametrize('form', ['bug', 'feature', 'score', 'data'])
def test_issue_forms(form):
    y = load(ROOT / f'.github/ISSUE_TEMPLATE/{form}.yml')
    assert (
        y['name']
        and y['description']
        and all(
            b['type'] in ('textarea', 'input', 'dropdown', 'checkboxes') and b['attributes']['label'] for b in y['body']
        )
    )


FORMS = '.github/ISSUE_TEMPLATE/'


@pytest.mark.parametrize(
    'schema, files, good, bad',
    [
        ('citation-file-format', ['CITATION.cff'], 'type: software', 'type: softwear'),
        ('github-workflows', [str(f.relative_to(ROOT)) for f in FLOWS], 'runs-on:', 'run-on:'),
        (
            'github-issue-forms',
            [f'{FORMS}{f}.yml' for f in ('bug', 'feature', 'score', 'data')],
            'type: textarea',
            'type: textfield',
        ),
        ('github-issue-config', [FORMS + 'config.yml'], 'url:', 'link:'),
    ],
)
def test_against_the_published_schemas(schema, files, good, bad):
    wanted = json.loads(
        (resources.files(pytest.importorskip('check_jsonschema')) / f'builtin_schemas/vendor/{schema}.json').read_text()
    )
    judge = jsonschema.validators.validator_for(wanted)(wanted)

    def parse(text):
        return {'on' if k is True else k: v for k, v in yaml.safe_load(text).items()}  # YAML 1.1 reads `on` as true

    texts = {f: (ROOT / f).read_text() for f in files}
    assert not [(f, e.json_path, e.message) for f, text in texts.items() for e in judge.iter_errors(parse(text))]
    assert good in texts[files[0]] and not judge.is_valid(parse(texts[files[0]].replace(good, bad)))


def test_devcontainer():
    d = json.loads((ROOT / '.devcontainer/devcontainer.json').read_text())
    assert (
        d['postCreateCommand'].startswith('make setup-dev')
        and f':{settings["DEFAULT"]["min_python"]}' in d['image']
        and {8080, 8888} <= set(d['forwardPorts'])
    )


@pytest.mark.parametrize('name', ['Dockerfile.cuda', 'Dockerfile.serve'])
def test_dockerfiles(name, tmp_path):
    "Clean for hadolint; never root; nothing copied that is ignored or that is not there."
    said = subprocess.run([tool('hadolint'), str(ROOT / name)], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout
    text = (ROOT / name).read_text()
    assert (
        text.startswith('#')
        and 'ARG BASE=' in text
        and re.findall(r'^USER (\S+)', text, re.M)[-1] == '10001'
        and '.git' not in re.findall(r'^COPY .*', text, re.M)
    )
    allowed = [line[1:] for line in (ROOT / '.dockerignore').read_text().splitlines() if line.startswith('!')]
    copied = [s for line in re.findall(r'^COPY (?:--\S+ )*(.*) \S+$', text, re.M) for s in line.split() if '$' not in s]
    assert copied
    for s in copied:
        assert (ROOT / s).exists() and any(Path(s).match(a) or Path(s).parts[0] == a for a in allowed), s
    (tmp_path / 'Dockerfile').write_text(text.replace('USER 10001', 'USER root').replace('WORKDIR /', 'WORKDIR '))
    assert subprocess.run([tool('hadolint'), str(tmp_path / 'Dockerfile')], capture_output=True).returncode != 0
