"""Run ablation studies around the CHiP training core."""

__version__ = "0.1.0"
