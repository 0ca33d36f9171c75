"""Loading models, and naming their parts."""

ADAPTER_CONFIG = "adapter_config.json"  # as PEFT names it
