# SPDX-License-Identifier: Apache-2.0
"""Makes the agent of this process a puppet: see lies.py and patches.py. Put this folder and the repository on PYTHONPATH."""

from testbed.attack import lies, lies_contents, lies_signed, patches  # noqa: F401 - two of them for the lies that they register

lies.install()
patches.install()
