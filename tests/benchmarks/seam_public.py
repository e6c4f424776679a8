"""Adapters to public packages, used where they are installed."""

from __future__ import annotations

from seam_cases import Tool

PUBLIC_TOOLS: dict[str, Tool] = {}
