"""Show a study's runs in MLflow."""
