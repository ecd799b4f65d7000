"""Folders of pictures into batches: decoding, the set in memory, augmentation, the built-in road signs."""
