"""nbval starts its kernels from here: the same environment in which papermill ran the chapters."""

import os

from saecore.chapter import environment

os.environ.update(environment("smoke"))
