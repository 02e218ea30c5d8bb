# SPDX-License-Identifier: Apache-2.0
"""One module per command group; each has a typer `app` that cli.py imports when it is used."""
