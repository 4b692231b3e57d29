"""Patients, their pairs, and the subsets that they belong to."""
