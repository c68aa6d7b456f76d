"""What chapters need (a profile, glued numbers) and what keeps them true (the driver, the rules, the values).

A chapter imports `setup`, `glue` and `glue_all` from here; the other modules serve commands and tests.
"""

from saecore.chapter.live import PROFILES, Profile, environment, glue, glue_all, setup

__all__ = ["PROFILES", "Profile", "environment", "glue", "glue_all", "setup"]
