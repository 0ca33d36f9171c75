"""Keep the old import paths of chip_core.evaluation.scorer for plug-ins."""
