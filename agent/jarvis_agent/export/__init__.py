# SPDX-License-Identifier: Apache-2.0
"""Export to collectors: what is asked for (plan), where it waits (spool), how it leaves (session, transports), who rules it."""
