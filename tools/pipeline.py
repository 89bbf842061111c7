"""Run stages of the pipeline as a DVC experiment, with the options of `make`.

    python tools/pipeline.py report export -- SOURCE=kaggle224 RAW=downloads VAL=0.1 SET=params/train.yaml:lr=0.003

An option is the name of a parameter of params.yaml or params/prepare.yaml in capitals. What is not given goes back
to its committed value, so that a command means the same today and tomorrow. SET changes any other parameter.
"""

import os
import subprocess
import sys
from pathlib import Path

import yaml

FILES = ('params.yaml', 'params/prepare.yaml')  # their parameters are options of make
KINDS = {int: 'a whole number', float: 'a number', bool: 'true or false'}


def committed(file):
    "Parameters as the last commit has them; as the folder has them where there is no commit."
    shown = subprocess.run(['git', 'show', f'HEAD:{file}'], capture_output=True, text=True)
    return yaml.safe_load(shown.stdout if shown.returncode == 0 else Path(file).read_text())


def value_of(text, default, name):
    "Read an option as the type of its default; ValueError when it is of another."
    if isinstance(default, str):
        return text
    if isinstance(default, list):
        return [yaml.safe_load(item) for item in text.split(',') if item.strip()]
    value = yaml.safe_load(text)
    fits = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, fits) or isinstance(value, bool) != isinstance(default, bool):
        raise ValueError(f'{name} must be {KINDS[type(default)]}, got {text!r}')
    return value


def override(file, name, value):
    "One change in the language of `dvc exp run -S`."
    if isinstance(value, str):
        value = "'" + value.replace('\\', '\\\\').replace("'", "\\'") + "'"
    elif isinstance(value, list):
        value = f'[{",".join(map(str, value))}]'
    elif isinstance(value, bool):
        value = str(value).lower()
    return f'{"" if file == "params.yaml" else file + ":"}{name}={value}'


def overrides(options):
    "What must change in the parameter files for these options; ValueError on an unknown option."
    changes, left = [], dict(options)
    for file in FILES:
        default, now = committed(file), yaml.safe_load(Path(file).read_text())
        for name in now:
            text = left.pop(name.upper(), None)
            value = default.get(name, now[name]) if text is None else value_of(text, now[name], name.upper())
            if value != now[name]:
                if text is None:
                    print(f'{file}: {name} goes back from {now[name]!r} to {value!r} ({name.upper()}=... keeps it)')
                changes.append(override(file, name, value))
    changes += left.pop('SET', '').split()
    if left:
        raise ValueError(f'unknown option {", ".join(left)}: `make help` lists them')
    return changes


def main(args):
    "Run DVC; its own words only with VERBOSE=1."
    at = args.index('--') if '--' in args else len(args)
    command, options = args[:at], dict(option.split('=', 1) for option in args[at + 1 :])
    try:
        changes = overrides(options)
    except ValueError as error:
        sys.exit(str(error))
    quiet = [] if os.environ.get('VERBOSE', '') not in ('', '0') else ['--quiet']
    sets = [word for change in changes for word in ('-S', change)]
    sys.exit(subprocess.run(['dvc', 'exp', 'run', *quiet, *sets, *command]).returncode)


if __name__ == '__main__':
    main(sys.argv[1:])
