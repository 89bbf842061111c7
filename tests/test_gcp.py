"""Google Cloud without Google Cloud: specs read by Google's own libraries, commands by gcloud's own list of flags,
the job with stand-ins for dvc and torchrun."""

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path

import googleapiclient
import pytest
import yaml
from google.cloud.aiplatform_v1.types import CustomJobSpec
from google.cloud.devtools.cloudbuild_v1.types import Build
from google.cloud.run_v2.types import Service
from google.protobuf import json_format

ROOT = Path(__file__).parent.parent
GCP = ROOT / 'deploy/gcp'
BIN = Path(sys.executable).parent


def module(name):
    spec = importlib.util.spec_from_file_location(f'deploy_gcp_{name}', GCP / f'{name}.py')
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


gcp, cluster, params = map(module, ('gcp', 'cluster', 'params'))


def spec(name, **given):
    return yaml.safe_load(
        gcp.render(f'{name}.yaml', gcp.read_settings(dict(PROJECT='my-project', TAG='abc1234', **given)))
    )


def changed(spec, path, value):
    "A copy with one more entry."
    spec = deepcopy(spec)
    block = spec
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = value
    return spec


def make(task, *given, env=None):
    return subprocess.run(
        ['make', '-s', '-f', 'deploy/gcp/gcp.mk', f'gcp-{task}', *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=dict(os.environ, PATH=f'{BIN}:{os.environ["PATH"]}', **env or {}),
    )


# Specs, as Google's libraries read them


def as_proto(spec, kind):
    "Parse as the message that the service receives; an unknown field or a wrong value fails."
    return json_format.ParseDict(spec, kind.pb(kind()), ignore_unknown_fields=False)


def custom_job(spec):
    return as_proto(spec, CustomJobSpec)


def cloud_build(spec):
    return as_proto(spec, Build)


def discovered(value, schema, document):
    """Check a value against a schema of a discovery document; ValueError on a key that it does not know or a value
    of another type."""
    folder = Path(googleapiclient.__file__).parent / 'discovery_cache/documents'
    schemas = json.loads((folder / f'{document}.json').read_text())['schemas']
    types = dict(string=str, integer=int, boolean=bool, number=(int, float), array=list, object=dict)

    def check(value, schema, at):
        schema = schemas[schema['$ref']] if '$ref' in schema else schema
        if not isinstance(value, types[schema['type']]) or isinstance(value, bool) and schema['type'] != 'boolean':
            raise ValueError(f'{at} is {value!r}, not {schema["type"]}')
        if 'enum' in schema and value not in schema['enum']:
            raise ValueError(f'{at} is {value!r}, not one of {schema["enum"]}')
        if schema['type'] == 'array':
            for i, v in enumerate(value):
                check(v, schema['items'], f'{at}[{i}]')
        if schema['type'] == 'object':
            for k, v in value.items():
                known = schema.get('properties', {}).get(k, schema.get('additionalProperties'))
                if known is None:
                    raise ValueError(f'{at} has no {k}')
                check(v, known, f'{at}.{k}')

    check(value, schemas[schema], schema)


@pytest.mark.parametrize(
    'given, pools, gpus',
    [
        ({}, [1], 1),
        (dict(NODES='4'), [1, 3], 1),
        (dict(ACCELERATORS='0', MACHINE='n2-standard-8'), [1], 0),
        (
            dict(
                NODES='2', ACCELERATORS='8', MACHINE='a2-highgpu-8g', ACCELERATOR='NVIDIA_TESLA_A100', STRATEGY='SPOT'
            ),
            [1, 1],
            8,
        ),
    ],
)
def test_job_is_what_vertex_ai_knows(given, pools, gpus):
    job = custom_job(spec('train', **given))
    assert (
        [p.replica_count for p in job.worker_pool_specs] == pools
        and job.scheduling.restart_job_on_worker_restart
        and job.scheduling.timeout.seconds == 86400
    )
    assert job.service_account == 'bcss-train@my-project.iam.gserviceaccount.com'
    for p in job.worker_pool_specs:
        env = {e.name: e.value for e in p.container_spec.env}
        assert (
            p.machine_spec.accelerator_count == gpus == int(env['GPUS'])
            and env['BUCKET'] == 'my-project-bcss'
            and all(env.values())
        )
        assert Path(ROOT, p.container_spec.command[1]).exists()


@pytest.mark.parametrize(
    'path, value',
    [
        (('workerPoolSpecs', 0, 'machineSpec', 'gpus'), 1),
        (('scheduling', 'retries'), 3),
        (('workerPoolSpecs', 0, 'replicaCount'), 'two'),
        (('workerPoolSpecs', 0, 'machineSpec', 'acceleratorType'), 'NVIDIA_L5'),
        (('scheduling', 'timeout'), '24h'),
    ],
)
def test_job_that_vertex_ai_does_not_know_is_refused(path, value):
    with pytest.raises(Exception, match='arse'):
        custom_job(changed(spec('train'), path, value))


@pytest.mark.parametrize('images, kinds', [('all', ['train', 'serve']), ('train', ['train']), ('serve', ['serve'])])
def test_build_is_what_cloud_build_knows(images, kinds):
    b = cloud_build(spec('cloudbuild', IMAGES=images))
    assert [s.id for s in b.steps] == kinds and [i.split('/')[-1] for i in b.images] == [
        f'bcss-{k}:abc1234' for k in kinds
    ]
    assert (
        all(image in step.args for image, step in zip(b.images, b.steps))
        and b.options.logging == type(b.options).CLOUD_LOGGING_ONLY
    )


@pytest.mark.parametrize(
    'path, value', [(('steps', 0, 'arguments'), []), (('options', 'machineType'), 'HUGE'), (('timeout',), 'an hour')]
)
def test_build_that_cloud_build_does_not_know_is_refused(path, value):
    with pytest.raises(Exception, match='arse'):
        cloud_build(changed(spec('cloudbuild'), path, value))


def as_v2(service):
    "The same service in the words of the v2 interface."
    template, inside = service['spec']['template'], service['spec']['template']['spec']
    notes = {k.split('/')[1]: v for k, v in template['metadata']['annotations'].items()}
    c = inside['containers'][0]
    return dict(
        labels=service['metadata']['labels'],
        template=dict(
            scaling=dict(minInstanceCount=int(notes['minScale']), maxInstanceCount=int(notes['maxScale'])),
            sessionAffinity=notes['sessionAffinity'] == 'true',
            executionEnvironment=f'EXECUTION_ENVIRONMENT_{notes["execution-environment"].upper()}',
            maxInstanceRequestConcurrency=inside['containerConcurrency'],
            timeout=f'{inside["timeoutSeconds"]}s',
            serviceAccount=inside['serviceAccountName'],
            containers=[
                c | dict(resources=c['resources'] | dict(startupCpuBoost=notes['startup-cpu-boost'] == 'true'))
            ],
        ),
    )


def test_service_is_what_cloud_run_knows():
    service = spec('service')
    discovered(service, 'Service', 'run.v1')
    v2 = as_proto(as_v2(service), Service)
    c = v2.template.containers[0]
    assert (
        c.startup_probe.http_get.path == '/v2/health/ready'
        and c.liveness_probe.http_get.path == '/v2/health/live'
        and c.ports[0].container_port == 8080
    )
    assert (
        all(p.timeout_seconds <= p.period_seconds for p in (c.startup_probe, c.liveness_probe))
        and v2.template.scaling.max_instance_count == 3
    )


@pytest.mark.parametrize(
    'path, value',
    [
        (('concurrency',), 4),
        (('containerConcurrency',), '4'),
        (('containers', 0, 'livenessProbe', 'http'), {}),
        (('containers', 0, 'resources', 'cpu'), '2'),
    ],
)
def test_service_that_cloud_run_does_not_know_is_refused(path, value):
    with pytest.raises(ValueError):
        discovered(changed(spec('service'), ('spec', 'template', 'spec', *path), value), 'Service', 'run.v1')


def test_service_fits_the_program():
    from bcss_nb.serving.settings import Settings

    inside = spec('service')['spec']['template']['spec']
    env = {e['name']: e['value'] for e in inside['containers'][0]['env']}
    s = Settings.from_env(env)
    assert (
        all(hasattr(s, k.removeprefix('BCSS_').lower()) for k in env)
        and inside['containerConcurrency'] == s.workers + s.queue_size + 1
    )
    assert inside['timeoutSeconds'] > s.deadline + s.body_seconds
    source = (ROOT / 'bcss_nb/serving/app.py').read_text()
    assert all(
        f"'{inside['containers'][0][p]['httpGet']['path']}'" in source for p in ('startupProbe', 'livenessProbe')
    )


def test_rules_of_bucket_and_repository_are_known():
    s = gcp.read_settings(dict(PROJECT='my-project', TAG='abc'))
    lifecycle, cleanup = json.loads(gcp.render('lifecycle.json', s)), json.loads(gcp.render('cleanup.json', s))
    discovered(dict(lifecycle=lifecycle), 'Bucket', 'storage.v1')
    for p in cleanup:
        ours = dict(p, id=p['name'], action=p['action']['type'].upper())
        if 'condition' in p:
            ours['condition'] = dict(p['condition'], tagState=p['condition']['tagState'].upper())
        del ours['name']
        discovered(ours, 'CleanupPolicy', 'artifactregistry.v1')
        with pytest.raises(ValueError):
            discovered(ours | dict(keep=3), 'CleanupPolicy', 'artifactregistry.v1')
    staging = next(r['condition']['matchesPrefix'][0] for r in lifecycle['rule'] if r['action']['type'] == 'Delete')
    assert f'/{staging.rstrip("/")}' in gcp.script('build', s) and staging in gcp.script('setup', s)


# Commands


def empty(value, at=''):
    "Where a spec has nothing."
    for k, v in value.items() if isinstance(value, dict) else enumerate(value):
        if v in (None, '', [], {}):
            yield f'{at}.{k}'
        elif isinstance(v, (dict, list)):
            yield from empty(v, f'{at}.{k}')


@pytest.mark.parametrize('project', ['', 'my-project'])
@pytest.mark.parametrize(
    'task, given',
    [
        ('setup', []),
        ('data', []),
        ('build', []),
        ('train', []),
        ('deploy', ['PUBLIC=yes']),
        ('train', ['NODES=2', 'PARAMS=train.batch=16 split.val=0.1']),
        ('fetch', ['JOB=a-job']),
        ('logs', []),
        ('undeploy', []),
    ],
)
def test_dry_run_prints_whole_commands(task, given, project):
    done = make(task, 'DRY_RUN=1', f'PROJECT={project}', *given)
    assert done.returncode == 0 and ('PROJECT_ID' in done.stdout) == (not project), done.stderr
    assert not re.search(r'<[^<\s>]*>|TODO|\$\{|=(\s|$)', done.stdout), done.stdout
    for text in re.findall(r"^cat >.*?'END'\n(.*?)\nEND$", done.stdout, re.M | re.S):
        assert not list(empty(yaml.safe_load(text))), text
    assert subprocess.run(['bash', '-n'], input=done.stdout, text=True).returncode == 0
    specs = dict(setup=2, build=1, train=1, deploy=1).get(task, 0)
    assert done.stdout.count('cat >build/gcp/') == specs and (task == 'train') == ('/runs/2' in done.stdout)


def test_settings_that_cannot_be_are_refused():
    done = make('train')
    assert done.returncode and 'PROJECT=<id>' in done.stderr and 'settings.env' in done.stderr and not done.stdout
    for given, word in (
        ['REGOIN=us-east1', 'unknown setting REGOIN'],
        ['NODES=0', 'NODES'],
        ['PROJECT=My_Project', 'PROJECT'],
        ['PARAMS=`id`', "PARAMS='`id`'"],
        ['REGION=', 'REGION'],
        ['BUCKET=gs://a/b', 'BUCKET'],
    ):
        done = make('train', *([] if 'PROJECT=' in given else ['PROJECT=my-project']), given, 'DRY_RUN=1')
        assert done.returncode and word in done.stderr and not done.stdout, given
    assert 'JOB=<name>' in make('fetch', 'PROJECT=my-project', 'DRY_RUN=1').stderr


def stub(folder, name, body):
    "A program that notes how it was called."
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f'#!/bin/bash\necho "{name} $*" >>{shlex.quote(str(folder / "calls"))}\n{body}\n')
    (folder / name).chmod((folder / name).stat().st_mode | stat.S_IXUSR)


def test_commands_run_in_order_and_stop_at_the_first_failure(tmp_path):
    project = tmp_path / 'project'
    shutil.copytree(GCP, project / 'deploy/gcp')

    def go(task, *given):
        return subprocess.run(
            [sys.executable, 'deploy/gcp/gcp.py', task, 'PROJECT=my-project', 'TAG=abc', *given],
            cwd=project,
            capture_output=True,
            text=True,
            env=dict(os.environ, PATH=f'{tmp_path / "bin"}:{os.environ["PATH"]}'),
        )

    stub(
        tmp_path / 'bin',
        'gcloud',
        'case "$*" in *describe*email*|*"buckets describe"*) exit 1;; *"run services replace"*) exit 7;; *"projects '
        'describe"*) echo 0A-1B;; esac',
    )
    assert go('setup').returncode == 0
    calls = (tmp_path / 'bin/calls').read_text().splitlines()
    assert (
        calls[0].startswith('gcloud services enable')
        and any('buckets create gs://my-project-bcss' in c for c in calls)
        and not any('repositories create' in c for c in calls)
    )
    assert 'budgets create --billing-account=0A-1B' in calls[-1] and json.loads(
        (project / 'build/gcp/lifecycle.json').read_text()
    )
    assert [c for c in calls if 'projects add-iam-policy-binding' in c and 'logWriter' not in c] == []
    (tmp_path / 'bin/calls').unlink()
    assert go('deploy').returncode == 7 and len((tmp_path / 'bin/calls').read_text().splitlines()) == 1
    assert go('build').returncode == 1 and 'exports/bcss' in go('build').stderr
    assert go('data').returncode == 1 and 'make data' in go('data').stderr
    assert go('train', 'NODES=3').returncode == 0 and custom_job(
        yaml.safe_load((project / 'build/gcp/train.yaml').read_text())
    )


def lint(commands, tmp_path):
    "What gcloud's own parser says about commands, without running them: one text each, '' for a good one."
    (tmp_path / 'commands.json').write_text(json.dumps([dict(command_string=c) for c in commands]))
    done = subprocess.run(
        ['gcloud', 'meta', 'lint-gcloud-commands', f'--commands-file={tmp_path}/commands.json'],
        capture_output=True,
        text=True,
        env=dict(os.environ, CLOUDSDK_CONFIG=str(tmp_path / 'config'), CLOUDSDK_CORE_DISABLE_PROMPTS='1'),
    )
    return [r['error_message'] or '' for r in json.loads(done.stdout)]


@pytest.mark.skipif(not shutil.which('gcloud'), reason='gcloud is not installed here')
def test_gcloud_takes_every_command(tmp_path):
    commands, s = [], gcp.read_settings(dict(PROJECT='my-project', TAG='abc', PUBLIC='yes'))
    for task in gcp.TASKS:
        for line in re.sub(
            r'^cat >.*?^END$',
            '',
            gcp.script(task, s).replace('"$account"', '0A-1B').replace('; done', ''),
            flags=re.M | re.S,
        ).splitlines():
            commands += [
                c
                for part in re.split(r' \|\| | >/dev/null 2>&1', line)
                for c in re.findall(r'^(?:\w+=\$\()?(gcloud .*?)\)?$', part)
            ]
    wrong = [
        commands[0].replace('--project', '--projekt'),
        next(c for c in commands if 'custom-jobs create' in c).replace('--display-name', '--labels'),
    ]
    said = lint(commands + wrong, tmp_path)
    assert len(commands) > 30 and not any(said[:-2]) and all(said[-2:]), [(c, e) for c, e in zip(commands, said) if e]


# The job


def described(task, index, *pools, **more):
    return json.dumps(
        dict(
            cluster={
                f'workerpool{i}': [f'cmle-training-workerpool{i}-ab-{j}:2222' for j in range(n)]
                for i, n in enumerate(pools)
                if n
            },
            environment='cloud',
            task=dict(type=task, index=index, **more),
        )
    )


@pytest.mark.parametrize(
    'text, expected',
    [
        ('', (1, 0, '127.0.0.1', 29500)),
        (described('workerpool0', 0, 1), (1, 0, 'cmle-training-workerpool0-ab-0', 2222)),
        (described('workerpool0', 0, 1, 1), (2, 0, 'cmle-training-workerpool0-ab-0', 2222)),
        (described('workerpool1', 0, 1, 1, trial='1'), (2, 1, 'cmle-training-workerpool0-ab-0', 2222)),
        (described('workerpool1', 2, 1, 3), (4, 3, 'cmle-training-workerpool0-ab-0', 2222)),
        (described('workerpool2', 0, 1, 1, 1), (3, 2, 'cmle-training-workerpool0-ab-0', 2222)),
        (
            json.dumps(
                dict(
                    json.loads(described('workerpool1', 0, 1, 1)),
                    job=json.dumps(dict(workerPoolSpecs=[dict(machineSpec=dict(acceleratorCount=4))])),
                )
            ),
            (2, 1, 'cmle-training-workerpool0-ab-0', 2222),
        ),
    ],
)
def test_place_in_the_cluster(text, expected):
    assert cluster.place(text) == expected


@pytest.mark.parametrize('text', [described('workerpool1', 0, 1), described('workerpool0', 3, 1), '{}', 'no json'])
def test_place_in_no_cluster(text):
    with pytest.raises(ValueError):
        cluster.place(text)


@pytest.fixture
def job(tmp_path):
    "A project, a bucket, and stand-ins for dvc and torchrun: run(**env) starts the job."
    project, bucket, programs = tmp_path / 'project', tmp_path / 'gcs/a-bucket', tmp_path / 'bin'
    shutil.copytree(GCP, project / 'deploy/gcp')
    (project / 'reports').mkdir()
    (bucket / 'data/raw').mkdir(parents=True)
    (project / 'reports/old.csv').write_text('x')
    for name in ('data/raw/kaggle.dvc', 'data/dvc.lock'):
        (bucket / name).write_text('x')
    shutil.copy(ROOT / 'params.yaml', project)
    shutil.copytree(ROOT / 'params', project / 'params')
    stub(
        programs,
        'dvc',
        'if [ "$1" = repro ]; then mkdir -p runs/unet/42 exports/bcss; echo weights >>runs/unet/42/last.pt; '
        'echo {} >exports/bcss/model.json; echo html >reports/compare.html; fi',
    )
    stub(programs, 'torchrun', 'exit ${FAIL:-0}')

    class Job:
        pass

    j = Job()
    j.project, j.bucket, j.programs = project, bucket, programs
    j.env = dict(
        os.environ,
        PATH=f'{programs}:{BIN}:{os.environ["PATH"]}',
        GCS_MOUNT=str(tmp_path / 'gcs'),
        BUCKET='a-bucket',
        JOB='a-job',
        GPUS='1',
        SOURCE='kaggle224',
        RAW='data/raw/kaggle',
        MODELS='unet,unetr',
        BUDGET='full',
        SEEDS='42,43',
    )
    j.env.pop('CLUSTER_SPEC', None)
    j.start = lambda **env: subprocess.Popen(
        ['bash', 'deploy/gcp/train.sh'],
        cwd=project,
        env=j.env | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def run(**env):
        p = j.start(**env)
        out, err = p.communicate(timeout=15)
        return p.returncode, err

    j.run, j.calls = run, lambda: (programs / 'calls').read_text().splitlines() if (programs / 'calls').exists() else []
    return j


def test_scripts_are_bash():
    assert subprocess.run(['bash', '-n', GCP / 'train.sh']).returncode == 0 and os.access(GCP / 'train.sh', os.X_OK)


def test_job_on_one_device_runs_the_pipeline(job):
    (job.bucket / 'runs/a-job').mkdir(parents=True)
    shutil.copy(ROOT / 'params.yaml', job.bucket / 'runs/a-job')
    shutil.copytree(ROOT / 'params', job.bucket / 'runs/a-job/params')
    train = (ROOT / 'params/train.yaml').read_text().replace('weight_decay: 0.01', 'weight_decay: 0.02')
    (job.bucket / 'runs/a-job/params/train.yaml').write_text(train)
    code, err = job.run(PARAMS='params/train.yaml:lr=0.001 params/prepare.yaml:test_patients=TCGA-A1-A0SK')
    assert code == 0, err
    assert job.calls() == [
        'dvc remote add --local --force --default bucket gs://a-bucket/dvc',
        'dvc pull --allow-missing sample prepare data/raw/kaggle.dvc',
        'dvc repro robustness leakage report export',
        'dvc push',
    ]
    p = yaml.safe_load((job.project / 'params.yaml').read_text())
    assert (p['source'], p['raw'], p['models'], p['budget'], p['seeds']) == (
        'kaggle224',
        'data/raw/kaggle',
        ['unet', 'unetr'],
        'full',
        [42, 43],
    )
    train, prepare = (
        yaml.safe_load((job.project / f'params/{name}.yaml').read_text()) for name in ('train', 'prepare')
    )
    assert (train['lr'], train['weight_decay'], prepare['test_patients']) == (0.001, 0.02, 'TCGA-A1-A0SK')
    left = job.bucket / 'runs/a-job'
    assert (
        (left / 'params.yaml').read_text() == (job.project / 'params.yaml').read_text()
        and (left / 'dvc.lock').exists()
        and (left / 'reports/compare.html').exists()
    )
    assert (left / 'exports/bcss/model.json').exists() and (left / 'runs/unet/42/last.pt').read_text() == 'weights\n'
    assert job.run()[0] == 0 and (left / 'runs/unet/42/last.pt').read_text() == 'weights\n' * 2, (
        'a restarted job does not see its checkpoints'
    )


@pytest.mark.parametrize(
    'place, nodes, rank',
    [
        (dict(GPUS='4'), 1, 0),
        (dict(CLUSTER_SPEC=described('workerpool0', 0, 1, 1)), 2, 0),
        (dict(CLUSTER_SPEC=described('workerpool1', 0, 1, 1), GPUS='0'), 2, 1),
    ],
)
def test_job_on_many_devices_runs_torchrun(job, place, nodes, rank):
    code, err = job.run(**place)
    assert code == 1 and 'gcp-data' in err and not job.calls()
    (job.bucket / 'data/processed').mkdir(exist_ok=True)
    (job.bucket / 'data/processed/manifest.json').write_text('{}')
    code, err = job.run(**place, PARAMS='params/train.yaml:batch=64 params/train.yaml:compile=true')
    assert code == 0 and (job.project / 'data/processed/manifest.json').exists(), err
    calls = [shlex.split(c) for c in job.calls()]
    assert [c[c.index('--out') + 1] for c in calls] == [
        f'{job.bucket}/runs/a-job/runs/{m}/{s}' for m in ('unet', 'unetr') for s in (42, 43)
    ]
    asked = ' '.join(calls[0])
    assert (
        f'--nnodes {nodes} --node-rank {rank} ' in asked
        and f'--nproc-per-node {max(1, int(place.get("GPUS", 1)))} -m bcss_nb.training.train --model unet --seed 42 '
        in asked
    )
    assert '--batch=64' in asked and '--compile' in asked and '--no-weighted' in asked and '--budget=full' in asked
    assert (job.bucket / 'runs/a-job/params.yaml').exists() == (rank == 0)
    fields = next(
        n
        for n in ast.parse((ROOT / 'bcss_nb/training/config.py').read_text()).body
        if isinstance(n, ast.ClassDef) and n.name == 'TrainConfig'
    ).body
    known = {n.target.id for n in fields if isinstance(n, ast.AnnAssign)} | {'data', 'out', 'resume', 'track', 'group'}
    assert {
        w[2:].split('=')[0].removeprefix('no-') for w in calls[0][calls[0].index('-m') :] if w.startswith('--')
    } <= known


def test_job_that_cannot_work_says_so_and_fails(job):
    assert job.run(FAIL='3', GPUS='2')[0] == 1
    (job.bucket / 'data/processed').mkdir(exist_ok=True)
    (job.bucket / 'data/processed/manifest.json').write_text('{}')
    assert job.run(FAIL='3', GPUS='2')[0] == 3 and len(job.calls()) == 1
    assert (
        'no parameter learning' in job.run(PARAMS='params/train.yaml:learning=1')[1]
        and 'lr is a number' in job.run(PARAMS='params/train.yaml:lr=x')[1]
    )
    assert 'CLUSTER_SPEC' in job.run(CLUSTER_SPEC=described('workerpool9', 0, 1, 1))[1]
    code, err = job.run(GCS_MOUNT=str(job.project / 'params.yaml'))
    assert code == 1 and 'is the bucket mounted' in err
    code, err = job.run(JOB='')
    assert code and 'JOB' in err
    stub(job.programs, 'dvc', '[ "$1" != pull ]')
    assert job.run()[0] == 1 and not (job.bucket / 'runs/a-job/reports/compare.html').is_symlink()


def test_sigterm_reaches_training_and_is_waited_for(job):
    (job.bucket / 'data/processed').mkdir(exist_ok=True)
    (job.bucket / 'data/processed/manifest.json').write_text('{}')
    stub(
        job.programs,
        'torchrun',
        f'trap "sleep .5; echo saved >{job.bucket}/saved; exit 5" TERM; touch {job.bucket}/started; while :; do sleep '
        '.05; done',
    )
    p, end = job.start(GPUS='2'), time.time() + 10
    while not (job.bucket / 'started').exists() and time.time() < end:
        time.sleep(0.02)
    p.send_signal(signal.SIGTERM)
    p.communicate(timeout=10)
    assert p.returncode == 5 and (job.bucket / 'saved').read_text() == 'saved\n'


def test_params_keep_comments_and_refuse_what_is_wrong(tmp_path, monkeypatch):
    shutil.copy(ROOT / 'params.yaml', tmp_path)
    shutil.copytree(ROOT / 'params', tmp_path / 'params')
    monkeypatch.chdir(tmp_path)
    params.main(
        'source=roi models=[unet] seeds=[7] params/train.yaml:minutes=60 params/prepare.yaml:strict=true '
        'params/prepare.yaml:test_sites='.split()
    )
    names = ('params.yaml', 'params/train.yaml', 'params/prepare.yaml')
    after = {name: (tmp_path / name).read_text() for name in names}
    run, train, prepare = (yaml.safe_load(text) for text in after.values())
    assert all(after[name].count('#') == (ROOT / name).read_text().count('#') for name in names)
    assert (run['models'], run['source'], train['minutes'], prepare['strict']) == (['unet'], 'roi', 60, True)
    for wrong in (
        'sauce=roi params/train.yaml=3 params/train.yaml:lr=fast models=unet params/prepare.yaml:strict=1 '
        'params/none.yaml:lr=1 seeds='
    ).split():
        with pytest.raises(SystemExit):
            params.main([wrong])
    assert after == {name: (tmp_path / name).read_text() for name in names}
