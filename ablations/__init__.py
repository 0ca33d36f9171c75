"""Shipped studies, one YAML file each; a study is named by path or by name."""
