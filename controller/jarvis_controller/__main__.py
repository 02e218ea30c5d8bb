# SPDX-License-Identifier: Apache-2.0
"""`python -m jarvis_controller` is the jarvis-controller program."""

from jarvis_controller.cli import main

main()
