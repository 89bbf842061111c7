"Raw folders, good and bad, become a prepared set or a clear error; nothing leaks, nothing half-written stays."
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bcss_nb.dataset import load_set, prepare
from bcss_nb.sample import make_sample

ROOT = Path(__file__).parent.parent
REAL = (ROOT/os.environ.get('BCSS_REAL', '../shared/data')).resolve()
needs_real = pytest.mark.skipif(not (REAL/'kaggle224').exists(), reason=f'no real tiles in {REAL} (set BCSS_REAL)')
NAME = 'TCGA-{site}-{i:04d}-DX1_xmin1_ymin2_MPP-0_0_{col}_size224.png'


@pytest.fixture
def raw(tmp_path):
    "A small folder in the Kaggle layout: 3 hospitals, 2 patients each, 2 tiles a patient."
    rng = np.random.default_rng(0)
    for f in ('train', 'train_mask', 'val', 'val_mask', 'test'): (tmp_path/'raw/BCSS'/f).mkdir(parents=True)
    for n, (site, i, col) in enumerate((s, i, c) for s in ('A1', 'A2', 'OL') for i in (1, 2) for c in (0, 224)):
        part, name = ('val' if n % 4 == 3 else 'train'), NAME.format(site=site, i=i, col=col)
        Image.fromarray(rng.integers(0, 256, (224, 224, 3), np.uint8)).save(tmp_path/'raw/BCSS'/part/name)
        Image.fromarray(rng.integers(0, 3, (224, 224), np.uint8)).save(tmp_path/'raw/BCSS'/f'{part}_mask'/name)
    return tmp_path/'raw'


def image(raw): return sorted((raw/'BCSS/train').iterdir())[0]
def mask(raw): return raw/'BCSS/train_mask'/image(raw).name


def truncate(p): p.write_bytes(p.read_bytes()[:2000])
def rgba(p): Image.open(p).convert('RGBA').save(p)
def palette(p): Image.open(p).convert('P').save(p)
def grey16(p): Image.fromarray(np.zeros((224, 224), np.uint16)).save(p)
def small(p): Image.open(p).crop((0, 0, 100, 224)).save(p)
def binary(p): Image.fromarray(np.full((224, 224), 255, np.uint8)).save(p)
def colour(p): Image.fromarray(np.zeros((224, 224, 3), np.uint8)).save(p)
def gone(p): p.unlink()
def blank(p): Image.fromarray(np.full((224, 224, 3), 240, np.uint8)).save(p)


@pytest.mark.parametrize('which,damage,reason', [
    (image, truncate, 'image is truncated'), (image, rgba, 'image is RGBA'), (image, palette, 'image is 8-bit palette'), (image, grey16, 'image is 16-bit'),
    (image, gone, 'mask without image'), (image, small, 'mask is 224x224 pixels, its image 100x224'), (image, blank, 'blank image'),
    (mask, small, 'mask is 100x224 pixels'), (mask, binary, 'code 255'), (mask, colour, 'mask is 8-bit RGB'), (mask, gone, 'image without mask'),
    (mask, truncate, 'mask is truncated')])
def test_bad_file_is_set_aside_with_its_reason(raw, tmp_path, which, damage, reason):
    bad = which(raw)
    damage(bad)
    out = prepare('kaggle224', raw, tmp_path/'out', test_sites='OL')
    aside = pd.read_csv(out/'quarantine.csv')
    assert len(aside) == 1 and reason in aside.reason[0] and aside.tile[0].startswith(bad.name[:20])
    assert load_set(out).manifest['counts'] == dict(found=12, kept=11, quarantined=1)


def test_strict_names_the_file_and_keeps_the_old_set(raw, tmp_path):
    out = prepare('kaggle224', raw, tmp_path/'out', test_sites='OL')
    truncate(image(raw))
    with pytest.raises(ValueError, match=image(raw).name): prepare('kaggle224', raw, out, test_sites='OL', strict=True)
    assert len(load_set(out).tiles) == 12 and sorted(p.name for p in tmp_path.iterdir()) == ['out', 'raw']


@pytest.mark.parametrize('kwargs,words', [
    (dict(source='nope'), 'unknown source'), (dict(schema='nope'), 'unknown schema'), (dict(schema='bcss3'), 'use schema kaggle3'),
    (dict(test_sites='ZZ'), 'ZZ not in this data, which has A1, A2, OL'), (dict(test_sites='A1,A2,OL'), 'training part is empty'),
    (dict(test_sites='A1,A2', test_patients='TCGA-OL-0001'), 'VAL=0'), (dict(val=2), 'share from 0')])
def test_bad_request_is_an_error_and_writes_nothing(raw, tmp_path, kwargs, words):
    with pytest.raises(ValueError, match=words): prepare(**{**dict(source='kaggle224', raw=raw, out=tmp_path/'out'), **kwargs})
    assert [p.name for p in tmp_path.iterdir()] == ['raw']


def test_every_mask_wrong_says_so(raw, tmp_path):
    for p in (*(raw/'BCSS/train_mask').iterdir(), *(raw/'BCSS/val_mask').iterdir()): binary(p)
    with pytest.raises(ValueError, match='no usable tile.*code 255'): prepare('kaggle224', raw, tmp_path/'out')
    with pytest.raises(FileNotFoundError, match='does not exist'): prepare('kaggle224', tmp_path/'nowhere', tmp_path/'out')


def test_no_patient_in_two_parts(raw, tmp_path):
    for seed in range(5):
        tiles = load_set(prepare('kaggle224', raw, tmp_path/'out', seed=seed)).tiles
        assert (tiles.groupby('patient').split.nunique() == 1).all()
        assert set(tiles.split) == {'train', 'val', 'test'} and set(tiles.site[tiles.split == 'test']) == {'OL'}


def test_sample_layouts_agree_and_seed_counts(tmp_path):
    a, b = (make_sample(tmp_path/n, patients=12, seed=s) for n, s in (('a', 0), ('b', 1)))
    tiles = load_set(prepare('roi', a/'roi', tmp_path/'roi', test_sites='H5'))
    kaggle = load_set(prepare('sample', a, tmp_path/'kaggle'))
    both = kaggle.tiles.merge(tiles.tiles.reset_index(), on='tile')
    assert len(both) == len(kaggle.tiles)
    for i, j in zip(range(len(both)), both['index']): assert (kaggle.images[i] == tiles.images[j]).all()
    assert sorted(p.name for p in (a/'roi/masks').iterdir()) != sorted(p.name for p in (b/'roi/masks').iterdir())


@needs_real
def test_real_tiles(tmp_path):
    kaggle = load_set(prepare('kaggle224', REAL/'kaggle224/BCSS', tmp_path/'k', test_patients='TCGA-A1-A0SK', val=0))
    assert kaggle.manifest['parts']['test'] == dict(tiles=5, patients=['TCGA-A1-A0SK']) and kaggle.manifest['counts']['found'] == 155
    with pytest.raises(ValueError, match='only|too few|remain'): prepare('kaggle224', REAL/'kaggle224', tmp_path/'x', test_patients='TCGA-A1-A0SK')
