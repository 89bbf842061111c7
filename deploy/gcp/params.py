"""Change params.yaml and keep its comments: params.py name=value ...; params.py --options prints it as options of
bcss_nb.training.train, one a line."""

import sys
from pathlib import Path

from ruamel.yaml import YAML

FILE = Path('params.yaml')
yaml = YAML()
yaml.width, yaml.preserve_quotes = 200, True
KINDS = dict(text=str, number=(int, float), list=list, switch=bool)


def kind(value):
    "What sort of value a parameter has."
    return (
        'switch' if isinstance(value, bool) else next(name for name, types in KINDS.items() if isinstance(value, types))
    )


def change(params, name, text):
    "Set one parameter; ValueError when there is none of that name, or its value is of another kind."
    *path, last = name.split('.')
    block = params
    for key in path:
        block = block.get(key) if isinstance(block, dict) else None
    if not isinstance(block, dict) or last not in block or isinstance(block[last], dict):
        raise ValueError(f'params.yaml has no parameter {name}')
    value = text if kind(block[last]) == 'text' else yaml.load(text)
    if value is None or isinstance(value, dict) or kind(value) != kind(block[last]):
        raise ValueError(f'{name} is a {kind(block[last])}, got {text!r}')
    if not isinstance(value, list):
        block[last] = value
    else:
        block[last][:] = list(value)


def options(params):
    "What `python -m bcss_nb.training.train` is told about a run besides model, seed and folders."
    for name, value in dict(
        params['train'], budget=params['budget'], track=params['track'], group=params['group']
    ).items():
        yield f'--{"" if value else "no-"}{name}' if isinstance(value, bool) else f'--{name}={value}'


def main(args):
    "Command line."
    params = yaml.load(FILE)
    if args == ['--options']:
        print(*options(params), sep='\n')
        return
    try:
        for arg in args:
            change(params, *arg.split('=', 1))
    except ValueError as e:
        sys.exit(str(e))
    yaml.dump(params, FILE)


if __name__ == '__main__':
    main(sys.argv[1:])
