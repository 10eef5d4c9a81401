"""The checks of `toque doctor`."""
