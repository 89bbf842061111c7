"""Record what this version computes, and compare it after a change that should compute the same.

    python tools/golden.py record golden.json --reports reports    # before; --reports adds the scores of `make demo`
    python tools/golden.py compare golden.json --reports reports   # after, on the same machine

Bits depend on the machine and the versions, so the record is kept beside the checkout and not in it.
"""

import argparse
import hashlib
import json
import math
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import tifffile
import torch
from fastapi.testclient import TestClient
from PIL import Image

from bcss_nb.core.files import write_json
from bcss_nb.data.dataset import load_dataset
from bcss_nb.data.prepare import sample_dataset
from bcss_nb.data.simulator import simulate_roi
from bcss_nb.evaluation.evaluations import evaluate_runs
from bcss_nb.inference.engines import open_engine
from bcss_nb.inference.outputs import predict_file
from bcss_nb.serving.app import create_app
from bcss_nb.serving.export import export_run
from bcss_nb.serving.settings import Settings
from bcss_nb.training.train import fit
from bcss_nb.training.trainer import Trainer

# what differs from run to run
VOLATILE = re.compile(
    r'second|tiles_s|memory|peak|commit|dirty|version|started|host|device|date|time|path|cpu|speed|warm|source|code|id$|git$|links|stat$|ms$',
    re.I,
)
ENGINES = ('onnxruntime-f32', 'onnxruntime-int8', 'openvino-f32', 'openvino-int8')


def hash_of(*parts: bytes | str) -> str:
    "The first half of the SHA-256 of some bytes."
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:32]


def hash_array(array: np.ndarray) -> str:
    "The hash of values, shape and type."
    array = np.ascontiguousarray(array)
    return hash_of(str(array.dtype), str(array.shape), array.tobytes())


def flatten(value, key: str = '') -> dict:
    "Leaves of nested JSON by their path, without what differs from run to run."
    if VOLATILE.search(key.rsplit('.', 1)[-1]):
        return {}
    if isinstance(value, dict):
        return {k: v for name, inner in value.items() for k, v in flatten(inner, f'{key}.{name}').items()}
    if isinstance(value, list):
        return {k: v for i, inner in enumerate(value) for k, v in flatten(inner, f'{key}[{i}]').items()}
    return {key: value}


def train(dataset, out: Path) -> dict:
    "Twelve steps of each model; the hash of its weights, and its history."
    golden = {}
    for model in ('unet', 'unetr'):
        history = fit(Trainer(dataset, model, steps=12, batch=4, seed=1), out / model, resume='no')
        write_json(out / model / 'train.json', history)
        weights = torch.load(out / model / 'best.pt', weights_only=True, map_location='cpu')
        tensors = {k: v for k, v in sorted(flatten(weights).items()) if isinstance(v, torch.Tensor)}
        golden[f'checkpoint.{model}'] = hash_of(
            *(part for k, v in tensors.items() for part in (k, v.contiguous().numpy().tobytes()))
        )
        golden |= flatten(history, f'train.{model}')
    return golden


def evaluate(dataset, runs: Path, out: Path) -> dict:
    "The scores of the two trainings."
    return {
        k: v
        for model in ('unet', 'unetr')
        for k, v in flatten(evaluate_runs([runs / model], dataset, out), f'evaluation.{model}').items()
    }


def export(dataset, runs: Path, out: Path) -> dict:
    "Logits of every engine for two tiles, to five decimals."
    golden = {}
    for model in ('unet', 'unetr'):
        export_run(runs / model, dataset, out / model, tiles=2, engine='onnxruntime-f32')
        for engine in ENGINES:
            logits = open_engine(out / model, engine)(dataset.images[:2])
            golden[f'logits.{model}.{engine}'] = [round(float(v), 5) for v in logits[:, :, ::75, ::75].ravel()]
    golden |= flatten(json.loads((out / 'unet/reference.json').read_text()), 'reference')
    return golden


def predict(model: Path, out: Path) -> dict:
    "Class map, outlines and areas of two pictures."
    golden = {}
    out.mkdir()
    for name, shape in (('small', (224, 224)), ('large', (900, 1300))):
        Image.fromarray(simulate_roi(3, shape=shape)[1]).save(out / f'{name}.png')
        golden |= flatten(
            predict_file(out / f'{name}.png', open_engine(model, 'onnxruntime-f32'), out / 'results', mpp=0.25),
            f'predict.{name}',
        )
        folder = out / f'results/{name}.png.bcss'
        golden[f'predict.{name}.class_map'] = hash_array(tifffile.imread(folder / f'{name}.classes.ome.tif'))
        features = json.loads((folder / f'{name}.geojson').read_text())['features']
        golden[f'predict.{name}.outlines'] = hash_of(
            json.dumps([(f['geometry'], f['properties']) for f in features], sort_keys=True)
        )
        golden[f'predict.{name}.overlay'] = hash_array(np.asarray(Image.open(folder / f'{name}.overlay.png')))
    return golden


def serve(model: Path, image: Path) -> dict:
    "Answers of the service."
    golden = {}
    tensor = dict(inputs=[dict(name='image', shape=[1, 3, 32, 32], datatype='FP32', data=[0.5] * 3 * 32**2)])
    with TestClient(create_app(Settings(model=str(model)))) as client:
        answer = client.post('/predict', files=dict(image=image.read_bytes()), data=dict(mpp=0.25))
        golden |= {'api.predict.status': answer.status_code} | flatten(answer.json(), 'api.predict')
        for path in ('/v2', '/v2/models/bcss', '/v2/models/none', '/nowhere'):
            golden |= {f'api{path}.status': client.get(path).status_code} | flatten(
                client.get(path).json(), f'api{path}'
            )
        golden['api.infer'] = [
            round(v, 5) for v in client.post('/v2/models/bcss/infer', json=tensor).json()['outputs'][0]['data'][::97]
        ]
        golden['api.routes'] = sorted(client.get('/openapi.json').json()['paths'])
    return golden


def read_reports(reports: Path) -> dict:
    "The scores that a pipeline left."
    return {
        k: v
        for file in sorted(reports.glob('*.json'))
        for k, v in flatten(json.loads(file.read_text()), f'reports.{file.stem}').items()
    }


def compute(reports: Path | None) -> dict:
    "Everything, in a folder that goes away."
    dataset = load_dataset(sample_dataset())
    golden = {'dataset': dataset.manifest['id']}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        golden |= train(dataset, place / 'runs')
        golden |= evaluate(dataset, place / 'runs', place / 'reports')
        golden |= export(dataset, place / 'runs', place / 'models')
        golden |= predict(place / 'models/unet', place / 'images')
        golden |= serve(place / 'models/unet', place / 'images/large.png')
    return golden | (read_reports(reports) if reports else {})


def compare(before: dict, after: dict) -> list[str]:
    "One line for each value that is gone, new or different."
    lines = [f'gone: {k} = {before[k]}' for k in before if k not in after] + [
        f'new: {k} = {after[k]}' for k in after if k not in before
    ]
    return lines + [
        f'{k}: {before[k]} -> {after[k]}' for k in before if k in after and not is_equal(before[k], after[k])
    ]


def is_equal(a, b) -> bool:
    "Equality in which nan equals nan."
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


def main():
    "Record or compare."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('action', choices=('record', 'compare'))
    parser.add_argument('file', type=Path, help='JSON with the recorded values')
    parser.add_argument('--reports', type=Path, help='folder with the reports of `make demo`')
    args = parser.parse_args()
    golden = json.loads(json.dumps(compute(args.reports)))
    if args.action == 'record':
        args.file.write_text(json.dumps(golden, indent=1) + '\n')
        print(f'{len(golden)} values in {args.file}')
        return
    lines = compare(json.loads(args.file.read_text()), golden)
    print(*lines, f'{len(golden)} values, {len(lines)} differences', sep='\n')
    sys.exit(bool(lines))


if __name__ == '__main__':
    main()
