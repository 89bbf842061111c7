"""The site: chapters, API tables and written pages -> Markdown in _proc -> MkDocs -> _docs. No cell is executed,
and of the project only `bcss_nb.core.folders` is imported."""

import argparse
import ast
import base64
import html
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from nbconvert import MarkdownExporter
from nbdev.config import get_config
from nbdev.process import NBProcessor
from nbdev.processors import (
    add_links,
    clean_magics,
    filter_stream_,
    hide_,
    hide_line,
    populate_language,
    rm_header_dash,
    strip_ansi,
)

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / 'tools'), str(ROOT)]
from docments import module_page, render, symbols  # noqa: E402

from bcss_nb.core.folders import RECORD, explain_strangers, read_record  # noqa: E402

PROC, SITE_DIR = ROOT / '_proc', ROOT / '_docs'
CFG = get_config(path=ROOT)
BLOB = f'{CFG.git_url}/blob/{CFG.branch}'
SITE = CFG.doc_host + CFG.doc_baseurl
STORY = 'The story'  # notebooks at the top of nbs/
PACKAGES = (
    'core',
    'data',
    'models',
    'training',
    'evaluation',
    'inference',
    'serving',
    'studies',
)  # folders of nbs/, in the order of the imports
LATER = {'cloud.md', 'peers.md'}  # may be missing
ANSI = re.compile(r'\x1b\[[0-9;?]*[ -/]*[@-~]')
FENCE = re.compile(r'^( *)(`{3,}|~{3,}).*?^\1\2[^\n]*$', re.M | re.S)


def page_of(path) -> str:
    "nbs/03_train.ipynb -> train.md, nbs/data/06_splits.ipynb -> data-splits.md."
    path = Path(path)
    folder = f'{path.parent.name}-' if path.parent.name in PACKAGES else ''
    return folder + re.sub(r'^\d+[a-z]?_', '', path.stem) + '.md'


def outside_code(fn, text) -> str:
    "Apply `fn` to Markdown, leaving fenced code alone."
    parts, at = [], 0
    for m in FENCE.finditer(text):
        parts += [fn(text[at : m.start()]), m.group()]
        at = m.end()
    return ''.join(parts) + fn(text[at:])


def relink(text, here, anchors=None) -> str:
    """Links of a file in folder `here`: notebooks and docs -> pages, other files -> GitHub, nbdev's doc links ->
    pages, or plain code where there is none."""

    def target(link, image):
        path, _, anchor = link.partition('#')
        path = (ROOT / here / path).resolve().relative_to(ROOT)
        anchor = f'#{anchor}' if anchor else ''
        if path.suffix == '.ipynb' and path.parts[0] == 'nbs':
            return page_of(path) + anchor
        if image and path.parts[0] == 'reports':
            return f'images/{path.name}'
        if path.parts[:2] in (('nbs', 'images'), ('docs', 'assets')) or (
            path.parts[0] == 'docs' and path.suffix == '.md'
        ):
            return '/'.join(path.parts[1:]) + anchor
        return f'{CFG.git_url}/{"tree" if (ROOT / path).is_dir() else "blob"}/{CFG.branch}/{path}{anchor}'

    def one(m):
        image, label, link = m.groups()
        if link.startswith(SITE + '/'):
            link, _, anchor = link[len(SITE) + 1 :].partition('#')
            page = page_of(link)
            if anchors is not None and anchor not in anchors.get(page, ()):
                return label
            return f'[{label}]({page}#{anchor})'
        if re.match(r'[a-z]+:|#|api/|pictures/', link):
            return m.group()
        return f'{image}[{label}]({target(link, image)})'

    return outside_code(lambda t: re.sub(r'(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)', one, t), text)


def lists_apart(text) -> str:
    "Python-Markdown wants an empty line before a list; notebooks need none."
    return outside_code(
        lambda t: re.sub(r'^((?![-*] |\d+\. |[ |>#]).+)\n(?=(?:[-*] |\d+\. )\S)', r'\1\n\n', t, flags=re.M), text
    )


def plain(text) -> str:
    "Markdown without its marks, on one line."
    text = re.sub(r'!?\[([^\]]*)\]\([^)]*\)', r'\1', FENCE.sub('', text))
    return ' '.join(re.sub(r'[*`>#]|\|', '', text).split())


def size(data) -> tuple:
    "(width, height) of a PNG or JPEG."
    if data[:4] == b'\x89PNG':
        return struct.unpack('>II', data[16:24])
    at = 2
    while data[at + 1] not in (0xC0, 0xC1, 0xC2):
        at += 2 + struct.unpack('>H', data[at + 2 : at + 4])[0]
    return struct.unpack('>HH', data[at + 5 : at + 9])[::-1]


def alt_text(code, section, prose, docs) -> str:
    """What a picture shows, from where it stands: section, what its code calls, rows and axes it names, the
    paragraph before it."""
    said = [section, *(docs[n] for n in re.findall(r'\b(show_\w+|plot_\w+)\(', code)[:1] if n in docs)]
    try:
        said.append('Rows or columns: ' + ', '.join(ast.literal_eval(re.search(r'names=(\[[^\]]*\])', code)[1])))
    except (TypeError, ValueError, SyntaxError):
        pass
    if axes := [m[1] for k in 'yx' if (m := re.search(k + r"label=f?'([^']+)'", code))]:
        said.append('Axes: ' + ' against '.join(axes))
    text = re.sub(r'["\[\]{}<>]', '', '. '.join(x.strip(' .:') for x in [*said, prose] if x))
    return text if len(text) < 400 else text[: text.rfind(' ', 0, 400)] + ' ...'


def picture(data, suffix, name, alt) -> str:
    "Write a picture beside the page and point to it."
    write(PROC / 'pictures' / f'{name}.{suffix}', data)
    w, h = size(data)
    return f'![{alt}](pictures/{name}.{suffix}){{ loading=lazy width={w} height={h} }}'


def html_table(text) -> str:
    "A data frame without pandas' own style; anything else as it is."
    soup = BeautifulSoup(text, 'html.parser')
    for x in soup('style'):
        x.decompose()
    for x in soup('table'):
        x.attrs = {'class': 'rows'}
    for x in soup('th'):
        if not x.get_text(strip=True):
            x.name = 'td'
    for x in soup('tr'):
        x.attrs = {}
    body = ''.join(str(t) for t in soup('table')) or str(soup)
    return '<div class="scroll">' + re.sub(r'\n\s*', '', body) + '</div>'


def fenced(text) -> str:
    "Printed text; never empty lines of noise."
    text = ANSI.sub('', text).rstrip()
    return f'```{{ .text .output }}\n{text}\n```' if text.strip() else ''


def output(out, name, alt) -> str:
    "Markdown of one stored output."
    if out.output_type == 'stream':
        return fenced(''.join(out.text)) if out.name == 'stdout' else ''
    if out.output_type == 'error':
        return fenced(f'{out.ename}: {out.evalue}')
    data = {k: ''.join(v) if isinstance(v, list) else v for k, v in out.get('data', {}).items()}
    for kind, suffix in (('image/png', 'png'), ('image/jpeg', 'jpg')):
        if kind in data:
            return picture(base64.b64decode(data[kind]), suffix, name, alt)
    if 'text/html' in data:
        return html_table(data['text/html'])
    if 'text/markdown' in data:
        return outside_code(lambda t: re.sub(r'^#', '###', t, flags=re.M), data['text/markdown'])
    text = data.get('text/plain', '')
    return '' if re.match(r'<(Figure|Axes)|\[?<matplotlib', text) else fenced(text)


def imports_only(source) -> bool:
    "A cell a reader need not see."
    try:
        return all(isinstance(x, ast.Import | ast.ImportFrom) for x in ast.parse(source).body)
    except SyntaxError:
        return False


def exported(cell, url, line):
    """An exported cell becomes what nbdev would show, docments as a table, and its source folded below; imports
    alone are left out."""
    cell.cell_type = 'markdown'
    if imports_only(cell.source):
        del cell['source']
        return
    shown = symbols(cell.source)
    for x in [*shown, *(m for s in shown for m in s.members)]:
        x.line, x.end = x.line + line - 1, x.end + line - 1
    folded = '??? source "Source"\n\n' + '\n'.join(
        f'    {x}'.rstrip() for x in f'```python\n{cell.source.strip()}\n```'.splitlines()
    )
    cell.source = '\n\n'.join([render(s, url) for s in shown] + [folded])


def place(source, module) -> int:
    "The line where a cell stands in its module, or 1."
    at = module.find(source.strip())
    return module.count('\n', 0, at) + 1 if at >= 0 else 1


def chapter(path, anchors=None, docs=()) -> str:
    "A notebook as a page: directives resolved by nbdev's processors, stored outputs kept."
    name, home = page_of(path)[:-3], Path(path).stem == 'index'
    nb = NBProcessor(
        path,
        procs=[
            populate_language,
            hide_line,
            filter_stream_,
            rm_header_dash,
            strip_ansi,
            clean_magics,
            hide_,
            add_links,
        ],
    )
    module = next((c.directives_['default_exp'][0] for c in nb.nb.cells if 'default_exp' in c.directives_), None)
    source, url = (file_of(module).read_text(), url_of(module)) if module else ('', '')

    def show(cell):
        if cell.cell_type != 'code':
            return
        if 'default_exp' in cell.directives_:
            del cell['source']
        elif cell.directives_.keys() & {'export', 'exporti', 'exports'}:
            exported(cell, url, place(cell.source, source))
        else:
            cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M)

    nb.procs.append(show)
    nb.process()
    cells, section, prose = [], '', ''
    for i, cell in enumerate(nb.nb.cells):
        if cell.cell_type == 'markdown':
            if '??? source' not in cell.source:
                if heads := re.findall(r'^#+ (.+)$', cell.source, flags=re.M):
                    section = plain(heads[-1])
                prose = plain(re.split(r'\n\s*\n', re.sub(r'^#.*$', '', cell.source, flags=re.M).strip())[-1])
            cells.append(nbformat.v4.new_markdown_cell(lists_apart(cell.source)))
            continue
        if cell.source.strip() and not home and not imports_only(cell.source):
            cells.append(nbformat.v4.new_code_cell(cell.source))
        outs = [
            output(o, f'{name}-{i}-{j}', alt_text(cell.source, section, prose, docs))
            for j, o in enumerate(cell.get('outputs', []))
        ]
        cells += [nbformat.v4.new_markdown_cell(o) for o in outs if o]
    made = nbformat.v4.new_notebook(cells=cells, metadata=dict(language_info=dict(name='python')))
    text = MarkdownExporter().from_notebook_node(made)[0]
    here = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path('nbs') / path.name
    folder = here.parent
    text = relink(drawings(text, folder), folder, anchors).lstrip()
    where = [f'[API of `bcss_nb.{module}`](api/{module}.md)'] * bool(module) + [
        f'[this chapter as a notebook]({BLOB}/{here})'
    ]
    if not home:
        text = re.sub(r'^(# .+\n+> (?:.+\n)+)', lambda m: f'{m[1]}\n{" · ".join(where)}\n{{ .where }}\n', text, count=1)
    return front(text, here)


def front(text, source) -> str:
    "Title, description and origin for the page's head."
    title = plain(re.search(r'^# (.+)$', text, flags=re.M)[1])
    rest = text.split('\n# ', 1)[-1] if '\n# ' in text else text
    quote = re.search(r'^> (.+)$', rest, flags=re.M) or re.search(r'^(\w.+)$', rest.split('\n', 1)[1], flags=re.M)
    return (
        f'---\ntitle: {json.dumps(title)}\ndescription: {json.dumps(plain(quote[1])[:300])}\nsource: '
        f'{source}\n---\n\n{text.strip()}\n'
    )


def measured(name) -> str:
    "A benchmark's printed table, without the line for machines and without folders."
    lines = (ROOT / 'reports/bench' / name).read_text().splitlines()
    return fenced('\n'.join(re.sub(r'/\S*/(?=runs/|exports/|data/)', '', x) for x in lines if not x.startswith('{"')))


def readme_part(heading) -> str:
    "One section of the README."
    text = (ROOT / 'README.md').read_text()
    return re.search(rf'^## {re.escape(heading)}\n(.*?)(?=^## |\Z)', text, flags=re.M | re.S)[1].strip()


def drawings(text, here) -> str:
    "SVGs are set into the page, so that they follow the palette."

    def one(m):
        svg = (
            (ROOT / here / m[2])
            .read_text()
            .strip()
            .replace('<svg ', f'<svg role="img" aria-label="{html.escape(m[1])}" ', 1)
        )
        return '<div class="scroll drawing">' + re.sub(r'\n\s*', ' ', svg) + '</div>'

    return re.sub(r'^!\[([^\]]+)\]\(([^)]+\.svg)\)$', one, text, flags=re.M)


def written(path) -> str:
    """A page of docs/: `<!-- measured: FILE -->` and `<!-- readme: HEADING -->` filled in, drawings set in, links
    turned."""
    text = Path(path).read_text()
    text = re.sub(r'<!-- measured: (\S+) -->', lambda m: measured(m[1]), text)
    text = re.sub(
        r'<!-- readme: (.+?) -->',
        lambda m: re.sub(r'\]\(nbs/', '](../nbs/', readme_part(m[1]).replace('](docs/', '](')),
        text,
    )
    return front(relink(drawings(lists_apart(text), 'docs'), 'docs'), f'docs/{Path(path).name}')


def write(path, data):
    "Write when something changed, so that a watching server settles."
    data = data.encode() if isinstance(data, str) else data
    WRITTEN.add(path)
    if path.exists() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


WRITTEN = set()


def chapters() -> list:
    "Notebooks: the story, then package by package in the order of the imports."
    nbs = ROOT / 'nbs'

    def rank(path):
        return (path.parent != nbs) and PACKAGES.index(path.parent.name) + 1

    found = [
        p
        for folder in (nbs, *(nbs / name for name in PACKAGES))
        for p in folder.glob('*.ipynb')
        if not p.name.startswith('_')
    ]
    return sorted(found, key=lambda path: (rank(path), path.name))


def file_of(module) -> Path:
    "The file of a module such as `data.splits`."
    return ROOT / f'bcss_nb/{module.replace(".", "/")}.py'


def url_of(module) -> str:
    "The same file on GitHub."
    return f'{BLOB}/bcss_nb/{module.replace(".", "/")}.py'


def modules() -> dict:
    "Module -> (title, page) of the chapter it comes from."
    found = {}
    for path in chapters():
        cells = nbformat.read(path, 4).cells
        title = cells[0].source.split('\n')[0].lstrip('# ')
        if m := re.search(r'^#\| default_exp ([\w.]+)', '\n'.join(c.source for c in cells), flags=re.M):
            found[m[1]] = title, page_of(path)
    return found


def prepare():
    """Everything MkDocs needs, in _proc; what is no longer made goes. A file of docs/ without a title is a
    fragment, no page."""
    WRITTEN.clear()
    mods = modules()
    anchors, docs = {}, {}
    for module, (_, page) in mods.items():
        shown = symbols(file_of(module).read_text())
        docs |= {s.name: s.doc for s in shown}
        anchors[page] = {x.anchor for s in shown for x in [s, *s.members]}
        text = module_page(module, file_of(module).read_text(), url_of(module), mods[module])
        write(PROC / 'api' / f'{module}.md', front(text, file_of(module).relative_to(ROOT)))
    for path in chapters():
        write(PROC / page_of(path), chapter(path, anchors, docs))
    for path in (ROOT / 'docs').glob('*.md'):
        if not path.read_text().startswith('# '):
            continue
        if PROC / path.name in WRITTEN:
            sys.exit(f'docs/{path.name} and a chapter both want the page {path.name}')
        write(PROC / path.name, written(path))
    for folder, name in (
        ('nbs/images/*', 'images'),
        ('reports/ml-canvas-1.png', 'images'),
        ('docs/assets/*', 'assets'),
    ):
        for path in ROOT.glob(folder):
            write(PROC / name / path.name, path.read_bytes())
    for path in [PROC / name for name in read_record(PROC)]:
        if path.is_file() and path not in WRITTEN:
            path.unlink()
    record(PROC, [str(path.relative_to(PROC)) for path in WRITTEN])


def record(folder, names):
    "Note which files of a folder were made here, so that others are never deleted."
    folder.mkdir(exist_ok=True)
    (folder / RECORD).write_text(json.dumps(dict(written_by='bcss_nb', files=sorted(names)), indent=1) + '\n')


def files_in(folder):
    "Relative names of all files."
    return [str(p.relative_to(folder)) for p in folder.rglob('*') if not p.is_dir()]


UNFINISHED = '<a build that was not finished>'  # stands in the record while MkDocs writes


def check_site():
    "End with a sentence when the site's folder, which MkDocs clears, holds files that were not made here."
    made = {*read_record(SITE_DIR), RECORD}
    strangers = [] if UNFINISHED in made else sorted(name for name in files_in(SITE_DIR) if name not in made)
    if strangers:
        sys.exit(
            f'{SITE_DIR} is cleared before the site is built, and holds files that are no part of it: '
            f'{explain_strangers(strangers)}. Move them away first'
        )


def fill(nav) -> list:
    "The navigation of mkdocs.yml, with chapters and modules where it names them, without pages that are not there yet."
    filled = []
    for item in nav:
        title, value = next(iter(item.items())) if isinstance(item, dict) else (None, item)
        if value == 'CHAPTERS':
            titles = {'nbs': STORY} | {name: name.capitalize() for name in PACKAGES}
            groups = {
                t: [page_of(p) for p in chapters() if p.parent.name == folder and p.stem != 'index']
                for folder, t in titles.items()
            }
            filled.append({title: [{t: pages} for t, pages in groups.items()]})
        elif value == 'MODULES':
            filled.append({title: [{m: f'api/{m}.md'} for m in sorted(modules())]})
        elif isinstance(value, list):
            filled.append({title: fill(value)})
        elif (PROC / value).exists() or value not in LATER:
            filled.append(item)

    return filled


def on_config(config):
    "MkDocs hook: the navigation, and names from settings.ini."
    config.nav = fill(config.nav)
    if not SERVING:
        config.site_url = f'{SITE}/'
    config.site_description, config.copyright = CFG.description, f'© {CFG.copyright}'
    config.repo_url, config.repo_name = CFG.git_url, f'{CFG.user}/{CFG.repo}'
    return config


def on_pre_build(config):
    "MkDocs hook: while serving, read notebooks and pages again."
    if SERVING:
        prepare()


def on_page_markdown(markdown, page, config, files):
    "MkDocs hook: the source of this page on GitHub."
    page.edit_url = f'{BLOB}/{page.meta["source"]}'


def on_page_content(html, **kwargs):
    "MkDocs hook: wide tables scroll by themselves."
    return (
        html.replace('<table>', '<div class="scroll"><table class="rows">')
        .replace('</table>', '</table></div>')
        .replace('</table></div></div>', '</table></div>')
    )


SERVING = 'serve' in sys.argv


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--strict', action='store_true', help='warnings are errors')
    p.add_argument('--serve', action='store_true', help='serve on http://localhost:8000 and follow changes')
    a = p.parse_args()
    if not a.serve:
        check_site()
    prepare()
    command = ['serve', '--watch', 'nbs', '--watch', 'docs', '--watch', 'bcss_nb'] if a.serve else ['build', '--clean']
    if not a.serve:
        record(SITE_DIR, [*read_record(SITE_DIR), UNFINISHED])
    code = subprocess.run(
        [sys.executable, '-m', 'mkdocs', *command, *(['--strict'] if a.strict else [])],
        cwd=ROOT,
        env=os.environ | dict(NO_MKDOCS_2_WARNING='1'),
    ).returncode
    if not a.serve:
        record(SITE_DIR, files_in(SITE_DIR))
    sys.exit(code)


if __name__ == '__main__':
    main()
