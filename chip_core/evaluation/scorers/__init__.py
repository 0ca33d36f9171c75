"""Keep paths by which plug-ins import what chip_core.evaluation.scorer holds."""
