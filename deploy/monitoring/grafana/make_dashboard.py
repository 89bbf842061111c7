"Write dashboards/bcss.json: python deploy/monitoring/grafana/make_dashboard.py"

import json
from pathlib import Path

COLORS = {'other': '#8c8c8c', 'tumor': '#d55e00', 'stroma': '#0072b2'}
PANELS = [  # title, kind, width, height, unit, {legend: query}, what it says
    ('Up', 'stat', 3, 4, 'none', {'{{instance}}': 'up{job="bcss"}'}, '1: the service answers'),
    (
        'Pictures a minute',
        'stat',
        3,
        4,
        'none',
        {'': '60*sum(rate(bcss_requests_total{path="/predict",status="200"}[5m]))'},
        'Answered with 200',
    ),
    (
        'Turned away',
        'stat',
        3,
        4,
        'percentunit',
        {
            '': 'sum(rate(bcss_requests_total{status="503"}[5m]))'
            '/sum(rate(bcss_requests_total{path=~"/predict|/v2/models/bcss/infer"}[5m]))'
        },
        'Share of requests that got 503',
    ),
    (
        'Farthest drift',
        'stat',
        3,
        4,
        'none',
        {'': 'max(bcss_drift_ratio)'},
        '1: as far from the training set as its farthest hospital',
    ),
    (
        'Alerts',
        'stat',
        3,
        4,
        'none',
        {'': 'count(ALERTS{alertstate="firing",alertname=~"Bcss.*"}) or vector(0)'},
        'Firing now',
    ),
    ('Model', 'table', 9, 4, 'none', {'': 'bcss_model_info'}, 'What is served, and by which engine'),
    (
        'Requests a second',
        'timeseries',
        8,
        8,
        'reqps',
        {'{{path}} {{status}}': 'sum by (path,status)(rate(bcss_requests_total[1m]))'},
        'By path and status',
    ),
    (
        'Seconds for a picture',
        'timeseries',
        8,
        8,
        's',
        {
            'median': 'histogram_quantile(0.5, sum by (le)(rate(bcss_request_seconds_bucket{path="/predict"}[5m])))',
            '99 %': 'histogram_quantile(0.99, sum by (le)(rate(bcss_request_seconds_bucket{path="/predict"}[5m])))',
            'in the engine, median': 'histogram_quantile(0.5, sum by (le)(rate(bcss_predict_seconds_bucket[5m])))',
        },
        'From first to last byte',
    ),
    (
        'Megapixels a second',
        'timeseries',
        8,
        8,
        'none',
        {'{{instance}}': 'sum by (instance)(rate(bcss_pixels_total[1m]))/1e6'},
        'Predicted, at 0.25 µm',
    ),
    (
        'Data drift',
        'timeseries',
        12,
        8,
        'none',
        {'{{feature}}': 'bcss_drift_ratio{kind="data"}'},
        'Above 1: farther from the training set than any of its hospitals',
    ),
    (
        'Prediction drift',
        'timeseries',
        12,
        8,
        'none',
        {'{{feature}}': 'bcss_drift_ratio{kind="prediction"}'},
        'Above 1: answers unlike those on the training set',
    ),
    (
        'Predicted area',
        'timeseries',
        8,
        8,
        'percentunit',
        {'{{name}}': 'sum by (name)(rate(bcss_class_pixels_total[5m]))/scalar(sum(rate(bcss_class_pixels_total[5m])))'},
        'Share of each class',
    ),
    (
        'Mean uncertainty',
        'heatmap',
        8,
        8,
        'none',
        {'{{le}}': 'sum by (le)(increase(bcss_uncertainty_bucket[5m]))'},
        'Of whole pictures; 0 sure, 1 no idea',
    ),
    (
        'Memory and line',
        'timeseries',
        8,
        8,
        'none',
        {'MB': 'process_resident_memory_bytes/1e6', 'in line': 'bcss_queue_length'},
        'Resident memory; requests predicted or waiting',
    ),
]


def panel(i, at, title, kind, width, height, unit, queries, says):
    "One panel of Grafana's JSON model."
    drifts, shares = 'drift' in title, title == 'Predicted area'
    steps = (
        [dict(color='green', value=None), dict(color='red', value=1)] if drifts else [dict(color='blue', value=None)]
    )
    limit = dict(mode='absolute', steps=steps)
    custom = (
        dict(thresholdsStyle=dict(mode='line'))
        if drifts and kind == 'timeseries'
        else dict(fillOpacity=60, stacking=dict(mode='normal'))
        if shares
        else {}
    )

    def fixed(c):
        return [dict(id='color', value=dict(mode='fixed', fixedColor=c))]

    overrides = (
        [dict(matcher=dict(id='byName', options=n), properties=fixed(c)) for n, c in COLORS.items()] if shares else []
    )
    targets = [
        dict(
            refId='ABC'[j],
            expr=q,
            legendFormat=legend,
            instant=kind == 'table',
            format='table' if kind == 'table' else 'heatmap' if kind == 'heatmap' else 'time_series',
        )
        for j, (legend, q) in enumerate(queries.items())
    ]
    options = (
        {'reduceOptions': {'calcs': ['lastNotNull']}}
        if kind == 'stat'
        else {'calculate': False}
        if kind == 'heatmap'
        else {}
    )
    return dict(
        id=i,
        title=title,
        type=kind,
        description=says,
        gridPos=dict(x=at[0], y=at[1], w=width, h=height),
        datasource=dict(type='prometheus', uid='prometheus'),
        targets=targets,
        options=options,
        fieldConfig=dict(defaults=dict(unit=unit, thresholds=limit, custom=custom), overrides=overrides),
    )


def dashboard():
    "All panels, left to right, row by row."
    made, x, y = [], 0, 0
    for i, p in enumerate(PANELS):
        if x + p[2] > 24:
            x, y = 0, y + made[-1]['gridPos']['h']
        made.append(panel(i + 1, (x, y), *p))
        x += p[2]
    return dict(
        uid='bcss',
        title='bcss_nb',
        tags=['bcss'],
        timezone='browser',
        schemaVersion=39,
        version=1,
        refresh='15s',
        editable=True,
        time={'from': 'now-1h', 'to': 'now'},
        templating=dict(list=[]),
        annotations=dict(list=[]),
        panels=made,
    )


if __name__ == '__main__':
    (Path(__file__).parent / 'dashboards/bcss.json').write_text(
        json.dumps(dashboard(), indent=1, ensure_ascii=False) + '\n'
    )
