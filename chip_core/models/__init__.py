"""Load models, and name their parts."""

ADAPTER_CONFIG = "adapter_config.json"  # the name that PEFT uses
