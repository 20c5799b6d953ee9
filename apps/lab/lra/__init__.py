"""Long Range Arena: its six tasks from the original files or drawn anew, and one command that trains on them."""
