"""A corpus of clips and pictures as people have them, and what has to become of each; see README.md here."""
