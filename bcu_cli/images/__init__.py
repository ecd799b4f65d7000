"""Folders of images into batches: decoding, the set in memory, augmentation, the built-in road signs."""
