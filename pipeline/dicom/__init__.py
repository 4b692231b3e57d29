"""Reading CT slices; the only importer of pydicom."""
