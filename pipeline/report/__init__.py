"""The report on a finished file: a page, its figures as JSON, and images for checking."""
