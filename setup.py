"Package metadata comes from settings.ini."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=['='], interpolation=None)
config.read('settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=Path('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    license='Apache-2.0',
    license_files=['LICENSE'],
    keywords=cfg['keywords'].split(),
    packages=find_packages(include=['bcss_nb', 'bcss_nb.*']),
    package_data={'bcss_nb': ['templates/*', 'web/*', 'web/examples/*']},
    python_requires=f'>={cfg["min_python"]},<3.13',
    install_requires=cfg['requirements'].split(),
    extras_require={
        'serve': cfg['serve_requirements'].split(),
        'pipeline': cfg['pipeline_requirements'].split(),
        'dev': cfg['pipeline_requirements'].split()
        + cfg['serve_requirements'].split()
        + cfg['dev_requirements'].split(),
    },
    entry_points={
        'console_scripts': [f'bcss={cfg["lib_name"]}.cli:main'],
        'nbdev': [f'{cfg["lib_name"]}={cfg["lib_name"]}._modidx:d'],
    },
    zip_safe=False,
)
