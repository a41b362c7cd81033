"""Measurements and studies, which are run from a checkout and are no part of the wheel."""
