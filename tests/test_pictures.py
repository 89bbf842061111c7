"Every kind of picture is read rightly or refused by name, by `bcss predict` and the service alike."

import io
import json
import re
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile
from fastapi.testclient import TestClient
from make_pictures import (
    KINDS,
    STRIPS,
    TILES,
    WAYS,
    Brightest,
    Kind,
    Way,
    aperio,
    brightest_band,
    dicom_slide,
    flat,
    hamamatsu_vms,
    leica_scn,
    ome_series,
    ome_size,
    rgba_of,
    sparse_tiff,
    tagged,
    tiff,
    tinted,
    with_pillow,
)
from PIL import Image

from bcss_nb.core.labels import IGNORE
from bcss_nb.data.dataset import load_dataset
from bcss_nb.data.prepare import prepare
from bcss_nb.data.simulator import simulate_roi
from bcss_nb.data.tiling import TilingConfig
from bcss_nb.inference.batch import predict_files
from bcss_nb.inference.discovery import find_images
from bcss_nb.inference.outputs import predict_file
from bcss_nb.serving.app import create_app
from bcss_nb.serving.settings import Settings

NEAR = 10  # pixels beside the border of an area in which either answer is right
MPP_TEXT = 0.25  # of files that do not say, given by hand


@pytest.fixture(scope='module')
def rgb() -> np.ndarray:
    return tinted()


@pytest.fixture(scope='module')
def tissue() -> np.ndarray:
    return simulate_roi(7, shape=(1100, 1300))[1]


@pytest.fixture(scope='module')
def client(exported):
    "A client of a service whose engine is `Brightest`."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('bcss_nb.serving.service.open_engine', lambda *args, **kwargs: Brightest())
        app = create_app(Settings(model=str(exported), workers=1, max_bytes=64 * 2**20, deadline=60))
    with TestClient(app) as made:
        yield made


def predicted(path: Path, out: Path, **options) -> tuple:
    "Predict a file; return its summary and its (H, W) uint8 map."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        summary = predict_file(path, Brightest(), out, **options)
    return summary, tifffile.imread(next(out.rglob('*.classes.ome.tif')))


def ask(client, path: Path, **fields):
    "Send a file to the service; return its response."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return client.post('/predict', files=dict(image=(path.name, path.read_bytes())), data=fields)


def served(client, path: Path, **fields) -> tuple:
    "Send a file to the service; return its summary and its (H, W) uint8 map."
    response = ask(client, path, **fields)
    assert response.status_code == 200, response.text
    found = response.json()
    classes = client.get('/' + found['links']['classes'])
    return found, np.asarray(Image.open(io.BytesIO(classes.content)))


def refused_by_predict(path: Path, out: Path, **options) -> str:
    "Return the sentence with which a picture is refused; nothing of it is left in `out`."
    with pytest.raises(ValueError) as caught:
        predicted(path, out, **options)
    left = [f for f in out.rglob('*')] if out.exists() else []
    assert type(caught.value).__name__ == 'UnreadableImage' and not left, (caught.value, left)
    return str(caught.value)


def refused_by_service(client, path: Path, **fields) -> str:
    "Return the sentence with which a picture is refused."
    response = ask(client, path, **fields)
    assert response.status_code == 422, response.text
    return response.json()['detail']


# ---- colors -------------------------------------------------------------------------------------------------------
def named(kind) -> str:
    return kind.name


ACCEPTED = [kind for kind in KINDS if not kind.refused]
REFUSED = [kind for kind in KINDS if kind.refused]


@pytest.mark.parametrize('kind', ACCEPTED, ids=named)
def test_predict_makes_the_map_of_the_png(kind: Kind, rgb, tmp_path):
    kind.make(tmp_path / kind.name, rgb)
    _, label = predicted(tmp_path / kind.name, tmp_path / 'out', mpp=0.25)
    assert label.shape == rgb.shape[:2] and (label == brightest_band(rgb)).mean() >= kind.agreement


@pytest.mark.parametrize('kind', [kind for kind in ACCEPTED if kind.served], ids=named)
def test_service_makes_the_map_of_the_png(kind: Kind, rgb, tmp_path, client):
    kind.make(tmp_path / kind.name, rgb)
    _, label = served(client, tmp_path / kind.name, mpp=0.25)
    assert label.shape == rgb.shape[:2] and (label == brightest_band(rgb)).mean() >= kind.agreement


@pytest.mark.parametrize('kind', REFUSED, ids=named)
def test_other_colors_are_refused_by_name(kind: Kind, rgb, tmp_path, client):
    path = tmp_path / kind.name
    kind.make(path, rgb)
    said = refused_by_predict(path, tmp_path / 'out', mpp=0.25).replace(str(path), '').replace(path.name, '')
    assert re.search(kind.refused, said, re.I), said
    answered = refused_by_service(client, path, mpp=0.25).replace(path.name, '')
    assert re.search(kind.refused, answered, re.I), answered


def test_the_table_has_every_mode_in_strips_and_in_tiles():
    assert len(KINDS) >= 30
    names = {kind.name.split('.')[0] for kind in KINDS}
    for mode in (
        'cmyk',
        'cielab',
        'gray',
        'gray_alpha',
        'rgb16',
        'float',
        'two_bands',
        'five_bands',
        'channels',
        'palette',
        'rgba',
        'planar',
        'ycbcr_lzw',
    ):
        assert {f'strips_{mode}', f'tiles_{mode}'} <= names


# ---- the frame ----------------------------------------------------------------------------------------------------
def turned_exif(name: str, **options):
    "Return a maker of pictures that EXIF turns by a quarter."

    def make(path: Path, rgb: np.ndarray):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(rgb).save(path, exif=exif, **options)

    return Way(name, make)


def turned_tiff(name: str, orientation: int, **options) -> Way:
    return Way(name, tiff(extratags=[(274, 3, 1, orientation, True)], **options))


TURNED = (
    turned_exif('exif.jpg', quality=95, subsampling=0),
    turned_exif('exif.png'),
    turned_exif('exif.webp', lossless=True),
    turned_tiff('strips_6.tif', 6, **STRIPS),
    turned_tiff('strips_3.tif', 3, **STRIPS, compression='lzw'),
    turned_tiff('tiles_6.tif', 6, **TILES, compression='zlib'),
    turned_tiff('tiles_3.tif', 3, **TILES),
    turned_tiff('tiles_2.tif', 2, **TILES),
    turned_tiff('tiles_4_webp.tif', 4, **TILES, compression='webp', compressionargs=dict(lossless=True)),
)


@pytest.mark.parametrize('way', TURNED, ids=lambda way: way.file)
def test_the_stored_frame_is_kept_where_a_tag_turns_the_picture(way: Way, rgb, tmp_path, client):
    path = tmp_path / way.file
    way.make(path, rgb)
    summary, label = predicted(path, tmp_path / 'out', mpp=0.25)
    found, answered = served(client, path, mpp=0.25)
    for about, got in ((summary, label), (found, answered)):
        assert (about['height'], about['width']) == got.shape == rgb.shape[:2]
        assert (got == brightest_band(rgb)).mean() > 0.99


def outlines(out: Path) -> shapely.Geometry:
    "Return the union of all outlines of a folder."
    listed = json.loads(next(out.rglob('*.geojson')).read_text())['features']
    return shapely.union_all([shapely.from_geojson(json.dumps(f['geometry'])) for f in listed])


BOUNDS = (700, 300, 750, 400)  # x, y, width and height of what was scanned, in a slide of 2000 x 1500 pixels


@pytest.fixture(scope='module')
def scanned() -> list:
    "Two pieces of tissue that lie apart: (x, y, pixels)."
    left, right = tinted(3, (400, 300)), tinted(5, (250, 350))
    return [(700, 300, left), (1100, 400, right)]


def frame_of(scanned: list, keep: bool) -> np.ndarray:
    "Return the map that a slide should have, cropped to its bounds or whole."
    whole = np.full((1500, 2000), IGNORE, np.uint8)
    for x, y, pixels in scanned:
        whole[y : y + pixels.shape[0], x : x + pixels.shape[1]] = brightest_band(pixels)
    x, y, width, height = BOUNDS
    return whole if keep else whole[y : y + height, x : x + width]


@pytest.mark.parametrize('keep', [False, True])
def test_a_slide_is_cropped_to_what_was_scanned(keep: bool, scanned, tmp_path):
    leica_scn(tmp_path / 'slide.scn', scanned, (2000, 1500))
    summary, label = predicted(tmp_path / 'slide.scn', tmp_path / 'out', **(dict(keep_bounds=True) if keep else {}))
    want = frame_of(scanned, keep)
    assert label.shape == want.shape == (summary['height'], summary['width'])
    assert (label == want).mean() > 0.98
    assert ((label == IGNORE) == (want == IGNORE)).mean() > 0.98
    x, y = (BOUNDS[0], BOUNDS[1]) if keep else (0, 0)
    assert np.abs(np.subtract(outlines(tmp_path / 'out').bounds, (x, y, x + BOUNDS[2], y + BOUNDS[3]))).max() <= NEAR
    overlay = Image.open(next((tmp_path / 'out').rglob('*.overlay.png')))
    assert overlay.width / overlay.height == pytest.approx(want.shape[1] / want.shape[0], rel=0.01)


def test_outlines_of_a_cropped_slide_count_in_its_own_pixels(scanned, tmp_path):
    leica_scn(tmp_path / 'slide.scn', scanned, (2000, 1500), mpp=0.5)
    summary, label = predicted(tmp_path / 'slide.scn', tmp_path / 'out')
    found = outlines(tmp_path / 'out')
    assert summary['mpp'] == 0.5 and label.shape == (2 * BOUNDS[3], 2 * BOUNDS[2])
    assert np.abs(np.subtract(found.bounds, (0, 0, BOUNDS[2], BOUNDS[3]))).max() <= NEAR
    area = sum(pixels.shape[0] * pixels.shape[1] for _, _, pixels in scanned)
    assert found.area == pytest.approx(area, rel=0.03)
    assert sum(c['area_mm2'] for c in summary['classes'].values()) == pytest.approx(area * 0.25 / 1e6, rel=0.03)


# ---- area that nobody scanned -------------------------------------------------------------------------------------
AREA = (slice(340, 800), slice(420, 980))  # rows and columns inside the tissue


def grown(mask: np.ndarray, by: int) -> np.ndarray:
    "Return a mask grown (or, below 0, shrunk) by some pixels."
    from scipy import ndimage

    square = np.ones((3, 3), bool)
    if by < 0:
        return ndimage.binary_erosion(mask, square, -by, border_value=1)
    return ndimage.binary_dilation(mask, square, by)


def check_background(summary: dict, label: np.ndarray, mask: np.ndarray, mpp: float = 0.25):
    "Fail unless a map is background where `mask` is, predicted elsewhere, and its areas add up."
    inside, outside = grown(mask, -NEAR), ~grown(mask, NEAR)
    assert (label[inside] == IGNORE).all(), f'{(label[inside] != IGNORE).mean():.1%} of it is tissue'
    if outside.any():
        assert (label[outside] != IGNORE).mean() > 0.999, (
            f'{(label[outside] == IGNORE).mean():.1%} of the tissue is lost'
        )
    pixel = mpp**2 / 1e6
    known = sum(c['area_mm2'] for c in summary['classes'].values())
    assert known == pytest.approx((label != IGNORE).sum() * pixel, abs=2e-6)
    assert summary['not_predicted_mm2'] == pytest.approx((label == IGNORE).sum() * pixel, abs=2e-6)
    assert summary['not_predicted_mm2'] + known == pytest.approx(label.size * pixel, abs=4e-6)


def check_both(path: Path, mask: np.ndarray, tmp_path: Path, client):
    "Check the background of a file, in `bcss predict` and in the service."
    check_background(*predicted(path, tmp_path / 'out', mpp=0.25), mask)
    check_background(*served(client, path, mpp=0.25), mask)


COLORS = dict(
    gray200=(200, 200, 200),
    gray128=(128, 128, 128),
    gray60=(60, 60, 60),
    white=(245, 245, 245),
    pink_glass=(236, 226, 233),
    yellow=(235, 222, 160),
    black=(2, 2, 2),
)


@pytest.mark.parametrize('color', COLORS)
def test_a_structureless_area_is_background(color: str, tissue, tmp_path, client):
    image, mask = tissue.copy(), np.zeros(tissue.shape[:2], bool)
    mask[AREA] = True
    image[AREA] = flat(mask[AREA].shape, COLORS[color])
    Image.fromarray(image).save(tmp_path / 'slide.png', compress_level=1)
    check_both(tmp_path / 'slide.png', mask, tmp_path, client)


@pytest.mark.parametrize('color', ['gray200', 'yellow', 'black'])
def test_background_survives_jpeg(color: str, tissue, tmp_path, client):
    image, mask = tissue.copy(), np.zeros(tissue.shape[:2], bool)
    mask[AREA] = True
    image[AREA] = flat(mask[AREA].shape, COLORS[color])
    Image.fromarray(image).save(tmp_path / 'slide.jpg', quality=85)
    check_both(tmp_path / 'slide.jpg', mask, tmp_path, client)


PADDING = dict(
    left=np.s_[:, :64], right=np.s_[:, -80:], top=np.s_[:64], bottom=np.s_[-100:], corner=np.s_[-450:, -500:]
)


@pytest.mark.parametrize('side', PADDING)
@pytest.mark.parametrize('color', [(0, 0, 0), (200, 200, 200), (255, 255, 255)], ids=['black', 'gray', 'white'])
def test_padding_along_the_edge_is_background(side: str, color: tuple, tissue, tmp_path):
    image, mask = tissue.copy(), np.zeros(tissue.shape[:2], bool)
    mask[PADDING[side]] = True
    image[mask] = color
    Image.fromarray(image).save(tmp_path / 'slide.png', compress_level=1)
    check_background(*predicted(tmp_path / 'slide.png', tmp_path / 'out', mpp=0.25), mask)


@pytest.mark.parametrize('color', COLORS)
@pytest.mark.parametrize('shape', [(224, 224), (700, 900)], ids=str)
def test_a_whole_picture_without_structure_is_background(shape: tuple, color: str, tmp_path, client):
    Image.fromarray(flat(shape, COLORS[color])).save(tmp_path / 'slide.png')
    check_both(tmp_path / 'slide.png', np.ones(shape, bool), tmp_path, client)


def test_transparent_pixels_are_background_whatever_their_color(tissue, tmp_path, client):
    image, mask = rgba_of(tissue), np.zeros(tissue.shape[:2], bool)
    mask[AREA] = True
    image[mask, 3] = 0
    for name, save in (
        ('slide.png', lambda path: Image.fromarray(image).save(path, compress_level=1)),
        ('strips.tif', lambda path: tiff(**STRIPS, extrasamples=['unassalpha'])(path, image)),
        ('tiles.tif', lambda path: tiff(**TILES, extrasamples=['unassalpha'])(path, image)),
    ):
        folder = tmp_path / name
        folder.mkdir()
        save(folder / name)
        check_both(folder / name, mask, folder, client)


def test_premultiplied_transparent_pixels_are_background(tissue, tmp_path, client):
    image, mask = rgba_of(tissue), np.zeros(tissue.shape[:2], bool)
    mask[AREA] = True
    image[mask] = 0
    for name, layout in (('strips.tif', STRIPS), ('tiles.tif', TILES)):
        folder = tmp_path / name
        folder.mkdir()
        tiff(**layout, extrasamples=['assocalpha'])(folder / name, image)
        check_both(folder / name, mask, folder, client)


def test_transparent_palette_entries_are_background(tmp_path, client):
    image, mask = tinted(4, (900, 1000)), np.zeros((900, 1000), bool)
    mask[200:700, 300:800] = True
    index = Image.fromarray(image).quantize(255)
    pixels = np.asarray(index).copy()
    pixels[mask] = 255
    picture = Image.fromarray(pixels, 'P')
    picture.putpalette(index.getpalette())
    picture.save(tmp_path / 'slide.png', transparency=b'\xff' * 255 + b'\0')
    check_both(tmp_path / 'slide.png', mask, tmp_path, client)


@pytest.mark.parametrize('codec', [None, 'zlib', 'jpeg', 'webp'])
def test_missing_tiles_are_background(codec: str | None, tissue, tmp_path, client):
    mask = np.zeros(tissue.shape[:2], bool)
    mask[256:768, 384:896] = True
    sparse_tiff(tmp_path / 'slide.tif', tissue, lambda row, column: 2 <= row < 6 and 3 <= column < 7, compression=codec)
    check_both(tmp_path / 'slide.tif', mask, tmp_path, client)


def test_background_is_found_at_another_resolution(tissue, tmp_path, client):
    image, mask = tissue.copy(), np.zeros(tissue.shape[:2], bool)
    mask[AREA] = True
    image[AREA] = flat(mask[AREA].shape, (200, 200, 200))
    Image.fromarray(image[:850, :1000]).save(tmp_path / 'slide.png', compress_level=1)
    summary, label = predicted(tmp_path / 'slide.png', tmp_path / 'out', mpp=0.5)
    doubled = np.kron(mask[:850, :1000], np.ones((2, 2), bool))
    check_background(summary, label, doubled)


def test_pale_holes_in_tissue_stay_predicted(tissue, tmp_path, client):
    image = tissue.copy()
    y, x = np.indices(image.shape[:2])
    for row, column, radius in ((200, 200, 25), (300, 800, 60), (700, 400, 100), (800, 900, 120)):
        hole = np.hypot(y - row, x - column) < radius
        image[hole] = flat(image.shape[:2], (243, 240, 242))[hole]
    Image.fromarray(image).save(tmp_path / 'slide.png', compress_level=1)
    check_both(tmp_path / 'slide.png', np.zeros(image.shape[:2], bool), tmp_path, client)


def test_simulated_tissue_of_every_hospital_stays_predicted(tmp_path):
    for seed in range(6):
        Image.fromarray(simulate_roi(seed, shape=(500, 600))[1]).save(tmp_path / f'{seed}.png')
        summary, label = predicted(tmp_path / f'{seed}.png', tmp_path / str(seed), mpp=0.25)
        assert (label != IGNORE).all() and summary['not_predicted_mm2'] == 0


# ---- the size of a pixel ------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def half() -> np.ndarray:
    "Pixels of 0.5 µm."
    return tinted(4, (264, 320), 66)


def total_mm2(summary: dict) -> float:
    return sum(c['area_mm2'] for c in summary['classes'].values()) + summary['not_predicted_mm2']


def check_half(summary: dict, label: np.ndarray, rgb: np.ndarray):
    "Fail unless a picture was read at 0.5 µm."
    height, width = rgb.shape[:2]
    assert summary['mpp'] == pytest.approx(0.5, rel=0.005) and summary['read_at_mpp'] == pytest.approx(0.25, rel=0.005)
    assert summary['mpp_from'] in ('file', 'name') and label.shape == (2 * height, 2 * width)
    assert total_mm2(summary) == pytest.approx(width * height * 0.25 / 1e6, rel=0.01)


@pytest.mark.parametrize('way', WAYS, ids=lambda way: way.file)
def test_half_a_micrometer_is_read_however_it_is_stated(way: Way, half, tmp_path, client):
    path = tmp_path / way.file
    way.make(path, half)
    summary, label = predicted(path, tmp_path / 'out')
    found, answered = served(client, path)
    check_half(summary, label, half)
    check_half(found, answered, half)
    for name in summary['classes']:
        area = summary['classes'][name]['area_mm2']
        assert found['classes'][name]['area_mm2'] == pytest.approx(area, rel=0.02)


def test_a_given_size_goes_before_the_file_and_the_file_before_its_name(half, tmp_path, client):
    path = tmp_path / 'name_MPP-1.0000.tif'
    tagged((20_000, 20_000), 'CENTIMETER', **STRIPS)(path, half)
    summary, label = predicted(path, tmp_path / 'file')
    check_half(summary, label, half)
    check_half(*served(client, path), half)
    given = predicted(path, tmp_path / 'given', mpp=0.25)[0]
    assert (given['mpp'], given['mpp_from']) == (0.25, 'given')
    assert served(client, path, mpp=0.25)[0]['mpp'] == 0.25


@pytest.mark.parametrize(
    'name, per_inch, want',
    [
        ('screen_MPP-0.5000.png', 72, 0.5),
        ('screen.png', 72, 0.25),
        ('print.jpg', 300, 0.25),
        ('far.tif', 1_000_000, 0.25),
    ],
)
def test_a_size_that_no_microscope_has_is_not_believed(name: str, per_inch: int, want: float, half, tmp_path, client):
    path = tmp_path / name
    Image.fromarray(half).save(path, dpi=(per_inch, per_inch))
    for found in (predicted(path, tmp_path / 'out')[0], served(client, path)[0]):
        assert found['mpp'] == pytest.approx(want) and (found['mpp_from'] == 'assumed') == (want == 0.25)


UNEQUAL = (
    Way('strips.tif', tagged((20_000, 10_000), 'CENTIMETER', **STRIPS)),
    Way('tiles.tif', tagged((20_000, 10_000), 'CENTIMETER', **TILES)),
    Way('ome.ome.tif', ome_size('0.5', 'µm', '1.0', 'µm')),
    Way('png.png', with_pillow(dpi=(50_800, 25_400))),
)


@pytest.mark.parametrize('way', UNEQUAL, ids=lambda way: way.file)
def test_pixels_that_are_not_square_are_refused_unless_a_size_is_given(way: Way, half, tmp_path, client):
    path = tmp_path / way.file
    way.make(path, half)
    for said in (refused_by_predict(path, tmp_path / 'out'), refused_by_service(client, path)):
        assert re.search(r'\b0\.50*\b', said) and re.search(r'\b1(\.0*)?\b', said) and 'mpp' in said, said
    assert predicted(path, tmp_path / 'given', mpp=0.5)[0]['mpp'] == 0.5
    assert served(client, path, mpp=0.5)[0]['mpp'] == 0.5


def test_pixels_that_are_nearly_square_are_read(half, tmp_path, client):
    path = tmp_path / 'slide.tif'
    tagged((20_000, 20_200), 'CENTIMETER', **TILES)(path, half)
    for found in (predicted(path, tmp_path / 'out')[0], served(client, path)[0]):
        assert found['mpp'] == pytest.approx(0.5, rel=0.02) and found['mpp_from'] == 'file'


ROI = '{patient}-DX1_xmin45749_ymin25055_MPP-{mpp}.png'
PATIENTS = ('TCGA-A1-A0SK', 'TCGA-A1-A0SP', 'TCGA-A2-A04P', 'TCGA-A2-A0CM', 'TCGA-OL-A5D6', 'TCGA-OL-A66I')


def write_regions(root: Path, mpp: str, **options) -> dict:
    "Write regions with raw masks; return the labeled pixels of each raw code."
    pixels = {}
    for folder in ('images', 'masks'):
        (root / folder).mkdir(parents=True)
    for i, patient in enumerate(PATIENTS):
        _, image, codes = simulate_roi(i, shape=(300 + 10 * i, 340))
        name = ROI.format(patient=patient, mpp=mpp)
        Image.fromarray(image).save(root / 'images' / name, **options)
        Image.fromarray(codes).save(root / 'masks' / name)
        for code, count in zip(*np.unique(codes, return_counts=True)):
            pixels[int(code)] = pixels.get(int(code), 0) + int(count)
    return pixels


def prepared_mm2(folder: Path) -> dict:
    "Return the area of tumor and stroma in a prepared set of tiles that do not overlap."
    found = load_dataset(folder)
    assert (found.schema.classes[1], found.schema.classes[2]) == ('tumor', 'stroma')
    return {code: (np.asarray(found.labels) == code).sum() * 0.25**2 / 1e6 for code in (1, 2)}


@pytest.mark.parametrize(
    'mpp, options', [('0.5000', {}), ('0', dict(dpi=(50_800, 50_800)))], ids=['file name', 'PNG density']
)
def test_prepare_brings_regions_to_the_resolution_of_the_set(mpp: str, options: dict, tmp_path):
    pixels = write_regions(tmp_path / 'raw', mpp, **options)
    out = prepare(
        'roi',
        tmp_path / 'raw',
        tmp_path / 'out',
        cut=TilingConfig(edge='pad', min_tissue=0),
        test_sites='OL',
        deep=False,
    )
    for code, area in prepared_mm2(out).items():
        assert area == pytest.approx(pixels[code] * 0.5**2 / 1e6, rel=0.01)
    card = (out / 'data_card.md').read_text()
    assert '0.25' in card and re.search(r'(?<![\d.])0\.50*(?!\d)', card), card


def test_prepare_predict_and_service_agree_on_the_area_of_a_region(tmp_path, client):
    write_regions(tmp_path / 'raw', '0.5000')
    out = prepare(
        'roi',
        tmp_path / 'raw',
        tmp_path / 'out',
        cut=TilingConfig(edge='pad', min_tissue=0),
        test_sites='OL',
        deep=False,
    )
    tiles = load_dataset(out)
    rows = tiles.tiles.patient == PATIENTS[0]
    labeled = np.asarray(tiles.labels)[rows] != IGNORE
    path = tmp_path / 'raw' / 'images' / ROI.format(patient=PATIENTS[0], mpp='0.5000')
    codes = np.asarray(Image.open(str(path).replace('images', 'masks')))
    want = (codes > 0).mean() * total_mm2(predicted(path, tmp_path / 'predicted')[0])
    assert labeled.sum() * 0.25**2 / 1e6 == pytest.approx(want, rel=0.01)
    assert (codes > 0).mean() * total_mm2(served(client, path)[0]) == pytest.approx(want, rel=0.001)


def test_prepare_resamples_masks_without_new_codes(tmp_path):
    write_regions(tmp_path / 'raw', '0.5000')
    folder = tmp_path / 'raw' / 'masks'
    for path in folder.iterdir():
        codes = np.asarray(Image.open(path)).copy()
        codes[(codes == 2)] = 20
        Image.fromarray(codes).save(path)
    out = prepare(
        'roi',
        tmp_path / 'raw',
        tmp_path / 'out',
        cut=TilingConfig(edge='pad', min_tissue=0),
        test_sites='OL',
        schema='bcss5',
        deep=False,
    )
    found = np.unique(load_dataset(out).labels)
    stroma = load_dataset(out).schema.classes.index('stroma')
    assert stroma not in found and IGNORE in found


def test_prepare_leaves_regions_of_its_own_resolution_as_they_are(tmp_path):
    write_regions(tmp_path / 'raw', '0.2500')
    out = prepare('roi', tmp_path / 'raw', tmp_path / 'out', test_sites='OL', deep=False)
    tiles = load_dataset(out)
    first = tiles.tiles.iloc[0]
    path = tmp_path / 'raw' / 'images' / ROI.format(patient=first.patient, mpp='0.2500')
    image = np.asarray(Image.open(path))[first.row : first.row + 224, first.col : first.col + 224]
    assert (np.asarray(tiles.images[0]) == image).all()


def test_prepare_brings_the_authors_default_resolution_to_the_set(tmp_path):
    pixels = write_regions(tmp_path / 'raw', '0.2300')
    out = prepare(
        'roi',
        tmp_path / 'raw',
        tmp_path / 'out',
        cut=TilingConfig(edge='pad', min_tissue=0),
        test_sites='OL',
        deep=False,
    )
    for code, area in prepared_mm2(out).items():
        assert area == pytest.approx(pixels[code] * 0.23**2 / 1e6, rel=0.01)
    assert '0.23' in (out / 'data_card.md').read_text()


@pytest.mark.parametrize('options', [dict(dpi=(50_800, 50_800)), {}], ids=['PNG density', 'file name'])
def test_ready_made_tiles_of_another_resolution_are_set_aside(options: dict, tmp_path):
    for folder in ('train', 'train_mask', 'val', 'val_mask', 'test'):
        (tmp_path / 'raw' / 'BCSS' / folder).mkdir(parents=True)
    for i, patient in enumerate(PATIENTS):
        for column in (0, 224):
            _, image, codes = simulate_roi(10 * i + column // 224, shape=(224, 224))
            odd = (i, column) == (0, 0)
            mpp = '0.5000' if odd and not options else '0'
            name = f'{patient}-DX1_xmin1_ymin2_MPP-{mpp}_0_{column}_size224.png'
            Image.fromarray(image).save(tmp_path / 'raw/BCSS/train' / name, **(options if odd else {}))
            Image.fromarray(np.where(codes <= 2, codes, 0).astype(np.uint8)).save(
                tmp_path / 'raw/BCSS/train_mask' / name
            )
    out = prepare('kaggle224', tmp_path / 'raw', tmp_path / 'out', test_sites='OL', deep=False)
    aside = pd.read_csv(out / 'quarantine.csv')
    assert len(aside) == 1 and aside.tile[0].startswith(PATIENTS[0]) and '0.5' in aside.reason[0], aside
    assert len(load_dataset(out).tiles) == 2 * len(PATIENTS) - 1


# ---- which picture in the file ------------------------------------------------------------------------------------
@pytest.mark.parametrize('layout', [STRIPS, TILES], ids=['strips', 'tiles'])
def test_a_label_page_that_comes_first_is_not_the_picture(layout: dict, rgb, tmp_path, client):
    path = tmp_path / 'slide.tif'
    with tifffile.TiffWriter(path) as t:
        t.write(flat((64, 96), (250, 250, 250)), photometric='rgb', metadata=None, **layout)
        t.write(np.ascontiguousarray(rgb[::4, ::4]), photometric='rgb', metadata=None, **layout)
        t.write(rgb, photometric='rgb', metadata=None, **layout)
    for _, label in (predicted(path, tmp_path / 'out', mpp=0.25), served(client, path, mpp=0.25)):
        assert label.shape == rgb.shape[:2] and (label == brightest_band(rgb)).all()


def test_a_gray_macro_page_that_comes_first_is_not_the_picture(rgb, tmp_path, client):
    path = tmp_path / 'slide.tif'
    with tifffile.TiffWriter(path) as t:
        t.write(np.full((64, 96), 90, np.uint8), photometric='minisblack', metadata=None)
        t.write(rgb, photometric='rgb', metadata=None, **STRIPS)
    for _, label in (predicted(path, tmp_path / 'out', mpp=0.25), served(client, path, mpp=0.25)):
        assert label.shape == rgb.shape[:2] and (label == brightest_band(rgb)).all()


def test_pages_after_the_picture_change_nothing(rgb, tmp_path, client):
    path = tmp_path / 'slide.tif'
    with tifffile.TiffWriter(path) as t:
        t.write(rgb, photometric='rgb', metadata=None, **STRIPS)
        t.write(np.ascontiguousarray(rgb[::2, ::2]), photometric='rgb', metadata=None, subfiletype=1, **STRIPS)
        t.write(flat((64, 96), (250, 250, 250)), photometric='rgb', metadata=None, **STRIPS)
    for _, label in (predicted(path, tmp_path / 'out', mpp=0.25), served(client, path, mpp=0.25)):
        assert label.shape == rgb.shape[:2] and (label == brightest_band(rgb)).all()


def test_the_largest_series_of_an_ome_file_is_the_picture(half, tmp_path, client):
    path = tmp_path / 'slide.ome.tif'
    ome_series(path, half)
    for _, label in (predicted(path, tmp_path / 'out', mpp=0.25), served(client, path, mpp=0.25)):
        assert label.shape == half.shape[:2] and (label == brightest_band(half)).all()


def stack(axes: str, count: int = 3, **options):
    "Return a maker of OME-TIFFs of several planes."

    def make(path: Path, rgb: np.ndarray):
        tifffile.imwrite(
            path, np.stack([rgb] * count), ome=True, photometric='rgb', metadata=dict(axes=axes), **options
        )

    return make


STACKS = (
    (Way('depth_strips.ome.tif', stack('ZYXS', **STRIPS)), r'z.?stack|focal|\bz\b|zyx'),
    (Way('depth_tiles.ome.tif', stack('ZYXS', **TILES)), r'z.?stack|focal|\bz\b|zyx'),
    (Way('time_strips.ome.tif', stack('TYXS', **STRIPS)), r'time|tyx'),
    (Way('time_tiles.ome.tif', stack('TYXS', **TILES)), r'time|tyx'),
)


@pytest.mark.parametrize('way, words', STACKS, ids=lambda v: getattr(v, 'file', ''))
def test_stacks_and_series_are_refused_by_name(way: Way, words: str, rgb, tmp_path, client):
    path = tmp_path / way.file
    way.make(path, rgb)
    for said in (refused_by_predict(path, tmp_path / 'out', mpp=0.25), refused_by_service(client, path, mpp=0.25)):
        assert re.search(words, said.replace(str(path), '').replace(path.name, ''), re.I), said


def test_an_imagej_stack_is_refused_by_name(rgb, tmp_path, client):
    path = tmp_path / 'slide.tif'
    tifffile.imwrite(path, np.stack([rgb] * 3), imagej=True, photometric='rgb', metadata=dict(axes='ZYXS'))
    for said in (refused_by_predict(path, tmp_path / 'out', mpp=0.25), refused_by_service(client, path, mpp=0.25)):
        assert re.search(r'z.?stack|focal|\bz\b|zyx', said, re.I), said


def test_two_dicom_series_in_one_folder_are_two_slides(rgb, tmp_path):
    folder = tmp_path / 'in'
    folder.mkdir()
    dicom_slide(folder / 'IM0001.dcm', rgb, '1.2.10')
    dicom_slide(folder / 'IM0002.dcm', rgb[::-1][:200], '1.2.11')
    dicom_slide(folder / 'IM0003.dcm', rgb[::4, ::4], '1.2.10', mpp=1.0, number=2)
    dicom_slide(folder / 'IM0004.dcm', rgb[::-1][:200:4, ::4], '1.2.11', mpp=1.0, number=2)
    found = find_images([folder])
    assert len(found) == 2
    assert predict_files(found, Brightest(), tmp_path / 'out', say=lambda *args, **kwargs: None) == 0
    shapes = sorted(tifffile.imread(f).shape for f in (tmp_path / 'out').rglob('*.classes.ome.tif'))
    assert shapes == [(200, 300), (250, 300)]


def test_files_of_one_dicom_series_are_one_slide(rgb, tmp_path):
    for i, step in enumerate((4, 1, 2)):
        dicom_slide(tmp_path / f'{i}.dcm', np.ascontiguousarray(rgb[::step, ::step]), '1.2.10', 0.25 * step, number=i)
    found = find_images([tmp_path])
    assert len(found) == 1
    _, label = predicted(found[0], tmp_path / 'out')
    assert label.shape == rgb.shape[:2] and (label == brightest_band(rgb)).mean() > 0.98


def test_a_slide_of_many_files_is_one_picture(tmp_path):
    rgb = tinted(5, (256, 512), 64)
    folder = tmp_path / 'in'
    folder.mkdir()
    hamamatsu_vms(folder / 'slide.vms', rgb)
    Image.fromarray(rgb).save(folder / 'other.jpg', quality=95)
    assert sorted(p.name for p in find_images([folder])) == ['other.jpg', 'slide.vms']
    _, label = predicted(folder / 'slide.vms', tmp_path / 'out')
    assert label.shape == rgb.shape[:2] and (label == brightest_band(rgb)).mean() > 0.95


def test_a_slide_beside_its_photograph_does_not_refuse_the_folder(half, tmp_path):
    folder = tmp_path / 'in'
    folder.mkdir()
    aperio('AppMag = 40|MPP = 0.2500')(folder / 'slide.svs', half)
    Image.fromarray(half[::2, ::2]).save(folder / 'slide.jpg', quality=95)
    found = find_images([folder])
    assert sorted(p.name for p in found) == ['slide.jpg', 'slide.svs']
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert predict_files(found, Brightest(), tmp_path / 'out', say=lambda *args, **kwargs: None) == 0
    shapes = sorted(tifffile.imread(f).shape for f in (tmp_path / 'out').rglob('*.classes.ome.tif'))
    assert shapes == [(132, 160), (264, 320)]


# ---- not slow for nothing -----------------------------------------------------------------------------------------
def seconds_for(path: Path, out: Path) -> float:
    "Return how long a prediction takes."
    start = time.perf_counter()
    predicted(path, out, mpp=0.25)
    return time.perf_counter() - start


def test_one_strip_takes_no_longer_than_tiles(tmp_path):
    part = tinted(4, (500, 500))
    image = np.tile(part, (5, 6, 1))
    tiff(tile=(256, 256), compression='lzw')(tmp_path / 'tiles.tif', image)
    tiff(rowsperstrip=len(image), compression='lzw')(tmp_path / 'strip.tif', image)
    tiles = min(seconds_for(tmp_path / 'tiles.tif', tmp_path / f'tiles{i}') for i in range(2))
    strip = min(seconds_for(tmp_path / 'strip.tif', tmp_path / f'strip{i}') for i in range(2))
    assert strip < 3 * tiles, f'{strip:.1f} s in one strip, {tiles:.1f} s in tiles'
