"""Over random hospitals, patients and class areas: no patient crosses parts, every tile has one part, a seed
repeats a split."""

import string

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bcss_nb.data.splits import (
    check_split,
    kfold_test_patients,
    patient_table,
    shared_patients,
    shipped_split,
    split_patients,
)

SITES = [a + b for a in 'ABCDEO' for b in string.digits + 'L']
PARTS = {'train', 'val', 'test'}
relaxed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


@st.composite
def crowds(draw, min_patients=4):
    "A tile table: 4 to 40 patients of 1 to 8 hospitals, 1 to 6 tiles each, any class areas, rows in any order."
    sites = draw(st.lists(st.sampled_from(SITES), min_size=1, max_size=8, unique=True))
    n = draw(st.integers(min_patients, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = [
        dict(
            patient=f'TCGA-{rng.choice(sites)}-{i:04d}',
            tile=f'{i}_{j}',
            **{f'area_{c}': int(a) for c, a in zip('abc', rng.integers(0, 50_177, 3) * rng.integers(0, 2, 3))},
        )
        for i in range(n)
        for j in range(rng.integers(1, 7))
    ]
    tiles = pd.DataFrame(rows).sample(frac=1, random_state=int(rng.integers(2**31)))
    return tiles.assign(site=tiles.patient.str[5:7], shipped_split=rng.choice(['train', 'val'], len(tiles)))


def applied(tiles, **kwargs):
    parts = split_patients(tiles, **kwargs)
    assert set(parts) == set(tiles.patient) and set(parts.values()) <= PARTS
    tiles = tiles.assign(split=tiles.patient.map(parts))
    assert tiles.split.notna().all() and shared_patients(tiles) == [] and len(tiles.tile.unique()) == len(tiles)
    check_split(tiles)
    return tiles


@relaxed
@given(crowds(), st.data(), st.integers(0, 10_000), st.sampled_from([0.0, 0.1, 0.2, 0.5]))
def test_hospitals_are_held_out_whole(tiles, data, seed, val):
    sites = sorted(tiles.site.unique())
    assume(len(sites) > 1)
    held = data.draw(st.lists(st.sampled_from(sites), min_size=1, max_size=len(sites) - 1, unique=True))
    assume(tiles.patient[~tiles.site.isin(held)].nunique() >= 3)
    out = applied(tiles, test_sites=held, val=val, seed=seed)
    assert set(out.site[out.split == 'test']) == set(held) and not set(out.site[out.split != 'test']) & set(held)
    assert (out.split == 'val').any() == (val > 0) and (out.split == 'train').any()
    pd.testing.assert_frame_equal(out, applied(tiles, test_sites=held, val=val, seed=seed))
    shuffled = applied(tiles.sample(frac=1, random_state=1), test_sites=held, val=val, seed=seed)
    assert dict(zip(out.tile, out.split)) == dict(zip(shuffled.tile, shuffled.split))


@relaxed
@given(crowds(), st.integers(2, 5), st.integers(0, 10_000))
def test_folds_hold_every_patient_out_once(tiles, folds, seed):
    people = patient_table(tiles)
    assume(len(people) >= 2 * folds)
    parts = [kfold_test_patients(people, folds, f, seed) for f in range(folds)]
    assert sorted(p for part in parts for p in part) == sorted(people.patient) and all(parts)
    out = applied(tiles, name='patient-kfold', folds=folds, fold=seed % folds, seed=seed, val=0.0)
    assert set(out.patient[out.split == 'test']) == parts[seed % folds]


@relaxed
@given(crowds(), st.data(), st.integers(0, 10_000))
def test_lists_are_followed(tiles, data, seed):
    patients = sorted(tiles.patient.unique())
    test, val = data.draw(st.permutations(patients).map(lambda p: (p[:2], p[2:3])))
    out = applied(tiles, name='custom', test_patients=test, val_patients=val, seed=seed)
    assert set(out.patient[out.split == 'test']) == set(test) and set(out.patient[out.split == 'val']) == set(val)


@relaxed
@given(crowds())
def test_a_leak_is_counted_and_refused(tiles):
    tiles = (
        tiles.assign(split=shipped_split(tiles))
        if set(tiles.shipped_split) == {'train', 'val'}
        else tiles.assign(split='train')
    )
    crossing = tiles.groupby('patient').split.nunique().gt(1)
    assert shared_patients(tiles) == sorted(crossing.index[crossing])
    if crossing.any():
        with pytest.raises(ValueError, match='patient in two parts'):
            check_split(tiles)


def test_stratified_folds_are_closer_to_the_whole_than_chance():
    rng = np.random.default_rng(0)
    people = pd.DataFrame(
        dict(
            patient=[f'TCGA-A1-{i:04d}' for i in range(60)],
            site='A1',
            **{f'area_{c}': a for c, a in zip('abc', 1e6 * rng.dirichlet((0.5, 0.5, 0.5), 60).T)},
        )
    )

    def share(chosen):
        return people[people.patient.isin(chosen)].filter(like='area_').sum().pipe(lambda a: a / a.sum()).to_numpy()

    def off(chosen):
        return np.abs(share(chosen) - share(people.patient)).sum()

    drawn = [off(rng.choice(people.patient, 12, replace=False)) for _ in range(200)]
    assert np.mean([off(kfold_test_patients(people, 5, f)) for f in range(5)]) < np.median(drawn) / 2
