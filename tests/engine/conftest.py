"""Property tests try the same examples in every run, and a busy machine does not fail them."""

from hypothesis import settings

settings.register_profile("fastpath", deadline=None, derandomize=True)
settings.load_profile("fastpath")
