"""What each mixer can and cannot do: synthetic tasks, and one table of who solves what, at which lengths."""
