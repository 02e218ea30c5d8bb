# SPDX-License-Identifier: Apache-2.0
"""`make soak`: live capture for minutes under traffic, churn and queries, with exact totals and no growth in memory.

__main__.py  command line: a leg a backend, progress, JSON summary, exit code
leg.py       one leg: namespaces, generator, the capturing process, what must hold at its end
capture.py   the capturing process: engine, samples of its memory, the invariant of every snapshot
readers.py   what goes on in it besides: the accountant of all records, readers that come and go, queries
memory.py    growth: a slope and its bound
"""
