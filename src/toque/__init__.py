"""toque tells software what happens to telephone calls."""

__version__ = "0.1.0"
