"Draw the ML canvas: python docs/canvas/draw.py [OUT.png]"

import hashlib
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import yaml
from matplotlib.patches import FancyBboxPatch

HERE = Path(__file__).parent
SOURCE, OUT = HERE / 'canvas.yaml', HERE.parent.parent / 'reports/ml-canvas-1.png'
SIZE, LINE = (1800, 1130), 22  # pixels of the picture and of a line
W, TOP, MID, LOW, END = 356, 78, 530, 966, 1118  # a column, and where rows of boxes begin and end
PLACES = {  # x, y, width, height
    'prediction task': (0, TOP, W, MID - TOP),
    'decisions': (W, TOP, W, MID - TOP),
    'value proposition': (2 * W, TOP, W, LOW - TOP),
    'data collection': (3 * W, TOP, W, MID - TOP),
    'data sources': (4 * W, TOP, W, MID - TOP),
    'impact simulation': (0, MID, W, LOW - MID),
    'making predictions': (W, MID, W, LOW - MID),
    'building models': (3 * W, MID, W, LOW - MID),
    'features': (4 * W, MID, W, LOW - MID),
    'monitoring': (0, LOW, 5 * W, END - LOW),
}
USE, LEARN = '#A84300', '#4A4A4A'
COLORS = {
    'prediction task': USE,
    'decisions': USE,
    'impact simulation': USE,
    'making predictions': USE,
    'value proposition': '#005A8F',
    'monitoring': '#00694C',
    'data collection': LEARN,
    'data sources': LEARN,
    'building models': LEARN,
    'features': LEARN,
}


def source_id():
    "What the picture was drawn from."
    return hashlib.sha256(SOURCE.read_bytes() + Path(__file__).read_bytes()).hexdigest()


def write(ax, x, y, text, size, **look):
    "Text whose top left is at a pixel."
    return ax.text(x, y, text, fontsize=size * 0.72, va='top', **look)


def wrapped(ax, x, y, text, width, **look):
    "Text in lines of at most so many pixels; how many lines."
    lines = ['']
    probe = write(ax, 0, 0, '', 16.5)
    for word in text.split():
        probe.set_text(f'{lines[-1]} {word}'.strip())
        if probe.get_window_extent().width > width:
            lines.append(word)
        else:
            lines[-1] = probe.get_text()
    probe.remove()
    for i, line in enumerate(lines):
        write(ax, x, y + LINE * i, line, 16.5, **look)
    return len(lines)


def box(ax, name, content):
    "One box with its question and its answers; ValueError when they do not fit."
    x, y, w, h = PLACES[name]
    x += 10
    ax.add_patch(
        FancyBboxPatch(
            (x + 5, y + 5), w - 10, h - 10, boxstyle='round,pad=0,rounding_size=8', fc='white', ec='#C9CDD2', lw=1
        )
    )
    ax.add_patch(
        FancyBboxPatch((x + 5, y + 5), w - 10, 5, boxstyle='round,pad=0,rounding_size=2', fc=COLORS[name], ec='none')
    )
    write(ax, x + 18, y + 20, name.upper(), 18, weight='bold', color=COLORS[name])
    write(ax, x + 18, y + 45, content['ask'], 12.5, style='italic', color='#5A5A5A')
    columns = 4 if w > W else 1
    step, at, gap = (w - 16) / columns, [y + 72] * columns, 11 if h < 600 else 44
    for i, text in enumerate(content['say']):
        c = i % columns
        write(ax, x + 18 + step * c, at[c], '•', 16.5, color=COLORS[name])
        at[c] += LINE * wrapped(ax, x + 34 + step * c, at[c], text, step - 48) + gap
    if max(at) - gap > y + h - 10:
        raise ValueError(f'{name}: {max(at) - gap - y - h + 10:.0f} pixels too much text')


def draw(out):
    "Write the PNG."
    canvas = yaml.safe_load(SOURCE.read_text())
    fig = plt.figure(figsize=(SIZE[0] / 100, SIZE[1] / 100), dpi=100, facecolor='#F4F5F7')
    ax = fig.add_axes([0, 0, 1, 1], xlim=(0, SIZE[0]), ylim=(SIZE[1], 0))
    ax.axis('off')
    write(ax, 18, 14, canvas['title'], 29, weight='bold')
    write(ax, 18, 52, canvas['version'][0].upper() + canvas['version'][1:], 15, color='#A80000', weight='bold')
    write(
        ax,
        SIZE[0] - 18,
        24,
        'The Machine Learning Canvas, a form by Louis Dorard (CC BY-SA 4.0)',
        13,
        color='#5A5A5A',
        ha='right',
    )
    for name in PLACES:
        box(ax, name, canvas['boxes'][name])
    out.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(out, dpi=100, metadata={'Source': source_id()})
    plt.close(fig)


if __name__ == '__main__':
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
