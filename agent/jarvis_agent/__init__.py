# SPDX-License-Identifier: Apache-2.0
"""The agent of one host: captures on command of an attested controller (`run`), and meters capture files offline (`meter`).

Nothing is imported here: the offline meter starts without gRPC and the TPM stack.
"""

__version__ = "0.1.0"
