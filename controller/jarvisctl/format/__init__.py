# SPDX-License-Identifier: Apache-2.0
"""Answers as text: tables for people, JSON lines for programs, flows fast enough to keep up with a stream."""
