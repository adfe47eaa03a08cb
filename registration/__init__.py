"""CNN-SIFT registration of brain PET to MRI: arrays in, a rigid transform and its confidence out."""
