"""The one training loop that attacks and defenses share, the devices it runs on and how it is resumed."""
