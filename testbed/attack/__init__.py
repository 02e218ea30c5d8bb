# SPDX-License-Identifier: Apache-2.0
"""Named attacks on a fleet of real processes, each of which must be refused with its own reason: `python -m testbed.attack`."""
