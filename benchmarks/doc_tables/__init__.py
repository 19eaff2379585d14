"""The tables and numbers of the documentation, from benchmarks/results (see ../render_docs.py)."""

from . import cluster, demo, encoder, kernels, layout, menus, peers, pipelines, reliability, search, sensitivity, transfer, tuning

NUMBERS = {function.__name__: function for function in (layout.fixed, layout.count, layout.percent, layout.interval, layout.geometric_mean)}
TABLES = {
    function.__name__: function
    for module in (layout, cluster, demo, encoder, kernels, menus, peers, pipelines, reliability, search, sensitivity, transfer, tuning)
    for function in module.TABLES
}
