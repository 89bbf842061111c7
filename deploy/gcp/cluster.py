"""Where this node stands among the nodes of a Vertex AI job: prints `nodes rank address port` for torchrun."""

import json
import os


def place(spec):
    """Nodes, rank, address and port of the primary node, from the text of CLUSTER_SPEC; empty: one node. ValueError
    when it makes no sense."""
    if not spec:
        return 1, 0, '127.0.0.1', 29500
    spec = json.loads(spec)
    pools, task = spec.get('cluster', {}), spec.get('task', {})
    nodes = [(pool, i, address) for pool in sorted(pools) for i, address in enumerate(pools[pool])]
    ranks = [
        rank for rank, (pool, i, _) in enumerate(nodes) if (pool, i) == (task.get('type'), int(task.get('index', 0)))
    ]
    if not ranks:
        raise ValueError(f'CLUSTER_SPEC names task {task}, which is none of its nodes {pools}')
    host, _, port = nodes[0][2].partition(':')
    return len(nodes), ranks[0], host, int(port or 29500)


if __name__ == '__main__':
    print(*place(os.environ.get('CLUSTER_SPEC', '')))
