# SPDX-License-Identifier: Apache-2.0
"""jarvisctl: what operators type.

Options (options.py) become one request; client.py carries it to the controller over mTLS; format/ turns the answers into
tables for people or one JSON object a line for programs; commands/ holds one module per command group. Nothing here imports
the controller or the native library.
"""

__version__ = "0.1.0"
