"""Whether an installation works: a bundle that is carried along restores a clip that is made here."""
