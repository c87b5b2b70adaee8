"""Tests, as a package of their own: some releases of MONAI install another one of this name."""
