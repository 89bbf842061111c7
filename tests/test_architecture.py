"Imports run one way, and a stage of the pipeline is run again when a module that it imports has changed."

import ast
import json
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / 'bcss_nb'
# package -> what it may import besides itself
ALLOWED = {
    'core': (),
    'data': ('core',),
    'models': ('core',),
    'training': ('core', 'data', 'models'),
    'evaluation': ('core', 'data', 'models', 'training'),
    'inference': ('core', 'models'),
    'serving': ('core', 'data', 'models', 'training', 'evaluation', 'inference'),
    'cli': ('core', 'data', 'models', 'training', 'evaluation', 'inference', 'serving'),
    'demo': ('core', 'data', 'training', 'evaluation', 'inference', 'serving'),
}


def imported(source, package=''):
    "Modules of bcss_nb that Python code imports, inside functions too, such as 'data.splits'."
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = '.'.join(['bcss_nb', *package.split('.')[: len(package.split('.')) - node.level + 1]]).strip('.')
            names = [f'{base}.{node.module}' if node.module else base]
            names += [f'{names[0]}.{a.name}' for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f'{node.module}.{a.name}' for a in node.names)]
        else:
            continue
        found |= {name.removeprefix('bcss_nb.') for name in names if name.startswith('bcss_nb.')}
    return {name for name in found if (PACKAGE / f'{name.replace(".", "/")}.py').is_file()}


def modules():
    "Module -> modules that it imports."
    files = [file for file in PACKAGE.rglob('*.py') if file.name not in ('_modidx.py', '__init__.py')]
    names = {'.'.join(file.relative_to(PACKAGE).with_suffix('').parts): file for file in files}
    return {name: imported(file.read_text(), name.rpartition('.')[0]) for name, file in names.items()}


def closure(names):
    "Modules and everything that they import in turn; a stage is told its models and never calls `demo`."
    graph, seen, left = modules(), set(), set(names) - {'demo'}
    while left:
        seen |= left
        left = set().union(*(graph[name] for name in left)) - seen
    return seen


def code_of(notebook):
    "The code of a notebook, without magics."
    cells = [c for c in json.loads(notebook.read_text())['cells'] if c['cell_type'] == 'code']
    return '\n'.join(
        line for c in cells for line in ''.join(c['source']).splitlines() if not line.startswith(('%', '!'))
    )


def test_imports_run_one_way():
    wrong = [
        f'{name} imports {other}'
        for name, others in modules().items()
        for other in others
        if other.partition('.')[0] not in (name.partition('.')[0], *ALLOWED[name.partition('.')[0]])
    ]
    assert not wrong


def test_every_module_has_a_package_of_the_table():
    assert {name.partition('.')[0] for name in modules()} == set(ALLOWED)


def test_what_is_imported_is_found():
    source = (
        'import os\nfrom ..core.labels import IGNORE\nfrom .train import fit\ndef f():\n    from bcss_nb.data import '
        'splits\n    import bcss_nb.cli'
    )
    assert imported(source, 'training') == {'core.labels', 'training.train', 'data.splits', 'cli'}


STAGES = yaml.safe_load((ROOT / 'dvc.yaml').read_text())['stages']


@pytest.mark.parametrize('stage', STAGES)
def test_a_stage_depends_on_every_module_that_it_imports(stage):
    deps, cmd = [dep.rstrip('/') for dep in STAGES[stage]['deps']], STAGES[stage]['cmd']
    notebooks = [dep for dep in deps if dep.endswith('.ipynb')]
    if notebooks:
        assert len(notebooks) == 1 and notebooks[0] in cmd
        imports = imported(code_of(ROOT / notebooks[0]))
    else:
        imports = {cmd.split(' -m bcss_nb.')[1].split()[0]}
    needed = {f'bcss_nb/{name.replace(".", "/")}.py' for name in closure(imports)}
    missing = sorted(file for file in needed if not any(file == dep or file.startswith(f'{dep}/') for dep in deps))
    assert needed and not missing


@pytest.mark.parametrize('stage', [s for s in STAGES if '-f params/' in STAGES[s]['cmd']])
def test_a_file_of_parameters_holds_what_its_notebook_declares_and_is_tracked_whole(stage):
    cmd = STAGES[stage]['cmd']
    file = cmd.split('-f ')[1].split()[0]
    assert {file: None} in STAGES[stage]['params']
    notebook = next(dep for dep in STAGES[stage]['deps'] if dep.endswith('.ipynb'))
    cells = json.loads((ROOT / notebook).read_text())['cells']
    source = next(''.join(c['source']) for c in cells if 'parameters' in c['metadata'].get('tags', []))
    declared = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source).body}
    values = yaml.safe_load((ROOT / file).read_text())
    assert set(values) <= set(declared)
    assert all(type(value) is type(declared[name]) for name, value in values.items())
