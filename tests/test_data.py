"Raw folders, good and bad, become a prepared set or a clear error; nothing leaks, nothing half-written stays."

import io
import json
import multiprocessing
import os
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage as ndi

from bcss_nb.core.labels import IGNORE
from bcss_nb.data.dataset import load_dataset
from bcss_nb.data.prepare import prepare
from bcss_nb.data.simulator import make_sample
from bcss_nb.data.sources import detect_layout
from bcss_nb.data.tiling import TilingConfig

ROOT = Path(__file__).parent.parent
REAL = (ROOT / os.environ.get('BCSS_REAL', '../shared/data')).resolve()
needs_real = pytest.mark.skipif(not (REAL / 'kaggle224').exists(), reason=f'no real tiles in {REAL} (set BCSS_REAL)')
NAME = 'TCGA-{site}-{i:04d}-DX1_xmin1_ymin2_MPP-0_0_{col}_size224.png'


@pytest.fixture
def raw(tmp_path):
    "A small folder in the Kaggle layout: 3 hospitals, 2 patients each, 2 tiles a patient."
    rng = np.random.default_rng(0)
    for f in ('train', 'train_mask', 'val', 'val_mask', 'test'):
        (tmp_path / 'raw/BCSS' / f).mkdir(parents=True)
    for n, (site, i, col) in enumerate((s, i, c) for s in ('A1', 'A2', 'OL') for i in (1, 2) for c in (0, 224)):
        part, name = ('val' if n % 4 == 3 else 'train'), NAME.format(site=site, i=i, col=col)
        Image.fromarray(rng.integers(0, 256, (224, 224, 3), np.uint8)).save(tmp_path / 'raw/BCSS' / part / name)
        Image.fromarray(rng.integers(0, 3, (224, 224), np.uint8)).save(tmp_path / 'raw/BCSS' / f'{part}_mask' / name)
    return tmp_path / 'raw'


def image(raw):
    return sorted((raw / 'BCSS/train').iterdir())[0]


def mask(raw):
    return raw / 'BCSS/train_mask' / image(raw).name


def truncate(p):
    p.write_bytes(p.read_bytes()[: p.stat().st_size // 2])


def rgba(p):
    Image.open(p).convert('RGBA').save(p)


def palette(p):
    Image.open(p).convert('P').save(p)


def grey16(p):
    Image.fromarray(np.zeros((224, 224), np.uint16)).save(p)


def small(p):
    Image.open(p).crop((0, 0, 100, 224)).save(p)


def binary(p):
    Image.fromarray(np.full((224, 224), 255, np.uint8)).save(p)


def color(p):
    Image.fromarray(np.zeros((224, 224, 3), np.uint8)).save(p)


def gone(p):
    p.unlink()


def blank(p):
    Image.fromarray(np.full((224, 224, 3), 240, np.uint8)).save(p)


@pytest.mark.parametrize(
    'which,damage,reason',
    [
        (image, truncate, 'image is truncated'),
        (image, rgba, 'image is RGBA'),
        (image, palette, 'image is 8-bit palette'),
        (image, grey16, 'image is 16-bit'),
        (image, gone, 'mask without image'),
        (image, small, 'mask is 224x224 pixels, its image 100x224'),
        (image, blank, 'blank image'),
        (mask, small, 'mask is 100x224 pixels'),
        (mask, binary, 'code 255'),
        (mask, color, 'mask is 8-bit RGB'),
        (mask, gone, 'image without mask'),
        (mask, truncate, 'mask is truncated'),
    ],
)
def test_bad_file_is_set_aside_with_its_reason(raw, tmp_path, which, damage, reason):
    bad = which(raw)
    damage(bad)
    out = prepare('kaggle224', raw, tmp_path / 'out', test_sites='OL')
    aside = pd.read_csv(out / 'quarantine.csv')
    assert len(aside) == 1 and reason in aside.reason[0] and aside.tile[0].startswith(bad.name[:20])
    assert load_dataset(out).manifest['counts'] == dict(found=12, kept=11, quarantined=1)
    with pytest.raises(ValueError, match=bad.name[:20]):
        prepare('kaggle224', raw, tmp_path / 'out', test_sites='OL', strict=True)


def test_strict_names_the_file_and_keeps_the_old_set(raw, tmp_path):
    out = prepare('kaggle224', raw, tmp_path / 'out', test_sites='OL')
    truncate(image(raw))
    with pytest.raises(ValueError, match=image(raw).name):
        prepare('kaggle224', raw, out, test_sites='OL', strict=True)
    assert len(load_dataset(out).tiles) == 12 and sorted(p.name for p in tmp_path.iterdir()) == ['out', 'raw']


@pytest.mark.parametrize(
    'kwargs,words',
    [
        (dict(source='nope'), 'unknown source'),
        (dict(schema='nope'), 'unknown schema'),
        (dict(schema='bcss3'), 'use schema kaggle3'),
        (dict(test_sites='ZZ'), 'ZZ not in this data, which has A1, A2, OL'),
        (dict(test_sites='A1,A2,OL'), 'training part is empty'),
        (dict(test_sites='A1,A2', test_patients='TCGA-OL-0001'), 'VAL=0'),
        (dict(val=2), 'share from 0'),
    ],
)
def test_bad_request_is_an_error_and_writes_nothing(raw, tmp_path, kwargs, words):
    with pytest.raises(ValueError, match=words):
        prepare(**{**dict(source='kaggle224', raw=raw, out=tmp_path / 'out'), **kwargs})
    assert [p.name for p in tmp_path.iterdir()] == ['raw']


def test_every_mask_wrong_says_so(raw, tmp_path):
    for p in (*(raw / 'BCSS/train_mask').iterdir(), *(raw / 'BCSS/val_mask').iterdir()):
        binary(p)
    with pytest.raises(ValueError, match='no usable tile.*code 255'):
        prepare('kaggle224', raw, tmp_path / 'out')
    with pytest.raises(FileNotFoundError, match='does not exist'):
        prepare('kaggle224', tmp_path / 'nowhere', tmp_path / 'out')


def test_strict_refuses_copies_too(raw, tmp_path):
    for f in ('train', 'train_mask'):
        shutil.copy(raw / 'BCSS' / f / image(raw).name, raw / 'BCSS' / f / image(raw).name.replace('DX1', 'DX2'))
    with pytest.raises(ValueError, match='DX2.*same pixels as'):
        prepare('kaggle224', raw, tmp_path / 'out', test_sites='OL', strict=True)
    assert load_dataset(prepare('kaggle224', raw, tmp_path / 'out', test_sites='OL')).manifest['counts'] == dict(
        found=13, kept=12, quarantined=1
    )


def test_no_patient_in_two_parts(raw, tmp_path):
    for seed in range(5):
        tiles = load_dataset(prepare('kaggle224', raw, tmp_path / 'out', seed=seed)).tiles
        assert (tiles.groupby('patient').split.nunique() == 1).all()
        assert set(tiles.split) == {'train', 'val', 'test'} and set(tiles.site[tiles.split == 'test']) == {'OL'}


def test_sample_layouts_agree_and_seed_counts(tmp_path):
    a, b = (make_sample(tmp_path / n, patients=12, seed=s) for n, s in (('a', 0), ('b', 1)))
    tiles = load_dataset(prepare('roi', a / 'roi', tmp_path / 'roi', test_sites='H5'))
    kaggle = load_dataset(prepare('sample', a, tmp_path / 'kaggle'))
    both = kaggle.tiles.merge(tiles.tiles.reset_index(), on='tile')
    assert len(both) == len(kaggle.tiles)
    for i, j in zip(range(len(both)), both['index']):
        assert (kaggle.images[i] == tiles.images[j]).all()
    assert sorted(p.name for p in (a / 'roi/masks').iterdir()) != sorted(p.name for p in (b / 'roi/masks').iterdir())


@pytest.fixture(scope='session')
def sample(tmp_path_factory):
    return make_sample(tmp_path_factory.mktemp('sample') / 'sample', patients=12)


@pytest.fixture
def kaggle(sample, tmp_path):
    "The sample in the Kaggle 224 layout, without raw codes beside it, ours to damage."
    return Path(shutil.copytree(sample / 'kaggle224', tmp_path / 'kaggle224'))


HOLD = dict(test_sites='H5,H6')


def test_one_of_each_bad_file(kaggle, tmp_path):
    train, mask = kaggle / 'BCSS/train', kaggle / 'BCSS/train_mask'
    whole = prepare('kaggle224', kaggle, tmp_path / 'whole', **HOLD)
    names = sorted(p.name for p in train.iterdir())
    bad = {}
    for name, (where, damage, reason) in zip(
        names[::3],
        [
            (train, truncate, 'image is truncated'),
            (train, rgba, 'image is RGBA'),
            (train, palette, 'image is 8-bit palette'),
            (train, grey16, 'image is 16-bit gray'),
            (train, small, 'mask is 224x224 pixels, its image 100x224'),
            (train, blank, 'blank image'),
            (train, gone, 'mask without image'),
            (mask, gone, 'image without mask'),
            (mask, small, 'mask is 100x224 pixels'),
            (mask, binary, 'code 255'),
            (mask, color, 'mask is 8-bit RGB'),
            (mask, truncate, 'mask is truncated'),
            (train, lambda p: p.write_bytes(b'GIF89a' + bytes(50)), 'image is not a PNG file'),
            (train, lambda p: p.write_bytes(b''), 'image is not a PNG file'),
            (
                train,
                lambda p: Image.fromarray(
                    np.random.default_rng(0).normal(238, 3, (224, 224, 3)).clip(0, 255).astype(np.uint8)
                ).save(p),
                'no tissue',
            ),
            (
                train,
                lambda p: Image.fromarray(ndi.gaussian_filter(np.asarray(Image.open(p)), (4, 4, 0))).save(p),
                'blurred',
            ),
        ],
    ):
        damage(where / name)
        bad[name.removesuffix('.png')] = reason
    twin = names[-1].replace('DX1', 'DX2')
    for f in (train, mask):
        shutil.copy(f / names[-1], f / twin)
    near = names[-4].replace('DX1', 'DX2')
    buffer = io.BytesIO()
    Image.open(train / names[-4]).save(buffer, 'JPEG', quality=60)
    Image.open(buffer).save(train / near)
    shutil.copy(mask / names[-4], mask / near)
    shutil.copy(train / names[-7], train / 'tile 7.png')
    shutil.copy(mask / names[-7], mask / 'tile 7.png')
    (train / 'notes.txt').write_text('x')
    bad |= {
        twin.removesuffix('.png'): 'same pixels as',
        'tile 7.png': 'not named like a BCSS file',
        'notes.txt': 'no .png file',
    }
    out = prepare('kaggle224', kaggle, tmp_path / 'out', **HOLD)
    findings = pd.read_csv(out / 'findings.csv')
    aside = findings[(findings.done == 'set aside') & ~findings.reason.str.contains('unlabeled')]
    found = {n.removesuffix('.png') if n.endswith('size224.png') else n: r for n, r in zip(aside.name, aside.reason)}
    assert found.keys() == bad.keys() and all(bad[n] in r for n, r in found.items())
    kept, before = set(load_dataset(out, verify=True).tiles.tile), set(load_dataset(whole).tiles.tile)
    assert kept == (before - bad.keys()) | {near.removesuffix('.png')}
    assert findings.reason[findings.done == 'kept'].str.contains('looks like').sum() == 1
    with pytest.raises(ValueError, match='train'):
        prepare('kaggle224', kaggle, out, strict=True, **HOLD)
    assert set(load_dataset(out).tiles.tile) == kept


def test_copies_do_not_cross_parts(kaggle, tmp_path):
    train = kaggle / 'BCSS/train'
    names = sorted(p.name for p in train.iterdir())
    one, test = (next(n for n in names if f'SYNT-{s}' in n) for s in ('H1', 'H5'))
    buffer = io.BytesIO()
    Image.open(train / test).save(buffer, 'JPEG', quality=70)
    Image.open(buffer).save(train / one)
    out = prepare('kaggle224', kaggle, tmp_path / 'out', val=0.0, **HOLD)
    row = pd.read_csv(out / 'findings.csv').set_index('name').loc[[one[:-4]]].iloc[0]
    assert row.done == 'set aside' and test[:-4] in row.reason and '(test)' in row.reason
    ts = load_dataset(out, verify=True)
    assert test[:-4] in set(ts.tiles.tile) and one[:-4] not in set(ts.tiles.tile)
    i = ts.tiles.index[ts.tiles.tile == test[:-4]][0]
    assert (ts.images[i] == np.asarray(Image.open(train / test))).all()


def test_lost_class_is_found_beside_raw_codes(sample, tmp_path):
    raw = Path(shutil.copytree(sample, tmp_path / 'raw'))
    victim = next(
        p
        for p in sorted((raw / 'kaggle224/BCSS/train_mask').iterdir())
        if (np.asarray(Image.open(p)) == 2).mean() > 0.2
    )
    m = np.asarray(Image.open(victim)).copy()
    m[m == 2] = 0
    Image.fromarray(m).save(victim)
    aside = pd.read_csv(prepare('auto', raw / 'kaggle224', tmp_path / 'out', **HOLD) / 'quarantine.csv')
    assert aside[~aside.reason.str.contains('unlabeled')].values.tolist() == [
        [victim.stem, aside.reason[aside.tile == victim.stem].item()]
    ]
    assert '100% of the stroma missing' in aside.reason[aside.tile == victim.stem].item()


def as512(sample, out):
    "The sample's regions as Kaggle's 512 tiles: raw codes, whole hospitals in val."
    for folder in ('train_512', 'train_mask_512', 'val_512', 'val_mask_512'):
        (out / 'BCSS_512' / folder).mkdir(parents=True)
    for image in sorted((sample / 'roi/rgbs_colorNormalized').iterdir()):
        x, y, part = (
            np.asarray(Image.open(image)),
            np.asarray(Image.open(sample / 'roi/masks' / image.name)),
            'val' if image.name[5:7] in ('H5', 'H6') else 'train',
        )
        for r, c in ((0, 0), (0, 150)):
            name = image.name.replace('.2500.png', f'_{r}_{c}_size512.png')
            Image.fromarray(x[r : r + 512, c : c + 512]).save(out / f'BCSS_512/{part}_512' / name)
            Image.fromarray(y[r : r + 512, c : c + 512]).save(out / f'BCSS_512/{part}_mask_512' / name)
    return out


def test_kaggle512_is_cut_cropped_or_kept(sample, tmp_path):
    raw = as512(sample, tmp_path / 'raw')
    cut, crop, whole = (
        load_dataset(prepare('auto', raw, tmp_path / n, cut=c, **HOLD))
        for n, c in (('cut', TilingConfig()), ('crop', TilingConfig(crop=True)), ('whole', TilingConfig(size=512)))
    )
    assert (
        (len(cut.tiles), len(crop.tiles), len(whole.tiles)) == (96, 24, 24)
        and whole.images.shape[1:] == (512, 512, 3)
        and cut.schema.name == 'bcss3'
    )
    assert (crop.images[0] == whole.images[0][144:368, 144:368]).all() and (
        crop.labels[0] == whole.labels[0][144:368, 144:368]
    ).all()
    at = {(t.slide, t.row, t.col): i for i, t in enumerate(cut.tiles.itertuples())}
    t = whole.tiles.iloc[0]
    for r in (0, 224):
        for c in (0, 224):
            assert (cut.images[at[t.slide, t.row + r, t.col + c]] == whole.images[0][r : r + 224, c : c + 224]).all()
    merged = load_dataset(
        prepare('kaggle224', as_both(sample, raw, tmp_path), tmp_path / 'k', **HOLD)
    )  # raw codes from the 512 tiles
    assert merged.manifest['counts']['kept'] == len(merged.tiles)


def as_both(sample, raw512, tmp_path):
    "Kaggle's download: both sizes in one folder."
    both = Path(shutil.copytree(sample / 'kaggle224', tmp_path / 'both'))
    shutil.copytree(raw512 / 'BCSS_512', both / 'BCSS_512')
    with pytest.raises(ValueError, match='more than one layout .kaggle224, kaggle512.'):
        detect_layout(both, 'auto')
    return both


@pytest.mark.parametrize('inside', ['', 'archive/', 'a/b/'])
def test_a_zip_is_read_as_it_is(kaggle, tmp_path, inside):
    folder = load_dataset(prepare('kaggle224', kaggle, tmp_path / 'folder', **HOLD))
    with zipfile.ZipFile(tmp_path / 'archive.zip', 'w') as z:
        for p in sorted(kaggle.rglob('*.png')):
            z.write(p, inside + str(p.relative_to(kaggle)))
    (tmp_path / 'only').mkdir()
    shutil.copy(tmp_path / 'archive.zip', tmp_path / 'only')
    for raw in (tmp_path / 'archive.zip', tmp_path / 'only'):
        zipped = load_dataset(prepare('auto', raw, tmp_path / 'zipped', **HOLD), verify=True)
        assert zipped.manifest['source'] == 'kaggle224' and zipped.manifest['id'] == folder.manifest['id']
    data = (tmp_path / 'archive.zip').read_bytes()
    (tmp_path / 'cut.zip').write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match='is a zip whose end is missing'):
        prepare('kaggle224', tmp_path / 'cut.zip', tmp_path / 'x')


def test_padding_contradicts_nothing(sample, tmp_path):
    out = prepare('kaggle224', sample / 'kaggle224', tmp_path / 'out', cut=TilingConfig(size=256, edge='pad'), **HOLD)
    assert not pd.read_csv(out / 'findings.csv').reason.str.contains('contradicts').any()


def test_a_damaged_member_of_a_zip_is_set_aside(kaggle, tmp_path):
    victim = sorted((kaggle / 'BCSS/train').iterdir())[5]
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        for p in sorted(kaggle.rglob('*.png')):
            z.write(p, str(p.relative_to(kaggle)))
        info = z.getinfo(str(victim.relative_to(kaggle)))
    with open(tmp_path / 'a.zip', 'r+b') as f:
        f.seek(info.header_offset + 30 + len(info.filename) + 50)
        f.write(bytes(3000))
    aside = pd.read_csv(prepare('auto', tmp_path / 'a.zip', tmp_path / 'out', **HOLD) / 'quarantine.csv')
    assert (
        aside[aside.tile == victim.name].reason.str.contains('image cannot be read').all()
        and (aside.tile == victim.name).sum() == 1
    )


def test_the_folder_named_is_the_folder_read(kaggle, tmp_path):
    new = tmp_path / 'kaggle224/new'
    new.mkdir()
    (new / 'half.zip').write_bytes(b'PK')
    with pytest.raises(FileNotFoundError, match='holds none of the layouts'):
        detect_layout(new, 'auto')
    assert detect_layout(kaggle / 'BCSS', 'auto')[0] == kaggle


def test_nothing_but_a_prepared_set_is_replaced(kaggle, tmp_path):
    mine = tmp_path / 'mine'
    mine.mkdir()
    (mine / 'thesis.txt').write_text('x')
    for out in (mine, kaggle, tmp_path, kaggle / 'BCSS/set'):
        with pytest.raises(ValueError, match='[Cc]hoose another out'):
            prepare('kaggle224', kaggle, out, **HOLD)
    assert (mine / 'thesis.txt').exists() and (kaggle / 'BCSS/train').exists()


def test_edges_of_regions_follow_the_rule(sample, tmp_path):
    one = tmp_path / 'roi'
    for f in ('rgbs_colorNormalized', 'masks'):
        (one / f).mkdir(parents=True)
        for p in sorted((sample / 'roi' / f).iterdir())[:2]:
            shutil.copy(p, one / f)
    h, w = np.asarray(Image.open(next((one / 'masks').iterdir()))).shape
    sets = {
        n: load_dataset(prepare('roi', one, tmp_path / n, test_patients='SYNT-H1-0000', val=0.0, cut=c))
        for n, c in (
            ('drop', TilingConfig()),
            ('shift', TilingConfig(edge='shift')),
            ('pad', TilingConfig(edge='pad')),
            ('overlap', TilingConfig(stride=112)),
        )
    }
    left = pd.read_csv(tmp_path / 'drop/findings.csv').query('done == "left out"')
    found = {n: s.manifest['counts']['found'] for n, s in sets.items()}
    assert len(left) == 2 and found['shift'] == found['pad'] > found['drop'] < found['overlap']
    assert set(sets['drop'].tiles.tile) < set(sets['overlap'].tiles.tile)
    padded = sets['pad'].tiles[sets['pad'].tiles.row + 224 > h].index[0]
    rows = h - sets['pad'].tiles.row[padded]
    assert (sets['pad'].labels[padded][rows:] == IGNORE).all() and (sets['pad'].images[padded][rows:] == 255).all()
    assert max(sets['shift'].tiles.row[sets['shift'].tiles.patient == 'SYNT-H1-0000']) + 224 <= max(h, 224 * 4)


def test_shipped_is_marked_leaky_everywhere(kaggle, tmp_path):
    out = prepare('kaggle224', kaggle, tmp_path / 'out', split='shipped')
    ts = load_dataset(out)
    assert ts.manifest['split']['leaky'] and 'LEAKY' in ts.leak and 'Leaky' in (out / 'data_card.md').read_text()
    assert (
        set(ts.tiles.split) == {'train', 'test'}
        and (ts.tiles.split == ts.tiles.shipped_split.replace('val', 'test')).all()
    )
    with pytest.raises(ValueError, match='needs the folders'):
        prepare('roi', make_sample(tmp_path / 's', patients=12) / 'roi', tmp_path / 'x', split='shipped')
    assert load_dataset(prepare('kaggle224', kaggle, tmp_path / 'ok', **HOLD)).leak == ''


def test_killed_anywhere_a_rerun_completes(sample, tmp_path):
    "Ten kills at random moments; whatever lies under the final name is whole, and the next run needs no help."
    raw, out, fork = sample / 'kaggle224', tmp_path / 'out', multiprocessing.get_context('fork')
    start = time.time()
    want = load_dataset(prepare('kaggle224', raw, tmp_path / 'want', **HOLD)).manifest['id']
    span, rng = time.time() - start, np.random.default_rng(0)
    kills = cut_short = 0
    while kills < 10:
        p, began = fork.Process(target=prepare, args=('kaggle224', raw, out), kwargs=HOLD), time.time()
        p.start()
        p.join(rng.uniform(0, span))
        if p.exitcode is None:
            p.kill()
            p.join()
            kills += 1
        else:
            span = min(span, time.time() - began)
        if out.exists():
            assert load_dataset(out, verify=True).manifest['id'] == want
            if not cut_short:
                shutil.rmtree(out)
        else:
            cut_short += 1
    assert cut_short >= 1
    assert load_dataset(prepare('kaggle224', raw, out, **HOLD), verify=True).manifest['id'] == want
    assert sorted(p.name for p in tmp_path.iterdir()) == ['out', 'want']


def test_an_old_set_survives_a_kill_between_the_renames(kaggle, tmp_path):
    out = prepare('kaggle224', kaggle, tmp_path / 'out', **HOLD)
    out.rename(tmp_path / '.out.old')
    truncate(next((kaggle / 'BCSS/train').iterdir()))
    with pytest.raises(ValueError):
        prepare('kaggle224', kaggle, out, strict=True, **HOLD)
    load_dataset(out, verify=True)


def test_a_cut_or_changed_array_is_noticed(kaggle, tmp_path):
    out = prepare('kaggle224', kaggle, tmp_path / 'out', **HOLD)
    with open(out / 'labels.npy', 'r+b') as f:
        f.seek(5000)
        f.write(b'\x07')
    with pytest.raises(ValueError, match='labels are not those'):
        load_dataset(out, verify=True)
    os.truncate(out / 'images.npy', 1000)
    with pytest.raises(ValueError):
        load_dataset(out)


def _peak(raw, out, queue):
    prepare('kaggle224', raw, out, **HOLD)
    queue.put(next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')))


def test_memory_does_not_grow_with_the_number_of_tiles(sample, tmp_path):
    "Eight times the tiles, as other patients, in a fresh process each."
    many = tmp_path / 'many'
    for p in sorted((sample / 'kaggle224').rglob('*.png')):
        x = np.asarray(Image.open(p))
        for k in range(8):
            new = many / p.relative_to(sample / 'kaggle224').with_name(p.name.replace('SYNT', 'SYN' + 'ABCDEFGH'[k]))
            new.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(np.rot90(x, k % 4) if k < 4 else np.rot90(x, k % 4)[:, ::-1])).save(
                new, compress_level=1
            )
    (many / 'BCSS/test').mkdir(exist_ok=True)
    peaks, spawn = [], multiprocessing.get_context('spawn')
    for raw in (sample / 'kaggle224', many):
        queue = spawn.Queue()
        p = spawn.Process(target=_peak, args=(raw, tmp_path / 'out', queue))
        p.start()
        peaks.append(queue.get(timeout=120))
        p.join()
    tiles = load_dataset(tmp_path / 'out')
    assert len(tiles.tiles) > 800 and peaks[1] - peaks[0] < 0.25 * tiles.images.nbytes / 1024, f'peaks in kB: {peaks}'


@needs_real
def test_kaggle_and_official_release_agree(tmp_path, capsys):
    """Same pixels, same labels: raw codes under bcss3, ignored pixels counted as other, against Kaggle's merged
    masks under kaggle3."""
    kaggle = load_dataset(
        prepare('kaggle224', REAL / 'kaggle224', tmp_path / 'k', test_patients='TCGA-A1-A0SK', val=0.0)
    )
    roi = load_dataset(prepare('roi', REAL / 'roi', tmp_path / 'r'))
    both = kaggle.tiles.reset_index().merge(roi.tiles.reset_index(), on='tile', suffixes=('_kaggle', '_roi'))
    for i, j in zip(both.index_kaggle, both.index_roi):
        assert (kaggle.images[i] == roi.images[j]).all()
        assert (kaggle.labels[i] == np.where(roi.labels[j] == IGNORE, 0, roi.labels[j])).all()
    with capsys.disabled():
        print(f'\nkaggle224 and roi agree pixel for pixel on {len(both)} shared tiles')
    assert len(both) >= 100
    aside = pd.read_csv(tmp_path / 'r/quarantine.csv')
    assert (
        len(aside) == 7
        and aside.reason.str.contains('mask without image').all()
        and json.loads((tmp_path / 'k/manifest.json').read_text())['counts']['found'] == 155
    )


@needs_real
def test_real_tiles(tmp_path):
    kaggle = load_dataset(
        prepare('kaggle224', REAL / 'kaggle224/BCSS', tmp_path / 'k', test_patients='TCGA-A1-A0SK', val=0)
    )
    assert (
        kaggle.manifest['parts']['test'] == dict(tiles=5, patients=['TCGA-A1-A0SK'])
        and kaggle.manifest['counts']['found'] == 155
    )
    with pytest.raises(ValueError, match='only|too few|remain'):
        prepare('kaggle224', REAL / 'kaggle224', tmp_path / 'x', test_patients='TCGA-A1-A0SK')
