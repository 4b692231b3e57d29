"""Creates data sets: from patient folders to one h5 file of patches, and its report."""
