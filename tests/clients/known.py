"""Defects that are known and not mended yet."""

import pytest


def defect(reason):
    """Marks a test that fails for a known reason; once it passes, this mark has to go."""
    return pytest.mark.xfail(strict=True, raises=Exception, reason=reason)
