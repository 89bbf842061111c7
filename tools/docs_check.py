"""Checks the built site: links, heads, pictures, then in Chromium accessibility in both palettes, width on a phone,
and that no page asks another host."""

import functools
import http.server
import json
import os
import re
import shutil
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / '_docs'
BROWSER = os.environ.get('CHROMIUM') or next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None
)
QUIET = (
    '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
    '--disable-component-update --disable-sync'
).split()
AXE_PAGES = (
    'index.html',
    'models.html',
    'compare.html',
    'api/core.labels.html',
    'faq.html',
    'architecture.html',
    'checklist.html',
)
AXE_RULES = dict(runOnly=dict(type='tag', values=['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']))


def load(site) -> dict:
    "Path below the site -> parsed page."
    return {
        str(p.relative_to(site)): BeautifulSoup(p.read_text(), 'html.parser')
        for p in sorted(Path(site).rglob('*.html'))
    }


def notebook_pages(root) -> set:
    "The pages that come from notebooks."
    nbs = Path(root) / 'nbs'
    return {
        ('' if p.parent == nbs else f'{p.parent.name}-') + re.sub(r'^\d+[a-z]?_', '', p.stem) + '.html'
        for p in nbs.rglob('*.ipynb')
        if not p.name.startswith('_')
    }


def file_problem(path, fragment, root) -> str:
    "What is wrong with a link to a file of this repository."
    path = Path(root) / path
    if not path.exists():
        return 'no such file in this repository'
    lines = [int(n) for n in re.findall(r'L(\d+)', fragment)]
    if lines and path.is_file() and max(lines) > path.read_text().count('\n') + 1:
        return f'the file has no line {max(lines)}'
    return ''


def link_problem(link, page, ids, site, root, base, repo) -> str:
    "What is wrong with a link of a page, or nothing. Links to other hosts are only read, never followed."
    full = urljoin(base + page, link)
    parts = urlsplit(full)
    if parts.scheme in ('data', 'blob', 'javascript', 'mailto'):
        return ''
    if m := re.match(re.escape(repo) + r'/(?:blob|tree|edit)/[^/]+/([^#?]*)', full):
        return file_problem(unquote(m[1]), parts.fragment, root)
    if not full.startswith(base) and parts.netloc != urlsplit(base).netloc:
        return (
            ''
            if parts.scheme in ('http', 'https') and re.fullmatch(r'[\w.-]+(:\d+)?', parts.netloc) and ' ' not in full
            else 'not a proper address'
        )
    target = unquote(parts.path[len(urlsplit(base).path) :]) or 'index.html'
    if target.endswith('/'):
        target += 'index.html'
    if not (Path(site) / target).is_file():
        return 'no such file'
    if parts.fragment and target in ids and unquote(parts.fragment) not in ids[target]:
        return 'no such anchor'
    return ''


def broken_links(pages, site, root, base, repo) -> list:
    "Every link, picture, script and style that leads nowhere."
    found, known, ids = [], {}, {page: {x['id'] for x in soup(id=True)} for page, soup in pages.items()}
    for page, soup in pages.items():
        for x in soup.find_all(lambda t: t.get('href') or t.get('src')):
            link = x.get('href') or x.get('src')
            key = urljoin(base + page, link)
            if key not in known:
                known[key] = link_problem(link, page, ids, site, root, base, repo)
            if known[key]:
                found.append(f'{page}: {link}: {known[key]}')
    return found


def structure(pages, with_picture) -> list:
    "Title, language, description, one h1, alternative texts; a picture or an output on every notebook's page."
    found = []
    for page, soup in pages.items():
        if page == '404.html':
            continue

        def say(what, page=page):
            return found.append(f'{page}: {what}')

        if not (soup.title and soup.title.get_text(strip=True)):
            say('no title')
        if not soup.html.get('lang'):
            say('no language')
        d = soup.find('meta', attrs=dict(name='description'))
        if not (d and len(d.get('content', '')) > 15):
            say('no description')
        if len(soup('h1')) != 1:
            say(f'{len(soup("h1"))} h1')
        for img in soup('img'):
            if img.get('alt') is None or (not img['alt'] and 'logo' not in str(img.parent.get('class'))):
                say(f'no alternative text: {img.get("src", "")[:80]}')
        for svg in soup('svg', attrs=dict(role='img')):
            if not svg.get('aria-label'):
                say('a drawing without aria-label')
        if twice := [i for i, n in Counter(x['id'] for x in soup(id=True)).items() if n > 1]:
            say(f'ids twice: {twice[:3]}')
        if '\x1b[' in soup.get_text():
            say('terminal colors')
        if page in with_picture and not (soup.article or soup).select('img, svg[role=img], .output, .scroll table'):
            say('a notebook page without a picture or an output')
    return found + [f'{p}: missing' for p in with_picture - pages.keys()]


class Server(http.server.ThreadingHTTPServer):
    "The site on a free port."

    def __init__(self, site):
        handler = type('Quiet', (http.server.SimpleHTTPRequestHandler,), dict(log_message=lambda *a: None))
        super().__init__(('127.0.0.1', 0), functools.partial(handler, directory=str(site)))
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f'http://127.0.0.1:{self.server_port}/'


def watched(page, url, found):
    "Note requests to other hosts and errors of scripts."
    page.on(
        'request',
        lambda r: found.add(f'asks another host: {r.url}') if not r.url.startswith((url, 'data:', 'blob:')) else None,
    )
    page.on('pageerror', lambda e: found.add(f'script error at {page.url}: {e}'))
    return page


def on_a_phone(browser, url, pages) -> list:
    "Every page at 390 pixels: nothing sticks out at the side."
    found = set()
    page = watched(browser.new_page(viewport=dict(width=390, height=844)), url, found)
    for name in pages:
        page.goto(url + name, wait_until='domcontentloaded')
        wide = page.evaluate('document.documentElement.scrollWidth')
        if wide > 390:
            found.add(f'{name}: {wide} pixels wide on a phone of 390')
    page.close()
    return sorted(found)


def accessible(browser, url, pages) -> list:
    "WCAG 2.1 AA by axe-core, light and dark."
    from axe_playwright_python.sync_playwright import Axe

    found = set()
    for scheme in ('light', 'dark'):
        page = watched(
            browser.new_page(viewport=dict(width=1300, height=900), color_scheme=scheme, reduced_motion='reduce'),
            url,
            found,
        )
        for name in pages:
            page.goto(url + name, wait_until='load')
            if page.evaluate('document.body.dataset.mdColorScheme') != dict(light='default', dark='slate')[scheme]:
                found.add(f'{name}: palette does not follow {scheme}')
            for v in Axe().run(page, options=AXE_RULES).response['violations']:
                found.add(
                    f'{name} ({scheme}): {v["id"]}: {v["help"]}: {len(v["nodes"])} x, first '
                    f'{v["nodes"][0]["html"][:160]} {v["nodes"][0]["failureSummary"][:200]!r}'
                )
        page.close()
    return sorted(found)


def searchable(browser, url) -> list:
    "The search finds a word and leads to its page."
    page = browser.new_page()
    page.goto(url)
    page.fill('input[name=query]', 'bootstrap')
    try:
        page.wait_for_selector('.md-search-result__link', timeout=10_000)
    except Exception:
        return ['search: nothing found for "bootstrap"']
    finally:
        page.close()
    return []


def in_browser(site, pages) -> list:
    "All checks that need Chromium."
    from playwright.sync_api import sync_playwright

    server = Server(site)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=QUIET)
        found = on_a_phone(browser, server.url, pages)
        found += accessible(browser, server.url, [a for a in AXE_PAGES if a in pages]) + searchable(browser, server.url)
        browser.close()
    server.shutdown()
    return found


def main():
    from nbdev.config import get_config

    cfg, start = get_config(path=ROOT), time.time()
    pages, nbs = load(SITE), notebook_pages(ROOT)
    found = structure(pages, nbs) + broken_links(pages, SITE, ROOT, f'{cfg.doc_host}{cfg.doc_baseurl}/', cfg.git_url)
    if BROWSER:
        found += in_browser(SITE, [p for p in pages if p != '404.html'])
    elif '--no-browser' not in sys.argv:
        found.append('no Chromium: install it (apt install chromium), set CHROMIUM, or give --no-browser')
    for f in found:
        print(f)
    print(
        json.dumps(
            dict(
                pages=len(pages),
                notebooks=len(nbs),
                browser=bool(BROWSER),
                problems=len(found),
                seconds=round(time.time() - start, 1),
            )
        )
    )
    sys.exit(bool(found))


if __name__ == '__main__':
    main()
