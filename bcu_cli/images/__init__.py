"""Images: finding, decoding and augmenting them, and the built-in road signs."""
