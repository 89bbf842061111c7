"The site's tools on small examples: directives, links and API tables are right, and the checker finds what is broken."

import base64
import importlib.util
import io
import sys

import nbformat
import pytest
from PIL import Image

from bcss_nb.core.files import project_path

pytest.importorskip('bs4', reason='make setup-dev installs what the site needs')


def tool(name):
    "tools/NAME.py, under a name that no package has."
    spec = importlib.util.spec_from_file_location(f'tool_{name}', project_path(f'tools/{name}.py'))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build, check, docments = map(tool, ('docs_build', 'docs_check', 'docments'))
BASE, REPO = 'https://example.org/site/', 'https://example.org/code'
PAGE = """<html lang="en"><head><title>T</title><meta name="description" content="A page that says what it is."></head>
<body><article><h1 id="top">T</h1>
<a href="b.html#part">b</a>
<a href="https://example.org/code/blob/main/file.py#L2">file</a><a href="https://elsewhere.org/x">far</a>
<img src="p.png" alt="A tile"></article></body></html>"""
SOURCE = """
SIDE = 224  # pixels

def grow(
    image:np.ndarray, # (H, W, 3) uint8 RGB, 0.25 um/px
    by=2,             # factor, 1 | 2
    *, seed:int=0, deep:bool=False, # of the draw; `True` costs time
)->np.ndarray:        # (by*H, by*W, 3) uint8; ValueError when empty
    "Make it larger."

@dataclass
class Tile:
    "One tile."
    name: str      # of the file
    side: int=224  # pixels
    def crop(self,
        n:int, # pixels
    ): # a Tile
        "A smaller one."

def _hidden(x): pass
"""


def site(folder, page=PAGE):
    "Two pages, a picture and a repository's file."
    for name, text in (
        ('a.html', page),
        ('b.html', PAGE.replace('id="top"', 'id="part"')),
        ('p.png', ''),
        ('file.py', 'x = 1\ny = 2\n'),
    ):
        (folder / name).write_text(text)
    pages = check.load(folder)
    return check.broken_links(pages, folder, folder, BASE, REPO) + check.structure(pages, {'a.html'})


def test_a_good_site_passes(tmp_path):
    assert site(tmp_path) == []


@pytest.mark.parametrize(
    'good, bad, said',
    [
        ('b.html#part', 'c.html', 'a.html: c.html: no such file'),
        ('b.html#part', 'b.html#top', 'a.html: b.html#top: no such anchor'),
        ('b.html#part', BASE + 'c.html', 'no such file'),
        ('src="p.png"', 'src="q.png"', 'a.html: q.png: no such file'),
        ('file.py#L2', 'gone.py', 'no such file in this repository'),
        ('file.py#L2', 'file.py#L9', 'no line 9'),
        ('https://elsewhere.org/x', 'https://else where.org/x', 'not a proper address'),
        ('alt="A tile"', '', 'no alternative text'),
        ('<img src="p.png" alt="A tile">', '', 'a notebook page without a picture'),
        ('<h1 id="top">T</h1>', '', '0 h1'),
        ('lang="en"', '', 'no language'),
        ('A page that says what it is.', '', 'no description'),
        ('<title>T</title>', '', 'no title'),
        ('</article>', '<p id="top"></p></article>', 'ids twice'),
        ('</article>', '\x1b[31mred</article>', 'terminal colors'),
    ],
)
def test_what_is_broken_is_found(tmp_path, good, bad, said):
    assert good in PAGE
    found = site(tmp_path, PAGE.replace(good, bad))
    assert any(said in f for f in found), found


@pytest.mark.skipif(not check.BROWSER, reason='no Chromium found: install it (apt install chromium) or set CHROMIUM')
def test_what_only_a_browser_sees_is_found(tmp_path):
    from playwright.sync_api import sync_playwright

    bad = (
        '<div style="width:600px">wide</div><p style="color:#ccc;background:#fff">pale</p><script '
        'src="http://127.0.0.1:9/x.js"></script></article>'
    )
    site(tmp_path, PAGE.replace('</article>', bad).replace('<body>', '<body data-md-color-scheme="default">'))
    server = check.Server(tmp_path)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=check.BROWSER, args=check.QUIET)
        wide, seen = (
            check.on_a_phone(browser, server.url, ['a.html', 'b.html']),
            check.accessible(browser, server.url, ['a.html']),
        )
        browser.close()
    server.shutdown()
    assert any('a.html: 6' in f and 'wide on a phone' in f for f in wide) and not any('b.html: ' in f for f in wide), (
        wide
    )
    assert any('asks another host: http://127.0.0.1:9/x.js' in f for f in wide), wide
    assert any('color-contrast' in f for f in seen) and any('palette does not follow dark' in f for f in seen), seen


@pytest.mark.parametrize(
    'here, link, page',
    [
        ('nbs', '[a](02_models.ipynb)', '[a](models.md)'),
        ('nbs', '[a](studies/recipe.ipynb#findings)', '[a](studies-recipe.md#findings)'),
        ('nbs', '![a](images/sample.jpg)', '![a](images/sample.jpg)'),
        ('nbs', '[a](../bench/train.py)', f'[a]({build.BLOB}/bench/train.py)'),
        ('docs', '[a](../nbs/index.ipynb)', '[a](index.md)'),
        ('docs', '[a](faq.md#service)', '[a](faq.md#service)'),
        ('docs', '[a](../deploy/)', f'[a]({build.CFG.git_url}/tree/{build.CFG.branch}/deploy)'),
        ('.', '[a](nbs/00_eda.ipynb)', '[a](eda.md)'),
        ('nbs', '[a](https://openslide.org)', '[a](https://openslide.org)'),
        ('nbs', f'[`x`]({build.SITE}/core/labels.html#pick)', '[`x`](core-labels.md#pick)'),
        ('nbs', f'[`x`]({build.SITE}/core/labels.html#_gone)', '`x`'),
        ('nbs', '```\n[a](02_models.ipynb)\n```', '```\n[a](02_models.ipynb)\n```'),
    ],
)
def test_links_lead_to_pages(here, link, page):
    assert build.relink(link, here, {'core-labels.md': {'pick'}}) == page


def test_docments_become_tables():
    grow, tile = docments.symbols(SOURCE)
    assert grow.rows == [
        ('image', 'np.ndarray', '', '(H, W, 3) uint8 RGB, 0.25 um/px'),
        ('by', 'int', '2', 'factor, 1 | 2'),
        ('seed', 'int', '0', 'of the draw; `True` costs time'),
        ('deep', 'bool', 'False', 'of the draw; `True` costs time'),
    ]
    assert (
        grow.returns == ('np.ndarray', '(by*H, by*W, 3) uint8; ValueError when empty') and grow.doc == 'Make it larger.'
    )
    assert tile.rows == [('name', 'str', '', 'of the file'), ('side', 'int', '224', 'pixels')]
    assert (
        [m.name for m in tile.members] == ['Tile.crop']
        and tile.members[0].rows == [('n', 'int', '', 'pixels')]
        and tile.members[0].returns == ('', 'a Tile')
    )
    assert docments.constants(SOURCE) == [('SIDE', '224', 'pixels')]
    page = docments.module_page('grow', SOURCE, f'{REPO}/grow.py', ('Grow', 'grow.md'))
    assert f'{REPO}/grow.py#L{grow.line}-L{grow.end}' in page and SOURCE.splitlines()[grow.line - 1] == 'def grow('
    assert '<td>factor, 1 | 2</td>' in page and '_hidden' not in page and '<code>True</code> costs time' in page


def test_every_public_name_has_its_row():
    "The tables say what the code says: names as in the package, parameters as Python sees them."
    import inspect

    import bcss_nb.core.labels as labels

    for s in docments.symbols(project_path('bcss_nb/core/labels.py').read_text()):
        assert s.name in labels.__all__
        names = [n.lstrip('*') for row in s.rows for n in row[0].split(', ')]
        assert names == [p for p in inspect.signature(getattr(labels, s.name)).parameters if p != 'self'], s.name


def test_a_notebook_becomes_a_page(tmp_path):
    picture = io.BytesIO()
    Image.new('RGB', (30, 20), 'red').save(picture, 'png')
    shown = nbformat.v4.new_output(
        'display_data', {'image/png': base64.b64encode(picture.getvalue()).decode(), 'text/plain': '<Figure size 3x2>'}
    )
    said = nbformat.v4.new_output('stream', name='stdout', text='\x1b[31mred\x1b[0m text\n')
    frame = nbformat.v4.new_output(
        'execute_result',
        {
            'text/html': '<div><style scoped>th {}</style>\n<table border="1" '
            'class="dataframe"><tr><th></th><th>Dice</th></tr></table></div>'
        },
    )
    md, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    cells = [
        md('# Tiny\n\n> A chapter for a test.'),
        code('#| default_exp core.labels'),
        code('#| export\nimport os'),
        code('#| export\ndef pick(\n    a:int, # a number\n): # the same\n    "Look it up."\n    return a'),
        code('#| hide\nsecret = 1'),
        md('## Seen\n\nA red tile, and:\n- one\n- two\n\nSee [labels](core/00_labels.ipynb).'),
        code("show_tiles(x, names=['image', 'label'])", outputs=[shown, said, frame]),
    ]
    path = tmp_path / '99_tiny.ipynb'
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    build.PROC, before = tmp_path / 'proc', build.PROC
    try:
        page = build.chapter(path, docs=dict(show_tiles='Rows of tiles.'))
    finally:
        build.PROC = before
    assert page.startswith('---\ntitle: "Tiny"\ndescription: "A chapter for a test."\n')
    assert 'secret' not in page and '#|' not in page and 'import os' not in page and 'default_exp' not in page
    assert (
        '### `pick` { #pick .symbol }' in page
        and '<td>a number</td>' in page
        and '??? source "Source"' in page
        and '    def pick(' in page
    )
    assert 'and:\n\n- one\n- two' in page and '[labels](core-labels.md)' in page
    [written] = (tmp_path / 'proc/pictures').iterdir()
    assert (
        f'![Seen. Rows of tiles. Rows or columns: image, label. See labels](pictures/{written.name}){{ loading=lazy '
        f'width=30 height=20 }}' in page
    )
    assert written.read_bytes() == picture.getvalue()
    assert 'red text' in page and '\x1b' not in page and '<style' not in page and '<td></td><th>Dice</th>' in page


def test_measured_tables_name_no_folder(tmp_path, monkeypatch):
    (tmp_path / 'reports/bench').mkdir(parents=True)
    (tmp_path / 'reports/bench/x.txt').write_text('unet of /home/me/bcss/runs/unet/42\n{"ms": 1}\n')
    monkeypatch.setattr(build, 'ROOT', tmp_path)
    assert build.measured('x.txt') == '```{ .text .output }\nunet of runs/unet/42\n```'


def test_a_build_deletes_only_pages_that_it_made(tmp_path, monkeypatch):
    monkeypatch.setattr(build, 'PROC', tmp_path / '_proc')
    monkeypatch.setattr(build, 'SITE_DIR', tmp_path / '_docs')
    for folder in ('_proc', '_docs'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'thesis.md').write_text('years of work')
    build.record(build.PROC, ['old.md'])
    (build.PROC / 'old.md').write_text('x')
    build.prepare()
    assert not (build.PROC / 'old.md').exists() and (build.PROC / 'thesis.md').read_text() == 'years of work'
    with pytest.raises(SystemExit, match='thesis.md'):
        build.check_site()
    (build.SITE_DIR / 'thesis.md').unlink()
    (build.SITE_DIR / 'index.html').write_text('x')
    build.record(build.SITE_DIR, ['index.html'])
    build.check_site()
