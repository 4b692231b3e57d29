"""Reading CT slices; with `dicom_export`, the only importer of pydicom."""
