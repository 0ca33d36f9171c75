"""The embedded world: drawn scenes, their captions, and a tiny LLaVA that hallucinates in it."""

from __future__ import annotations

from pathlib import Path

MODEL_FOLDER = Path(__file__).parent / "model"
"""The base model's folder for `from_pretrained`; made by `python -m chip_core.shapes.build`."""
