"""Clusters: what a cluster file says, whether it will do, and jobs on one that runs."""
