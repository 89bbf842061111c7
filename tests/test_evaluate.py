"Evaluation and comparison on awkward input: one patient, absent classes, other schemas, other splits, damaged nets."

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from bcss_nb.core.files import write_json
from bcss_nb.core.labels import IGNORE
from bcss_nb.data.dataset import load_dataset
from bcss_nb.data.prepare import sample_dataset
from bcss_nb.demo import demo_runs
from bcss_nb.evaluation.calibration import ece, ece_by_class, reliability_counts
from bcss_nb.evaluation.comparison import baseline_confusions, compare, dice_differences
from bcss_nb.evaluation.comparison_tables import comparison_text
from bcss_nb.evaluation.counting import load_run
from bcss_nb.evaluation.evaluations import evaluate_runs, load_evaluation
from bcss_nb.evaluation.model_card import write_cards
from bcss_nb.evaluation.perturbations import perturbation_table
from bcss_nb.evaluation.report import write_report
from bcss_nb.evaluation.scores import describe_scores
from bcss_nb.evaluation.statistics import bootstrap_counts, estimate, holm_adjust, paired_difference
from bcss_nb.evaluation.surface import surface_counts, surface_dice
from bcss_nb.models.checkpoint import read_checkpoint, save_checkpoint
from bcss_nb.serving.parity import benchmark_engine
from bcss_nb.training.metrics import confusion, dice, iou, mean_dice, plot_confusion, precision, recall
from bcss_nb.training.train import fit
from bcss_nb.training.trainer import Trainer, validation_scores


@pytest.fixture(scope='module')
def runs():
    return demo_runs('unet', load_dataset(sample_dataset()))[:2]


@pytest.fixture(scope='module')
def evaluated(runs, tmp_path_factory):
    "An evaluation on the sample: folder, record, counts."
    folder = tmp_path_factory.mktemp('evaluated')
    evaluate_runs(runs, load_dataset(sample_dataset()), folder)
    return folder, *load_evaluation(folder, 'unet')


def only(ts, patients):
    "The set with some test patients; the others train."
    return replace(
        ts,
        tiles=ts.tiles.assign(
            split=np.where((ts.tiles.split == 'test') & ~ts.tiles.patient.isin(patients), 'train', ts.tiles.split)
        ),
    )


def report(ts, record, counts, folder):
    "The whole report of one model compared with itself under another name."
    records = [record, record | dict(model='unetr')]
    result = compare(records, [counts['confusion']] * 2, baseline_confusions(ts, tiles=8))
    write_json(folder / 'compare.json', result)
    return (
        result,
        re.sub('base64,[^"]*', '', write_report(folder).read_text()),
        [c.read_text() for c in write_cards(folder)],
    )


def evaluate(runs, ts, folder):
    evaluate_runs(runs, ts, folder)
    return load_evaluation(folder, 'unet')


def test_one_test_patient_carries_no_interval_and_every_place_says_so(runs, tmp_path):
    ts = load_dataset(sample_dataset())
    patient = ts.tiles.patient[ts.part('test')[0]]
    ts = only(ts, [patient])
    record, counts = evaluate(runs, ts, tmp_path)
    result, page, cards = report(ts, record, counts, tmp_path)
    assert record['dice_mean_interval'] == [None, None] and record['dice_interval']['tumor'] == [None, None]
    assert result['verdict'].startswith('Too few patients to say') and (result['outcome'], result['better_model']) == (
        'too few patients',
        None,
    )
    sentence = f'One test patient ({patient}) carries no interval'
    assert sentence in ' '.join(comparison_text(result)) and sentence in page and all(sentence in c for c in cards)
    assert 'nan' not in page and 'nan' not in ' '.join(cards) and 'None' not in ' '.join(cards)


def test_a_class_that_no_test_patient_has_is_a_stated_gap(runs, tmp_path):
    ts = load_dataset(sample_dataset())
    labels = ts.labels.copy()
    labels[labels == 1] = IGNORE
    ts = replace(ts, labels=labels)
    record, counts = evaluate([silent(runs[0], 1, tmp_path / 'silent')], ts, tmp_path)
    result, page, cards = report(ts, record, counts, tmp_path)
    assert record['dice']['tumor'] is None and record['absent'] == ['tumor']
    assert 'No test patient has tumor: no score for it.' in page and all(
        'No test patient has tumor' in c for c in cards
    )
    assert result['difference']['tumor']['p'] is None and result['difference']['other']['p'] == 1


def silent(run, c, out):
    "A copy of a run whose net never predicts class c."
    about = read_checkpoint(run / 'best.pt')
    last = [k for k in about['state'] if about['state'][k].shape[:1] == (3,)]
    bias = [k for k in last if k.endswith('bias')][-1]
    about['state'][bias][c] = -1e4
    save_checkpoint(out / 'best.pt', **about)
    write_json(out / 'train.json', json.loads((run / 'train.json').read_text()))
    return out


def test_equal_models_are_not_distinguishable(evaluated, tmp_path):
    result, _, _ = report(load_dataset(sample_dataset()), *evaluated[1:], tmp_path)
    assert 'not distinguishable' in result['verdict'] and (result['outcome'], result['better_model']) == (
        'not distinguishable',
        None,
    )
    assert result['difference']['mean']['mean'] == 0


def test_checkpoint_of_another_schema_is_refused_before_anything_is_scored(runs, tmp_path):
    ts = load_dataset(sample_dataset())
    with pytest.raises(ValueError, match='not bcss5'):
        load_run(runs[0], schema='bcss5')
    with pytest.raises(ValueError, match='not bcss3'):
        evaluate_runs(runs, replace(ts, schema=replace(ts.schema, name='bcss3')), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_net_that_predicts_nan_is_an_error_and_leaves_no_file(runs, tmp_path):
    about = read_checkpoint(runs[0] / 'best.pt')
    for v in about['state'].values():
        v.copy_(torch.full_like(v, torch.nan)) if v.is_floating_point() else None
    save_checkpoint(tmp_path / 'run/best.pt', **about)
    write_json(tmp_path / 'run/train.json', json.loads((runs[0] / 'train.json').read_text()))
    with pytest.raises(FloatingPointError, match='predicts NaN'):
        evaluate_runs([tmp_path / 'run'], load_dataset(sample_dataset()), tmp_path / 'reports')
    assert not (tmp_path / 'reports').exists()


@pytest.mark.parametrize(
    'change', [dict(split='custom: H1'), dict(test_patients=['SYNT-H1-0001']), dict(schema='bcss5'), dict(seeds=[7])]
)
def test_metrics_of_different_protocols_are_not_compared(change, evaluated):
    ts, (_, record, counts) = load_dataset(sample_dataset()), evaluated
    with pytest.raises(ValueError, match=f'{next(iter(change))} differs'):
        compare([record, record | change], [counts['confusion']] * 2, baseline_confusions(ts, tiles=8))


def test_trainings_of_two_models_are_not_one_model(runs, tmp_path):
    other = demo_runs('unetr', load_dataset(sample_dataset()), [42])
    with pytest.raises(ValueError, match='not of one model'):
        evaluate_runs([runs[0], other[0]], load_dataset(sample_dataset()), tmp_path)


CLASSES = ('other', 'tumor', 'stroma')
GONE = np.array([[50, 3, 10], [0, 0, 0], [4, 2, 80]])  # nobody has tumor; five pixels became it all the same


@pytest.mark.parametrize('score', [dice, iou, precision, recall])
def test_a_class_without_a_true_pixel_has_no_overlap_score_whatever_was_predicted(score):
    for gone in range(3):
        rng = np.random.default_rng(gone)
        counts = rng.integers(1, 99, (2, 4, 3, 3))
        counts[..., gone, :] = 0
        found = score(counts)
        assert np.isnan(found[..., gone]).all() and not np.isnan(np.delete(found, gone, -1)).any()
    assert np.isnan(score(np.zeros((3, 3)))).all()


def test_the_mean_leaves_an_absent_class_out_and_false_positives_still_cost_the_others():
    clean = GONE - [[-3, 3, 0], [0, 0, 0], [0, 2, -2]]  # the same pixels, rightly predicted
    assert mean_dice(GONE) == pytest.approx(np.mean([2 * 50 / (63 + 54), 2 * 80 / (86 + 90)]))
    assert (
        np.isnan(mean_dice(GONE, [1]))
        and mean_dice(clean) > mean_dice(GONE)
        and recall(GONE)[0] == pytest.approx(50 / 63)
    )
    assert confusion(torch.tensor([[0, 2, 2]]), torch.tensor([[1, 2, 1]]), 3).tolist() == [
        [0, 1, 0],
        [0, 0, 0],
        [0, 1, 1],
    ]


def test_a_class_without_a_true_border_has_no_surface_dice_whatever_was_predicted():
    truth = np.zeros((2, 40, 40), np.uint8)
    truth[:, 20:] = 2
    pred = truth.copy()
    pred[:, 5:15, 5:15] = 1
    found = surface_dice(surface_counts(truth, pred, 3, mpp=1.0).sum(0))
    assert np.isnan(found[1]) and 0 < found[0] < 1 and found[2] == 1
    assert np.isnan(surface_dice(surface_counts(truth * 0, pred, 3).sum(0))).all()
    missed = surface_dice(surface_counts(pred, truth, 3, mpp=1.0).sum(0))
    assert missed[1] == 0 and missed[0] < 1
    with pytest.raises(ValueError, match='evaluate'):
        surface_dice(np.ones((3, 2)))


def test_no_resample_scores_a_class_that_its_patients_do_not_have():
    with_it, without = np.array([[50, 3, 10], [2, 30, 4], [4, 2, 80]]), GONE
    counts = np.stack([with_it, without, without, without])
    e = estimate(counts, dice, times=2000)
    assert 0.5 < e['low'][1] <= e['mean'][1] <= e['high'][1]
    drawn = bootstrap_counts(counts, 2000)
    has = drawn[:, 1].sum(-1) > 0
    assert 0 < has.mean() < 1 and (np.isnan(dice(drawn)[:, 1]) == ~has).all() and (dice(drawn)[has, 1] > 0.5).all()
    assert np.nanmin(dice(drawn)) > 0.5 and mean_dice(drawn).min() > 0.5
    assert e['sd_patients'].shape == (3,) and np.isnan(e['sd_patients'][1])


def test_differences_of_an_absent_class_are_undefined_and_no_test_among_many():
    rng = np.random.default_rng(0)
    a = rng.integers(1, 90, (3, 6, 3, 3)) + 200 * np.eye(3, dtype=int)
    a[:, :, 1] = 0
    b = a.copy()
    b[..., 0, 1] += b[..., 0, 0] // 3
    b[..., 0, 0] -= b[..., 0, 0] // 3
    found = dice_differences(a, b, CLASSES)
    assert all(found['tumor'][k] is None for k in ('mean', 'low', 'high', 'p')) and found['other']['p'] is not None
    two = dice_differences(
        np.delete(np.delete(a, 1, -1), 1, -2), np.delete(np.delete(a, 1, -1), 1, -2), ('other', 'stroma')
    )
    assert two['other']['p'] == 1
    p = [paired_difference(a, b)['p'][i] for i in (0, 2)]
    assert found['other']['p'] == pytest.approx(holm_adjust(p)[0], abs=1e-4)
    a[..., 1] = 0
    one_pixel = a.copy()
    one_pixel[:, 0, 2, 1] = 1
    assert abs(paired_difference(a, one_pixel, mean_dice)['mean']) < 0.001


def predicting(run, c, out, bias=1e4):
    "A copy of a run whose net nearly always predicts class c."
    about = read_checkpoint(run / 'best.pt')
    last = [k for k in about['state'] if about['state'][k].shape[:1] == (3,)]
    about['state'][[k for k in last if k.endswith('bias')][-1]][c] += bias
    save_checkpoint(out / 'best.pt', **about)
    write_json(out / 'train.json', json.loads((run / 'train.json').read_text()))
    return out


def without_class(ts, c, part='test'):
    "The set with nothing labeled as class c in one part."
    labels = ts.labels.copy()
    rows = ts.part(part)
    labels[rows] = np.where(labels[rows] == c, IGNORE, labels[rows])
    return replace(ts, labels=labels)


@pytest.mark.parametrize('c', [0, 1])
def test_a_class_that_is_predicted_but_that_no_test_patient_has_is_said_with_its_pixels(c, runs, tmp_path):
    ts = without_class(load_dataset(sample_dataset()), c)
    name = ts.schema.classes[c]
    eager = [predicting(r, c, tmp_path / f'eager{i}', 2.0) for i, r in enumerate(runs)]
    record, counts = evaluate(eager, ts, tmp_path)
    pooled = counts['confusion'].sum(1)
    wrong = pooled[..., c].sum(-1).mean()
    assert wrong > 100 and (pooled[:, c] == 0).all()
    for key in ('dice', 'iou', 'precision', 'recall', 'surface_dice', 'ece_by_class'):
        assert record[key][name] is None
    for key in ('dice', 'iou', 'precision', 'recall', 'surface_dice'):
        assert record[f'{key}_interval'][name] == [None, None]
    others = [v for k, v in record['dice'].items() if k != name]
    assert record['absent'] == [name] and record['dice_mean'] == pytest.approx(np.mean(others), abs=1e-3)
    assert record['dice_mean_interval'][0] <= record['dice_mean'] <= record['dice_mean_interval'][1]
    assert all(v[name] is None for v in record['hospitals'].values())
    assert record['absent_predicted'] == {
        name: dict(pixels=round(wrong), share=pytest.approx(wrong / pooled[0].sum(), abs=1e-4))
    }
    result, page, cards = report(ts, record, counts, tmp_path)
    first, number = f'No test patient has {name}: no score for it.', f'{round(wrong):,}'
    for text in (describe_scores(record), ' '.join(comparison_text(result)), page, *cards):
        assert first in text and number in text and f'predicted as {name}' in text and 'leave it out' in text
    assert 'nan' not in page and 'nan' not in ' '.join(cards) and 'None' not in ' '.join(cards)
    figure = plot_confusion(counts['confusion'].mean(0).sum(0), ts.schema)
    said = [t.get_text() for t in figure.axes[0].texts]
    assert (
        'nan' not in ' '.join(said) and len(said) == 9 and 'no pixel' in figure.axes[0].get_yticklabels()[c].get_text()
    )
    assert sum(float(t) for t in said[(c + 1) % 3 * 3 : (c + 1) % 3 * 3 + 3]) == pytest.approx(1, abs=0.02)


def test_metrics_that_average_over_other_classes_are_not_compared(evaluated):
    ts, (_, record, counts) = load_dataset(sample_dataset()), evaluated
    with pytest.raises(ValueError, match='absent differs'):
        compare([record, record | dict(absent=['tumor'])], [counts['confusion']] * 2, baseline_confusions(ts, tiles=8))


def test_a_test_part_without_any_label_is_refused_with_a_sentence(runs, tmp_path):
    ts = load_dataset(sample_dataset())
    for c in range(3):
        ts = without_class(ts, c)
    with pytest.raises(ValueError, match='no labeled pixel'):
        evaluate_runs(runs, ts, tmp_path / 'reports')
    assert not (tmp_path / 'reports').exists()


def test_the_checkpoint_is_chosen_by_classes_that_validation_patients_have(tmp_path):
    ts = without_class(load_dataset(sample_dataset()), 1, 'val')
    assert 'val_tumor' not in validation_scores(GONE, CLASSES) and validation_scores(GONE, CLASSES)[
        'val_dice'
    ] == pytest.approx(mean_dice(GONE))
    about = fit(Trainer(ts, 'unet', steps=4, batch=4, seed=1), tmp_path)
    assert all('val_tumor' not in row for row in about['history'] if 'val_dice' in row)
    assert 'no scored validation tile has it: tumor' in about['selection']
    for c in (0, 2):
        ts = without_class(ts, c, 'val')
    with pytest.raises(ValueError, match='no labeled pixel'):
        fit(Trainer(ts, 'unet', steps=4, batch=4, seed=1), tmp_path / 'none')


def test_engines_and_shifts_are_judged_by_the_classes_that_their_tiles_have():
    ts = without_class(load_dataset(sample_dataset()), 1)
    rows = ts.part('test')[:4]
    truth = ts.labels[rows]

    class Engine:
        "Right everywhere but in one unlabeled class."

        name, wrong = 'fake', 0

        def __call__(self, images):
            said = np.where(truth == IGNORE, 0, truth)[: len(images)].copy()
            said.reshape(-1)[np.flatnonzero(truth[: len(images)].reshape(-1) != IGNORE)[: self.wrong]] = 1
            return np.stack([said == c for c in range(3)], 1).astype(np.float32)

    engine = Engine()
    right = benchmark_engine(engine, ts, rows)[0]['dice']
    engine.wrong = 1
    assert right == 1 and benchmark_engine(engine, ts, rows)[0]['dice'] > 0.99

    class Net(torch.nn.Module):
        def forward(self, x):
            return torch.from_numpy(engine(x))

    assert (perturbation_table(Net(), ts, rows)['mean_dice'] > 0.99).all()


def test_ece_of_a_class_that_nobody_has_is_undefined():
    prob = torch.softmax(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)), 1)
    counts = reliability_counts(prob, torch.randint(0, 2, (500,), generator=torch.Generator().manual_seed(1)))
    found = ece_by_class(counts)
    assert np.isnan(found[2]) and not np.isnan(found[:2]).any() and found.shape == (3,)
    wrong = reliability_counts(torch.eye(3)[[0] * 9], torch.ones(9, dtype=torch.long))
    assert ece(wrong[0]) == 1
