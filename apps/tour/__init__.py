"""The tour: what `make demo` runs."""
