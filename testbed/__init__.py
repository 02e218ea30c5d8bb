# SPDX-License-Identifier: Apache-2.0
"""Real parts for tests, demo and benchmarks: software TPMs, network namespaces, traffic. Nothing of the product imports it."""
