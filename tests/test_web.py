"The web page in a real browser: what a person does, and what she sees."

import base64
import io
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from shared_serve import proxy, service

from bcss_nb.core.labels import get_schema, label_palette
from bcss_nb.data.simulator import simulate_roi
from bcss_nb.inference.engines import open_engine
from bcss_nb.inference.prediction import predict_image
from bcss_nb.inference.readers import SlideReader

BROWSER = os.environ.get('CHROMIUM') or next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None
)
QUIET = (
    '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
    '--disable-component-update --disable-sync'
).split()
pytestmark = pytest.mark.skipif(
    not BROWSER, reason='no Chromium found: install it (apt install chromium) or set CHROMIUM'
)


@pytest.fixture(scope='module')
def url(exported, tmp_path_factory):
    with service(exported, tmp_path_factory.mktemp('web') / 'log', max_pixels=3_000_000) as (url, _):
        yield url


@pytest.fixture(scope='module')
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield b
        b.close()


@pytest.fixture
def page(browser, url):
    page, said = browser.new_page(viewport=dict(width=1300, height=850), accept_downloads=True), []
    page.on(
        'console',
        lambda m: said.append(m.text) if m.type in ('error', 'warning') and 'status of 4' not in m.text else None,
    )
    page.on('pageerror', lambda e: said.append(str(e)))
    page.on(
        'request',
        lambda r: said.append(f'left the page: {r.url}') if not r.url.startswith((url, 'blob:', 'data:')) else None,
    )
    page.goto(url)
    yield page
    page.close()
    assert not said, said


def done(page):
    page.locator('#status', has_text='Done').wait_for(timeout=30_000)


def choose(page, path):
    page.evaluate("document.getElementById('status').textContent = ''")
    page.set_input_files('#file', path)


def shown(page):
    "The map the page has painted, (H, W, 4)."
    data = page.evaluate("document.getElementById('map').toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.split(',')[1]))).convert('RGBA'))


@pytest.fixture(scope='module')
def tile(tmp_path_factory):
    path = tmp_path_factory.mktemp('tile') / 'tile.png'
    Image.fromarray(simulate_roi(4, shape=(224, 320))[1]).save(path)
    return path


def test_upload_shows_the_map_of_the_engine(page, tile, exported, tmp_path):
    choose(page, tile)
    done(page)
    engine = open_engine(exported)
    pixels = np.asarray(Image.open(tile))
    want = predict_image(SlideReader(pixels), engine)
    map_ = shown(page)
    assert (map_[..., 3] == 255).all() and (map_[..., :3] == label_palette(engine.schema)[want.label]).all()
    assert page.evaluate("getComputedStyle(document.getElementById('map')).opacity") == '0.5'
    assert page.eval_on_selector('#picture', 'i => [i.naturalWidth, i.naturalHeight]') == [320, 224]
    rows = page.locator('#rows tr').all_inner_texts()
    assert len(rows) == 3 and all(c in r for c, r in zip(engine.schema.classes, rows))


def test_opacity_toggles_uncertainty(page, tile, exported):
    choose(page, tile)
    done(page)
    before = shown(page)
    tumor = (before[..., :3] == label_palette(get_schema('kaggle3'))[1]).all(-1)
    assert tumor.any()
    page.uncheck('[aria-label="Show tumor"]')
    assert (shown(page)[..., 3] == 0)[tumor].all() and (shown(page)[..., 3] == 255)[~tumor].all()
    page.check('[aria-label="Show tumor"]')
    page.check('[value=uncertainty]')
    uncertainty = shown(page)[..., 3]
    assert len(np.unique(uncertainty)) > 20
    page.fill('#opacity', '100')
    assert page.evaluate("document.getElementById('map').style.opacity") == '1'


def test_keyboard_zoom_and_pan(page, tile):
    choose(page, tile)
    done(page)

    def place():
        return page.evaluate("document.getElementById('world').style.transform")

    start = place()
    page.focus('#stage')
    for key in ('+', 'ArrowLeft', '0'):
        page.keyboard.press(key)
    assert place() == start
    page.keyboard.press('+')
    bigger = place()
    page.keyboard.press('ArrowRight')
    assert start != bigger != place()
    page.mouse.move(600, 400)
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(100)
    assert place() not in (start, bigger)
    page.click('#fit')
    assert place() == start


def test_downloads(page, tile):
    choose(page, tile)
    done(page)
    found = {}
    for kind in ('png', 'geojson', 'json'):
        with page.expect_download() as d:
            page.click(f'[data-save={kind}]')
        found[kind] = d.value
    assert [d.suggested_filename for d in found.values()] == ['tile.overlay.png', 'tile.geojson', 'tile.json']
    assert Image.open(found['png'].path()).size == (320, 224)
    assert json.load(open(found['geojson'].path()))['features'][0]['properties']['objectType'] == 'annotation'
    assert json.load(open(found['json'].path()))['classes'].keys() == {'other', 'tumor', 'stroma'}


def test_example_and_tiff(page, tile, tmp_path):
    page.click('text=Tumor nests')
    done(page)
    assert shown(page).shape[:2] == (512, 512)
    Image.open(tile).save(tmp_path / 't.tif')
    choose(page, tmp_path / 't.tif')
    done(page)
    assert shown(page).shape[:2] == (224, 320) and page.eval_on_selector('#picture', 'i => i.naturalWidth') == 320


def test_errors_are_said(page, tile, tmp_path):
    (tmp_path / 'notes.png').write_text('not a picture')
    Image.new('RGB', (2000, 2000)).save(tmp_path / 'large.png')
    Image.new('L', (100, 100)).save(tmp_path / 'gray.png')
    for name, words in (
        ('notes.png', 'no picture in a format served here'),
        ('large.png', '2000x2000 pixels'),
        ('gray.png', 'it is 8-bit gray, expected 8-bit RGB'),
    ):
        choose(page, tmp_path / name)
        page.wait_for_selector('#error:not([hidden])')
        assert words in page.inner_text('#error')
    choose(page, tile)
    done(page)
    assert page.is_hidden('#error')


def test_phone_and_screen_reader(browser, url, tile):
    page = browser.new_page(viewport=dict(width=375, height=800), has_touch=True)
    page.goto(url)
    choose(page, tile)
    done(page)
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth'), 'the page scrolls sideways'
    unnamed = page.evaluate("""[...document.querySelectorAll('button, input, [role=application]')].filter(e =>
        e.offsetParent && !(e.getAttribute('aria-label') || e.innerText || e.labels?.length)).map(e => e.outerHTML)""")
    assert not unnamed, unnamed
    assert page.get_attribute('#status', 'aria-live') == 'polite' and page.get_attribute('#error', 'role') == 'alert'
    page.close()


def test_api_page(page, url):
    page.goto(f'{url}/docs')
    page.wait_for_selector('[data-path="/v2/models/bcss/infer"]')


@pytest.mark.parametrize('strips', [True, False], ids=['prefix cut off', 'prefix kept'])
def test_behind_a_prefix(browser, exported, tmp_path, tile, strips):
    "The page, its examples, its maps, and Swagger's 'Try it out', through a proxy that shows the service at /lab/bcss."
    with (
        service(exported, tmp_path / 'log', root_path='/lab/bcss') as (url, _),
        proxy(url, '/lab/bcss', strips) as (front, asked),
    ):
        page = browser.new_page()
        page.goto(f'{front}/lab/bcss/')
        page.get_by_role('button', name='Tile', exact=True).click()
        done(page)
        assert page.locator('#rows tr').count() == 3
        page.goto(f'{front}/lab/bcss/docs')
        page.locator('.opblock-summary-path', has_text='health').first.wait_for(timeout=20_000)
        block = page.locator('.opblock', has=page.locator('[data-path="/v2/health/live"]'))
        block.locator('.opblock-summary-control').click()
        block.get_by_role('button', name='Try it out').click()
        block.get_by_role('button', name='Execute').click()
        block.locator('.live-responses-table .response-col_status', has_text='200').wait_for(timeout=20_000)
        page.close()
    assert {status for path, status in asked if 'favicon' not in path} == {200} and any(
        path.endswith('/v2/health/live') for path, _ in asked
    )


def test_a_turned_photograph_lies_under_its_map(page, tmp_path):
    "The page shows the stored frame, in which maps and outlines are, whatever the orientation tag says."
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(simulate_roi(4, shape=(224, 320))[1]).save(tmp_path / 'turned.jpg', exif=exif)
    choose(page, tmp_path / 'turned.jpg')
    done(page)
    assert page.evaluate("getComputedStyle(document.getElementById('picture')).imageOrientation") == 'none' and shown(
        page
    ).shape[:2] == (224, 320)
