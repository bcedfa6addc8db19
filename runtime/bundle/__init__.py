"""The bundle on disk: its manifest, what may stand in it, and what a user may choose. The ground floor."""
