from __future__ import annotations

from hypothesis import HealthCheck, settings

# Times vary with the machine, not with the code; the first call of a test loads the vocabulary.
settings.register_profile("suite", deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
