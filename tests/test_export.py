"Exports: both nets, what may not be published, and what happens when it fails."

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest

from bcss_nb.demo import demo_runs
from bcss_nb.inference.engines import OnnxEngine, TorchEngine, open_engine, read_manifest
from bcss_nb.models.checkpoint import load_checkpoint
from bcss_nb.serving.bundle import write_bundle
from bcss_nb.serving.export import export_run
from bcss_nb.serving.onnx_export import write_onnx


@pytest.fixture(scope='module')
def unetr(ts):
    return demo_runs('unetr', ts, [42])[0]


def test_unetr_as_onnx_and_bundle(ts, unetr, tmp_path):
    net, about = load_checkpoint(unetr / 'best.pt')
    write_onnx(net, tmp_path / 'model.onnx', about)
    tiles = ts.images[ts.part('test')[:3]]
    engine = OnnxEngine(tmp_path, about | dict(temperature=1.0, files={'model.onnx': 'x'}))
    want = TorchEngine(unetr / 'best.pt', 'cpu', 'f32')(tiles)
    for batch in (tiles, tiles[:1]):
        assert np.abs(engine(batch) - want[: len(batch)]).max() < 1e-3
    with pytest.raises(ValueError, match='takes windows of 224x224'):
        engine(tiles[:, :208])
    write_bundle(tmp_path / 'bundle', unetr / 'best.pt')
    said = subprocess.run(
        [
            sys.executable,
            '-m',
            'monai.bundle',
            'verify_net_in_out',
            'network',
            '--config_file',
            'configs/inference.json',
            '--meta_file',
            'configs/metadata.json',
        ],
        cwd=tmp_path / 'bundle',
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0 and 'verified with no error' in said.stdout + said.stderr, said.stderr[-1000:]


def test_the_bundle_says_what_monai_asks_for(exported):
    about = json.loads((exported / 'bundle/configs/metadata.json').read_text())
    wanted = (
        'schema version changelog monai_version pytorch_version numpy_version required_packages_version task '
        'description authors copyright network_data_format'
    ).split()
    assert not set(wanted) - set(about)
    image, pred = about['network_data_format']['inputs']['image'], about['network_data_format']['outputs']['pred']
    assert image['num_channels'] == 3 and pred['num_channels'] == len(pred['channel_def']) == 3
    assert {'configs/metadata.json', 'configs/inference.json', 'models/model.pt', 'docs/README.md', 'LICENSE'} <= {
        k.removeprefix('bundle/') for k in read_manifest(exported)['bundle']
    }


def test_eight_bits_that_lose_too_much_are_not_published(ts, run, tmp_path, monkeypatch):
    monkeypatch.setattr('bcss_nb.serving.export.write_int8', ruined)
    table = export_run(run, ts, tmp_path / 'model', tiles=8)
    about = read_manifest(tmp_path / 'model')
    assert (
        'model.int8.onnx' not in about['files']
        and not (tmp_path / 'model/model.int8.onnx').exists()
        and 'int8' not in about['engine']
    )
    assert {t['engine'] for t in table if not t['good']} == {'onnxruntime-int8', 'openvino-int8'}
    with pytest.raises(ValueError, match='there is no engine openvino-int8'):
        open_engine(tmp_path / 'model', 'openvino-int8')


def ruined(path, target, tiles):
    "A model that calls everything class 0."
    graph = onnx.load(path)
    last = next(i for i in graph.graph.initializer if len(i.dims) == 1 and i.dims[0] == 3)
    last.CopyFrom(onnx.numpy_helper.from_array(np.array([50, 0, 0], np.float32), last.name))
    onnx.save(graph, target)


def test_a_failed_export_keeps_the_old_one(ts, run, tmp_path, exported, monkeypatch):
    shutil.copytree(exported, tmp_path / 'model')
    before = (tmp_path / 'model/model.json').read_bytes()

    def broken(*args):
        raise OSError('no space left')

    monkeypatch.setattr('bcss_nb.serving.export.write_bundle', broken)
    with pytest.raises(OSError):
        export_run(run, ts, tmp_path / 'model', tiles=4)
    assert (tmp_path / 'model/model.json').read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ['model']
    assert read_manifest(tmp_path / 'model')
