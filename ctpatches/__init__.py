"""Reads data sets: patches, their provenance and their HU, for training and for checking."""
