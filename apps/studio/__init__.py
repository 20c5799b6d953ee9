"""The studio: audio models played in the browser while they make the sound."""
