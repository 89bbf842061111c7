"Evaluation and comparison on awkward input: one patient, absent classes, other schemas, other splits, damaged nets."
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from bcss_nb.checkpoint import read_checkpoint, save_checkpoint
from bcss_nb.compare import colour_counts, compare, sentences
from bcss_nb.core import IGNORE, write_json
from bcss_nb.dataset import load_set, smoke_set
from bcss_nb.evaluate import any_runs, evaluate_runs, load_evaluation, load_run
from bcss_nb.report import write_cards, write_page


@pytest.fixture(scope='module')
def runs(): return any_runs('unet', load_set(smoke_set()))[:2]


@pytest.fixture(scope='module')
def evaluated(runs, tmp_path_factory):
    "An evaluation on the sample: folder, record, counts."
    folder = tmp_path_factory.mktemp('evaluated')
    evaluate_runs(runs, load_set(smoke_set()), folder)
    return folder, *load_evaluation(folder, 'unet')


def only(ts, patients):
    "The set with some test patients; the others train."
    return replace(ts, tiles=ts.tiles.assign(split=np.where((ts.tiles.split == 'test') & ~ts.tiles.patient.isin(patients), 'train', ts.tiles.split)))


def report(ts, record, counts, folder):
    "The whole report of one model compared with itself under another name."
    records = [record, record | dict(model='unetr')]
    result = compare(records, [counts['confusion']]*2, colour_counts(ts, tiles=8))
    write_json(folder/'compare.json', result)
    return result, re.sub('base64,[^"]*', '', write_page(folder).read_text()), [c.read_text() for c in write_cards(folder)]


def evaluate(runs, ts, folder):
    evaluate_runs(runs, ts, folder)
    return load_evaluation(folder, 'unet')


def test_one_test_patient_carries_no_interval_and_every_place_says_so(runs, tmp_path):
    ts = load_set(smoke_set())
    patient = ts.tiles.patient[ts.part('test')[0]]
    ts = only(ts, [patient])
    record, counts = evaluate(runs, ts, tmp_path)
    result, page, cards = report(ts, record, counts, tmp_path)
    assert record['dice_mean_interval'] == [None, None] and record['dice_interval']['tumor'] == [None, None]
    assert result['verdict'].startswith('Too few patients to say')
    sentence = f'One test patient ({patient}) carries no interval'
    assert sentence in ' '.join(sentences(result)) and sentence in page and all(sentence in c for c in cards)
    assert 'nan' not in page and 'nan' not in ' '.join(cards) and 'None' not in ' '.join(cards)


def test_a_class_that_no_test_patient_has_is_a_stated_gap(runs, tmp_path):
    ts = load_set(smoke_set())
    labels = ts.labels.copy()
    labels[labels == 1] = IGNORE
    ts = replace(ts, labels=labels)
    record, counts = evaluate([silent(runs[0], 1, tmp_path/'silent')], ts, tmp_path)
    result, page, cards = report(ts, record, counts, tmp_path)
    assert record['dice']['tumor'] is None and record['absent'] == ['tumor']
    assert 'No test patient has tumor: no score for it.' in page and all('No test patient has tumor' in c for c in cards)
    assert result['difference']['tumor']['p'] is None and result['difference']['other']['p'] == 1


def silent(run, c, out):
    "A copy of a run whose net never predicts class c."
    about = read_checkpoint(run/'best.pt')
    last = [k for k in about['state'] if about['state'][k].shape[:1] == (3,)]
    bias = [k for k in last if k.endswith('bias')][-1]
    about['state'][bias][c] = -1e4
    save_checkpoint(out/'best.pt', **about)
    write_json(out/'train.json', json.loads((run/'train.json').read_text()))
    return out


def test_equal_models_are_not_distinguishable(evaluated, tmp_path):
    result, _, _ = report(load_set(smoke_set()), *evaluated[1:], tmp_path)
    assert 'not distinguishable' in result['verdict'] and result['difference']['mean']['mean'] == 0


def test_checkpoint_of_another_schema_is_refused_before_anything_is_scored(runs, tmp_path):
    ts = load_set(smoke_set())
    with pytest.raises(ValueError, match='not bcss5'): load_run(runs[0], schema='bcss5')
    with pytest.raises(ValueError, match='not bcss3'): evaluate_runs(runs, replace(ts, schema=replace(ts.schema, name='bcss3')), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_net_that_predicts_nan_is_an_error_and_leaves_no_file(runs, tmp_path):
    about = read_checkpoint(runs[0]/'best.pt')
    for v in about['state'].values(): v.copy_(torch.full_like(v, torch.nan)) if v.is_floating_point() else None
    save_checkpoint(tmp_path/'run/best.pt', **about)
    write_json(tmp_path/'run/train.json', json.loads((runs[0]/'train.json').read_text()))
    with pytest.raises(FloatingPointError, match='predicts NaN'): evaluate_runs([tmp_path/'run'], load_set(smoke_set()), tmp_path/'reports')
    assert not (tmp_path/'reports').exists()


@pytest.mark.parametrize('change', [dict(split='custom: H1'), dict(test_patients=['SYNT-H1-0001']), dict(schema='bcss5'), dict(seeds=[7])])
def test_metrics_of_different_protocols_are_not_compared(change, evaluated):
    ts, (_, record, counts) = load_set(smoke_set()), evaluated
    with pytest.raises(ValueError, match=f'{next(iter(change))} differs'): compare([record, record | change], [counts['confusion']]*2, colour_counts(ts, tiles=8))


def test_trainings_of_two_models_are_not_one_model(runs, tmp_path):
    other = any_runs('unetr', load_set(smoke_set()), [42])
    with pytest.raises(ValueError, match='not of one model'): evaluate_runs([runs[0], other[0]], load_set(smoke_set()), tmp_path)
