# SPDX-License-Identifier: Apache-2.0
"""`python -m jarvis_agent` is jarvis-agent."""

from jarvis_agent.cli import main

main()
