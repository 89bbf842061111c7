"""Change parameter files and keep their comments, in the language of `dvc exp run -S`:

params.py source=roi params/train.yaml:lr=0.001 ...
params.py --options     # prints the training's parameters as options of bcss_nb.training.train, one a line
"""

import sys
from pathlib import Path

from ruamel.yaml import YAML

RUN, TRAIN = 'params.yaml', 'params/train.yaml'
yaml = YAML()
yaml.width, yaml.preserve_quotes = 200, True
KINDS = dict(text=str, number=(int, float), list=list, switch=bool)


def kind(value):
    "What sort of value a parameter has."
    if isinstance(value, bool):
        return 'switch'
    return next(name for name, types in KINDS.items() if isinstance(value, types))


def change(params, name, text, file=RUN):
    "Set one parameter; ValueError when there is none of that name, or its value is of another kind."
    if name not in params:
        raise ValueError(f'{file} has no parameter {name}')
    value = text if kind(params[name]) == 'text' else yaml.load(text)
    if value is None or isinstance(value, dict) or kind(value) != kind(params[name]):
        raise ValueError(f'{name} is a {kind(params[name])}, got {text!r}')
    if isinstance(value, list):
        params[name][:] = list(value)
    else:
        params[name] = value


def options():
    "What `python -m bcss_nb.training.train` is told about a run besides model, seed and folders."
    run = yaml.load(Path(RUN))
    values = dict(yaml.load(Path(TRAIN)), **{name: run[name] for name in ('budget', 'track', 'group')})
    for name, value in values.items():
        yield f'--{"" if value else "no-"}{name}' if isinstance(value, bool) else f'--{name}={value}'


def main(args):
    "Command line."
    if args == ['--options']:
        print(*options(), sep='\n')
        return
    files = {}
    try:
        for arg in args:
            name, _, text = arg.partition('=')
            file, _, name = name.rpartition(':')
            file = file or RUN
            if not Path(file).is_file():
                raise ValueError(f'there is no file of parameters {file}')
            if file not in files:
                files[file] = yaml.load(Path(file))
            change(files[file], name, text, file)
    except ValueError as error:
        sys.exit(str(error))
    for file, params in files.items():
        yaml.dump(params, Path(file))


if __name__ == '__main__':
    main(sys.argv[1:])
