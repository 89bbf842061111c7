"""Published ViT weights compute here what they compute at home; what would change that is refused, and then the net
is untouched."""

import functools
import http.server
import pickle
import threading
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bcss_nb.models.pretrained import (
    HALF_NORM,
    IMAGENET_NORM,
    convert_vit_weights,
    fold_normalization,
    format_load_report,
    load_pretrained,
    read_weights,
    resize_positions,
)
from bcss_nb.models.registry import build_model
from bcss_nb.models.unetr import ViTEncoder

transformers = pytest.importorskip('transformers')

TINY = dict(hidden_size=192, num_attention_heads=3, intermediate_size=768, num_hidden_layers=12)
BASE = dict(hidden_size=768, num_attention_heads=12, intermediate_size=3072, num_hidden_layers=12)
BLOCK = [
    ('attention.attention.', 'attn.'),
    ('attention.output.dense', 'attn.proj'),
    ('layernorm_before', 'norm1'),
    ('layernorm_after', 'norm2'),
    ('intermediate.dense', 'mlp.fc1'),
    ('output.dense', 'mlp.fc2'),
    ('encoder.layer.', 'blocks.'),
]


def published(kind=transformers.ViTModel, side=224, seed=0, noise=0.05, **shape):
    "A Hugging Face ViT in which no parameter is zero, one, or equal to another."
    torch.manual_seed(seed)
    vit = kind(transformers.ViTConfig(image_size=side, **(TINY | shape))).eval()
    with torch.no_grad():
        for p in vit.parameters():
            p.add_(torch.randn_like(p) * noise)
    return vit


@pytest.fixture(scope='module')
def hub(tmp_path_factory):
    "A ViT, and its weights as `save_pretrained` writes them."
    vit, folder = published(), tmp_path_factory.mktemp('hub')
    vit.save_pretrained(folder)
    return vit, folder / 'model.safetensors'


def old_names(state):
    "Version 5's names in memory, turned into those on the hub."
    pairs = [
        ('layers.', 'encoder.layer.'),
        ('attention.q_proj', 'attention.attention.query'),
        ('attention.k_proj', 'attention.attention.key'),
        ('attention.v_proj', 'attention.attention.value'),
        ('attention.o_proj', 'attention.output.dense'),
        ('mlp.fc1', 'intermediate.dense'),
        ('mlp.fc2', 'output.dense'),
    ]
    for new, old in pairs:
        state = {k.replace(new, old): v for k, v in state.items()}
    return state


def timm_names(state):
    "Hugging Face's names on the hub, turned by hand into timm's."
    out = {
        'cls_token': state['embeddings.cls_token'],
        'pos_embed': state['embeddings.position_embeddings'],
        **{f'patch_embed.proj.{w}': state[f'embeddings.patch_embeddings.projection.{w}'] for w in ('weight', 'bias')},
        **{f'norm.{w}': state[f'layernorm.{w}'] for w in ('weight', 'bias')},
    }
    for i in range(12):
        for w in ('weight', 'bias'):
            out[f'blocks.{i}.attn.qkv.{w}'] = torch.cat(
                [state[f'encoder.layer.{i}.attention.attention.{x}.{w}'] for x in ('query', 'key', 'value')]
            )
    for k, v in state.items():
        if k.startswith('encoder.layer.') and 'attention.attention' not in k:
            for theirs, timm in BLOCK:
                k = k.replace(theirs, timm)
            out[k] = v
    return out


@torch.no_grad()
def gaps(vit, net, mean, std, side=224, seed=1):
    """Largest difference in each of the 12 layers and after the last norm, on the same picture; and the largest
    number there is."""
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed))
    m, s = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    theirs = vit((x - m) / s, output_hidden_states=True, interpolate_pos_encoding=True)
    assert len(theirs.hidden_states) == 13
    want = [h[:, 1:] for h in (*theirs.hidden_states[1:], theirs.last_hidden_state)]
    out, states = net.vit.eval()(x)
    return [(a - b).abs().max().item() for a, b in zip([*states, out], want, strict=True)], max(
        h.abs().max().item() for h in want
    )


def write(path, weights):
    save_file({k: v.clone().contiguous() for k, v in weights.items()}, path)
    return path


@pytest.mark.parametrize('norm', [HALF_NORM, IMAGENET_NORM], ids=['half', 'imagenet'])
def test_every_layer_agrees_with_hugging_face(hub, norm):
    vit, file = hub
    net = build_model('unetr-s', 3)
    report = load_pretrained(net, file, **norm)
    off, size = gaps(vit, net, **norm)
    assert max(off) < 1e-4 and size > 1
    assert (
        report['grid'] == ''
        and report['missing'] == []
        and set(report['unused']) == {'pooler.dense.weight', 'pooler.dense.bias'}
    )


def test_vit_base(tmp_path):
    vit = published(noise=0.02, **BASE)
    vit.save_pretrained(tmp_path)
    net = build_model('unetr-b', 3)
    report = load_pretrained(net, tmp_path / 'model.safetensors')
    off, size = gaps(vit, net, **HALF_NORM)
    assert max(off) < 1e-4 and size > 1 and len(report['used']) == 198


@pytest.mark.parametrize('side,tile,grid', [(384, 224, '24x24 -> 14x14'), (224, 256, '14x14 -> 16x16')])
def test_another_grid_is_interpolated_as_hugging_face_does(tmp_path, side, tile, grid):
    vit = published(side=side)
    net = build_model('unetr-s', 3, tile)
    report = load_pretrained(net, write(tmp_path / 'a.safetensors', vit.state_dict()))
    off, _ = gaps(vit, net, **HALF_NORM, side=tile)
    assert max(off) < 1e-4 and report['grid'] == grid and grid in format_load_report(report)


@pytest.mark.parametrize('wrong', ['q-k', 'k-v', 'norms', 'class position', 'normalization'])
def test_the_comparison_notices_a_wrong_mapping(tmp_path, wrong):
    vit = published()
    state, norm = dict(vit.state_dict()), HALF_NORM
    swaps = {
        'q-k': ('attention.q_proj', 'attention.k_proj'),
        'k-v': ('attention.k_proj', 'attention.v_proj'),
        'norms': ('layernorm_before', 'layernorm_after'),
    }
    if wrong in swaps:
        a, b = swaps[wrong]
        state = {k.replace(a, '!').replace(b, a).replace('!', b): v for k, v in state.items()}
    if wrong == 'class position':
        state['embeddings.cls_token'] = state['embeddings.cls_token'] - state['embeddings.position_embeddings'][:, :1]
    if wrong == 'normalization':
        norm = IMAGENET_NORM
    net = build_model('unetr-s', 3)
    load_pretrained(net, write(tmp_path / 'a.safetensors', state), **norm)
    off, _ = gaps(vit, net, **HALF_NORM)
    assert min(off) > 1e-3


def test_all_namings_give_the_same_bits(hub, tmp_path):
    vit, file = hub
    new, old = vit.state_dict(), load_file(file)
    assert set(old) == set(old_names(new)) and set(old) != set(new)
    assert len(timm_names(old)) == 150
    first, _ = convert_vit_weights(old)
    for weights in (
        new,
        timm_names(old),
        {f'module.backbone.{k}': v for k, v in timm_names(old).items()},
        {f'encoder.{k}': v for k, v in old.items()},
    ):
        state, _ = convert_vit_weights(weights)
        assert set(state) == set(first) and all(state[k].equal(first[k]) for k in first)
    nets = []
    for name, weights in (('hf.safetensors', old), ('timm.safetensors', timm_names(old))):
        nets.append(build_model('unetr-s', 3))
        load_pretrained(nets[-1], write(tmp_path / name, weights))
    for a, b in zip(nets[0].vit.state_dict().values(), nets[1].vit.state_dict().values(), strict=True):
        assert a.equal(b)


def test_the_state_fills_an_encoder(hub):
    ViTEncoder(224, 192, 768, 3).load_state_dict(convert_vit_weights(hub[0].state_dict())[0], strict=True)


def test_classifier_pooler_and_mask_token_are_told(tmp_path):
    vit = published(transformers.ViTForImageClassification)
    report = load_pretrained(build_model('unetr-s', 3), write(tmp_path / 'a.safetensors', vit.state_dict()))
    assert set(report['unused']) == {'classifier.weight', 'classifier.bias'}
    masked = {**published().state_dict(), 'embeddings.mask_token': torch.zeros(1, 1, 192)}
    report = load_pretrained(build_model('unetr-s', 3), write(tmp_path / 'b.safetensors', masked))
    assert set(report['unused']) == {'pooler.dense.weight', 'pooler.dense.bias', 'embeddings.mask_token'}


HEADS = [
    'head.weight',
    'head.bias',
    'pooler.dense.weight',
    'mask_token',
    'pre_logits.fc.weight',
    'fc_norm.weight',
    'decoder_embed.weight',
    'decoder_blocks.0.norm1.weight',
]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    prefix=st.sampled_from(['', 'vit.', 'backbone.', 'module.', 'encoder.', 'module.backbone.', 'model.encoder.']),
    heads=st.sets(st.sampled_from(HEADS)),
    outside=st.sets(st.sampled_from(['head.mlp.0.weight', 'classifier.bias', 'criterion.center'])),
    timm=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_every_name_is_used_or_unused_exactly_once(prefix, heads, outside, timm, order):
    small = small_weights()
    weights = {
        prefix + k: v
        for k, v in {**(timm_names(small) if timm else small), **{h: torch.ones(1) for h in heads}}.items()
    }
    if prefix:
        weights |= {k: torch.ones(1) for k in outside}
    names = list(weights)
    order.shuffle(names)
    weights = {k: weights[k] for k in names}
    state, unused = convert_vit_weights(weights)
    used = [k for k in weights if k not in unused]
    assert len(unused) == len(set(unused)) and set(unused) == {prefix + h for h in heads} | (
        outside if prefix else set()
    )
    assert sum(v.numel() for v in state.values()) + 6 == sum(
        weights[k].numel() for k in used
    )  # the class token's position is added to it


@functools.cache
def small_weights():
    "A whole ViT of a few numbers a tensor, without pooler."
    return old_names(
        {
            k: v
            for k, v in published(hidden_size=6, num_attention_heads=1, intermediate_size=8, side=32)
            .state_dict()
            .items()
            if 'pooler' not in k
        }
    )


@pytest.mark.parametrize(
    'extra,word',
    [
        ('blocks.0.ls1.gamma', 'layer scale'),
        ('encoder.layer.0.layer_scale1.lambda1', 'layer scale'),
        ('dist_token', 'distillation token'),
        ('embeddings.distillation_token', 'distillation token'),
        ('register_tokens', 'register tokens'),
        ('reg_token', 'register tokens'),
        ('blocks.0.mlp.w12.weight', 'gated MLP'),
        ('blocks.0.attn.q_norm.weight', 'normalized queries'),
        ('norm_pre.weight', 'no place'),
        ('blocks.0.attn.q_bias', 'no place'),
        ('head_dist.weight', 'no place'),
    ],
)
def test_what_would_change_the_net_is_refused(extra, word):
    with pytest.raises(ValueError, match=word):
        convert_vit_weights({**small_weights(), extra: torch.ones(6)})


def without(state, *parts):
    return {k: v for k, v in state.items() if not any(p in k for p in parts)}


def deeper(state):
    return {**state, **{k.replace('layers.11.', 'layers.12.'): v for k, v in state.items() if 'layers.11.' in k}}


BAD = {
    'shallow': (lambda s: without(s, 'layers.11.'), 'layers 11, hidden 192.*takes layers 12'),
    'deep': (deeper, 'layers 13, hidden 192'),
    'patch 14': (
        lambda s: {**s, 'embeddings.patch_embeddings.projection.weight': torch.zeros(192, 3, 14, 14)},
        'patch 14.*patch 16',
    ),
    'gray': (
        lambda s: {**s, 'embeddings.patch_embeddings.projection.weight': torch.zeros(192, 1, 16, 16)},
        'channels 1',
    ),
    'no patches': (lambda s: without(s, 'patch_embeddings'), 'hidden none'),
    'no patch bias': (
        lambda s: without(s, 'patch_embeddings.projection.bias'),
        '1 tensors absent .patch_embedding.patch_embeddings.bias',
    ),
    'torn layer': (lambda s: without(s, 'layers.4.mlp.fc2.weight'), '1 tensors absent .blocks.4.mlp.linear2.weight'),
    'no keys': (lambda s: without(s, 'layers.4.attention.k_proj'), 'blocks.4.attn.q.[a-z]+ has no blocks.4.attn.k.'),
    'no query': (lambda s: without(s, 'layers.4.attention.q_proj'), 'blocks.4.attn.qkv.weight'),
    'no biases': (
        lambda s: without(s, 'q_proj.bias', 'k_proj.bias', 'v_proj.bias'),
        '12 tensors absent .blocks.0.attn.qkv.bias',
    ),
    'bent': (lambda s: {**s, 'layers.4.layernorm_after.bias': torch.zeros(7)}, 'another shape .blocks.4.norm2.bias'),
    'no class token': (lambda s: without(s, 'cls_token'), 'no cls_token'),
    'two encoders': (lambda s: {f'{p}.{k}': v for p in ('student', 'teacher') for k, v in s.items()}, '2 encoders'),
    'twice': (lambda s: {**s, 'norm.weight': torch.zeros(192)}, 'twice'),
    'no positions': (lambda s: without(s, 'position_embeddings'), 'no position embedding'),
    'rectangle': (
        lambda s: {**s, 'embeddings.position_embeddings': torch.zeros(1, 198, 192)},
        '197 patch positions are no square',
    ),
    'flat positions': (lambda s: {**s, 'embeddings.position_embeddings': torch.zeros(197, 192)}, 'positions of shape'),
}


@pytest.fixture(scope='module')
def net():
    return build_model('unetr-s', 3)


def unchanged(net, source, match, **kwargs):
    was = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises((ValueError, FileNotFoundError), match=match) as e:
        load_pretrained(net, source, **kwargs)
    assert all(v.equal(was[k]) for k, v in net.state_dict().items())
    return str(e.value)


@pytest.mark.parametrize('name', BAD)
def test_weights_that_do_not_fit_change_nothing(hub, net, tmp_path, name):
    make, match = BAD[name]
    said = unchanged(net, write(tmp_path / 'bad.safetensors', make(hub[0].state_dict())), match)
    assert 'bad.safetensors' in said


def test_another_width_changes_nothing(hub, tmp_path):
    said = unchanged(build_model('unetr-b', 3), hub[1], 'hidden 192, mlp 768.*takes layers 12, hidden 768')
    assert 'DeiT-Tiny' in said
    unchanged(build_model('unet-s', 3), hub[1], 'a unet takes best.pt')


@pytest.mark.parametrize(
    'mean,std',
    [((0.5,), (0.5,)), ((0.5,) * 3, (0.0, 1.0, 1.0)), ((0.5,) * 3, (-1.0, 1.0, 1.0)), ((0.5,) * 4, (0.5,) * 4)],
)
def test_a_wrong_normalization_changes_nothing(hub, net, mean, std):
    unchanged(net, hub[1], 'three numbers each', mean=mean, std=std)


def test_no_last_norm_is_told(hub, tmp_path):
    net = build_model('unetr-s', 3)
    report = load_pretrained(
        net,
        write(
            tmp_path / 'a.safetensors', {k: v for k, v in hub[0].state_dict().items() if not k.startswith('layernorm.')}
        ),
    )
    assert set(report['missing']) == {'norm.weight', 'norm.bias'} and net.vit.norm.weight.eq(1).all()
    assert 'norm.weight' in format_load_report(report)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 8))
def test_resized_positions_have_the_grid_asked_for_and_keep_constants(old, new, hidden):
    p = torch.randn(1, 1, hidden).expand(1, old**2, hidden)
    out = resize_positions(p, new**2)
    assert out.shape == (1, new**2, hidden)
    torch.testing.assert_close(out, p[:, :1].expand_as(out))


def test_folding_is_the_same_layer():
    x, w, b = torch.rand(2, 3, 64, 64).double(), torch.randn(8, 3, 16, 16), torch.randn(8)
    m, s = (torch.tensor(v).double().view(3, 1, 1) for v in IMAGENET_NORM.values())
    conv = functools.partial(torch.nn.functional.conv2d, stride=16)
    fw, fb = (v.double() for v in fold_normalization(w, b, **IMAGENET_NORM))
    torch.testing.assert_close(conv(x, fw, fb), conv((x - m) / s, w.double(), b.double()), atol=1e-4, rtol=1e-5)


# files


@pytest.mark.parametrize(
    'wrap',
    [
        lambda w: w,
        lambda w: dict(model=w, epoch=3),
        lambda w: dict(state_dict=w),
        lambda w: dict(student=dict(b=torch.ones(1)), teacher=w),
        lambda w: dict(state=w, model='unet'),
        lambda w: dict(model=dict(state_dict=w)),
        lambda w: dict(w, note='text'),
    ],
)
@pytest.mark.parametrize('suffix', ['.pt', '.pth', '.bin'])
@pytest.mark.parametrize('legacy', [False, True])
def test_wrapped_weights_are_found(tmp_path, wrap, suffix, legacy):
    w = {'a.b': torch.arange(5.0), 'c': torch.ones(2, 2).half()}
    torch.save(wrap(w), tmp_path / f'w{suffix}', _use_new_zipfile_serialization=not legacy)
    got = read_weights(tmp_path / f'w{suffix}')
    assert set(got) == set(w) and all(got[k].equal(w[k]) for k in w)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize('how', ['zip', 'legacy', 'pickle', 'among weights'])
def test_a_program_in_a_file_never_runs(tmp_path, net, how):
    file, mark = tmp_path / 'evil.pt', tmp_path / 'ran'
    if how == 'pickle':
        file.write_bytes(pickle.dumps(Evil(mark), protocol=2))
    else:
        torch.save(
            dict(model={'a': torch.ones(3), 'b': Evil(mark)}) if how == 'among weights' else Evil(mark),
            file,
            _use_new_zipfile_serialization=how != 'legacy',
        )
    unchanged(net, file, 'evil.pt')
    assert not mark.exists()


def test_damaged_files_are_named(hub, net, tmp_path):
    w = {'a': torch.arange(1000.0)}
    torch.save(w, tmp_path / 'a.pt')
    save_file(w, tmp_path / 'a.safetensors')
    bent = bytearray((tmp_path / 'a.pt').read_bytes())
    bent[bent.index(w['a'].numpy().tobytes()) + 400] ^= 1
    (tmp_path / 'bent.pt').write_bytes(bent)
    for n in (0, 5, 300, -1):
        for suffix in ('pt', 'safetensors'):
            (tmp_path / f'cut{n}.{suffix}').write_bytes((tmp_path / f'a.{suffix}').read_bytes()[:n])
    for file in [tmp_path / 'bent.pt', *tmp_path.glob('cut*')]:
        with pytest.raises(ValueError, match=f'cannot read weights from .*{file.name}'):
            read_weights(file)
    (tmp_path / 'cut.safetensors').write_bytes(hub[1].read_bytes()[:-1000])
    unchanged(net, tmp_path / 'cut.safetensors', 'cut.safetensors')


@pytest.mark.parametrize(
    'what,match',
    [
        ({}, 'holds nothing'),
        (dict(epoch=3), 'holds epoch, but no tensors'),
        (torch.ones(3), 'holds a Tensor'),
        ({1: torch.ones(2)}, 'holds 1, but'),
    ],
)
def test_a_file_without_weights_says_what_it_holds(tmp_path, what, match):
    torch.save(what, tmp_path / 'a.pt')
    with pytest.raises(ValueError, match=match):
        read_weights(tmp_path / 'a.pt')


def test_names_that_lead_nowhere(tmp_path):
    for source in ('none.pt', 'some/where/else', 'word', tmp_path / 'none.safetensors', 'models/none.bin'):
        with pytest.raises(FileNotFoundError, match='no weights'):
            read_weights(source)
    with pytest.raises(FileNotFoundError, match='is a folder'):
        read_weights(tmp_path)
    (tmp_path / 'a.txt').write_text('a')
    with pytest.raises(ValueError, match='should end in .safetensors'):
        read_weights(tmp_path / 'a.txt')


# the hub

COMMIT = 'c' * 40


class Hub(http.server.BaseHTTPRequestHandler):
    "Just enough of the hub to hand out files."

    files, asked = {}, []

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def log_message(self, *args):
        pass

    def answer(self, body):
        self.asked.append(self.path)
        data = self.files.get(self.path)
        self.send_response(404 if data is None else 200)
        if data is None:
            self.send_header('X-Error-Code', 'EntryNotFound')
        else:
            for k, v in (('X-Repo-Commit', COMMIT), ('ETag', '"0123"'), ('Content-Length', str(len(data)))):
                self.send_header(k, v)
        self.end_headers()
        if body and data:
            self.wfile.write(data)


@pytest.fixture
def local_hub(monkeypatch, tmp_path):
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.files, Hub.asked = {}, []
    plain = functools.partial(
        huggingface_hub.hf_hub_download, endpoint=f'http://127.0.0.1:{server.server_port}', cache_dir=tmp_path / 'cache'
    )
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', plain)
    yield Hub
    server.shutdown()
    server.server_close()


def test_a_hub_id_is_downloaded(hub, local_hub):
    local_hub.files = {'/me/vit/resolve/main/model.safetensors': hub[1].read_bytes()}
    a, b = read_weights('me/vit'), load_file(hub[1])
    assert set(a) == set(b) and all(a[k].equal(b[k]) for k in b)


def test_a_revision_and_the_older_file_name(local_hub, tmp_path):
    torch.save({'a': torch.ones(3)}, tmp_path / 'w.bin')
    local_hub.files = {'/me/old.vit/resolve/v1.0/pytorch_model.bin': (tmp_path / 'w.bin').read_bytes()}
    assert set(read_weights('me/old.vit@v1.0')) == {'a'}
    assert any('v1.0/model.safetensors' in p for p in local_hub.asked)


def test_a_hub_that_has_nothing(local_hub, net):
    unchanged(net, 'me/nothing', 'no file me/nothing, and the Hugging Face hub gives no')


def test_no_network(monkeypatch, net):
    def gone(*args, **kwargs):
        raise OSError('network is unreachable')

    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', gone)
    unchanged(net, 'me/vit', 'network is unreachable.*give the file')


# runs of ours


@pytest.mark.parametrize('preset', ['unet-s', 'unetr-s'])
def test_a_run_with_the_same_classes_is_loaded_whole(tmp_path, preset):
    first, second = build_model(preset, 3), build_model(preset, 3)
    torch.save(dict(state=first.state_dict(), preset=preset, model=preset, config=dict(lr=0.1)), tmp_path / 'best.pt')
    report = load_pretrained(second, tmp_path / 'best.pt')
    assert (
        report['unused'] == report['missing'] == []
        and report['grid'] == ''
        and report['used'] == list(first.state_dict())
    )
    assert all(v.equal(second.state_dict()[k]) for k, v in first.state_dict().items())


@pytest.mark.parametrize('preset', ['unet-s', 'unetr-s'])
def test_other_classes_get_new_last_layers(tmp_path, preset):
    first, second = build_model(preset, 3), build_model(preset, 5)
    was = {k: v.clone() for k, v in second.state_dict().items()}
    torch.save(dict(state=first.state_dict()), tmp_path / 'best.pt')
    report = load_pretrained(second, tmp_path / 'best.pt')
    now = second.state_dict()
    assert report['missing'] == report['unused'] and 0 < len(report['missing']) < 12
    assert all(now[k].equal(first.state_dict()[k]) for k in report['used']) and all(
        now[k].equal(was[k]) for k in report['missing']
    )
    assert set(report['used']) | set(report['missing']) == set(now)


def test_a_unetr_run_moves_to_another_tile(tmp_path):
    first, second = build_model('unetr-s', 3, 224), build_model('unetr-s', 3, 256)
    torch.save(dict(state=first.state_dict()), tmp_path / 'best.pt')
    report = load_pretrained(second, tmp_path / 'best.pt')
    assert report['grid'] == '14x14 -> 16x16' and not report['missing']
    pos = 'vit.patch_embedding.position_embeddings'
    assert second.state_dict()[pos].equal(resize_positions(first.state_dict()[pos], 256))


@pytest.mark.parametrize('mine,theirs', [('unet-s', 'unet-m'), ('unet-s', 'unetr-s'), ('unetr-s', 'unet-s')])
def test_a_run_of_another_net_changes_nothing(tmp_path, mine, theirs):
    torch.save(dict(state=build_model(theirs, 3).state_dict()), tmp_path / 'best.pt')
    unchanged(build_model(mine, 3), tmp_path / 'best.pt', 'fit this net|no cls_token')


def test_timm_names_under_vit_are_not_taken_for_ours(hub, tmp_path):
    net = build_model('unetr-s', 3)
    report = load_pretrained(
        net, write(tmp_path / 'a.safetensors', {f'vit.{k}': v for k, v in timm_names(load_file(hub[1])).items()})
    )
    off, _ = gaps(hub[0], net, **HALF_NORM)
    assert max(off) < 1e-4 and len(report['used']) == 150
