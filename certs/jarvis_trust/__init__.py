# SPDX-License-Identifier: Apache-2.0
"""What agent, controller and operator must agree on: identities, keys, signed bytes, TPM structures, the audit chain.

Sans-I/O apart from key files. This package imports none of its modules, because the offline meter needs only `firmware`
and must start at once.
"""
