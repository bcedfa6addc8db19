"""STAR, the text-to-video family: what is published of it. Its export is not there yet."""
