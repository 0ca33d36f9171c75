"""Representations of images and descriptions in trained models."""
