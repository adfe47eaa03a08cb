"""A DICOM node: receives brain MRI and PET series, registers them, sends the fused series back."""
