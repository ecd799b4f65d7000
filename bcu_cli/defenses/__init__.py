"""Defenses: suspicious model + images -> cleansed model. One file each."""
