"Draw the ML canvas: python docs/canvas/draw.py [OUT.png]"
import hashlib
import sys
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import yaml
from matplotlib.patches import FancyBboxPatch

HERE = Path(__file__).parent
SOURCE, OUT = HERE/'canvas.yaml', HERE.parent.parent/'reports/ml-canvas-1.png'
PLACES = {  # x, y, width, height in a grid of 10 x 10, from the top left
    'decisions': (0, 0, 2, 4), 'making predictions': (0, 4, 2, 3.9), 'prediction task': (2, 0, 2, 4), 'impact simulation': (2, 4, 2, 3.9),
    'value proposition': (4, 0, 2, 7.9), 'data collection': (6, 0, 2, 4), 'building models': (6, 4, 2, 3.9), 'data sources': (8, 0, 2, 4), 'features': (8, 4, 2, 3.9),
    'monitoring': (0, 7.9, 10, 1.7)}
COLORS = {'value proposition': '#0072B2', 'monitoring': '#009E73'} | dict.fromkeys(('decisions', 'making predictions', 'prediction task', 'impact simulation'), '#D55E00') \
    | dict.fromkeys(('data collection', 'building models', 'data sources', 'features'), '#5A5A5A')


def source_id():
    "What the picture was drawn from."
    return hashlib.sha256(SOURCE.read_bytes() + Path(__file__).read_bytes()).hexdigest()


def box(ax, name, content):
    "One box with its question and its answers."
    x, y, w, h = PLACES[name]
    ax.add_patch(FancyBboxPatch((x + .06, y + .07), w - .12, h - .14, boxstyle='round,pad=0,rounding_size=0.06', fc='white', ec=COLORS[name], lw=1.6))
    ax.text(x + .16, y + .34, name.upper(), fontsize=13, weight='bold', color=COLORS[name], va='center')
    ax.text(x + .16, y + .58, content['ask'], fontsize=8.5, style='italic', color='#666666', va='center')
    wide = w > 5
    columns, at = (4 if wide else 1), [y + .85]*4
    for i, line in enumerate(content['say']):
        c = i % columns
        lines = textwrap.wrap(line, 36)
        ax.text(x + .16 + 2.45*c, at[c], '•', fontsize=10, va='top', color=COLORS[name])
        ax.text(x + .27 + 2.45*c, at[c], '\n'.join(lines), fontsize=10.5, va='top', linespacing=1.25)
        at[c] += .17*len(lines) + .14


def draw(out):
    "Write the PNG."
    canvas = yaml.safe_load(SOURCE.read_text())
    fig, ax = plt.subplots(figsize=(18, 11.6))
    fig.subplots_adjust(0.005, .005, .995, .995)
    ax.set(xlim=(0, 10), ylim=(9.7, -.75)); ax.axis('off')
    ax.text(.08, -.38, canvas['title'], fontsize=20, weight='bold', va='center')
    ax.text(9.92, -.38, f"The Machine Learning Canvas   ·   {canvas['version']}", fontsize=11, color='#666666', va='center', ha='right')
    for name in PLACES: box(ax, name, canvas['boxes'][name])
    out.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(out, dpi=110, metadata={'Source': source_id()})
    plt.close(fig)


if __name__ == '__main__': draw(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
