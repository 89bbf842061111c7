"""Google Cloud from one settings file: python deploy/gcp/gcp.py [--dry-run] TASK [NAME=value ...]   (a NAME alone:
its value is in the environment)

A task becomes one shell script: the rendered specs, then the commands. A dry run prints the script; otherwise bash
runs it and stops at the first failure."""

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from string import Template

import yaml

HERE = Path(__file__).resolve().parent
ROOT, OUT = HERE.parent.parent, Path('build/gcp')
APIS = 'aiplatform artifactregistry billingbudgets cloudbilling cloudbuild iam logging run storage'
OF_MAKE = {'DRY_RUN', 'PYTHON', 'VENV'}
COUNT = '[1-9][0-9]*'
ONE_OF = dict(
    IMAGES='all|train|serve',
    PUBLIC='yes|no',
    STRATEGY='STANDARD|SPOT',
    BUDGET='smoke|full',
    SOURCE='sample|kaggle224|kaggle512|roi|auto',
    PROJECT='[a-z][a-z0-9-]{4,28}[a-z0-9]',
    BUCKET='[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]',
    JOB='[a-z0-9][a-z0-9-]{0,100}',
    NODES=COUNT,
    TIMEOUT_HOURS=COUNT,
    CONCURRENCY=COUNT,
    DISK_GB=COUNT,
    ACCELERATORS='[0-9]+',
)


def commit():
    "The commit as an image tag."
    done = subprocess.run(
        ['git', 'describe', '--always', '--dirty', '--exclude=*'], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise ValueError('this is no Git clone, so the images have no commit to be named after: give TAG=<name>')
    return done.stdout.strip()


def read_settings(given, dry_run=False, file=HERE / 'settings.env'):
    "Settings of the file, overridden by those given; ValueError says what is wrong with them."
    lines = [line.partition('=')[::2] for line in file.read_text().splitlines() if line and not line.startswith('#')]
    unknown = set(given) - {name for name, _ in lines} - OF_MAKE
    if unknown:
        raise ValueError(f'unknown setting {", ".join(sorted(unknown))}: {file.name} lists those that exist')
    s = {}
    for name, value in lines:
        s[name] = given.get(name, Template(value).substitute(s))
        if name == 'PROJECT' and not s[name]:
            if not dry_run:
                raise ValueError(
                    f'no project: write PROJECT=<id> into {os.path.relpath(file)} (`gcloud projects list` shows ids), '
                    'or give PROJECT=<id>'
                )
            s[name] = 'PROJECT_ID'
        if name == 'TAG' and s[name] == 'git':
            s[name] = commit()
        if name == 'JOB' and s[name] == 'auto':
            s[name] = time.strftime(f'%Y%m%d-%H%M%S-{s["SOURCE"]}-{s["BUDGET"]}', time.gmtime())
        if name == 'RAW' and s[name] == 'auto':
            s[name] = 'data/raw/' + re.sub('^kaggle.*', 'kaggle', s['SOURCE'])
        if not re.fullmatch(r'[\w .,:/=@+\[\]-]*', s[name]):
            raise ValueError(f'{name}={s[name]!r} holds a character that no setting needs')
        if 'PROJECT_ID' not in s[name] and not re.fullmatch(ONE_OF.get(name, '.*'), s[name]):
            raise ValueError(f'{name}={s[name]!r}: expected {ONE_OF[name]}')
        if not s[name] and name != 'PARAMS':
            raise ValueError(f'{name} is empty')
    return s | dict(OTHER_NODES=str(int(s['NODES']) - 1), TIMEOUT=str(3600 * int(s['TIMEOUT_HOURS'])))


class Plain(yaml.SafeDumper):
    "YAML without anchors, which not every reader knows."

    def ignore_aliases(self, data):
        return True


def render(name, s):
    "A spec as text, filled in."
    text = Template((HERE / name).read_text()).substitute(s)
    if not name.endswith('.yaml'):
        return text
    spec = dict(train=train_spec, cloudbuild=build_spec).get(Path(name).stem, lambda spec, s: spec)(
        yaml.safe_load(text), s
    )
    return yaml.dump(spec, Dumper=Plain, sort_keys=False, width=200)


def train_spec(spec, s):
    "Leave out worker pools without nodes, accelerators that are none, and variables without a value."
    pools = [p for p in spec['workerPoolSpecs'] if p['replicaCount']]
    for pool in pools:
        pool['machineSpec'] = {
            k: v for k, v in pool['machineSpec'].items() if s['ACCELERATORS'] != '0' or not k.startswith('accelerator')
        }
        pool['containerSpec'] = dict(pool['containerSpec'], env=[e for e in pool['containerSpec']['env'] if e['value']])
    return dict(spec, workerPoolSpecs=pools)


def build_spec(spec, s):
    "Keep the steps and images that are asked for."

    def asked(kind):
        return s['IMAGES'] in ('all', kind)

    return dict(
        spec,
        steps=[b for b in spec['steps'] if asked(b['id'])],
        images=[i for k, i in zip(('train', 'serve'), spec['images']) if asked(k)],
    )


def gcloud(s, *words):
    "A gcloud command for the project, quoted for the shell."
    return shlex.join(['gcloud', *words, f'--project={s["PROJECT"]}'])


def account(s, kind):
    "The address of a service account."
    return f'{s[kind + "_ACCOUNT"]}@{s["PROJECT"]}.iam.gserviceaccount.com'


def unless(there, create):
    "Create what is not there yet."
    return f'{there} >/dev/null 2>&1 || {create}'


def setup(s):
    "APIs, service accounts, bucket, repository, rights, budget; everything may be run again."
    bucket, place = f'gs://{s["BUCKET"]}', f'--location={s["REGION"]}'
    repo, email = ('artifacts', 'repositories'), lambda kind: f'--member=serviceAccount:{account(s, kind)}'

    def grant(kind, role, condition='None'):
        return gcloud(
            s,
            'storage',
            'buckets',
            'add-iam-policy-binding',
            bucket,
            email(kind),
            f'--role=roles/{role}',
            f'--condition={condition}',
        )

    objects = f'projects/_/buckets/{s["BUCKET"]}/objects/build-source/'
    source = f'title=build-source,expression=resource.name.startsWith("{objects}")'
    billing = (
        f"account=$(gcloud billing projects describe {s['PROJECT']} --format='value(billingAccountName.basename())')"
    )
    budgets = f'gcloud billing budgets {{}} --billing-account="$account" --billing-project={s["PROJECT"]}'
    named = f'bcss-{s["PROJECT"]}'
    yield gcloud(s, 'services', 'enable', *(f'{a}.googleapis.com' for a in APIS.split()))
    for kind in ('BUILD', 'TRAIN', 'SERVE'):
        yield unless(
            gcloud(s, 'iam', 'service-accounts', 'describe', account(s, kind)),
            gcloud(s, 'iam', 'service-accounts', 'create', s[kind + '_ACCOUNT'], f'--display-name=bcss {kind.lower()}'),
        )
    yield unless(
        gcloud(s, 'storage', 'buckets', 'describe', bucket),
        gcloud(
            s,
            'storage',
            'buckets',
            'create',
            bucket,
            place,
            '--uniform-bucket-level-access',
            '--public-access-prevention',
        ),
    )
    yield gcloud(
        s,
        'storage',
        'buckets',
        'update',
        bucket,
        '--uniform-bucket-level-access',
        '--public-access-prevention',
        '--clear-soft-delete',
        f'--lifecycle-file={OUT}/lifecycle.json',
        '--update-labels=app=bcss',
    )
    yield unless(
        gcloud(s, *repo, 'describe', s['REPO'], place),
        gcloud(s, *repo, 'create', s['REPO'], place, '--repository-format=docker', '--labels=app=bcss'),
    )
    yield gcloud(s, *repo, 'set-cleanup-policies', s['REPO'], place, f'--policy={OUT}/cleanup.json', '--no-dry-run')
    yield gcloud(
        s, *repo, 'add-iam-policy-binding', s['REPO'], place, email('BUILD'), '--role=roles/artifactregistry.writer'
    )
    yield gcloud(
        s,
        'projects',
        'add-iam-policy-binding',
        s['PROJECT'],
        email('BUILD'),
        '--role=roles/logging.logWriter',
        '--condition=None',
    )
    yield grant('BUILD', 'storage.objectViewer', source)
    yield grant('TRAIN', 'storage.objectUser')
    yield grant('TRAIN', 'storage.legacyBucketReader')
    yield billing
    yield f"found=$({budgets.format('list')} --filter=displayName={named} --format='value(name)')"
    yield (
        f'[ -n "$found" ] || {budgets.format("create")} --display-name={named} --budget-amount={s["BUDGET_AMOUNT"]} '
        f'--filter-projects=projects/{s["PROJECT"]} '
        '--threshold-rule=percent=0.5 --threshold-rule=percent=0.9 --threshold-rule=percent=1.0 '
        '--threshold-rule=percent=1.0,basis=forecasted-spend'
    )


def data(s):
    "What DVC tracks and its record of it, for a job on one device; the packed set, for a job on many."
    to = f'gs://{s["BUCKET"]}/data'
    yield '[ -e dvc.lock ] || { echo "No dvc.lock, so nothing to send: make data SOURCE=... first" >&2; exit 1; }'
    yield shlex.join(['dvc', 'remote', 'add', '--local', '--force', '--default', 'bucket', f'gs://{s["BUCKET"]}/dvc'])
    yield 'dvc push'
    yield gcloud(s, 'storage', 'cp', 'dvc.lock', f'{to}/dvc.lock')
    copy = f'gcloud storage cp "$f" {to}/raw/ --project={s["PROJECT"]}'
    yield f'for f in data/raw/*.dvc; do [ ! -e "$f" ] || {copy}; done'
    yield gcloud(s, 'storage', 'rsync', 'data/processed', f'{to}/processed', '--recursive')


def build(s):
    "Both images, or one."
    if s['IMAGES'] != 'train':
        yield (
            '[ -e exports/bcss/model.json ] || { echo "No exported model in exports/bcss: make model, make gcp-fetch, '
            'or IMAGES=train" >&2; exit 1; }'
        )
    yield gcloud(
        s,
        'builds',
        'submit',
        '.',
        f'--config={OUT}/cloudbuild.yaml',
        f'--region={s["REGION"]}',
        '--ignore-file=deploy/gcp/gcloudignore',
        f'--gcs-source-staging-dir=gs://{s["BUCKET"]}/build-source',
    )


def train(s):
    "The parameters as they are here, then one custom job; the answer says how to follow it."
    run = f'gs://{s["BUCKET"]}/runs/{s["JOB"]}'
    yield gcloud(s, 'storage', 'cp', 'params.yaml', f'{run}/params.yaml')
    yield gcloud(s, 'storage', 'rsync', 'params', f'{run}/params', '--recursive')
    yield gcloud(
        s,
        'ai',
        'custom-jobs',
        'create',
        f'--region={s["REGION"]}',
        f'--display-name={s["JOB"]}',
        f'--config={OUT}/train.yaml',
        '--labels=app=bcss',
    )
    yield shlex.join(
        ['echo', f'Results come to gs://{s["BUCKET"]}/runs/{s["JOB"]}; afterwards: make gcp-fetch JOB={s["JOB"]}']
    )


def fetch(s):
    "What a job left in the bucket."
    run = f'gs://{s["BUCKET"]}/runs/{s["JOB"]}'
    yield 'mkdir -p exports reports'
    for folder in ('exports', 'reports'):
        yield gcloud(s, 'storage', 'rsync', f'{run}/{folder}', folder, '--recursive')
    yield gcloud(s, 'storage', 'cp', f'{run}/params.yaml', 'reports/params.yaml')
    yield gcloud(s, 'storage', 'rsync', f'{run}/params', 'reports/params', '--recursive')
    yield gcloud(s, 'storage', 'cp', f'{run}/dvc.lock', 'dvc.lock')


def deploy(s):
    "The service, and who may call it."
    place = f'--region={s["REGION"]}'
    yield gcloud(s, 'run', 'services', 'replace', f'{OUT}/service.yaml', place)
    if s['PUBLIC'] == 'yes':
        yield gcloud(
            s,
            'run',
            'services',
            'add-iam-policy-binding',
            s['SERVICE'],
            place,
            '--member=allUsers',
            '--role=roles/run.invoker',
        )
    yield gcloud(s, 'run', 'services', 'describe', s['SERVICE'], place, '--format=value(status.url)')


def undeploy(s):
    "The service only: bucket, images and accounts stay."
    yield gcloud(s, 'run', 'services', 'delete', s['SERVICE'], f'--region={s["REGION"]}', '--quiet')


def logs(s):
    "Jobs and service."
    yield gcloud(
        s,
        'ai',
        'custom-jobs',
        'list',
        f'--region={s["REGION"]}',
        '--limit=5',
        '--sort-by=~createTime',
        '--format=table(displayName,state,createTime,name)',
    )
    yield gcloud(s, 'run', 'services', 'logs', 'read', s['SERVICE'], f'--region={s["REGION"]}', '--limit=100')


TASKS = dict(
    setup=(setup, ['lifecycle.json', 'cleanup.json']),
    data=(data, []),
    build=(build, ['cloudbuild.yaml']),
    train=(train, ['train.yaml']),
    fetch=(fetch, []),
    deploy=(deploy, ['service.yaml']),
    undeploy=(undeploy, []),
    logs=(logs, []),
)


def script(task, s):
    "The whole task as a shell script."
    commands, specs = TASKS[task]
    write = [f"cat >{OUT}/{name} <<'END'\n{render(name, s).rstrip()}\nEND" for name in specs]
    return '\n'.join(['set -euo pipefail', *([f'mkdir -p {OUT}'] if write else []), *write, *commands(s)]) + '\n'


def main(args=None):
    "Print or run a task; the exit status is that of the command that failed."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--dry-run', action='store_true', help='print the script')
    parser.add_argument('task', choices=TASKS)
    parser.add_argument('settings', nargs='*', metavar='NAME=value')
    a = parser.parse_args(args)
    try:
        given = dict(pair.split('=', 1) if '=' in pair else (pair, os.environ[pair]) for pair in a.settings)
        if a.task == 'fetch' and given.get('JOB', 'auto') == 'auto':
            raise ValueError('which job? Give JOB=<name>; `make gcp-logs` lists them')
        text = script(a.task, read_settings(given, a.dry_run))
    except (ValueError, KeyError) as e:
        sys.exit(f'gcp-{a.task}: {e}')
    if a.dry_run:
        print(text, end='')
    else:
        sys.exit(
            subprocess.run(['bash', '-c', text.replace('pipefail\n', 'pipefail\nset -x\n', 1)], cwd=ROOT).returncode
        )


if __name__ == '__main__':
    main()
