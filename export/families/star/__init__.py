"""STAR (I2VGen-XL form): a text-to-video model that restores clips, with a ControlNet for the clip."""
