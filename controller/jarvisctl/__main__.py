# SPDX-License-Identifier: Apache-2.0
"""`python -m jarvisctl`."""

from jarvisctl.cli import main

main()
