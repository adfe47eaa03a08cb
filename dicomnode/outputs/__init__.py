"""A registration becomes DICOM objects in the MR's frame of reference; the only maker of UIDs."""
