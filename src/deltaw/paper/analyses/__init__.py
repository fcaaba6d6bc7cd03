"""The paper's analyses on any two adapters or runs: each gives a table (text, CSV, JSON) and a figure (PNG, SVG).

``result.py`` is what all of them return, ``style.py`` how their figures look. One file is one analysis: ``subspace.py``
(figures 3, 4, 6, 7), ``within.py`` (the same inside one adapter), ``base.py`` with ``weights.py`` (figure 8, Table 7),
``latency.py`` (Table 1, figure 5), ``throughput.py``, ``switch.py``, ``memory.py``, ``deployment.py`` (section 4),
``quality.py`` (figure 2, from the paper's own tables by ``printed.py``), ``recipes.py`` (Tables 5, 6, 18),
``low_data.py`` (Tables 16, 17). A method to time is one line of ``CONTENDERS`` in ``contenders.py``.
"""
